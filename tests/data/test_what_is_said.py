"""The command line says what it read: samples, classes in their order, and what was passed over."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from equipoise.cli import main
from equipoise.results.records import Run, load


def test_training_and_evaluation_say_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("2", "10"):
            folder = tmp_path / "mine" / split / label
            folder.mkdir(parents=True)
            for i in range(12):
                Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "mine" / "train" / "notes.txt").write_text("")
    (tmp_path / "mine" / "train" / "2" / "gone.png").symlink_to("nowhere")
    words = ["--valid-steps", "1", "--evaluate-examples", "0", "--device", "cpu"]
    assert main(["train", "standard", "--data", "mine", "--net", "mlp", "--epochs", "1", "--out", "run", *words]) == 0
    trained = capsys.readouterr()
    main(["evaluate", "run", "--attacks", "fgsm", "--device", "cpu"])
    for said in (trained, capsys.readouterr()):
        text = re.sub(r"\s+", " ", said.out)
        assert "mine: 24 training and 24 test images of shape 3 x 4 x 4; 2 classes, in this order: 2, 10" in text
        assert "the classes are in the order of their numbers" in text
        assert "1 passed over: 1 .txt file (train/notes.txt)" in text
        assert "1 not read: 1 broken link (train/2/gone.png)" in text
        assert "broken link" in said.err
    kept = load(Path("run", "run.json"))
    assert isinstance(kept, Run) and any(note.startswith("1 passed over: 1 .txt file") for note in kept.data["notes"])
