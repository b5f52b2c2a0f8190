"""What `train` chooses where nothing is typed: as typed it would be the same, and each choice has its reason."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise.cli import main
from equipoise.cli.choices import with_choices
from equipoise.core.errors import EquipoiseError

pytestmark = pytest.mark.unchecked


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(name: str, shape: tuple[int, ...], n: int = 80, classes: int = 2, apart: float = 0.6) -> str:
    """Samples of classes whose means are `apart`, with little noise."""
    g = np.random.default_rng(0)
    y = np.arange(n) % classes
    x = 0.1 + apart * (y / max(classes - 1, 1)).reshape(-1, *[1] * len(shape)) + 0.02 * g.random((n, *shape))
    x = x.astype(np.float32)
    np.savez(name, x_train=x[: n * 3 // 4], y_train=y[: n * 3 // 4], x_test=x[n * 3 // 4 :], y_test=y[n * 3 // 4 :])
    return name


def chosen(*words: str) -> dict[str, str]:
    found, _ = with_choices(["train", *words])
    return dict(zip(found[2::2], found[3::2], strict=True)) | {"method": found[1]}


@pytest.mark.parametrize(
    ("shape", "net"),
    [((5,), "mlp"), ((1, 8, 8), "mlp"), ((1, 28, 28), "lenet"), ((3, 32, 32), "small-cnn"), ((1, 48, 48), "small-cnn")],
)
def test_the_network_follows_the_shape_and_can_be_built(here, capsys, shape, net) -> None:
    from equipoise import nets

    saved("my.npz", shape)
    assert chosen("udp", "--data", "my.npz", "--device", "cpu")["--net"] == net
    assert f"--net {net}: " in capsys.readouterr().out
    assert nets.build(net, shape, 2)(torch.zeros(2, *shape)).shape == (2, 2)


@pytest.mark.parametrize(("n", "batch"), [(60, "16"), (1000, "32"), (1800, "64"), (20_000, "256")])
def test_an_epoch_has_about_twenty_steps(here, n, batch) -> None:
    saved("my.npz", (2,), n)
    assert chosen("standard", "--data", "my.npz")["--batch-size"] == batch


@pytest.mark.parametrize(
    ("shape", "apart", "words", "eps"),
    [
        ((1, 8, 8), 0.6, [], "0.1"),  # the usual one
        ((1, 8, 8), 0.08, [], "0.045"),  # half of 0.08 and most of the noise, up to 0.02
        ((3, 8, 8), 0.6, [], "8/255"),
        ((3, 8, 8), 0.6, ["--norm", "l2"], "0.5"),
        ((1, 8, 8), 0.6, ["--eps", "0.02"], "0.02"),
    ],
)
def test_the_radius_is_the_usual_one_unless_classes_are_near(here, shape, apart, words, eps) -> None:
    saved("my.npz", shape, apart=apart)
    assert chosen("udp", "--data", "my.npz", *words)["--eps"] == eps


def test_data_in_the_place_of_the_method_are_trained_on_by_udp(here, capsys) -> None:
    saved("my.npz", (1, 8, 8))
    assert chosen("my.npz", "--seed", "1")["method"] == "udp"
    assert "method udp: none was named" in capsys.readouterr().out
    with pytest.raises(EquipoiseError, match=r"my\.npz is no method, and --data names the data"):
        with_choices(["train", "my.npz", "--data", "digits"])
    assert main(["train", "udpp"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_the_choices_are_recorded_and_a_run_resumes_with_them(here, capsys) -> None:
    saved("my.npz", (1, 8, 8))
    assert main(["train", "my.npz", "--epochs", "1", "--steps", "2", "--evaluate-examples", "4", "--out", "r"]) == 0
    record = json.loads(Path("r/run.json").read_text())
    words = record["words"]
    assert "loaded" not in record["provenance"]["options"]  # no pixels in the record
    assert words[0] == "udp" and {"--net", "--batch-size", "--eps", "--data"} <= set(words)
    out = capsys.readouterr().out
    assert all(f"{flag}: " in out for flag in ("--net mlp", "--batch-size 16", "--eps 0.1"))
    assert main(["train", "--resume", "--epochs", "2", "--out", "r"]) == 0
    assert "--net mlp:" not in capsys.readouterr().out


def test_an_interrupted_run_names_the_command_that_continues_it(here, capsys, monkeypatch) -> None:
    """With what was chosen: the data alone are no method, and the minutes would be chosen anew."""

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    saved("my.npz", (1, 8, 8))
    monkeypatch.setattr("equipoise.cli.commands.run", interrupted)
    assert main(["train", "my.npz", "--minutes", "60"]) == 130
    words = "train udp --data my.npz --net mlp --batch-size 16 --eps 0.1 --epochs 200 --resume"
    assert capsys.readouterr().err == f"interrupted; continue with: equipoise {words}\n"
    assert with_choices(words.split()) == (words.split(), None)
    assert main(["train", "standard", "--data", "my.npz", "--net", "mlp", "--batch-size", "8", "--out", "r"]) == 130
    assert capsys.readouterr().err.endswith("train standard --data my.npz --net mlp --batch-size 8 --out r --resume\n")


def test_minutes_become_epochs(here, capsys) -> None:
    saved("my.npz", (1, 8, 8))
    few, many = (int(chosen("standard", "--data", "my.npz", "--minutes", m)["--epochs"]) for m in ("0.005", "60"))
    assert 1 <= few < many == 200
    with pytest.raises(EquipoiseError, match=r"an epoch takes about .* minutes: give --minutes more"):
        with_choices(["train", "standard", "--data", "my.npz", "--minutes", "1e-9"])
    assert main(["train", "standard", "--data", "my.npz", "--minutes", "1", "--epochs", "3"]) == 2
    assert "leave out --epochs, or --minutes" in capsys.readouterr().err


def test_a_folder_of_the_name_of_a_method_is_none(here) -> None:
    saved("my.npz", (1, 8, 8))
    found, _ = with_choices(["train", "--out", "standard", "udp", "--data", "my.npz"])
    assert "--eps" in found


def test_what_is_typed_stays(here) -> None:
    saved("my.npz", (1, 8, 8))
    words = ["train", "udp", "--data", "my.npz", "--net", "mlp", "--batch-size", "7", "--eps", "0.3"]
    assert with_choices(words) == (words, None)
    assert with_choices(["evaluate", "r"]) == (["evaluate", "r"], None)


def test_a_method_with_a_regulariser_gets_choices_too(here) -> None:
    saved("my.npz", (1, 8, 8))
    words = chosen("pat-entm", "--data", "my.npz", "--minutes", "60")
    assert (words["method"], words["--epochs"], words["--eps"]) == ("pat", "200", "0.1") and "--minutes" not in words


def test_minutes_are_those_of_one_process_and_a_new_run(here, monkeypatch) -> None:
    """Processes that time their steps would train for different numbers of epochs, and wait for each other for ever."""
    saved("my.npz", (1, 8, 8))
    with pytest.raises(EquipoiseError, match="--minutes chooses the number of epochs of a new run"):
        with_choices(["train", "--resume", "--minutes", "5", "--out", "r"])
    torchrun = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": 29500}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(EquipoiseError, match="differs between the 2 processes of torchrun: give --epochs"):
        with_choices(["train", "udp", "--data", "my.npz", "--minutes", "5"])


def test_a_step_is_timed_in_the_box_of_the_data(here) -> None:
    """In [0, 1] the perturbation of inputs from -1 to 0 would be refused, or another one."""
    saved("my.npz", (4,))
    arrays = {name: x - 1 if name[0] == "x" else x for name, x in np.load("my.npz").items()}
    np.savez("my.npz", **arrays)
    words = ["--data", "my.npz", "--box", "-1", "0", "--eps", "0.1", "--minutes", "60"]
    assert with_choices(["train", "pgd", *words])[0][-1] == "200"
