"""The processes of `evaluate --processes`: each computes a shard, says how far it is, and ends with who started it."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from equipoise.core.errors import EquipoiseError
from equipoise.core.files import write_atomically
from equipoise.evaluation import Progress

_GRACE = 3.0  # seconds that a process has to end by itself
_EVERY = 0.5  # seconds between two notes of the progress
_PROGRESS = "EQUIPOISE_PROGRESS"


@dataclass(frozen=True)
class Worker:
    """A process that computes a shard."""

    process: "subprocess.Popen[bytes]"
    """The process, whose standard input stays open as long as this one lives."""
    errors: BinaryIO
    """What it writes to stderr."""


@contextmanager
def workers(
    commands: Mapping[int, Sequence[str]], notes: Mapping[int, Path], threads: int
) -> Iterator[dict[int, Worker]]:
    """Start `equipoise` with each of these command lines, and end all of them afterwards, however that comes about.

    The progress of each is noted in the file of the same number (`progress_of`). `threads` is how many each may use.
    """
    started: dict[int, Worker] = {}
    with ExitStack() as stack:
        stack.callback(_end, started)
        for number, words in commands.items():
            errors = stack.enter_context(TemporaryFile())
            process = subprocess.Popen(
                [sys.executable, "-m", "equipoise.cli.workers", *words],
                env=os.environ | {"OMP_NUM_THREADS": str(threads), _PROGRESS: str(notes[number])},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            started[number] = Worker(process, errors)
        yield started


def _end(started: Mapping[int, Worker]) -> None:
    """Ask the processes to end, and kill those that do not within the time of grace."""
    for worker in started.values():
        worker.process.terminate()
    deadline = time.monotonic() + _GRACE
    for worker in started.values():
        try:
            worker.process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        if worker.process.stdin is not None:
            worker.process.stdin.close()


def require_alive(started: Mapping[int, Worker], count: int) -> None:
    """Raise `EquipoiseError` with what the first process that failed had to say."""
    for number, worker in started.items():
        if worker.process.poll():
            worker.errors.seek(0)
            lines = worker.errors.read().decode(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "without a message"
            own = last.startswith("error: ")
            raise EquipoiseError(
                last.removeprefix("error: ")
                if own
                else f"process {number} of {count} ended with code {worker.process.returncode}: {last}"
            )


def noting(file: str) -> Progress:
    """A callback of `evaluate` that notes in a file which share of the work is over."""
    noted = -_EVERY

    def note(what: str, done: int, total: int) -> None:
        nonlocal noted
        now = time.monotonic()
        if now - noted >= _EVERY:
            noted = now
            with suppress(EquipoiseError):  # whether there is space is found out by what matters
                write_atomically(file, f"{done / total:.6f}".encode(), durable=False)

    return note


def own_note() -> str | None:
    """Where this process notes its progress, if it is one of several that share an evaluation."""
    return os.environ.get(_PROGRESS)


def progress_of(file: Path) -> float:
    """The share of its work that a process has noted last, 0 before the first note."""
    try:
        return float(file.read_bytes())
    except (OSError, ValueError):
        return 0.0


def _end_with_parent() -> None:
    """End this process as soon as its standard input, which whoever started it holds open, is closed.

    Without ado: what is finished is on disk, and nobody is left to be told.
    """
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    from equipoise.cli.main import main

    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main())
