"""The command line: what can be typed, what is refused and how, and the way from nothing to a report."""

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import equipoise
from equipoise.cli import commands, main
from equipoise.cli.console import duration
from equipoise.cli.method_options import METHODS, build_method, full_name, parameters
from equipoise.cli.options import fraction, pairs
from equipoise.cli.parsing import parse
from equipoise.cli.requests import Evaluate, Report, Train
from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.generators import Manifold
from equipoise.results import records
from equipoise.results.records import Evaluation, Run, load

pytestmark = pytest.mark.unchecked

FACTORY = """
import torch
from torch import nn

def make(scale=1.0):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]) * scale)
        model[1].bias.zero_()
    return model
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mine(here, monkeypatch):
    """A user's directory: a factory of models and an npz, whose classes the model tells apart."""
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)  # of another file's tests
    (here / "own_nets.py").write_text(FACTORY)
    rng = np.random.default_rng(0)
    x = rng.random((60, 1, 2, 2), dtype=np.float32)
    y = (x[:, 0, 1].sum(1) > x[:, 0, 0].sum(1)).astype(np.int64)
    np.savez(here / "my.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    return here


def ask(*words: object) -> int:
    return main([str(w) for w in words])


def said(line: str) -> list[str]:
    """The words of a command line, after the name of the program."""
    return shlex.split(line)


def train_tiny(out: object, *more: object, method: str = "udp") -> int:
    usual = {} if method == "standard" else {"--eps": 0.1}
    usual |= {"--epochs": 1, "--examples": 200, "--evaluate-examples": 20, "--out": out}
    words = [word for flag, value in usual.items() if flag not in more for word in (flag, value)]
    return ask("train", method, *words, *more)


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.25", 0.25), ("1e-3", 1e-3), ("1/4", 0.25)])
def test_numbers_may_be_fractions(text, value):
    assert fraction(text) == value
    command = parse(["train", "udp", "--eps", text, "--valid-eps", text, "--lr", text, "--milestones", text])
    assert parameters(command.method)["eps"] == value
    assert (command.recipe.valid_eps, command.recipe.lr, command.recipe.milestones) == (value, value, (value,))
    assert parse(["evaluate", "x", "--eps", text, "0.1"]).eps == (value, 0.1)


@pytest.mark.parametrize("text", ["x", "1/0", "1/2/3", "nan", "", "8 / x"])
def test_what_is_not_a_number_is_refused(text):
    with pytest.raises(ValueError, match="such as 8/255"):
        fraction(text)
    with pytest.raises(EquipoiseError, match="--eps: expected a number or a fraction such as 8/255, got"):
        parse(["train", "udp", "--eps", text])


def test_flags_work_in_any_order():
    orders = [
        ["train", "udp", "--data", "mnist", "--eps", "0.3", "--seed", "4", "--epochs", "2"],
        ["train", "--epochs", "2", "--data", "mnist", "udp", "--seed", "4", "--eps", "0.3"],
        ["train", "udp", "--seed", "4", "--eps", "0.3", "--epochs", "2", "--data", "mnist"],
    ]
    assert len({repr(parse(order)) for order in orders}) == 1
    assert parse(["evaluate", "--eps", "0.1", "--norm", "l2", "--out", "o", "x"]).target == "x"


def test_every_command_as_documented_is_understood():
    train = parse(
        said(
            "train udp --data fashion-mnist --data-root ../shared/data --net lenet --eps 0.3 --step-size 0.015 "
            "--steps 25 --epochs 2 --seed 0 --out runs/udp"
        )
    )
    assert isinstance(train, Train)
    assert (train.data, train.data_root, train.net, train.out) == (
        "fashion-mnist",
        Path("../shared/data"),
        "lenet",
        Path("runs/udp"),
    )
    evaluate = parse(
        said("evaluate runs/udp --attacks clean pgd --norm linf --eps 0.05 0.1 --examples 1000 --out eval.json")
    )
    assert isinstance(evaluate, Evaluate)
    assert (evaluate.attacks, evaluate.eps, evaluate.examples) == (("clean", "pgd"), (0.05, 0.1), 1000)
    report = parse(said("report runs/udp runs/trades --out report.html"))
    assert report == Report((Path("runs/udp"), Path("runs/trades")), Path("report.html"))


BALL = {"eps", "norm", "mode"}
CLIMB = {*BALL, "step_size", "steps", "step_schedule"}
LOSS = {"entropy_weight", "smoothing"}
MANIFOLD = {"manifold", "manifold_epochs", "codes"}
OWN = {
    "standard": LOSS,
    "adp": {"entropy_weight", "diversity_weight"},
    "fgsm": {*BALL, *LOSS},
    "r-fgsm": {*BALL, *LOSS, "step_size"},
    "n-fgsm": {*BALL, *LOSS, "step_size", "noise"},
    "gradalign": {*BALL, *LOSS, "step_size", "weight"},
    "r2": {*LOSS, "weight", "clean", "softness", "halvings", "crossing", "scores"}
    | {"generator_lr", "generator_steps", "generator"},
    "pgd": {*CLIMB, *LOSS},
    "friendly": {*CLIMB, *LOSS, "tau"},
    "pat": {*CLIMB, *LOSS, "clean_share"},
    "corruption": {*LOSS, "corruptions", "clean_share"},
    "mart": {*CLIMB, "beta"},
    "udp": {*CLIMB, *LOSS, "uncertainty"},
    "uta": {*CLIMB, *LOSS, "uncertainty"},
    "udpr": {*CLIMB, *LOSS, "uncertainty", "weight"},
    "trades": {*CLIMB, *LOSS, "beta", "divergence"},
    "udp-trades": {*CLIMB, *LOSS, "uncertainty", "beta", "divergence"},
    "hein": {*LOSS, "weight", "directions"},
    "r4": {*LOSS, *MANIFOLD, "weight", "samples", "sigma", "radii"},
    "ibp": {*LOSS, "eps", "norm", "kappa", "warmup"},
    "crown-ibp": {*LOSS, "eps", "kappa", "linear", "warmup"},
    "mtl-ibp": {*CLIMB, *LOSS, "alpha", "warmup"},
    "fgsm-pgi": {"eps", "norm", "step_size", "weight"},
    "mma": {*CLIMB, *LOSS, "clean_share"},
    "on-manifold": {*CLIMB, *LOSS, *MANIFOLD},
    "on-manifold-udp": {*CLIMB, *LOSS, *MANIFOLD, "clean_share", "uncertainty"},
    "ls-pgd": {*CLIMB, *LOSS, "latent"},
    "ls-udp": {*CLIMB, *LOSS, "latent", "uncertainty"},
    "ls-uta": {*CLIMB, *LOSS, "latent", "uncertainty"},
    "ls-udpr": {*CLIMB, *LOSS, "latent", "uncertainty", "weight"},
    "ls-trades": {*CLIMB, *LOSS, "latent", "beta", "divergence"},
}


def needed(name: str) -> list[str]:
    """The flags without which a method cannot be chosen."""
    return (["--eps", "0.1"] if "eps" in OWN[name] else []) + (["--latent", "fc1"] if "latent" in OWN[name] else [])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_own_hyper_parameters_only(name):
    words = ["train", name, *needed(name)]
    chosen = parse(words).method
    assert parameters(chosen).keys() == OWN[name] | {"name"}
    assert parameters(chosen)["name"] == name
    for flag in {"steps", "beta", "weight"} - OWN[name]:
        with pytest.raises(EquipoiseError, match=f"train {name} has no option --{flag}"):
            parse([*words, f"--{flag}", "3"])


@pytest.mark.parametrize(
    ("typed", "spelled_out"),
    [
        ("entm", "standard --entropy-weight 2"),
        ("maxe", "standard --entropy-weight 2"),
        ("ls", "standard --smoothing 0.74"),
        ("pat-entm --eps 0.1", "pat --eps 0.1 --entropy-weight 2"),
        ("pat-entm --eps 0.1 --entropy-weight 3", "pat --eps 0.1 --entropy-weight 3"),
        ("pat-ls --eps 0.1 --smoothing=0.84", "pat --eps 0.1 --smoothing 0.84"),
        ("udp-entm --eps 0.1", "udp --eps 0.1 --entropy-weight 2"),
        ("udpr-ls --eps 0.1", "udpr --eps 0.1 --smoothing 0.74"),
        ("trades-entm --eps 0.1 --beta 3", "trades --eps 0.1 --beta 3 --entropy-weight 2"),
    ],
)
def test_a_regularised_method_is_the_method_with_a_weight(typed, spelled_out):
    command = parse(said(f"train {typed}"))
    assert command == parse(said(f"train {spelled_out}"))
    assert full_name(parameters(command.method)) == typed.split()[0].replace("maxe", "entm")


def test_the_default_steps_are_those_of_the_library():
    for name, function in METHODS.items():
        options = ({"eps": 0.1} if "eps" in OWN[name] else {}) | ({"layer": "fc1"} if "latent" in OWN[name] else {})
        options |= {"manifold": Manifold(nn.Identity(), nn.Identity())} if "manifold" in OWN[name] else {}
        assert str(build_method(parse(["train", name, *needed(name)]).method)) == str(function(**options))


@pytest.mark.parametrize(
    ("name", "peak"), [("pgd", 0.06), ("trades", 0.06), ("uta", 0.06), ("udp", 0.15), ("udpr", 0.15)]
)
def test_the_triangular_step_schedule_peaks_where_the_paper_says(name, peak):
    words = f"train {name} --eps 0.3 --steps 20 --step-size 0.01 --step-schedule triangular".split()
    ascents = [t.at for t in build_method(parse(words).method).terms if t.at is not None]
    size = ascents[0].step_size
    assert (size.at(0, 20), size.at(10, 20), size.at(19, 20)) == (0.01, pytest.approx(peak), 0.01)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["width=3", "p=0.5"], {"width": 3, "p": 0.5}),
        (["widths=3,4", "a=7,", "b=,"], {"widths": (3, 4), "a": (7,), "b": ()}),
        (["flag=true", "name=x=y"], {"flag": True, "name": "x=y"}),
    ],
)
def test_net_options(words, expected):
    assert pairs(words, "--net-option") == expected


@pytest.mark.parametrize("pair", ["width", "=3", "a b=3"])
def test_net_options_refuses(pair):
    with pytest.raises(EquipoiseError, match="not of the form key=value"):
        pairs([pair], "--net-option")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian udp", "unknown command 'trian': did you mean 'train'"),
        ("train udb --eps 0.1", "unknown method 'udb': did you mean 'udp'"),
        ("train udp --eps 0.1 --data digit", "unknown dataset 'digit': did you mean 'digits'"),
        ("train udp --eps 0.1 --data nowhere/x.npz", "there is no file or folder nowhere/x.npz"),
        ("train udp --eps 0.1 --net lenets", "unknown net 'lenets': did you mean 'lenet'"),
        ("train udp --eps 0.1 --net lenet", "at least 12x12 pixels"),
        ("train udp --eps 0.1 --net mlp --width 3", "unknown option of net 'mlp' 'width'"),
        ("train udp --eps 0.1 --net-option widths", "not of the form key=value"),
        ("train udp --eps 0.1 --net nothing.here:make", "cannot import 'nothing.here'"),
        ("train udp --eps -0.1", "eps = -0.1 is not a radius"),
        ("train udp --eps 0.1 --steps 0", "steps = 0: expected an integer"),
        ("train udp --eps 0.1 --step-size 0", "step_size = 0.0 moves nothing"),
        ("train udp --eps 0.1 --examples 0", "--examples = 0: expected an integer >= 1"),
        ("train udp --eps 0.1 --resume --out new", "there is no run in new to resume"),
        ("evaluate nowhere", "there is no run directory nowhere"),
        ("evaluate .", ". is not a run directory: it has no run.json"),
        ("evaluate own_nets:make --eps 0.1", "give a dataset with --data"),
        ("evaluate own_nets:make --data my.npz", "at least one radius"),
        ("evaluate own_nets:make --data my.npz --eps 0.1 --attacks pgdd", "unknown attack 'pgdd': did you mean 'pgd'"),
        ("evaluate own_nets:made --data my.npz --eps 0.1", "module 'own_nets' has no 'made'"),
        ("evaluate own_nets:make --data digits --eps 0.1", "does not take inputs of shape (1, 8, 8)"),
        ("evaluate own_nets:make --data my.npz --eps 0.1 --restarts 0", "restarts = 0: expected an integer"),
        ("evaluate own_nets:make --data my.npz --eps 0.1 --examples -3", "examples = -3"),
        ("evaluate own_nets:make --data my.npz --eps 0.1 --batch-size 0", "--batch-size = 0: expected an integer >= 1"),
        ("evaluate own_nets:make --data my.npz --eps 0.1 --checkpoint no.safetensors", "cannot read no.safetensors"),
        ("evaluate own_nets:make --data my.npz --eps 0.1 --net-option depth=3", "unknown option of net"),
        ("report nowhere", "nowhere does not exist"),
        ("report", "at least one run directory"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(mine, capsys, words, message):
    before = sorted(mine.rglob("*"))
    assert ask(*words.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert [p for p in sorted(mine.rglob("*")) if "__pycache__" not in p.parts] == before


@pytest.mark.parametrize(
    "words",
    [
        "train ls-udp --eps 0.1",
        "train udp --eps 0.1 --epoch 3",
        "train udp --eps 0.1 --optimizer lion",
        "train udp --eps 0.1 --epochs 2.5",
        "train standard --eps 0.1",
        "evaluate runs/x --norm l3",
        "evaluate",
    ],
)
def test_refused_flags_exit_with_2(words, capsys):
    assert ask(*words.split()) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("recipe", ["--epochs 0", "--lr 0", "--validation 0", "--valid-eps -1", "--ema 2"])
def test_recipes_out_of_range_are_refused_with_2(here, capsys, recipe):
    assert ask("train", "udp", "--eps", "0.1", *recipe.split()) == 2
    assert recipe.split()[0].strip("-").replace("-", "_") in capsys.readouterr().err
    assert not list(here.iterdir())


@pytest.mark.parametrize("command", ["", "train", "train udpr", "train trades", "evaluate", "report"])
def test_help_is_complete(command, capsys):
    with pytest.raises(SystemExit) as stop:
        ask(*command.split(), "--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    flags = {
        "": ["train", "evaluate", "report", "--version", "Example: equipoise"],
        "train": [
            *METHODS,
            "Example: equipoise train",
            "--data",
            "--net",
            "--out",
            "--resume",
            "--epochs",
            "--devices",
        ],
        "train udpr": ["--eps", "8/255", "--step-size", "--steps", "--weight", "--mode", "--norm", "--optimizer"],
        "train trades": ["--beta", "--divergence", "soft-cross-entropy"],
        "evaluate": [
            "--attacks",
            "--eps",
            "--norm",
            "--restarts",
            "--weights",
            "--checkpoint",
            "--precision",
            "Example:",
        ],
        "report": ["--out", "Example: equipoise report"],
    }[command]
    assert [flag for flag in flags if flag not in text] == []
    assert "MISSING" not in text and "--name" not in text


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        ask("--version")
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"equipoise {equipoise.__version__}\n"


def test_from_nothing_to_a_report(here, capsys):
    assert train_tiny("runs/udp", "--seed", 3) == 0
    text = capsys.readouterr().out
    assert "1/1" in text and "worst case" in text and "next: equipoise report runs/udp" in text
    run = load("runs/udp/run.json")
    assert isinstance(run, Run) and run.status == "finished"
    assert run.method["name"] == "udp" and run.method["eps"] == 0.1 and run.recipe["seed"] == 3
    assert run.provenance.command.startswith("equipoise train udp --eps 0.1")
    best, last = (load(f"runs/udp/evaluation{s}.json") for s in ("", "-last"))
    assert isinstance(best, Evaluation) and isinstance(last, Evaluation)
    assert (best.weights, last.weights, best.data["n"]) == ("best", "last", 20)
    v = run.recipe["valid_eps"]
    radii = sorted({r.eps for r in best.results if r.attack == "pgd"})
    assert radii == pytest.approx([v / 2, v, 2 * v])
    with np.load("runs/udp/samples.npz") as arrays:
        assert arrays["clean"].shape == arrays["udp"].shape == arrays["pgd"].shape == (10, 1, 8, 8)
        assert arrays["labels"].shape == arrays["udp_prediction"].shape == (10,)

    words = said("evaluate runs/udp --attacks clean pgd3 --norm l2 --eps 0.2 8/255 --examples 30 --weights last")
    assert ask(*words) == 0
    written = load("runs/udp/evaluation-clean-pgd3-l2-0.0313725-0.2-last.json")
    assert isinstance(written, Evaluation)
    assert [(r.attack, r.eps) for r in written.results] == [("clean", 0.0), ("pgd3", 8 / 255), ("pgd3", 0.2)]
    assert written.data["sha256"] == run.data["sha256"] and written.weights == "last"
    assert written.provenance.command == "equipoise " + " ".join(words)

    assert ask("evaluate", "runs/udp", "--examples", 20, "--seed", 3, "--out", "again.json") == 0
    again = load("again.json")
    assert [list(r.correct) for r in again.results] == [list(r.correct) for r in best.results]

    capsys.readouterr()
    assert ask("report", "runs/udp", "--out", "report.html") == 0
    assert "wrote report.html" in capsys.readouterr().out
    page = Path("report.html").read_text()
    assert "udp" in page and "<html" in page


def test_a_finished_run_is_neither_overwritten_nor_lost_by_accident(here, capsys):
    assert train_tiny("r", method="standard") == 0
    before = {p.name: p.read_bytes() for p in Path("r").iterdir()}
    assert train_tiny("r", method="standard") == 2
    assert "r already holds a run (finished): add --resume" in capsys.readouterr().err
    assert train_tiny("r", "--resume", "--overwrite", method="standard") == 2
    assert "exclude each other" in capsys.readouterr().err
    assert train_tiny("r", "--overwrite", "--net", "lenet", method="standard") == 2
    assert {p.name: p.read_bytes() for p in Path("r").iterdir()} == before
    Path("r/mine.txt").write_text("mine")
    assert train_tiny("r", "--overwrite", "--seed", 1, "--evaluate-examples", 0, method="standard") == 0
    assert load("r/run.json").recipe["seed"] == 1
    assert not Path("r/evaluation.json").exists() and Path("r/mine.txt").read_text() == "mine"
    assert train_tiny("r", "--seed", 1, "--resume", method="standard") == 0
    assert Path("r/evaluation.json").exists()


def test_the_default_place_of_a_run_and_a_file_in_the_way(here, capsys):
    assert ask("train", "standard", "--epochs", 1, "--examples", 100, "--evaluate-examples", 0) == 0
    assert Path("runs/standard-digits-0/run.json").exists()
    Path("file").write_text("x")
    assert train_tiny("file") == 2
    assert "--out file is a file" in capsys.readouterr().err


def test_normalisation_and_widths_are_recorded_and_rebuilt(here):
    assert train_tiny("r", "--normalize", "--widths", 16, 8, "--evaluate-examples", 10, method="pgd") == 0
    run = load("r/run.json")
    assert run.net["options"] == {"widths": [16, 8]}
    (mean,), (std,) = run.net["normalize"]
    assert 0.2 < mean < 0.4 and 0.3 < std < 0.5
    assert ask("evaluate", "r", "--attacks", "clean", "--examples", 10) == 0


def test_data_of_the_user_are_found_again_when_a_run_is_evaluated(mine, capsys):
    words = [
        "train",
        "fgsm",
        "--eps",
        "0.05",
        "--data",
        "my.npz",
        "--epochs",
        "1",
        "--evaluate-examples",
        "0",
        "--out",
        "r",
    ]
    assert ask(*words) == 0
    assert ask("evaluate", "r", "--eps", "0.05") == 0
    with np.load("my.npz") as old:
        changed = {**old, "x_test": old["x_test"] * 0.5}
    np.savez("my.npz", **changed)
    capsys.readouterr()
    assert ask("evaluate", "r", "--eps", "0.05") == 2
    assert "not the data that r was trained on" in capsys.readouterr().err
    assert ask("evaluate", "r", "--eps", "0.05", "--data", "my.npz") == 0
    capsys.readouterr()
    assert ask("evaluate", "r", "--eps", "0.05", "--data", "digits") == 2
    assert "digits has 10 classes" in capsys.readouterr().err


def test_a_model_of_the_user(mine, capsys):
    words = ["evaluate", "own_nets:make", "--data", "my.npz", "--attacks", "pgd", "--eps", "0.1"]
    assert ask(*words) == 0
    place = "eval-own_nets-make-my-pgd-linf-0.1.json"
    assert f"wrote {place}" in capsys.readouterr().out
    found = load(place)
    clean, attacked = found.results
    assert found.target == "own_nets:make" and found.weights == "given"
    assert clean.accuracy == 1.0 and clean.n == 20
    # x moves by eps towards the other class in all four pixels: correct iff |difference of the sums| > 4 eps.
    with np.load("my.npz") as data:
        rows = data["x_test"][:, 0].sum(2)
    assert sum(attacked.correct) == int((np.abs(rows[:, 1] - rows[:, 0]) > 0.4).sum())
    save_file({"1.weight": -torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]), "1.bias": torch.zeros(2)}, "w.safetensors")
    assert ask(*words, "--checkpoint", "w.safetensors", "--out", "flipped.json") == 0
    assert load("flipped.json").results[0].accuracy == 0.0


def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(mine, capsys, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(records.os, "fsync", full)
    assert ask("evaluate", "own_nets:make", "--data", "my.npz", "--eps", "0.1") == 2
    err = capsys.readouterr().err
    assert (
        "cannot write eval-own_nets-make-my-fgsm-pgd-linf-0.1.json" in err
        and "No space left on device; free some space" in err
    )
    assert "Traceback" not in err
    assert not [file for file in mine.rglob("*") if file.is_file() and "eval" in str(file)]


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "x.bin"),
            "No space left on device (x.bin); free some space",
            2,
        ),
        (PermissionError(errno.EACCES, "Permission denied", "y"), "Permission denied (y).", 2),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "smaller --batch-size", 2),
        (ModuleNotFoundError("No module named 'rich'", name="rich"), "needs rich", 2),
        (KeyboardInterrupt(), "continue with: equipoise train udp --eps 0.1 --out 'a b' --resume", 130),
    ],
)
def test_other_ends_are_refused_with_a_sentence(monkeypatch, capsys, error, message, code):
    def fail(options, command):
        raise error

    monkeypatch.setattr(commands, "run", fail)
    assert ask("train", "udp", "--eps", 0.1, "--out", "a b", "--overwrite") == code
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_errors_that_are_ours_are_not_hidden(monkeypatch):
    def fail(options, command):
        raise RuntimeError("a bug")

    monkeypatch.setattr(commands, "run", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        ask("report", "x")


def test_warnings_are_one_line_each(monkeypatch, capsys):
    def warn(options, command):
        warnings.warn("mind this", EquipoiseWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(commands, "run", warn)
    assert ask("report", "x") == 0
    assert capsys.readouterr().err == "warning: mind this\n"


def test_only_the_first_of_several_processes_speaks(monkeypatch, capsys):
    told = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert ask("evaluate", "nowhere") == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK"])
def test_a_stray_variable_of_torchrun_makes_nothing_mute(monkeypatch, capsys, variable):
    monkeypatch.setenv(variable, "1")
    assert ask("evaluate", "nowhere") == 2
    assert "there is no run directory nowhere" in capsys.readouterr().err


def test_the_command_ends_without_a_traceback_in_its_own_process(here):
    done = subprocess.run(
        [sys.executable, "-m", "equipoise.cli", "evaluate", "nowhere"], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no run directory nowhere") and done.stderr.count("\n") == 1


def test_ctrl_c_says_how_to_resume_and_leaves_a_run_that_can_be_used(here):
    words = [
        "train",
        "udp",
        "--eps",
        "0.1",
        "--epochs",
        "2000",
        "--examples",
        "200",
        "--out",
        "r",
        "--evaluate-examples",
        "0",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "equipoise.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (
        Path("r/metrics.jsonl").exists() and Path("r/metrics.jsonl").read_text()
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == f"interrupted; continue with: equipoise {' '.join(words)} --resume"
    assert "Traceback" not in err
    assert load("r/run.json").status == "failed: interrupted"
    assert ask("evaluate", "r", "--attacks", "clean", "--examples", 5, "--weights", "last") == 0


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (42, "42 s"), (187, "3:07"), (7387, "2:03:07")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_records_are_json(mine):
    assert ask("evaluate", "own_nets:make", "--data", "my.npz", "--eps", "8/255") == 0
    data = json.loads(Path("eval-own_nets-make-my-fgsm-pgd-linf-0.0313725.json").read_text())
    assert data["kind"] == "evaluation" and data["results"][0]["interval"][0] > 0.8
    assert data["results"][1]["settings"]["geometry"]["eps"] == 8 / 255


def test_a_negative_number_of_examples_is_refused_before_training(here, capsys):
    assert ask("train", "standard", "--epochs", 1, "--evaluate-examples", -5, "--out", "r") == 2
    assert "--evaluate-examples = -5: expected an integer >= 0" in capsys.readouterr().err
    assert not Path("r").exists()
