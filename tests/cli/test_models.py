"""The commands models and push, names of models in the other commands, and train --init."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import equipoise as eq
from equipoise.cli import main
from equipoise.pretrained import find, names, read
from equipoise.results.records import digest, load


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch, with the record of FGSM on its last weights."""
    folder = tmp_path_factory.mktemp("somewhere") / "run"
    assert main(f"train udp --eps 0.1 --steps 2 --epochs 1 --evaluate-examples 0 --out {folder}".split()) == 0
    evaluation = "--attacks fgsm --eps 0.1 --examples 60"
    record = folder / "fgsm.json"
    assert main(f"evaluate {folder} --weights last {evaluation} --out {record}".split()) == 0
    return folder


def _pushed(folder, *more):
    words = ["push", str(folder), "--weights", "last", "--evaluation", str(folder / "fgsm.json"), "--out", "hub", *more]
    return main(words)


def test_the_table_fits_and_names_every_model(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    lines = [next(line for line in out.splitlines() if f" {name} " in line) for name in names()]
    for name, line in zip(names(), lines, strict=True):
        (attacked,) = read(name).attacked
        assert f" {100 * attacked.accuracy:.1f} [{100 * attacked.interval[0]:.1f}, " in line and "linf 0.1" in line
        assert len(line) - max(map(len, names())) <= 80 - len("fashion-mnist/trades-0.2")


def test_a_wide_table_has_the_method(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["models"]) == 0
    assert "udp, linf 0.15" in capsys.readouterr().out
    assert main(["models", "--all"]) == 2


def test_the_table_needs_no_torch():
    code = "from equipoise.cli import main; main(['models']); import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False" and "digits/udp-0.15" in done.stdout


def test_a_name_is_evaluated_and_reported_and_the_package_stays_as_it_was(capsys):
    before = sorted(find("digits/udp-0.15").iterdir())
    assert main(["evaluate", "digits/udp-0.15", "--attacks", "fgsm", "--eps", "0.1", "--examples", "50"]) == 0
    (record,) = Path().glob("eval-digits-udp-0.15-*.json")
    assert load(record).target == "digits/udp-0.15" and load(record).weights == "given"
    assert main(["verify", str(record)]) == 0
    assert main(["report", "digits/udp-0.15", "digits/standard", "--out", "report.html"]) == 0
    assert "80." in Path("report.html").read_text() or "autoattack" in Path("report.html").read_text()
    assert sorted(find("digits/udp-0.15").iterdir()) == before
    capsys.readouterr()
    assert main(["evaluate", "digits/udp-0.16"]) == 2
    assert "come with equipoise: digits/udp-0.15" in capsys.readouterr().err


def test_training_starts_from_the_weights_of_a_model():
    words = ["train", "standard", "--epochs", "1", "--lr", "1e-9", "--evaluate-examples", "0"]
    assert main([*words, "--init", "digits/udp-0.15", "--out", "tuned"]) == 0
    assert main([*words, "--out", "new"]) == 0
    shipped, tuned, new = (eq.load(name)[0].state_dict() for name in ("digits/udp-0.15", "tuned", "new"))
    for name, tensor in shipped.items():
        assert torch.allclose(tuned[name], tensor, rtol=0, atol=1e-6) and not torch.allclose(new[name], tensor)
    record = json.loads(Path("tuned/run.json").read_text())["net"]["init"]
    assert record == {"from": "digits/udp-0.15", "sha256": read("digits/udp-0.15").evaluation.model["sha256"]}
    assert main([*words, "--init", "tuned", "--out", "further"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--widths 32", "its options are {}, this one's {'widths': [32]}"),
        ("--members 2", "its number of members is 1, this one's 2"),
        ("--normalize", "its standardisation is None, this one's"),
        ("--net small-cnn", "its name is mlp, this one's small-cnn"),
    ],
)
def test_another_network_is_refused(words, message, capsys):
    assert main(f"train standard --init digits/udp-0.15 {words} --out r".split()) == 2
    assert message in capsys.readouterr().err and not Path("r").exists()


def test_a_pushed_run_can_be_loaded_verified_and_evaluated_again(trained, capsys):
    assert _pushed(trained, "--license", "mit") == 0
    assert "nothing was sent" in capsys.readouterr().out
    ours, theirs = eq.load("hub")[0], eq.load(trained, "last")[0]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert main(["verify", "hub"]) == 0
    assert "claims inferred again" in capsys.readouterr().out
    model, before = read("hub"), load(trained / "fgsm.json")
    assert model.clean.correct == before.results[0].correct and model.name == "hub"
    again = model.evaluation.provenance.command.split()
    assert again == ["equipoise", "evaluate", "hub", "--attacks", "fgsm", "--eps", "0.1", "--examples", "60"]
    assert main([*again[1:], "--out", "again.json"]) == 0
    assert digest(load("again.json")) == digest(model.evaluation)
    card = Path("hub/README.md").read_text()
    assert digest(model.evaluation) in card and " ".join(again) in card
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["datasets"]) == ("mit", ["digits"]) and "udp" in front["tags"]
    for file in ("run.json", "README.md"):
        assert str(trained.parent) not in Path("hub", file).read_text()
    assert str(trained.parent) not in json.dumps(model.evaluation.provenance.options)


def test_what_push_refuses(trained, capsys):
    def refused(words):
        assert main(words.split()) == 2
        return capsys.readouterr().err

    record = trained / "fgsm.json"
    assert "is about other weights than" in refused(f"push digits/standard --evaluation {record} --out hub")
    assert "no evaluation" in refused(f"push {trained} --evaluation {trained / 'run.json'} --out hub")
    assert "cannot read" in refused(f"push {trained} --out hub")
    assert not Path("hub").exists()
    Path("hub").mkdir()
    Path("hub/README.md").write_text("mine")
    assert _pushed(trained) == 2 and "README.md exists already" in capsys.readouterr().err
    assert Path("hub/README.md").read_text() == "mine"
    assert _pushed(trained, "--overwrite") == 0 and _pushed(trained) == 0
    assert "published model already" in refused("push hub --evaluation hub/evaluation.json.gz --out other")
