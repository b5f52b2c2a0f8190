"""Methods on the data manifold from the command line: trained first, kept in the run, reused, continued, refused."""

import io

import numpy as np
import pytest
from PIL import Image

from equipoise.cli import main
from equipoise.cli.manifolds import tiled
from equipoise.results.records import load
from equipoise.training import load_manifold
from equipoise.training.checkpoint import load_tensors

TINY = ["--data", "digits", "--examples", "300", "--epochs", "1", "--batch-size", "64", "--evaluate-examples", "0"]
LEARN = ["--manifold-epochs", "2", "--code-dim", "4"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*words: str) -> int:
    return main(["train", *words, *TINY])


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_r4_learns_the_manifold_and_on_manifold_reuses_it(here, capsys):
    assert train("r4", "--samples", "3", *LEARN, "--out", "runs/r4") == 0
    said = capsys.readouterr().out
    assert "manifold: 4 numbers a code, squared error " in said and "kept as runs/r4/manifold.safetensors" in said
    run, manifold = load("runs/r4/run.json"), load_manifold("runs/r4")
    assert run.status == "finished" and run.method["manifold"] == str(manifold)
    assert (run.method["name"], run.method["samples"], run.method["sigma"]) == ("r4", 3, 0.06)
    assert load_tensors(here / "runs/r4/manifold.safetensors")[1]["how"]["net"]["codes"] == 4
    with Image.open("runs/r4/manifold.png") as picture:
        assert picture.size == (8 * (56 + 2), 8 * (56 + 2)), "input, reconstruction and six samples of eight inputs"
    ball = ["--eps", "0.3", "--steps", "2", "--step-size", "0.2"]
    assert train("on-manifold", *ball, "--manifold", "runs/r4", "--out", "runs/on") == 0
    assert contents(here / "runs/on")["manifold.safetensors"] == contents(here / "runs/r4")["manifold.safetensors"]
    assert load("runs/on/run.json").method["manifold"] == str(manifold)
    assert "manifold:" not in capsys.readouterr().out


def test_hein_trains(here):
    assert train("hein", "--weight", "0.001", "--out", "runs/hein") == 0
    assert load("runs/hein/run.json").method["weight"] == 0.001


def test_a_run_that_is_continued_has_the_same_manifold_and_result(here, monkeypatch, capsys):
    """Stopped while the manifold is trained, the same command begins again where it was; so does --resume."""
    words = ["r4", "--samples", "2", *LEARN]
    assert train(*words, "--out", "whole") == 0
    from equipoise.training import manifold

    epoch, count = manifold._epoch, 0

    def stops(*arguments):
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return epoch(*arguments)

    monkeypatch.setattr(manifold, "_epoch", stops)
    assert train(*words, "--out", "stopped") == 130
    assert "--resume" in capsys.readouterr().err and not (here / "stopped/run.json").exists()
    monkeypatch.setattr(manifold, "_epoch", epoch)
    assert train(*words, "--out", "stopped", "--resume") == 0
    for name in ("manifold.safetensors", "best.safetensors", "last.safetensors", "manifold.png"):
        assert contents(here / "stopped")[name] == contents(here / "whole")[name], name
    assert train(*words, "--out", "stopped", "--resume") == 0, "what is finished stays so"
    assert train(*words, "--out", "stopped", "--overwrite") == 0
    assert contents(here / "stopped")["last.safetensors"] == contents(here / "whole")["last.safetensors"]


def test_bad_manifolds_are_refused_before_anything_is_written(here, capsys):
    assert train("r4", "--samples", "2", *LEARN, "--out", "first") == 0
    np.savez("flat.npz", x_train=np.eye(4), y_train=[0, 1, 0, 1], x_test=np.eye(4), y_test=[0, 1, 0, 1])
    before = sorted(here.rglob("*"))
    for words, message in (
        ("r4 --manifold nowhere.safetensors", "cannot read nowhere.safetensors"),
        ("r4 --manifold first/last.safetensors", "is not the file of a manifold"),
        ("r4 --samples 0", "samples = 0: expected an integer"),
        ("r4 --manifold first --data flat.npz", "this manifold is one of inputs of shape (1, 8, 8), got"),
        ("on-manifold --eps -1", "eps = -1.0 is not a radius"),
        ("hein --random-directions -2", "directions = -2"),
        ("r4 --manifold-epochs 0 --out other", "epochs = 0 is out of range"),
    ):
        capsys.readouterr()
        assert main(["train", *words.split(), *(TINY if "--data" not in words else [])]) == 2, words
        assert message in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before
    assert train("r4", *LEARN, "--seed", "1", "--out", "second") == 0
    assert train("r4", "--manifold", "first", "--out", "second", "--resume") == 2
    assert "second/manifold.safetensors is another manifold than --manifold first" in capsys.readouterr().err


def test_images_side_by_side():
    images = np.random.default_rng(0).random((2, 3, 3, 40, 50))
    with Image.open(io.BytesIO(tiled(images))) as picture:
        sheet = np.asarray(picture)
    assert sheet.shape == (2 * 42, 3 * 52, 3)
    expected = np.rint(255 * images[1, 2].transpose(1, 2, 0))
    assert np.array_equal(sheet[42:82, 104:154], expected) and (sheet[40:42] == 255).all()
