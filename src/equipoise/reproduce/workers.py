"""Who computes the tasks of a sweep: this process, several processes of this machine, or a Ray cluster.

Every worker has one thread, so that the numbers are the same to the last bit. A process that dies loses only what came
after its last checkpoint: its task is taken up by another.
"""

import errno
import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from equipoise.core.cluster import RETRIES, connected, go_to, lost
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import write_atomically
from equipoise.reproduce.running import Setting, code_version, run
from equipoise.reproduce.studies.processes import exit_with_parent, one_thread
from equipoise.reproduce.sweep_folder import DONE, PROGRESS, TASK, is_done, read_state, write_json
from equipoise.reproduce.tasks import Task, datasets, described
from equipoise.results.provenance import provenance

_INTERVAL = 1.0  # seconds between two reports of progress
_PATIENCE = 30.0  # seconds to wait for the worker of a sweep that was killed to end


@dataclass(frozen=True)
class Job:
    """A task of a sweep."""

    task: Task
    folder: Path
    needs: frozenset[Path]
    """The folders of the tasks that it needs."""
    seconds: float


def device() -> str:
    """Return the device that tasks are computed on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class _ThisProcess:
    setting: Setting
    slots: int = 1  # jobs at a time
    ended: "tuple[Path, str | None] | None" = None

    def submit(self, job: Job, on_progress: Callable[[], None]) -> None:
        """Take a job, and call `on_progress` now and then where nobody else can while it is computed."""
        self.ended = (job.folder, work(job.task, self.setting, on_progress))

    def finished(self) -> Iterable[tuple[Path, str | None]]:
        """Return the folders of the jobs that have ended since, after a while, each with what went wrong."""
        ended, self.ended = self.ended, None
        return [] if ended is None else [ended]


@contextmanager
def in_this_process(setting: Setting) -> "Iterator[Pool]":
    """Compute one job at a time in this process."""
    with one_thread():
        yield _ThisProcess(setting)


@dataclass
class _Worker:
    process: BaseProcess
    connection: Any
    job: Job | None = None


class _Processes:
    """A job goes to an idle worker, or to a new one, which is kept for the next job; so datasets are loaded once."""

    def __init__(self, setting: Setting, slots: int) -> None:
        self.setting, self.slots = setting, slots
        self.workers: list[_Worker] = []
        self.deaths: Counter[Path] = Counter()

    def submit(self, job: Job, on_progress: Callable[[], None]) -> None:
        worker = next((one for one in self.workers if one.job is None), None) or self._start()
        worker.job = job
        with suppress(OSError):  # that it has died meanwhile is seen when its answer is waited for
            worker.connection.send(job.task)

    def finished(self) -> Iterable[tuple[Path, str | None]]:
        busy = {worker.connection: worker for worker in self.workers if worker.job is not None}
        ended = []
        for connection in wait(list(busy), timeout=_INTERVAL):
            worker = busy[connection]
            job, worker.job = worker.job, None
            assert job is not None
            try:
                ended.append((job.folder, worker.connection.recv()))
            except (EOFError, OSError):  # the process has died
                self._end(worker)
                self.deaths[job.folder] += 1
                if self.deaths[job.folder] > RETRIES:
                    ended.append((job.folder, _lost("killed or out of memory")))
                else:
                    self.submit(job, lambda: None)
        return ended

    def _start(self) -> _Worker:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(theirs, self.setting, self._gpu()), daemon=True)
        process.start()
        theirs.close()  # or the end of the process would not be seen
        self.workers.append(_Worker(process, ours))
        return self.workers[-1]

    def _gpu(self) -> str | None:
        """The GPU of the next worker, in turn."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        gpus = visible if visible != [""] else [str(i) for i in range(torch.cuda.device_count())]
        return gpus[len(self.workers) % len(gpus)] if gpus else None

    def _end(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.connection.close()

    def end(self) -> None:
        for worker in list(self.workers):
            self._end(worker)


@contextmanager
def in_processes(setting: Setting, workers: int) -> "Iterator[Pool]":
    """Compute `workers` jobs at a time in processes of this machine, which share its GPUs and end with this one."""
    pool = _Processes(setting, workers)
    try:
        yield pool
    finally:
        pool.end()


def _serve(connection: Any, setting: Setting, gpu: str | None) -> None:
    """Compute one task after another for the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the one that started us ends us
    exit_with_parent()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(1)
    with suppress(EOFError):
        while True:
            connection.send(work(connection.recv(), setting))


def _lost(why: object) -> str:
    return f"{lost(why, RETRIES + 1)}: run the same command again with fewer --workers."


@dataclass
class _OnRay:
    ray: Any
    remote: Any
    setting: Setting
    slots: int
    running: dict[Any, Path]

    def submit(self, job: Job, on_progress: Callable[[], None]) -> None:
        self.running[self.remote.remote(os.getcwd(), job.task, self.setting)] = job.folder

    def finished(self) -> Iterable[tuple[Path, str | None]]:
        try:
            ended, _ = self.ray.wait(list(self.running), timeout=_INTERVAL) if self.running else ([], [])
        except self.ray.exceptions.RayError as error:
            raise EquipoiseError(
                f"the Ray cluster is lost ({error}): run the same command again to continue."
            ) from error
        return [(self.running.pop(one), self._result(one)) for one in ended]

    def _result(self, reference: Any) -> str | None:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            return _lost(error)


Pool = _ThisProcess | _Processes | _OnRay
"""Workers that compute jobs."""


@contextmanager
def on_ray(setting: Setting, workers: int | None, address: str) -> "Iterator[Pool]":
    """Compute at most `workers` jobs at a time on a Ray cluster, by default as many as it has cores. Raises
    `EquipoiseError` if Ray is not installed or there is no cluster.
    """
    with connected(address) as ray:
        resources = ray.cluster_resources()
        slots = min(workers or 1 << 30, max(int(resources.get("CPU", 1)), 1))
        gpus = min(int(10_000 * resources.get("GPU", 0) / slots) / 10_000, 1.0)
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_work_elsewhere)
        yield _OnRay(ray, remote, setting, slots, {})


def _work_elsewhere(folder: str, task: Task, setting: Setting) -> str | None:
    """`work` on a machine of a cluster, in the folder where the sweep was started."""
    torch.set_num_threads(1)
    try:
        go_to(folder)
    except EquipoiseError as error:
        return str(error)
    return work(task, setting)


def work(task: Task, setting: Setting, on_progress: Callable[[], None] = lambda: None) -> str | None:
    """Compute a task, or continue it, unless it is finished. Returns what went wrong, in a sentence, or None."""
    try:
        folder = setting.folder_of(task)
    except (EquipoiseError, OSError) as error:  # its data cannot be read on this machine
        return str(error)
    try:
        require(
            code_version() == setting.code or not setting.code,
            "the library was changed since the sweep began: run the same command again, which begins with the new one.",
        )
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "task.lock", timeout=_PATIENCE):  # nobody else, be it a worker that should be dead
            if not is_done(folder):
                _compute(task, setting, folder, on_progress)
    except Timeout:
        return f"{folder} is still held by process {read_state(folder / PROGRESS).get('pid', '?')}: end that one first."
    except (EquipoiseError, OSError) as error:
        return _sentence(error, [folder, *(setting.folder_of(one) for one in task.needs)])
    except Exception as error:  # a mistake of ours or of a user's network: it must not stop the others
        with suppress(EquipoiseError):
            write_atomically(folder / "error.txt", traceback.format_exc())
        return f"{type(error).__name__}: {error} (the traceback is in {folder / 'error.txt'})."
    return None


def _compute(task: Task, setting: Setting, folder: Path, on_progress: Callable[[], None]) -> None:
    """Run the task, with what is written before, meanwhile and after."""
    if not (folder / TASK).exists():
        data = {name: {"name": setting.dataset(name).name, "sha256": setting.sha256(name)} for name in datasets(task)}
        write_json(folder / TASK, {"label": task.label, "data": data, "code": setting.code, "task": described(task)})
    state = read_state(folder / PROGRESS)
    before, sittings = float(state.get("seconds", 0.0)), int(state.get("sittings", 0)) + 1
    began, reported = time.monotonic(), 0.0

    def report_progress(what: str, share: float) -> None:
        nonlocal reported
        time_now = time.monotonic()
        if time_now - reported < _INTERVAL:
            return
        reported = time_now
        state = {"what": what, "share": share, "seconds": before + time_now - began, "sittings": sittings}
        with suppress(EquipoiseError):  # whether there is space is found out by what matters
            write_json(folder / PROGRESS, state | {"pid": os.getpid(), "host": socket.gethostname()})
        on_progress()

    report_progress("begins", float(state.get("share", 0.0)))
    run(task, setting, report_progress)
    seconds = before + time.monotonic() - began
    origin = asdict(provenance(0, device(), setting.command))
    del origin["seed"]  # which is the task's
    done = {"kind": task.kind, "label": task.label, "seconds": seconds, "sittings": sittings, "code": setting.code}
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / DONE, done | {"finished": ended, "host": socket.gethostname(), "provenance": origin})
    with suppress(OSError):
        (folder / PROGRESS).unlink()


def _sentence(error: Exception, folders: Sequence[Path]) -> str:
    """What went wrong, with what to do about it."""
    cause = error if isinstance(error, OSError) else error.__cause__
    text = str(error).rstrip(".")
    if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
        text = text.partition(";")[0]
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"{text}; {'free some space and ' if full else ''}run the same command again to continue."
    damaged = next((folder for folder in folders if str(folder) in text), None)
    if damaged is not None:
        return f"{text}; remove {damaged} and run the same command again, which does that task anew and no other."
    return f"{text}."
