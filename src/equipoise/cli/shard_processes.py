"""An evaluation that several processes share, of this machine or of a Ray cluster, each of them a shard."""

import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from equipoise.cli.requests import Evaluate
from equipoise.core.cluster import RETRIES, connected, go_to, lost
from equipoise.core.errors import EquipoiseError
from equipoise.core.locks import locked
from equipoise.evaluation import Progress, Shard
from equipoise.evaluation.journal import Journal, note_saved
from equipoise.evaluation.requests import finished
from equipoise.evaluation.shards import merged
from equipoise.reproduce.studies.processes import exit_with_parent
from equipoise.results.records import Evaluation

_PAUSE = 0.1  # seconds between two looks at the processes
_LOOK = 0.05  # seconds for an answer of the cluster
_PATIENCE = 10.0  # seconds for the processes of an earlier call to be gone
_FINE = 1000  # units of progress per block

Compute = Callable[[Evaluate, str, Progress], object]
"""Evaluates what is asked for in this process; the text is the command."""


def evaluate_in_processes(
    compute: Compute,
    options: Evaluate,
    out: Path,
    command: str,
    key: Mapping[str, Any],
    request: Mapping[str, Any],
    progress: Progress,
) -> Evaluation:
    """Evaluate each shard in a process of its own, and put the records together.

    The shards lie in the journal of the whole, which says what they are of: to resume is to start them again.
    """
    count = options.processes
    blocks = range(math.ceil(key["data"]["n"] / options.batch_size))
    sizes = [len(Shard(number, count).of(blocks)) for number in range(1, count + 1)]
    journal = Journal.of(out, {**key, "processes": count})
    files = [journal.folder / f"{number}of{count}.json" for number in range(1, count + 1)]
    with locked(out):
        before = finished(out, request, options.overwrite or (options.resume and journal.is_begun))
        if before is not None:
            return before
        journal.claim(options.resume, options.overwrite)
        journal.begin()
        for file in files:  # processes of an earlier call that was killed end within seconds
            with locked(file, _PATIENCE):
                pass
        own = replace(options, processes=1, address=None, resume=True, overwrite=False, robustbench=None)
        shards = [replace(own, shard=f"{i}/{count}", out=file) for i, file in enumerate(files, 1)]
        text, total = f"{count} processes", _FINE * len(blocks)
        start = _in_processes if options.address is None else partial(_on_ray, options.address, sizes)
        try:
            with start(compute, shards, command) as crew:
                while crew.is_at_work():
                    done = sum(size * share for size, share in zip(sizes, crew.shares(), strict=True))
                    progress(text, int(_FINE * done), total)
                    time.sleep(_PAUSE)
        except KeyboardInterrupt as stop:
            note_saved(stop, *_finished(files, sizes))
            raise
        progress(text, total, total)
        whole = merged(files, out, command, overwrite=True)
        journal.discard()
    return whole


@dataclass(frozen=True)
class _Crew:
    """Who computes the shards."""

    is_at_work: Callable[[], bool]
    """Whether some are at work and none has failed."""
    shares: Callable[[], Sequence[float]]
    """The share of its work that each shard has done."""


@contextmanager
def _in_processes(compute: Compute, shards: Sequence[Evaluate], command: str) -> Iterator[_Crew]:
    """Processes for those shards that are not finished; all end with the context. Raises `EquipoiseError` at its end
    with what the first one that failed had to say.
    """
    spawn = multiprocessing.get_context("spawn")
    shares, errors = spawn.Array("d", len(shards)), spawn.SimpleQueue()
    threads = max(torch.get_num_threads() // len(shards), 1)
    processes: list[BaseProcess] = []
    try:
        for i, options in enumerate(shards):
            assert options.out is not None
            if options.out.is_file():
                shares[i] = 1.0
                continue
            work = (compute, options, command, threads, i, shares, errors)
            processes.append(spawn.Process(target=_work, args=work, name=options.shard, daemon=True))
            processes[-1].start()
        yield _Crew(
            lambda: any(p.is_alive() for p in processes) and not any(p.exitcode for p in processes), lambda: shares[:]
        )
        for process in processes:
            if process.exitcode:
                said = None if errors.empty() else errors.get()
                raise EquipoiseError(said or f"process {process.name} ended with code {process.exitcode}.")
    finally:
        for process in processes:
            process.kill()
            process.join()


@contextmanager
def _on_ray(
    address: str, sizes: Sequence[int], compute: Compute, shards: Sequence[Evaluate], command: str
) -> Iterator[_Crew]:
    """The same on a cluster, all of whose machines see this folder: a shard goes on where its last worker stopped."""
    with connected(address) as ray:
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_work_elsewhere)
        files = [options.out for options in shards if options.out is not None]
        begun = [
            remote.remote(os.getcwd(), compute, options, command)
            for options, file in zip(shards, files, strict=True)
            if not file.is_file()
        ]

        def ended() -> list[Any]:
            return ray.wait(begun, num_returns=len(begun), timeout=_LOOK)[0] if begun else []

        def failure() -> str | None:
            try:
                return next((said for said in ray.get(ended()) if said), None)
            except ray.exceptions.RayError as error:
                return f"{lost(error)}: give the same command with --resume to continue."

        try:
            yield _Crew(
                lambda: len(ended()) < len(begun) and failure() is None,
                lambda: [_done(file, size) for file, size in zip(files, sizes, strict=True)],
            )
            said = failure()
            if said is not None:
                raise EquipoiseError(said)
        finally:
            for reference in begun:
                ray.cancel(reference, force=True)


def _work_elsewhere(folder: str, compute: Compute, options: Evaluate, command: str) -> str | None:
    """Compute a shard on a machine of a cluster, in the folder of the command. Returns what went wrong, or None."""
    torch.set_num_threads(1)
    try:
        go_to(folder)
        if options.out is None or not options.out.is_file():  # which a worker that was lost may have finished
            compute(options, command, lambda what, done, total: None)
    except Exception as error:
        return _said(options, error)
    return None


def _said(options: Evaluate, error: Exception) -> str:
    own = isinstance(error, EquipoiseError)
    return str(error) if own else f"process {options.shard} failed: {type(error).__name__}: {error}."


def _done(file: Path, size: int) -> float:
    """The share of a shard that its journal holds."""
    return 1.0 if file.is_file() else len(list(Path(f"{file}.partial").glob("block-*.json"))) / max(size, 1)


def _work(compute: Compute, options: Evaluate, command: str, threads: int, i: int, shares: Any, errors: Any) -> None:
    """Compute a shard, silently, in a process that ends with the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the one that started us ends us
    exit_with_parent()
    torch.set_num_threads(threads)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115

    def report(what: str, done: int, total: int) -> None:
        shares[i] = done / total

    try:
        compute(options, command, report)
    except Exception as error:
        errors.put(_said(options, error))
        sys.exit(1)


def _finished(files: Sequence[Path], sizes: Sequence[int]) -> tuple[int, int, int]:
    """How many blocks several processes have finished, of how many, and how many attacks on others."""
    folders = [Path(f"{file}.partial") for file in files]
    blocks = sum(
        size if file.is_file() else len(list(folder.glob("block-*.json")))
        for size, file, folder in zip(sizes, files, folders, strict=True)
    )
    return (blocks, sum(sizes), sum(len(list(folder.glob("block-*.pt"))) for folder in folders))
