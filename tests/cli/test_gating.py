"""What `evaluate` gives to continuous integration, and `train --config`."""

import io
import json
import xml.etree.ElementTree as xml
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from equipoise.cli import main
from equipoise.cli.parsing import parse
from equipoise.cli.requests import Train
from equipoise.cli.resuming import continued
from equipoise.evaluation import read_points
from equipoise.report.continuous_integration import junit, sarif
from equipoise.results.provenance import provenance
from equipoise.results.records import AttackRecord, Evaluation, ResultWarning, load

pytestmark = pytest.mark.unchecked
EVALUATE = ["evaluate", "digits/udp-0.15", "--attacks", "fgsm", "--eps", "0.1", "0.2", "--examples", "60"]
EVALUATE += ["--out", "r.json"]


def test_a_robust_accuracy_below_the_gate_fails_the_build(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    outputs = ["--junit", "j.xml", "--sarif", "s.sarif", "--save-images", "images"]
    assert main([*EVALUATE, "--fail-under", "0.999", *outputs]) == 1
    assert "failed: fgsm, linf 0.2: accuracy" in capsys.readouterr().out
    record = load("r.json")
    assert isinstance(record, Evaluation)
    lowest = min(result.interval[0] for result in record.results[1:])
    assert main([*EVALUATE, "--fail-under", str(lowest - 1e-6)]) == 0
    assert "passed: fgsm, linf 0.2" in capsys.readouterr().out
    assert main([*EVALUATE, "--fail-under", str(lowest + 1e-6)]) == 1

    root = xml.parse("j.xml").getroot()
    assert root.tag == "testsuites" and root.get("tests") == "3" and root.get("failures") == "2"
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert set(cases) == {"clean", "fgsm, linf 0.1", "fgsm, linf 0.2"}
    assert cases["clean"].find("failure") is None and cases["fgsm, linf 0.1"].find("failure") is not None

    log = json.loads(Path("s.sarif").read_text())
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-2.1.0.json")
    (run,) = log["runs"]
    rules = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert run["tool"]["driver"]["name"] == "equipoise" and len(run["results"]) >= 2
    for result in run["results"]:
        assert result["ruleId"] in rules and result["message"]["text"] and result["level"] in ("error", "warning")
        (location,) = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"] == "r.json"

    points = read_points(Path("r.images.npz"))
    saved = {file.relative_to("images").as_posix(): file for file in Path("images").rglob("*.png")}
    assert len(saved) == sum(len(stored["rows"]) for stored in points) > 0
    row, label = int(points[1]["rows"][0]), record.results[0].prediction[int(points[1]["rows"][0])]
    file = saved[f"fgsm-linf-0.2/{row:05}-{label}-as-{record.results[2].prediction[row]}.png"]
    pixels = np.asarray(Image.open(file), float) / 255
    assert np.abs(pixels - points[1]["x"][0, 0]).max() <= 0.5 / 255 + 1e-6


def test_what_fits_no_xml_or_json_is_escaped():
    results = [AttackRecord(name, "linf", eps, [True, False]) for name, eps in (("clean", 0.0), ("<p&\x07>", 0.1))]
    flag = ResultWarning("masked", "a < b", "look & see")
    record = Evaluation("my\x00net", {}, results, provenance(0, "cpu"), flags=[flag])
    suite = xml.parse(io.BytesIO(junit(record, 0.5))).getroot()[0]
    assert suite.get("name") == "equipoise my\\x00net" and suite[1].get("name") == "<p&\\x07>, linf 0.1"
    assert suite.findtext("system-err") == str(flag)
    passed, doubt = sarif(record, Path("a/r.json"))["runs"][0]["results"]
    assert (passed["kind"], passed["level"]) == ("pass", "none")
    assert doubt["ruleId"] == "doubtful-result" and doubt["message"]["text"] == str(flag)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fail-under", "55"], "--fail-under 55.0: expected an accuracy in [0, 1]"),
        (["--junit", "j.xml", "--shard", "1/2"], "--junit is of a whole evaluation"),
        (["--save-images", "i", "--no-images"], "--save-images needs the images"),
        (["--save-images", "full"], "--save-images full is not an empty folder"),
        (["--sarif", "full"], "--sarif full is a directory"),
    ],
)
def test_refused_before_anything_is_evaluated(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/file").touch()
    assert main([*EVALUATE, *words]) == 2
    assert message in capsys.readouterr().err and not Path("r.json").exists()


def test_a_gate_needs_an_attack(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "evaluate digits/udp-0.15 --attacks clean --fail-under 0.5 --out r.json"
    assert main(words.split()) == 2 and "--fail-under is about robust accuracy" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_repeated_from_its_record(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = "--widths 8 --examples 100 --epochs 1 --valid-steps 1 --seed 3 --evaluate-examples 0"
    train = f"train udp --eps 0.1 --steps 1 {short}".split()
    assert main([*train, "--out", "a"]) == 0
    assert main(["train", "--config", "a/run.json", "--out", "b"]) == 0
    first, second = load("a/run.json"), load("b/run.json")
    assert first.weights == second.weights and first.recipe == second.recipe and first.words == second.words
    typed = continued(["train", "udp", "--config=a", "--seed", "4", "--out", "c"])
    third = parse(typed)
    assert isinstance(third, Train) and third.out == Path("c") and third.config is None
    assert (third.recipe.seed, third.recipe.epochs, third.method.eps) == (4, 1, 0.1)
    capsys.readouterr()
    assert main(["train", "pgd", "--config", "a", "--out", "d"]) == 2
    assert "a/run.json is of a run with method = udp, not pgd" in capsys.readouterr().err
    assert main(["train", "--config", "a", "--out", "b", "--resume"]) == 2
    assert "--config and --resume exclude each other" in capsys.readouterr().err
    assert main(["train", "--config", "nowhere.json"]) == 2 and "cannot read nowhere.json" in capsys.readouterr().err
