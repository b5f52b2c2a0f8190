"""An evaluation that several processes share, each of them a shard."""

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from equipoise.cli.requests import Evaluate
from equipoise.cli.resuming import without
from equipoise.cli.workers import progress_of, require_alive, workers
from equipoise.core.locks import locked
from equipoise.evaluation import Progress, Shard
from equipoise.evaluation.journal import Journal, note_saved
from equipoise.evaluation.requests import finished
from equipoise.evaluation.shards import merged
from equipoise.results.records import Evaluation

_PAUSE = 0.1  # seconds between two looks at the processes
_PATIENCE = 10.0  # seconds for the processes of an earlier call to be gone
_FINE = 1000  # units of progress per block


def evaluate_in_processes(
    options: Evaluate, out: Path, command: str, key: Mapping[str, Any], request: Mapping[str, Any], progress: Progress
) -> Evaluation:
    """Evaluate each shard in a process of its own, and put the records together.

    The shards lie in the journal of the whole, which says what they are of: to resume is to start them again.
    """
    count = options.processes
    blocks = range(math.ceil(key["data"]["n"] / options.batch_size))
    sizes = [len(Shard(number, count).of(blocks)) for number in range(1, count + 1)]
    journal = Journal.of(out, {**key, "processes": count})
    files = {number: journal.folder / f"{number}of{count}.json" for number in range(1, count + 1)}
    notes = {number: file.with_suffix(".progress") for number, file in files.items()}
    with locked(out):
        before = finished(out, request, options.overwrite or (options.resume and journal.is_begun))
        if before is not None:
            return before
        journal.claim(options.resume, options.overwrite)
        journal.begin()
        for file in files.values():  # processes of an earlier call that was killed end within seconds
            with locked(file, _PATIENCE):
                pass
        commands = {n: _shard_words(command, n, count, file) for n, file in files.items() if not file.is_file()}

        def report_progress() -> None:
            shares = [1.0 if files[n].is_file() else progress_of(notes[n]) for n in files]
            done = sum(size * share for size, share in zip(sizes, shares, strict=True))
            progress(f"{count} processes", int(_FINE * done), _FINE * len(blocks))

        try:
            with workers(commands, notes, max(torch.get_num_threads() // count, 1)) as started:
                while any(worker.process.poll() is None for worker in started.values()):
                    require_alive(started, count)
                    report_progress()
                    time.sleep(_PAUSE)
                require_alive(started, count)
        except KeyboardInterrupt as stop:
            note_saved(stop, *_finished(list(files.values()), sizes))
            raise
        report_progress()
        whole = merged(list(files.values()), out, command, overwrite=True)
        journal.discard()
    return whole


def _finished(files: Sequence[Path], sizes: Sequence[int]) -> tuple[int, int, int]:
    """How many blocks several processes have finished, of how many, and how many attacks on others."""
    folders = [Path(f"{file}.partial") for file in files]
    blocks = sum(
        size if file.is_file() else len(list(folder.glob("block-*.json")))
        for size, file, folder in zip(sizes, files, folders, strict=True)
    )
    return (blocks, sum(sizes), sum(len(list(folder.glob("block-*.pt"))) for folder in folders))


def _shard_words(command: str, number: int, count: int, file: Path) -> list[str]:
    """The command line of one of the processes that share the work of `command`."""
    own = {"--processes", "--shard", "--out", "--robustbench"}  # of the whole, or of this process
    words = without(shlex.split(command)[1:], own, {"--resume", "--overwrite"})
    return [*words, "--shard", f"{number}/{count}", "--out", str(file), "--resume"]
