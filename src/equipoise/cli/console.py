"""The terminal: lines of a width that can be read, on streams that do not fail.

A reader may leave, a stream may be closed, an encoding may lack a character: words are lost then, and nothing else.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from textwrap import wrap
from typing import Any, Protocol, TextIO, cast, runtime_checkable

from equipoise.core.torchrun import is_main_process

_USUAL, _NARROWEST, _WIDEST = 80, 40, 1000
_COMMAND = re.compile(r"(?P<before>.*:) (?P<command>equipoise .+|pip install (?:(?!, ).)+?)(?P<stop>\.?)")


@runtime_checkable
class _Stream(Protocol):
    """What is needed of `sys.stdout` and its kin."""

    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...
    def isatty(self) -> bool: ...
    def fileno(self) -> int: ...


class Steady:
    """A text stream whose `write` and `flush` never fail; its other attributes are those of `stream`.

    Once a write fails, whatever follows is dropped. A reader that has left, as `| head -1` does, is no error; any other
    failure, such as a full disk, is kept in `failure`.
    """

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._lost = False
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write `text`, with a question mark for every character that the stream's encoding lacks."""
        if self._lost:
            return len(text)
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                encoding = getattr(self._stream, "encoding", None) or error.encoding
                self._stream.write(text.encode(encoding, "replace").decode(encoding))
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        if self._lost:
            return
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self._lost = True
        self.failure = None if isinstance(error, BrokenPipeError) else error
        with suppress(OSError):  # what is still buffered goes nowhere, also at the end of the process
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def steady_streams() -> Iterator[Steady]:
    """Make `sys.stdout` and `sys.stderr` steady within the context, which is the former; flush both at its end."""
    _open_standard_files()
    before = sys.stdout, sys.stderr
    out, err = (Steady(open(os.devnull, "w") if stream is None else stream) for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _open_standard_files() -> None:
    """See that descriptors 0, 1 and 2 are open: one that is closed becomes that of the next file which is opened, into
    which processes and libraries then print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)


def columns() -> int:
    """Return how many characters a line has room for: `$COLUMNS`, else the terminal's width, else 80; at least 40."""
    with suppress(ValueError):
        if (chosen := int(os.environ.get("COLUMNS", ""))) > 0:
            return min(max(chosen, _NARROWEST), _WIDEST)
    for number in (1, 2, 0):
        with suppress(OSError):
            if width := os.get_terminal_size(number).columns:
                return min(max(width, _NARROWEST), _WIDEST)
    return _USUAL


def laid_out(text: str, stream: _Stream) -> str:
    """Return `text` as `stream` shows it best: on a terminal with long lines wrapped at words, and with a command at
    the end of a message on a line of its own, which is not wrapped, so that it can be copied; else unchanged.
    """
    if not stream.isatty():
        return text
    lines = []
    for line in text.split("\n"):
        if len(line) <= (width := columns()):
            lines.append(line)
        elif (match := _COMMAND.fullmatch(line)) and (match["command"].startswith("pip") or not match["stop"]):
            lines += [*_wrapped(match["before"], width), f"  {match['command']}"]
        else:
            lines += _wrapped(line, width)
    return "\n".join(lines)


def _wrapped(line: str, width: int) -> list[str]:
    return wrap(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) or [""]


def say(text: object = "") -> None:
    """Print a message or a table, in the main process."""
    if not is_main_process():
        return
    if isinstance(text, str):
        print(laid_out(text, sys.stdout))
    else:
        from rich.console import Console

        Console(width=columns(), highlight=False).print(text, markup=False)


def suggest(*words: object) -> None:
    """Say which command of equipoise comes next, as the last line of a command."""
    say(f"next: {shlex.join(['equipoise', *map(str, words)])}")


def moving(text: str) -> None:
    """Show `text` in place of the last one, on a terminal; the empty text takes it away."""
    if is_main_process() and sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{text[: columns() - 1]}")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Such as `42 s`, `3:07` or `2:03:07`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
