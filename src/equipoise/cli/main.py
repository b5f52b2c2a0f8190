"""From a command line to an exit code. Whatever is wrong with the input is one sentence on stderr and the code 2."""

import errno
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from equipoise.cli.processes import is_main_process
from equipoise.errors import EquipoiseError, EquipoiseWarning

_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default that of the process) and return its exit code.

    0 after success, 1 if tasks of an experiment failed, 2 after bad input, in which case stderr holds one sentence, and
    128 plus the number of the signal after Ctrl-C (130) or SIGTERM (143).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    with _short_warnings():
        try:
            from equipoise.cli.commands import run
            from equipoise.cli.options import parse
            from equipoise.cli.resuming import continued

            argv = continued(argv)
            code = run(parse(argv), shlex.join(["equipoise", *argv]))
            sys.stdout.flush()
            return code
        except EquipoiseError as error:
            return _fail(str(error))
        except ModuleNotFoundError as error:
            if error.name not in ("tyro", "rich"):
                raise
            return _fail(f"the command line needs {error.name}, which is not installed: pip install {error.name}.")
        except KeyboardInterrupt as error:
            code = 128 + getattr(error, "signal", signal.SIGINT)
            again = _again(argv) if getattr(error, "kept", True) else ""
            return _fail(f"interrupted; continue with: {again}" if again else "interrupted.", "", code)
        except BrokenPipeError:  # the reader of our output has left, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            return _fail(_in_a_sentence(error))
        except RuntimeError as error:
            if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
            return _fail("there is not enough memory: use a smaller --batch-size, or --precision bf16 on a GPU.")
    return 0


def _again(argv: Sequence[str]) -> str:
    """The command that continues an interrupted one; empty if none does."""
    if argv[:1] == ["reproduce"]:
        return shlex.join(["equipoise", *argv])
    if argv[:1] in (["train"], ["evaluate"]):
        return shlex.join(["equipoise", *(a for a in argv if a not in ("--overwrite", "--resume")), "--resume"])
    return ""


def _fail(message: str, prefix: str = "error: ", code: int = _USAGE) -> int:
    if is_main_process():
        print(f"{prefix}{message}", file=sys.stderr)
    return code


def _in_a_sentence(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "; free some space or choose another place with --out" if full else ""
    return f"{error.strerror or error}{where}{advice}."


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show the package's own warnings as one line each; leave all others as they are."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if not issubclass(category, EquipoiseWarning):
                usual(message, category, *rest)
            elif is_main_process():
                print(f"\r\x1b[2Kwarning: {message}" if sys.stderr.isatty() else f"warning: {message}", file=sys.stderr)

        warnings.simplefilter("always", EquipoiseWarning)
        warnings.showwarning = show
        yield
