"""From a command line to an exit code. Whatever is wrong with the input is one sentence on stderr and the code 2."""

import errno
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from equipoise.cli import overview
from equipoise.cli.console import laid_out, steady_streams
from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.core.files import advice, printable, reason
from equipoise.core.processors import set_thread_defaults
from equipoise.core.torchrun import is_main_process

_USAGE = 2
_LONGEST = 200  # characters of a file name in a message
_NO_MEMORY = "there is not enough memory: use a smaller --batch-size, or --precision bf16 on a GPU."
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")
"""How PyTorch says it; Python itself raises `MemoryError`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default that of the process) and return its exit code.

    0 after success, 1 if tasks of an experiment failed or an evaluation is below its --fail-under, 2 after bad input,
    in which case stderr holds one sentence, 3 if an audit found masked gradients, 4 if it had too few samples to tell,
    and 128 plus the number of the signal after Ctrl-C (130) or SIGTERM (143). A reader of stdout or stderr that leaves,
    as `head` does, ends nothing and changes no exit code.
    """
    set_thread_defaults()
    argv = list(sys.argv[1:] if argv is None else argv)
    with steady_streams() as out, _short_warnings():
        code = _outcome(argv)
        out.flush()
        if out.failure is not None and code == 0:
            return _fail(f"the output could not be written: {reason(out.failure)}; what went into files is whole.")
        return code


def _outcome(argv: list[str]) -> int:
    """Run a command line; whatever ends it becomes an exit code and a sentence, but for faults of this program."""
    words = argv
    try:
        overview.answer(argv)
        from equipoise.cli.words import HELP, renamed, require_once

        if argv[0] in ("experiments", "models") and HELP.keys().isdisjoint(argv):
            from equipoise.cli.listing import list_experiments
            from equipoise.cli.published_models import list_models

            (list_experiments if argv[0] == "experiments" else list_models)(argv)
            return 0
        from equipoise.cli.choices import with_choices
        from equipoise.cli.commands import run
        from equipoise.cli.options import with_new_flags
        from equipoise.cli.parsing import parse, questions
        from equipoise.cli.resuming import continued

        require_once(argv)
        words, data = with_choices(continued(argv))
        options = parse(words)
        if data is not None:
            options = replace(options, loaded=data)  # pyright: ignore[reportCallIssue]
        for text in (*renamed(argv), *questions(options)):
            warnings.warn(text, EquipoiseWarning, stacklevel=1)
        return run(options, shlex.join(["equipoise", *with_new_flags(words)]))
    except EquipoiseError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name != "rich":
            raise
        return _fail("the command line needs rich, which is not installed: pip install rich.")
    except KeyboardInterrupt as error:
        code = 128 + getattr(error, "signal", signal.SIGINT)
        again = _again(argv, words) if getattr(error, "kept", True) else ""
        message = "; ".join(["interrupted", *getattr(error, "__notes__", ())])
        return _fail(f"{message}; continue with: {again}" if again else f"{message}.", "", code)
    except MemoryError:
        return _fail(_NO_MEMORY)
    except OSError as error:
        return _fail(_NO_MEMORY if error.errno == errno.ENOMEM else _in_a_sentence(error))
    except RuntimeError as error:
        if not any(words in str(error).lower() for words in _MEMORY_WORDS):
            raise
        return _fail(_NO_MEMORY)


def _again(argv: Sequence[str], words: Sequence[str]) -> str:
    """The command that continues an interrupted one; empty if none does. It is what was typed, unless the `words` with
    what was chosen are needed: where no --out names the run that holds them, and where that would choose again.
    """
    typed = {word.partition("=")[0] for word in argv}
    chosen = "--out" not in typed or "--minutes" in typed or argv[1:2] != words[1:2]
    argv = words if chosen and "--resume" not in typed else argv
    if argv[:1] == ["reproduce"]:
        return shlex.join(["equipoise", *argv])
    if argv[:1] in (["train"], ["evaluate"]):
        return shlex.join(["equipoise", *(a for a in argv if a not in ("--overwrite", "--resume")), "--resume"])
    return ""


def _fail(message: str, prefix: str = "error: ", code: int = _USAGE) -> int:
    if is_main_process():
        print(laid_out(printable(f"{prefix}{message}"), sys.stderr), file=sys.stderr)
    return code


def _in_a_sentence(error: OSError) -> str:
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
    if error.errno == errno.ENOENT and name is None:
        return "the current folder does not exist any more: change to another one."
    where = f" ({name if len(str(name)) <= _LONGEST else f'{str(name)[:_LONGEST]}...'})" if name else ""
    help_ = f"; {advice(error)}" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{reason(error)}{where}{help_}."


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show the package's own warnings as one line each; leave all others as they are."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if not issubclass(category, EquipoiseWarning):
                usual(message, category, *rest)
            elif is_main_process():
                text = laid_out(printable(f"warning: {message}"), sys.stderr)
                print(f"\r\x1b[2K{text}" if sys.stderr.isatty() else text, file=sys.stderr)

        warnings.simplefilter("always", EquipoiseWarning)
        warnings.showwarning = show
        yield
