"""`equipoise score` as a user types it."""

import json
import math

import numpy as np
import pytest

from equipoise.cli import main
from equipoise.data import load
from equipoise.generators import auto_encoder
from equipoise.training import Recipe, fit_manifold

pytestmark = pytest.mark.unchecked


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A trained run on digits, and a module with scores of one's own."""
    folder = tmp_path_factory.mktemp("scores")
    words = "train standard --data digits --net mlp --widths 16 --epochs 2 --evaluate-examples 0 --out"
    assert main([*words.split(), str(folder / "run")]) == 0
    (folder / "my_scores_of_digits.py").write_text(
        "from equipoise.scores import Radii, Sampled, Score, UniformOnBall, identity\n"
        "def average(shape):\n"
        "    return Score(Sampled(UniformOnBall('linf', 4)), Radii(0.3, count=4), H=identity, name='mine')\n"
        "fixed = average(None)\n"
        "number = 3\n"
        "def broken(shape):\n"
        "    raise RuntimeError('no such score today')\n"
    )
    return folder


@pytest.fixture(autouse=True)
def _inside(here, monkeypatch):
    monkeypatch.chdir(here)


def test_r2_writes_a_record_and_a_page(here, capsys):
    words = "score run --score r2 --examples 12 --certified --batch-size 5 --out r2.json"
    assert main(words.split()) == 0
    record = json.loads((here / "r2.json").read_text())
    r2, below = record["scores"]["r2"], record["scores"]["certified"]
    values = np.array(r2["samples"]["values"])
    assert r2["n"] == len(values) == 12 and r2["value"] == pytest.approx(values.mean())
    assert r2["standard_error"] == pytest.approx(values.std(ddof=1) / math.sqrt(12))
    assert (np.array(below["samples"]["values"]) <= values + 1e-6).all() and 0 < below["value"] < r2["value"]
    assert sum(r2["won"].values()) == pytest.approx(1) and set(r2["won"]) >= {"fgsm", "pgd", "bg"}
    assert record["data"]["n"] == 12 and record["provenance"]["command"].endswith("r2.json")
    page = (here / "r2.html").read_text()
    assert (
        "margin curve" in page
        and "the nearest points found" in page
        and "http" not in page.replace("http://www.w3", "")
    )
    assert "equipoise score" in page and "r2.json" in page and "study" not in page and "the paper" not in page
    low, high = (np.array(end) for end in r2["curve"]["interval"])
    assert (low <= np.array(r2["curve"]["value"])).all() and (np.array(r2["curve"]["value"]) <= high).all()
    assert "R2" in capsys.readouterr().out


def test_r4_along_a_manifold_with_either_radii(here):
    data = load("digits")
    fit_manifold(auto_encoder(data.shape, 4, 4), data, Recipe(epochs=1), out=here / "manifold.safetensors")
    words = "score run --score r4 --examples 8 --samples 20 --sigma 0.5 --manifold manifold.safetensors --out r4.json"
    words += " --overwrite"  # the second takes the place of the first
    found = {}
    for radii in ("uniform", "distances"):
        assert main([*words.split(), "--radii", radii]) == 0
        found[radii] = json.loads((here / "r4.json").read_text())["scores"]["r4"]
    assert found["uniform"]["settings"]["radii"]["count"] == 200
    assert found["distances"]["settings"]["radii"] == {"kind": "distances"}
    assert {f["settings"]["samples"] for f in found.values()} == {20}
    assert {f["settings"]["sigma"] for f in found.values()} == {0.5}
    assert len(found["distances"]["curve"]["eps"]) == 20 and found["distances"]["value"] != found["uniform"]["value"]
    assert main(["score", "run", "--score", "manifold", *words.split()[4:]]) == 0


def test_robust_accuracy_as_a_bracket(here):
    """The curves of the label-aware scores are accuracies over eps, 0 where the prediction is wrong."""
    assert main(["score", "run", "--score", "label-aware", "--certified", "--examples", "40", "--out", "b.json"]) == 0
    found = json.loads((here / "b.json").read_text())["scores"]
    attacked, below = (np.array(found[name]["samples"]["values"]) for name in ("label-aware", "certified"))
    assert (below <= attacked + 1e-6).all() and 0 < below.mean() < attacked.mean()
    assert ((below == 0) == (attacked == 0)).all() and (below == 0).any()


def test_a_looser_certificate_is_said_to_be_one(here):
    assert main(["score", "run", "--examples", "12", "--certified", "--certificate", "ibp", "--out", "ibp.json"]) == 0
    loose = json.loads((here / "ibp.json").read_text())["scores"]["certified"]
    assert main(["score", "run", "--examples", "12", "--certified", "--out", "crown.json"]) == 0
    tight = json.loads((here / "crown.json").read_text())["scores"]["certified"]
    assert loose["settings"]["method"] == "ibp" and tight["settings"]["method"] == "crown"
    assert (np.array(loose["samples"]["values"]) <= np.array(tight["samples"]["values"])).all()
    assert 0 < loose["value"] < tight["value"]


def test_the_result_does_not_depend_on_batches(here):
    for size in (3, 12):
        assert main(f"score run --score label-aware --examples 12 --batch-size {size} --out l{size}.json".split()) == 0
    three, twelve = (json.loads((here / f"l{size}.json").read_text())["scores"]["label-aware"] for size in (3, 12))
    assert np.allclose(three["samples"]["values"], twelve["samples"]["values"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["average", "fixed"])
def test_a_score_of_ones_own(here, name):
    assert main(f"score run --score my_scores_of_digits:{name} --examples 10 --out {name}.json".split()) == 0
    found = json.loads((here / f"{name}.json").read_text())["scores"]["mine"]
    assert 0 < found["value"] <= 0.3 and found["settings"]["H"] == "identity" and len(found["curve"]["eps"]) == 4


def test_r1_looks_at_noise_and_its_record_is_not_replaced_unasked(here, capsys):
    words = ["score", "run", "--score", "r1", "--examples", "6", "--out", "r1.json"]
    assert main(words) == 0
    content = (here / "r1.json").read_bytes()
    value = json.loads(content)["scores"]["r1"]["value"]
    assert value > 0
    capsys.readouterr()
    assert main([*words, "--batch-size", "3"]) == 0
    out = capsys.readouterr().out
    assert f"r1 is {value:.4g}" in out and "finished before: r1.json" in out
    page = (here / "r1.html").read_bytes()
    (here / "r1.html").unlink()  # as a kill between the two leaves it
    assert main(words) == 0 and "finished before" not in capsys.readouterr().out
    assert (here / "r1.html").stat().st_size == len(page)
    content = (here / "r1.json").read_bytes()
    assert json.loads(content)["scores"]["r1"]["value"] == value
    for more, told in (("--seed 1", "--seed: 0 before, 1 now"), ("--norm linf", "--norm: l2 before, linf now")):
        assert main([*words, *more.split()]) == 2
        assert f"r1.json already holds another result ({told}" in capsys.readouterr().err
    assert (here / "r1.json").read_bytes() == content
    assert main([*words, "--seed", "1", "--overwrite"]) == 0
    assert (here / "r1.json").read_bytes() != content
    (here / "notes.html").write_text("mine")
    assert main([*words[:-1], "notes.json"]) == 2
    assert "notes.html exists, and does not say which request it answers" in capsys.readouterr().err


def test_refuses_to_certify_an_ensemble_before_anything_is_computed(here, capsys):
    words = "train standard --data digits --net mlp --widths 8 --members 2 --epochs 1 --evaluate-examples 0 --out two"
    assert main(words.split()) == 0
    capsys.readouterr()
    assert main(["score", "two", "--certified", "--examples", "5"]) == 2
    said = capsys.readouterr()
    assert "cannot bound a Ensemble" in said.err and said.err.count("\n") == 1 and "R2" not in said.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--score r3", "unknown score 'r3'"),
        ("--score r4", "--score r4 needs the manifold of the data"),
        ("--score r4 --manifold nowhere", "nowhere"),
        ("--score r1 --certified", "--certified bounds r2 and label-aware from below, not r1"),
        ("--score r2 --certificate ibp", "--certificate needs --certified"),
        ("--score r2 --manifold run", "--manifold is for r4 and manifold, not for r2"),
        ("--score r1 --samples 3", "--samples is for r4 and manifold, not for r1"),
        ("--score manifold --radii distances", "--radii is for r4, not for manifold"),
        ("--score my_scores_of_digits:fixed --sigma 1", "--sigma is for r4 and manifold, not for my_scores"),
        ("--score my_scores_of_digits:number", "is an int: expected an equipoise.scores.Score"),
        ("--score my_scores_of_digits:broken", "could not be made: RuntimeError: no such score today"),
        ("--score my_scores_of_digits:nothing", "has no 'nothing'"),
        ("--examples -1", "--examples = -1"),
        ("--batch-size 0", "--batch-size = 0"),
        ("--out run", "is a directory"),
        ("--out run/run.json/r.json", "cannot write into run/run.json: "),
        ("--out r2.html", "expected a file that ends in .json"),
    ],
)
def test_what_cannot_be_scored_is_refused(words, message, capsys):
    assert main(["score", "run", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.count("\n") == 1
