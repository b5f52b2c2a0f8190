"""What the command line promises for whatever is typed: an exit code of 0, 1 or 2, never a traceback, and nothing left
behind by what is refused.

Command lines are drawn from the options themselves: every field of every command's dataclass, with values that fit,
nearly fit or are absurd. What would take long is replaced by a stop: all that comes before it is tested.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pooch
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from equipoise.cli import auditing, main, reproducing, scoring, studying
from equipoise.cli.method_options import METHODS as FUNCTIONS
from equipoise.cli.method_options import choice_of
from equipoise.cli.options import Option, options_of
from equipoise.cli.overview import COMMANDS
from equipoise.cli.requests import REQUESTS
from equipoise.core.errors import EquipoiseError

pytestmark = [pytest.mark.fuzz, pytest.mark.unchecked]

SECONDS = 60
"""Processor time that a command line may take; how busy the machine is does not matter."""
FEWER = settings(max_examples=settings().max_examples // 3)
"""A command line costs more than most examples do."""
STOP = "stopped where the work begins"
FACTORY = """
import torch
from torch import nn

def make(scale=1.0):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]) * scale)
    return model

def broken():
    raise RuntimeError("no such model today")

def text():
    return "not a model"

number = 3
"""


# The grammar


def flags_of(kind: type) -> list[Option]:
    """What can be typed of a request, positional values without a flag."""
    return [replace(option, flag="") if option.positional else option for option in options_of(kind)]


METHODS = {name: flags_of(choice_of(name)) for name in FUNCTIONS}
GRAMMAR = {name: flags_of(kind) for name, kind in REQUESTS.items()}
UNBOUND = ("--seed", "--batch-size")
"""Flags whose value may be huge; of all other integers a huge one is work or room that was asked for."""

FILES = [
    "my.npz", "run", "run/run.json", "record.json", "score.json", "folder", "empty", "closed", "closed/x", "list.json",
    "nothing.json", "text.txt", "nowhere", "nowhere/deep/x.json", "/dev/null", "/dev/full", "/proc/self/x", ".", "..",
    "", " ", "-", "--", "~", "x" * 300, "a/" * 3000, "ünï–中.npz", "caf\udce9", "a\nb", "a\tb", "$HOME", "run/", "*",
]  # fmt: skip
NUMBERS = [
    "0.1", "8/255", "0", "-1", "1", "nan", "inf", "-inf", "1e999", "1/0", "0/0", "1e-300", "1e300", "-0.0", "0x10",
    "１", "1_0",
]  # fmt: skip
SMALL = ["1", "2", "3", "0", "-1", "1.5", "nan", "1e3", "٣", "+2", " 2", "2 ", "", "-" + "9" * 30, "9" * 5000]
INTEGERS = [*SMALL, "9" * 30, str(2**63), str(2**64), str(2**31)]
TEXTS = [
    "pgd", "fgsm", "clean", "autoattack", "pgd3", "pgd0", "pgd-8", "pgd1.5", "fgsm-0", "digits",
    "my.npz", "mlp", "lenet", "own:make", "own:broken", "own:text", "own:number", "own:none", "own:", ":make", "a.b:c",
    "scale=2", "scale=nan", "scale=", "=2", "scale=x", "depth=3", "1/1", "1/2", "2/1", "0/0", "x/y", "-1/2", "r2", "",
    " ", "x" * 5000, "日本語", "\udce9", "--help-me", "../..", "%s", "{}", "\x1b[31m", "NaN", "None", "True", "linf",
    "narrow-corridor", "lms5", "rethinking-table-9", "cifar10=my.npz", "cifar10=", "fog", "auto", "pgd" + "9" * 5000,
    "9" * 5000 + "/1",
]  # fmt: skip
USUAL = {
    int: ["1", "2", "3"],
    float: ["0.1", "0.5", "1", "8/255"],
    Path: ["my.npz", "run", "folder", "new", "record.json"],
}
USUAL_OF = {
    "--attacks": ["pgd2", "fgsm", "clean", "apgd-ce2", "square5", "cw2", "udp2"],
    "--data": ["my.npz"],
    "--net": ["mlp", "own:make"],
    "--latent": ["fc1", "input"],
    "--shard": ["1/1", "1/2", "2/2"],
    "--net-option": ["scale=2"],
    "--corruptions": ["fog", "mnist-c"],
    "--target": ["own:make", "run"],
    "--score": ["r1", "r2", "label-aware"],
    "--out": ["new/deep/x.json", "new/deep/x.html", "new.json", "run", "folder", "my.npz", "record.json"],
    "--step-size": ["0.1", "1/255"],
}
"""Values that fit a flag and not only its kind."""
WORDS = [*FILES, *NUMBERS, *SMALL, *TEXTS]


def value(flag: Option) -> st.SearchStrategy[str]:
    """A value of a flag: mostly of its kind, sometimes of none."""
    if get_origin(flag.kind) is Literal:
        usual = absurd = [str(one) for one in get_args(flag.kind)]
    else:
        whole = INTEGERS if flag.flag in UNBOUND else SMALL
        usual = USUAL_OF.get(flag.flag) or USUAL.get(flag.kind, TEXTS)
        absurd = {int: whole, float: NUMBERS, Path: FILES}.get(flag.kind, TEXTS)
    often = st.sampled_from(usual)
    return st.one_of(*[often] * 8, st.sampled_from(absurd), st.sampled_from(absurd), st.sampled_from(WORDS))


@st.composite
def typed(draw: st.DrawFn, known: Sequence[Option], most: int = 3) -> list[str]:
    """Some flags, with values; a flag may be misspelt, come twice or lack its value."""
    words = []
    for flag in draw(st.lists(st.sampled_from(list(known)), max_size=most)):
        name = draw(st.sampled_from([flag.flag] * 30 + [flag.flag + "x", flag.flag.replace("-", "_")]))
        if flag.kind is bool:
            words += [name]
            continue
        count = draw(st.integers(0, 3)) if flag.many else draw(st.sampled_from([1] * 30 + [0, 2]))
        values = [draw(value(flag)) for _ in range(count)]
        joined = len(values) == 1 and name and draw(st.booleans())
        words += [f"{name}={values[0]}"] if joined else [*([name] if name else []), *values]
    return words


# The place, and how a command line is tried


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a record, data and files of all sorts."""
    place = tmp_path_factory.mktemp("template")
    (place / "own.py").write_text(FACTORY)
    rng = np.random.default_rng(0)
    x = rng.random((60, 1, 2, 2), dtype=np.float32)
    y = (x[:, 0, 1].sum(1) > x[:, 0, 0].sum(1)).astype(np.int64)
    np.savez(place / "my.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    (place / "folder").mkdir()
    (place / "folder" / "keep.txt").write_text("mine")
    (place / "empty").mkdir()
    (place / "closed").mkdir(mode=0o000)
    (place / "list.json").write_text("[1, 2]")
    (place / "nothing.json").write_bytes(b"")
    (place / "text.txt").write_text("no record")
    (place / "score.json").write_text(json.dumps({"kind": "score", "schema": 1}))
    with working_in(place):
        data = ["--data", "my.npz"]
        assert attempt(["train", "standard", *data, *TINY, "--out", "run"])[0] == 0
        assert attempt(["evaluate", "own:make", *data, *QUICK, "--eps", "0.1", "--out", "record.json"])[0] == 0
    return place


@pytest.fixture(scope="module", autouse=True)
def stops() -> Iterator[None]:
    """What takes long ends where it begins."""

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise EquipoiseError(STOP)

    def no_network(*args: Any, **kwargs: Any) -> Any:
        raise OSError("there is no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooch, "retrieve", no_network)
        patch.setattr(auditing, "investigate", stop)
        patch.setattr(reproducing, "sweep", stop)
        patch.setattr(reproducing, "stand_in", stop)
        patch.setattr(reproducing.cost, "work", stop)
        patch.setattr(scoring, "certified", stop)
        patch.setattr(scoring.scores.Score, "__call__", stop)
        entries = {name: replace(entry, run=stop) for name, entry in studying.STUDIES.items()}
        patch.setattr(studying, "STUDIES", entries)
        yield


@contextmanager
def working_in(place: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(place)
    sys.path.insert(0, str(place))
    try:
        yield
    finally:
        sys.path.remove(str(place))
        os.chdir(before)


def contents(place: Path) -> dict[str, bytes | None]:
    """Every file and folder, and what the files hold."""
    found: dict[str, bytes | None] = {}
    for folder, folders, files in os.walk(place, onerror=lambda error: None):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in (*folders, *files):
            path = Path(folder, name)
            found[str(path)] = path.read_bytes() if path.is_file() else None
    return found


def late(*args: object) -> None:
    raise AssertionError(f"it computed for more than {SECONDS} s")


def attempt(words: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line. Whatever else it raises, the test fails with."""
    out, err = StringIO(), StringIO()
    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("default")
            try:
                code = main(list(words))
            except SystemExit as stop:
                assert isinstance(stop.code, int)
                code = stop.code
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return code, out.getvalue(), err.getvalue()


def check(words: Sequence[str], template: Path, place: Path) -> None:
    """Try a command line in a copy of the template, and check what is promised."""
    note(shlex.join(["equipoise", *words]))
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place, ignore=shutil.ignore_patterns("closed", "__pycache__"))
    (place / "closed").mkdir(mode=0o000)
    with working_in(place):
        before = contents(place)
        code, out, err = attempt(words)
        note(f"{code}\n{out}\n{err}")
        assert code in (0, 2)
        assert "Traceback" not in err and " at 0x" not in err
        if code == 2:
            assert "error: " in err or "-help" in err, "nothing was said"
            if STOP not in err:
                assert contents(place) == before
        else:
            allowed = any(word.startswith("--overwrite") for word in words)
            assert allowed or before.items() <= contents(place).items(), "something was replaced"


TINY = ["--epochs", "1", "--examples", "40", "--evaluate-examples", "2", "--net", "mlp", "--widths", "4"]
QUICK = ["--examples", "2", "--attacks", "pgd2"]


@pytest.fixture(scope="module")
def try_out(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str]], None]:
    place = tmp_path_factory.mktemp("place")
    return lambda words: check(words, template, place)


@FEWER
@given(st.data())
def test_train(try_out, data):
    method = data.draw(st.sampled_from([*METHODS, "udp-entm", "maxe", "nothing", ""]))
    own = METHODS.get(method, METHODS["udp"])
    given_words = data.draw(typed([*own, *GRAMMAR["train"]], 4))
    usual = {"--eps": "0.1", "--steps": "1", "--latent": "fc1"}
    needed = [word for flag in own if flag.flag in usual for word in (flag.flag, usual[flag.flag])]
    place = data.draw(st.sampled_from([[], ["--out", "new/run"], ["--out", "run"]]))
    try_out(["train", method, *needed, *TINY, "--data", "my.npz", *given_words, *place])


@FEWER
@given(st.data())
def test_evaluate(try_out, data):
    target = data.draw(
        st.sampled_from(["run", "own:make", "own:make", "own:make", "own:broken", "own:text", "nowhere"])
    )
    given_words = data.draw(typed(GRAMMAR["evaluate"], 4))
    eps = data.draw(st.sampled_from([["--eps", "0.1"], []]))
    try_out(["evaluate", target, "--data", "my.npz", *QUICK, *eps, *given_words])


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("train", "evaluate")])
@FEWER
@given(st.data())
def test_others(try_out, command, data):
    first = {
        "audit": ["run", "own:make"],
        "score": ["run"],
        "verify": ["record.json", "run/evaluation.json", "score.json"],
        "merge": ["record.json"],
        "report": ["run", "record.json", "score.json", "folder"],
        "study": [*studying.STUDIES, "stud"],
        "reproduce": ["rethinking-table-9", "udp-figure-3", "x"],
    }.get(command, [])
    known = [flag for flag in GRAMMAR[command] if flag.flag and flag.flag != "--measure"]  # it takes half a minute
    known = known or GRAMMAR["report"]  # a command without options is given those of another
    target = [data.draw(st.sampled_from(first))] if first else []
    try_out([command, *target, *data.draw(typed(known, 3))])


@given(
    st.lists(
        st.one_of(st.sampled_from([*COMMANDS, "--help", "--version", *METHODS, *WORDS]), st.text("a-=é", max_size=6)),
        max_size=5,
    )
)
def test_any_words(try_out, words):
    if words[:1] not in (["train"], ["evaluate"]):
        try_out(words)


REAL = [
    ["--version"],
    ["--help"],
    [],
    ["evaluate", "caf\udce9", "--data", "my.npz"],
    ["evaluate", "own:make", "--data", "my.npz", *QUICK, "--eps", "0.1", "--out", "ünï–中.json"],
    ["report", "/dev/full", "--out", "/dev/null"],
]


@pytest.mark.parametrize("words", REAL, ids=lambda words: " ".join(words) or "nothing")
def test_in_a_process_of_its_own(template, tmp_path, words):
    place = tmp_path / "place"
    shutil.copytree(template, place, ignore=shutil.ignore_patterns("closed"))
    before = contents(place)
    done = subprocess.run(
        [sys.executable, "-m", "equipoise", *words], cwd=place, capture_output=True, timeout=300, check=False
    )
    assert done.returncode in (0, 2)
    assert b"Traceback" not in done.stderr
    if done.returncode == 2:
        assert contents(place) == before and done.stderr
