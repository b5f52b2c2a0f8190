"""`equipoise train ibp` and `equipoise evaluate --certified`, from the command line to the report."""

import pytest

from equipoise.cli import main
from equipoise.cli.method_options import build_method
from equipoise.cli.parsing import parse
from equipoise.losses import Bounds, WarmedUp
from equipoise.results.records import Evaluation, load

TRAIN = ["--data", "digits", "--eps", "0.02", "--epochs", "2", "--widths", "32", "--evaluate-examples", "0"]


def test_from_training_to_the_report(tmp_path, capsys):
    run, record = str(tmp_path / "ibp"), tmp_path / "r.json"
    assert main(["train", "ibp", *TRAIN, "--out", run]) == 0
    words = ["evaluate", run, "--attacks", "fgsm", "pgd", "--eps", "0.01", "0.02", "--certified", "crown-ibp"]
    assert main([*words, "--examples", "60", "--out", str(record)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("certified (crown-ibp)") == 2 and "flag: certified" not in shown
    assert shown.index("pgd") < shown.index("worst case") < shown.index("certified (crown-ibp)") < shown.rindex("fgsm")
    evaluation = load(record)
    trained = load(tmp_path / "ibp" / "run.json")
    assert (trained.recipe["valid_eps"], trained.recipe["valid_norm"]) == (0.02, "linf")
    assert isinstance(evaluation, Evaluation) and [proof.eps for proof in evaluation.certified] == [0.01, 0.02]
    assert main(["verify", str(record)]) == 0
    assert main(["report", str(record), "--out", str(tmp_path / "r.html")]) == 0
    assert "Certified accuracy" in (tmp_path / "r.html").read_text()
    capsys.readouterr()
    assert main([*words[:-1], "ibp", "--examples", "60", "--out", str(record)]) == 2
    assert "certified" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "linear", "weights"),
    [
        (["ibp", "--kappa", "0.25"], (0.0, 0.0), (0.25, 0.75)),
        (["crown-ibp", "--linear", "0.5"], (1.0, 0.5), (0.5, 0.5)),
        (["mtl-ibp", "--alpha", "0.2", "--steps", "3"], (0.0, 0.0), (0.8, 0.2)),
    ],
)
def test_methods_are_as_typed(words, linear, weights):
    method = build_method(parse(["train", *words, "--eps", "0.3", "--warmup", "0.1", "0.4"]).method)
    first, worst = method.terms
    assert isinstance(first, WarmedUp) and isinstance(worst, WarmedUp) and isinstance(worst.at, Bounds)
    assert worst.at.linear == linear and worst.at.geometry.eps == 0.3 and worst.warmup == first.warmup == (0.1, 0.4)
    assert (first.weight, worst.weight) == pytest.approx(weights)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "ibp", *TRAIN, "--warmup", "0.5"], "expected its beginning and its end"),
        (["train", "ibp", *TRAIN, "--members", "2"], "cannot bound a Ensemble"),
        (["train", "ibp", *TRAIN, "--also", "l2:0.5"], "it is evaluated at bounds"),
        (["train", "pgd", "--eps", "0..0.1", "--data", "digits", "--adaptive-eps"], "give --eps as one number"),
        (["train", "mtl-ibp", *TRAIN, "--alpha", "2"], "alpha = 2.0: expected a share"),
    ],
)
def test_refuses_in_a_sentence(words, message, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run" / "run.json").exists()
