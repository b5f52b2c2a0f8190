"""What surrounds a command: streams that fail, terminals of any width, and answers that need no library."""

import errno
import io
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import equipoise
from equipoise.cli import commands, main
from equipoise.cli.console import Steady, columns, laid_out
from equipoise.cli.overview import COMMANDS, overview
from equipoise.cli.requests import REQUESTS
from equipoise.results.records import Evaluation, load

EVALUATE = ["evaluate", "nets_here:make", "--data", "my.npz", "--attacks", "clean", "pgd", "--eps", "0.1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a network and data of two classes, which are evaluated in a moment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets_here.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))\n"
    )
    rng = np.random.default_rng(0)
    x, y = rng.random((60, 1, 2, 2), dtype=np.float32), np.arange(60) % 2
    np.savez("my.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    return tmp_path


def shell(line: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of the shell in which `equipoise` is the command line."""
    program = f'equipoise() {{ "{sys.executable}" -m equipoise "$@"; }}; set -o pipefail; '
    return subprocess.run(
        ["bash", "-c", program + line],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=300,
        env=os.environ | environment,
    )


class Failing(io.StringIO):
    """A stream that takes `room` writes and then fails with an error number."""

    def __init__(self, number: int, room: int = 0) -> None:
        super().__init__()
        self.number, self.room = number, room

    def write(self, text: str) -> int:
        if self.room == 0:
            raise OSError(self.number, os.strerror(self.number))
        self.room -= 1
        return super().write(text)


def test_a_reader_that_leaves_is_no_error_and_another_failure_is_kept():
    left = Steady(Failing(errno.EPIPE, 1))
    assert [left.write("one\n"), left.write("two\n"), left.write("three\n")] == [4, 4, 6]
    assert left.getvalue() == "one\n" and left.failure is None
    full = Steady(Failing(errno.ENOSPC))
    full.write("one\n")
    full.flush()
    assert isinstance(full.failure, OSError) and full.failure.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "a ? ?"), ("cp1252", "a – ?"), ("utf-8", "a – ε"), ("latin-1", "a ? ?")]
)
def test_characters_that_an_encoding_lacks_become_question_marks(encoding, shown):
    raw = io.BytesIO()
    stream = Steady(io.TextIOWrapper(raw, encoding=encoding))
    stream.write("a – ε")
    stream.flush()
    assert raw.getvalue().decode(encoding) == shown


def test_a_name_that_is_not_utf8_can_be_printed():
    raw = io.BytesIO()
    stream = Steady(io.TextIOWrapper(raw, encoding="utf-8"))
    stream.write(os.fsdecode(b"runs/caf\xe9"))
    stream.flush()
    assert raw.getvalue() == b"runs/caf?"


@pytest.mark.parametrize("redirected", ["| head -n 1", "2>&1 | true", ">&-", "<&- >&- 2>&-"])
def test_a_lost_or_closed_stream_ends_nothing(here, redirected):
    done = shell(f"equipoise {' '.join(EVALUATE)} --out e.json {redirected}")
    assert (done.returncode, done.stderr) == (0, "")
    record = load("e.json")
    assert isinstance(record, Evaluation) and len(record.results) == 2
    assert sorted(p.suffix for p in here.iterdir() if p.is_file()) == [".json", ".npz", ".npz", ".py"]
    assert "accuracy on" not in Path("e.json").read_text()  # not printed into a file that took a closed stream's place


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("equipoise report nowhere 2>&-", 2),
        ("equipoise evaluate x --epz 2>&1 | true", 2),
        ("equipoise train udp --help | head -n 1", 0),
    ],
)
def test_the_exit_code_does_not_depend_on_a_reader(here, line, code):
    done = shell(line)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_full_disk_under_the_output_is_said_after_the_work(here):
    done = shell(f"equipoise {' '.join(EVALUATE)} --out e.json > /dev/full")
    assert done.returncode == 2
    assert done.stderr.endswith(
        "the output could not be written: No space left on device; what went into files is whole.\n"
    )
    assert isinstance(load("e.json"), Evaluation)


@pytest.mark.parametrize(("encoding", "line"), [("ascii:strict", "report --help"), ("utf-16", "study lms5 --seeds 0")])
def test_any_output_encoding_will_do(here, encoding, line):
    done = shell(f"equipoise {line} > out.txt 2> err.txt", PYTHONIOENCODING=encoding)
    assert done.returncode == (2 if "--seeds" in line else 0)
    said = Path("out.txt").read_bytes() + Path("err.txt").read_bytes()
    assert said and b"Traceback" not in said


def test_a_folder_whose_name_is_not_utf8(here):
    folder = os.fsdecode(b"caf\xe9")
    Path(folder).mkdir()
    done = shell(
        "cd caf*; cp ../my.npz .; "
        "equipoise train standard --data my.npz --epochs 1 --out $'r\\xe9' --evaluate-examples 4 "
        "&& equipoise report r* --out page.html",
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "Accuracy" in Path(folder, "page.html").read_text("utf-8")


@pytest.mark.parametrize(("chosen", "width"), [("0", 80), ("-3", 80), ("x", 80), ("²", 80), ("1", 40), ("132", 132)])
def test_the_width_of_a_line(monkeypatch, chosen, width):
    monkeypatch.setattr(os, "get_terminal_size", lambda number: (_ for _ in ()).throw(OSError()))
    monkeypatch.setenv("COLUMNS", chosen)
    assert columns() == width


def test_the_width_of_a_terminal_that_says_0_is_the_usual_one(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((0, 0)))
    assert columns() == 80
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((120, 40)))
    assert columns() == 120


@pytest.mark.parametrize("chosen", ["0", "1", "20"])
def test_no_width_swallows_the_results(here, monkeypatch, capsys, chosen):
    monkeypatch.setenv("COLUMNS", chosen)
    assert main([*EVALUATE, "--out", "e.json"]) == 0
    said = capsys.readouterr().out
    assert "clean" in said and "pgd" in said and "wrote e.json" in said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


MESSAGE = "a sentence of some length about a file, and what to do with it where there is no room for a longer one"


def test_a_long_message_is_wrapped_at_words_on_a_terminal_only(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    shown = laid_out(MESSAGE, Terminal())
    assert " ".join(shown.split()) == MESSAGE
    assert all(len(line) <= 40 for line in shown.splitlines()) and shown.count("\n") >= 2
    assert laid_out(MESSAGE, io.StringIO()) == MESSAGE
    assert laid_out("short", Terminal()) == "short"
    assert laid_out(f"{'':>9} two\n\n  lines", Terminal()) == f"{'':>9} two\n\n  lines"


@pytest.mark.parametrize(
    ("before", "command", "stop"),
    [
        ("wrote runs/udp; next:", "equipoise report runs/udp --out 'a report of a run.html' --very-long-option 1", ""),
        ("interrupted; continue with:", "equipoise train udp --eps 0.1 --epochs 20 --out some/place --resume", ""),
        ("the command line needs rich, which is not installed:", "pip install 'equipoise[report,logs,gp]'", "."),
    ],
)
def test_a_command_stays_on_a_line_of_its_own(monkeypatch, before, command, stop):
    monkeypatch.setenv("COLUMNS", "50")
    *first, last = laid_out(f"{before} {command}{stop}", Terminal()).splitlines()
    assert last == f"  {command}" and " ".join(" ".join(first).split()) == before


def test_on_a_terminal_of_80_columns_no_word_is_cut(here):
    main_end, other_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "equipoise", "report", "a place that is not there/" + "x " * 40],
        stdout=other_end,
        stderr=other_end,
        env=os.environ | {"COLUMNS": "80"},
    )
    process.wait(timeout=100)
    said = os.read(main_end, 10_000).decode().replace("\r", "")
    os.close(main_end)
    os.close(other_end)
    assert process.returncode == 2 and said.startswith("error: a place that is not there")
    assert all(len(line) <= 80 for line in said.splitlines()) and "\n" in said.strip()


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["-h"], ["-V"], []])
def test_what_is_answered_without_any_library(argv):
    code = (
        "import sys, time; began = time.monotonic(); from equipoise.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "heavy = {'torch', 'numpy', 'tyro', 'rich', 'scipy', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "print(code, sorted(heavy), time.monotonic() - began < 1)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{0 if argv else 2} [] True"


def test_the_overview_names_every_command_as_its_own_help_does(monkeypatch):
    kinds = {name: REQUESTS[name] for name in COMMANDS}
    first = {name: " ".join((kind.__doc__ or "").split("\n\n")[0].split()) for name, kind in kinds.items()}
    assert first == COMMANDS
    for width in ("40", "80", "200"):
        monkeypatch.setenv("COLUMNS", width)
        text = overview()
        assert [name for name in COMMANDS if not re.search(rf"^  {name} ", text, re.MULTILINE)] == []


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["-V"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"equipoise {equipoise.__version__}\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "there is not enough memory"),
        (np._core._exceptions._ArrayMemoryError((10**9,), np.dtype(float)), "there is not enough memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "there is not enough memory"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "error: Read-only file system (x).\n"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "y" * 5000), f"({'y' * 200}...)."),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "the current folder does not exist any more"),
        (OSError(errno.EIO, "Input/output error", b"caf\xe9"), "Input/output error (caf"),
        (OSError("odd"), "error: odd.\n"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(monkeypatch, capsys, error, message):
    def fail(options, command):
        raise error

    monkeypatch.setattr(commands, "run", fail)
    assert main(["report", "x"]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and ("free some space" in err) is False


def test_a_message_is_one_line_whatever_is_in_it(capsys):
    assert main(["report", "a\nb\x1b[31m\udce9"]) == 2
    assert capsys.readouterr().err.startswith("error: a\\nb\\x1b[31m\\udce9 does not exist")
    assert main(["y" * 5000]) == 2
    assert len(capsys.readouterr().err) < 500


def test_a_folder_that_has_vanished(here):
    (here / "gone").mkdir()
    done = shell("cd gone && rmdir ../gone && equipoise evaluate x --data digits --eps 0.1")
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_user_without_a_home(here):
    environment = {name: "" for name in ("EQUIPOISE_CACHE", "XDG_CACHE_HOME")}
    line = f"unset EQUIPOISE_CACHE XDG_CACHE_HOME; HOME=/nonexistent equipoise {' '.join(EVALUATE)} --out e.json"
    done = shell(line, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert shutil.which("bash") and isinstance(load("e.json"), Evaluation)


@pytest.mark.parametrize(
    ("words", "question"),
    [
        (["evaluate", "x", "--norm", "l2", "--eps", "8/255"], "eps = 8/255 is a radius as used in linf"),
        (["evaluate", "x", "--norm", "l1", "--eps", "0.5", "2/255"], "eps = 2/255 is a radius as used in linf"),
        (["audit", "x", "--norm", "l2", "--eps", "4/255"], "eps = 4/255"),
        (["train", "udp", "--norm", "l2", "--eps", "8/255"], "is --norm linf meant?"),
        (["evaluate", "x", "--eps", "8"], "is 8/255 meant?"),
        (["evaluate", "x", "--norm", "l2", "--eps", "0.5", "128/255", "36/255"], None),
        (["evaluate", "x", "--eps", "8/255", "0.3"], None),
        (["train", "udp", "--eps", "8/255"], None),
        (["train", "standard"], None),
        (["train", "ls-udp", "--latent", "fc1", "--norm", "l2", "--eps", "8/255"], None),
        (["report", "x"], None),
    ],
)
def test_a_radius_of_another_norms_size_raises_a_question(monkeypatch, capsys, words, question):
    monkeypatch.setattr(commands, "run", lambda options, command: 0)
    assert main(words) == 0
    err = capsys.readouterr().err
    assert err == "" if question is None else question in err and err.startswith("warning: ")
