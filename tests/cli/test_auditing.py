"""The audit command, and attacks transferred from other runs."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from equipoise.cli import main
from equipoise.results.records import Evaluation, load

pytestmark = pytest.mark.unchecked


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(out: str, method: str = "standard", *more: str, epochs: int = 2) -> None:
    words = f"train {method} --epochs {epochs} --examples 300 --evaluate-examples 0 --out {out}".split()
    assert main([*words, *more]) == 0


def test_an_audit_is_a_page_and_a_record(here, capsys):
    train("a", "pat-entm", "--eps", "0.1", "--steps", "3", epochs=12)
    train("b")
    assert (
        main(["audit", "a", "--eps", "0.1", "--time-budget", "0.01", "--transfer-from", "b", "--out", "audit.html"])
        == 0
    )
    out = capsys.readouterr().out
    assert "transfer beats white box" in out and "wrote audit.html and audit.json" in out
    record = json.loads((here / "audit.json").read_text())
    assert record["kind"] == "masking" and record["target"] == "a" and len(record["signs"]) >= 11
    assert record["provenance"]["command"].startswith("equipoise audit a") and record["verdict"] in out.replace(
        "\n", " "
    )
    assert record["data"]["name"] == "digits" and record["settings"]["proxy"] == "b"
    assert record["model"]["weights"] == "best" and len(record["model"]["sha256"]) == 64
    eps, steps = (curve["x"] for curve in record["curves"])
    assert 0.1 in eps and steps == [5, 10, 20, 40, 80, 160]
    first = record["curves"][1]["series"][0]
    assert all(low <= y <= high for low, y, high in zip(first["low"], first["y"], first["high"], strict=True))
    page = (here / "audit.html").read_text()
    assert "<svg" in page and record["model"]["sha256"][:16] in page and "digits, 359 test samples" in page
    words = ["audit", "a", "--eps", "0.1", "--time-budget", "0.01", "--out", "audit.html"]
    assert main([*words, "--transfer-from", "b"]) == 0
    assert "finished before: audit.html and audit.json" in capsys.readouterr().out
    assert "--transfer-from" not in out
    assert main(words) == 2
    assert "audit.json already holds another result (--transfer-from: b before, absent now)" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    capsys.readouterr()
    for command in ("verify", "report"):
        assert main([command, "audit.json"]) == 2
        said = capsys.readouterr().err
        assert "audit.json is not the record of a run, of an evaluation or of scores: its kind is 'masking'." in said


def test_attacks_made_on_another_run_are_judged_here_and_verified(here, capsys):
    train("a", "pgd", "--eps", "0.1", "--steps", "3")
    train("b")
    words = "evaluate a --attacks pgd5 cw5 random-search50 --eps 0.1 0.2 --examples 40 --transfer-from b --out e.json"
    assert main(words.split()) == 0
    record = load(here / "e.json")
    assert isinstance(record, Evaluation)
    names = {r.attack for r in record.results if r.eps == 0.1}
    assert names == {"pgd5", "cw5", "random-search50", "pgd5 from b", "cw5 from b", "worst case"}
    moved = next(r for r in record.results if r.attack == "pgd5 from b")
    assert moved.settings["proxy"]["name"] == "b" and len(moved.settings["proxy"]["sha256"]) == 64
    assert main(["verify", "e.json"]) == 0
    assert main(["report", "a", "b", "e.json", "--out", "r.html"]) == 0
    assert "pgd5 from b" in (here / "r.html").read_text().lower().replace("pgd-5", "pgd5")


MODELS = """
from torch import nn

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(64, 10)

    def forward(self, x):
        return self.net(x.flatten(1))

class Rounded(Plain):
    def forward(self, x):
        return super().forward((x > 0.5).float())
"""


@pytest.mark.parametrize(("name", "code"), [("Rounded", 3), ("Plain", 4)])
def test_the_exit_code_is_the_verdict(name, code, here, capsys, monkeypatch):
    """3 where the model is masked, with a warning beside the accuracy that is left; 4 with too few samples to tell."""
    monkeypatch.syspath_prepend(here)
    (here / "own_models.py").write_text(MODELS)
    labels = np.arange(60) % 10
    ink = np.kron(np.eye(10, dtype=np.float32), np.ones(6, dtype=np.float32))  # six pixels for each class
    noise = np.random.default_rng(0).random((60, 64)).astype(np.float32)
    images = 0.4 * noise + np.pad(0.5 * ink, ((0, 0), (0, 4)))[labels]
    save_file(
        {"net.weight": torch.from_numpy(np.pad(ink, ((0, 0), (0, 4)))), "net.bias": torch.zeros(10)}, "w.safetensors"
    )
    images = images.reshape(60, 8, 8)
    np.savez(here / "d.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    options = ["--data", "d.npz", "--checkpoint", "w.safetensors", "--eps", "0.01", "--time-budget", "0.01"]
    assert main(["audit", f"own_models:{name}", *options]) == code
    out, page = capsys.readouterr().out.replace("\n", " "), (here / "audit.html").read_text()
    assert json.loads((here / "audit.json").read_text())["masked"] == (code == 3)
    if code == 3:
        assert "which is not to be believed." in out and "accuracy 100.0% without an attack" in out
        assert "masked: " in out and "is no robust accuracy" in out and "is no robust accuracy" in page
    else:
        assert (
            "which is not to be believed" not in out and "name another run on the same data with --transfer-from" in out
        )
        assert "too few samples to tell" in out and "Too few samples to tell" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("audit nowhere --eps 0.1", "nowhere"),
        ("audit a --eps 0.1 --out .", "--out . is a directory"),
        ("audit a --eps 0.1 --out audit.txt", "expected a file that ends in .html"),
        (
            "audit a --eps 0.1 --out a/run.html",
            "--out a/run.html would replace a/run.json, which is no record of an audit",
        ),
        ("audit a --eps 0.1 --out a/run.json/audit.html", "cannot write into a/run.json: "),
        ("audit a --norm l2", "--norm l2: the run's own radius is of another norm (linf), so give one with --eps"),
        ("audit mlp --data digits", "give the radius at which the model is said to be robust, with --eps"),
        ("audit a --eps 0 --time-budget 0.01", "give the radius at which the model is said to be robust"),
        ("audit a --batch-size 0", "--batch-size = 0: expected an integer >= 1"),
        ("audit a --time-budget 0", "--time-budget 0.0: expected a number > 0"),
        ("audit a --eps 0.1 --transfer-from nowhere", "nowhere is not a run directory"),
        ("evaluate a --attacks random-search50 --eps 0.1 --transfer-from a", "needs an attack that asks for gradients"),
    ],
)
def test_what_cannot_be_audited_is_refused(words, message, here, capsys):
    train("a")
    capsys.readouterr()
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
    assert not list(here.glob("audit*"))
