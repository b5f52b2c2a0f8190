"""The folder of a run: nothing in it is lost, and its weights are those that its record names."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from equipoise import methods, nets
from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.core.locks import locked
from equipoise.data import Dataset, Split
from equipoise.report import report
from equipoise.results.records import Run, load
from equipoise.training import Progress, Recipe, fit, load_run, load_weights

pytestmark = pytest.mark.filterwarnings("ignore:.*no better than chance:equipoise.core.errors.EquipoiseWarning")
FAST = Recipe(epochs=2, batch_size=20, lr=0.1, validation=0.25, valid_steps=1)


def data() -> Dataset:
    x = torch.rand(80, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0.5).long()
    return Dataset("halves", Split(x, y), Split(x[:40], y[:40]), ("low", "high"), "2" * 64)


def train(out: Path, recipe: Recipe = FAST, seed: int = 0, **more: object) -> Run:
    net = nets.build("mlp", (6,), 2, seed=seed, widths=(8,))
    return fit(methods.standard(), net, data(), recipe, out=out, **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Ended(Exception):
    """What ends a training."""


def ends_at(epoch: int, step: int) -> object:
    def progress(now: Progress) -> None:
        if now.metrics is None and (now.epoch, now.step) == (epoch, step):
            raise Ended

    return progress


def test_a_run_is_replaced_when_the_new_one_has_a_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, dataclasses.replace(FAST, tensorboard=True))
    notes = {"my.safetensors": b"mine", "evaluation-notes.json": b'{"kind": "notes"}', "tensorboard/mine": b"mine"}
    for name, content in notes.items():
        (out / name).write_bytes(content)
    before = contents(out)
    other = dataclasses.replace(FAST, seed=1)
    with pytest.raises(Ended):  # before the first epoch is over: nothing of the new run would be left
        train(out, other, overwrite=True, progress=ends_at(1, 2))
    assert contents(out) == before
    with pytest.raises(Ended):
        train(out, other, overwrite=True, progress=ends_at(2, 1))
    run = load(out / "run.json")
    assert isinstance(run, Run) and run.recipe["seed"] == 1 and run.last["epoch"] == 1
    assert {name: (out / name).read_bytes() for name in notes} == notes
    assert not [name for name in contents(out) if "replac" in name or "tfevents" in name]
    train(out, other, resume=True)
    train(tmp_path / "alone", other)
    assert (out / "last.safetensors").read_bytes() == (tmp_path / "alone" / "last.safetensors").read_bytes()


def test_a_refused_command_and_a_kill_lose_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out)
    before = contents(out)
    with pytest.raises(EquipoiseError, match=r"share batches of 1|devices = 400"):
        train(out, dataclasses.replace(FAST, devices=400), overwrite=True)
    with pytest.raises(EquipoiseError, match="exclude each other"):
        train(out, overwrite=True, resume=True)
    with pytest.raises(EquipoiseError, match="has 3 classes, halves has 2"):
        fit(methods.standard(), nets.build("mlp", (6,), 3), data(), FAST, out=out, overwrite=True)
    assert contents(out) == before
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_run_folder import *\n"
        f"train(Path({str(out)!r}), dataclasses.replace(FAST, seed=1), overwrite=True, progress=lambda _: os._exit(9))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 9
    assert load(out / "run.json").recipe["seed"] == 1  # the new run, at its first step
    with pytest.raises(Ended):
        train(out, overwrite=True, progress=ends_at(1, 1))
    assert contents(out) == before


def test_records_of_a_replaced_run_go_with_it(tmp_path: Path) -> None:
    from equipoise.evaluation import evaluate_run

    out = tmp_path / "run"
    train(out)
    evaluate_run(out, data(), eps=(0.1,), attacks=("fgsm",), examples=10)
    (out / "evaluation.json").rename(out / "evaluation-fgsm-linf.json")
    train(out, overwrite=True, seed=1)
    assert not list(out.glob("evaluation*.json"))


@pytest.mark.parametrize("which", ["best", "last"])
def test_weights_that_are_not_those_of_the_run_are_refused(which: str, tmp_path: Path) -> None:
    train(tmp_path / "run")
    train(tmp_path / "other", seed=1)
    name = f"{which}.safetensors"
    (tmp_path / "run" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    for refused in (
        lambda: load_run(tmp_path / "run", which),
        lambda: report([tmp_path / "run"], tmp_path / "report.html"),
    ):
        with pytest.raises(EquipoiseError, match=rf"{name} is not the file that .*run.json names"):
            refused()
    with pytest.raises(EquipoiseError, match=rf"{name} is not the file that the run wrote: move it away"):
        train(tmp_path / "run", overwrite=True)


def test_a_folder_that_is_in_use_or_holds_something_else_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(EquipoiseError, match="run is in use by process"):
        train(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "best.safetensors").write_bytes(b"mine")
    with pytest.raises(EquipoiseError, match=r"mine holds best\.safetensors but no run\.json, so no run wrote"):
        train(tmp_path / "mine")
    with pytest.raises(EquipoiseError, match="out is empty"):
        fit(methods.standard(), nets.build("mlp", (6,), 2), data(), FAST, out="")
    (tmp_path / "file").touch()
    with pytest.raises(EquipoiseError, match="file is a file: expected a directory"):
        train(tmp_path / "file")
    assert (tmp_path / "mine" / "best.safetensors").read_bytes() == b"mine"


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    train(tmp_path / "run")
    left = [".last.safetensors.123.tmp", ".run.json.7.tmp"]
    for name in [*left, ".mine.txt.123.tmp"]:
        (tmp_path / "run" / name).touch()
    train(tmp_path / "run", resume=True)
    assert [p.name for p in (tmp_path / "run").glob(".*")] == [".mine.txt.123.tmp"]


def test_tensorboard_has_one_file_of_each_sitting(tmp_path: Path) -> None:
    recipe = dataclasses.replace(FAST, epochs=3, tensorboard=True)
    train(tmp_path / "run", recipe)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_more_epochs_and_another_patience_are_the_longer_run(tmp_path: Path) -> None:
    train(tmp_path / "run", dataclasses.replace(FAST, epochs=3, ema=0.9))
    longer = dataclasses.replace(FAST, epochs=5, ema=0.9, patience=50)
    resumed = train(tmp_path / "run", longer, resume=True)
    whole = train(tmp_path / "whole", longer)
    assert resumed.status == "finished" and resumed.recipe["epochs"] == 5
    for name in ("last.safetensors", "best.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert resumed.weights == whole.weights
    with pytest.raises(EquipoiseError, match="it has seen 5 epochs, more than epochs = 4"):
        train(tmp_path / "run", dataclasses.replace(longer, epochs=4), resume=True)


def test_a_schedule_over_all_epochs_is_not_lengthened_without_a_word(tmp_path: Path) -> None:
    recipe = dataclasses.replace(FAST, schedule="triangular")
    train(tmp_path / "run", recipe)
    with pytest.warns(EquipoiseWarning, match="going on with 4 instead of 2 is not the same as 4 from the start"):
        train(tmp_path / "run", dataclasses.replace(recipe, epochs=4), resume=True)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("seed", 3, r"it was started with seed = 0, not 3; give"),
        ("valid_eps", 0.2, r"it was started with valid_eps = None, not 0.2; give"),
        ("batch_size", 10, r"it was started with batch_size = 20, not 10; give"),
    ],
)
def test_a_refused_resumption_names_what_differs(field: str, value: object, told: str, tmp_path: Path) -> None:
    train(tmp_path / "run")
    with pytest.raises(EquipoiseError, match=told):
        train(
            tmp_path / "run",
            dataclasses.replace(FAST, **{field: value}),
            seed=value if field == "seed" else 0,
            resume=True,
        )


def test_a_record_without_a_new_field_is_of_its_default(tmp_path: Path) -> None:
    train(tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    record = json.loads(file.read_text())
    for field in ("decay", "milestones"):
        del record["recipe"][field]
    file.write_text(json.dumps(record))
    assert train(tmp_path / "run", dataclasses.replace(FAST, epochs=3), resume=True).status == "finished"
    with pytest.raises(EquipoiseError, match=r"it was started with decay = 0.1, not 0.3; give"):
        file.write_text(json.dumps(record))
        train(tmp_path / "run", dataclasses.replace(FAST, epochs=3, decay=0.3), resume=True)


def test_weights_of_other_programs(tmp_path: Path) -> None:
    net, again = nn.Sequential(nn.Linear(6, 2)), nn.Sequential(nn.Linear(6, 2))
    x = data().test.x
    files = {
        "plain.pt": net.state_dict(),
        "parallel.pth": {f"module.{k}": v for k, v in net.state_dict().items()},
        "nested.ckpt": {"epoch": 3, "state_dict": {f"module._orig_mod.{k}": v for k, v in net.state_dict().items()}},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        again[0].reset_parameters()
        load_weights(again, tmp_path / name)
        assert again(x).equal(net(x)), name
    torch.save(net, tmp_path / "whole.pt")
    with pytest.raises(EquipoiseError, match="no file of plain weights") as refused:
        load_weights(again, tmp_path / "whole.pt")
    convert = [line.strip() for line in str(refused.value).splitlines()[1:]]
    assert len(convert) == 2
    exec("\n".join(convert), {"torch": torch})  # what the message says to do
    load_weights(again, tmp_path / "whole.weights.pt")
    assert again(x).equal(net(x))
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(EquipoiseError, match="holds no weights"):
        load_weights(again, tmp_path / "none.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "plain.pt").read_bytes()[:100])
    with pytest.raises(EquipoiseError, match=r"cut\.pt"):
        load_weights(again, tmp_path / "cut.pt")


def test_json_of_a_run_names_the_hashes(tmp_path: Path) -> None:
    import hashlib

    train(tmp_path / "run")
    named = json.loads((tmp_path / "run" / "run.json").read_text())["weights"]
    assert named == {
        name: hashlib.sha256((tmp_path / "run" / name).read_bytes()).hexdigest()
        for name in ("best.safetensors", "last.safetensors")
    }
    assert os.listdir(tmp_path) == ["run"]
