"""All tasks of an experiment: each once, after those it builds on, in this process or on many cores and machines.

A task's folder holds `task.json`, which says what it is, then what it computes, and at the end `done.json`: where that
is, the task is never computed again. A process that dies loses only what came after its last checkpoint. Everything in
the folders is JSON, safetensors, `.npz` and pages, readable without this library.
"""

import errno
import json
import logging
import os
import platform
import signal
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree
from typing import Any, Protocol, runtime_checkable

import torch
from filelock import FileLock, Timeout

from equipoise.core.errors import EquipoiseError, require, require_integer
from equipoise.core.files import read_json, write_atomically
from equipoise.reproduce import cost, stand_in
from equipoise.reproduce.experiment import Plan
from equipoise.reproduce.tasks import Setting, Task, code_version, datasets, described, forget_datasets
from equipoise.results.provenance import provenance

SCHEMA = 1
RECORD, TASK, DONE, PROGRESS = "experiment.json", "task.json", "done.json", "progress.json"
_RETRIES = 5  # how often a task may lose its worker
_EVERY = 1.0  # seconds between two looks at the progress
_PATIENCE = 30.0  # seconds for a worker of a sweep that was killed to be gone


@dataclass(frozen=True)
class Progress:
    """Where a sweep is."""

    done: int
    """Tasks that are finished, those of earlier sweeps included."""
    total: int
    """Tasks in all."""
    failed: int
    """Tasks that failed, or need one that did."""
    running: Sequence[tuple[str, float]]
    """What is being worked on: a task's label, and which share of it is over."""
    remaining: float
    """Estimated seconds left."""


Show = Callable[[Progress], None]


@dataclass(frozen=True)
class Swept:
    """What came of a sweep."""

    finished: Sequence[Path]
    """Folders of the finished tasks."""
    failed: Mapping[Path, str]
    """Folders of those that failed, and why, in a sentence each."""
    not_begun: Sequence[Path]
    """Folders of those that need one that failed."""


@dataclass(frozen=True)
class Job:
    """A task of a sweep."""

    task: Task
    """What to compute."""
    place: Path
    """Its folder."""
    needs: frozenset[Path]
    """The folders of those it builds on."""
    seconds: float
    """Estimated time."""


def sweep(
    plan: Plan,
    setting: Setting,
    *,
    workers: int | None = None,
    address: str | None = None,
    tell: Show | None = None,
    reuse: Sequence[Path] = (),
) -> Swept:
    """Do all tasks of the plan that are not done yet, and write what there is into `experiment.json`. Those that are
    finished in other experiments' folders, `reuse`, are copied from there.

    One worker works in this process. More are processes of Ray, on the cores of this machine (`workers`, by default
    all), or of a cluster's at `address`, all of whose machines see the same folder; each has one thread. A task whose
    worker dies is taken up again by another, where it was. A task that fails stops nothing but those that need it.
    Raises `EquipoiseError` if the folder holds another experiment, or another sweep works on it, if data is missing or
    Ray is not there.
    """
    if workers is not None:
        require_integer("workers", workers, 1)
    workers = cores() if workers is None and address is None else workers
    claim(plan, setting.folder)
    require_experiments(reuse)
    with _alone(setting.folder):
        data = {name: _about(name, setting) for name in plan.datasets()}
        _same_data(setting.folder, data)
        setting = replace(setting, code=setting.code or code_version())
        jobs = _jobs(plan, setting, {name: about["n_train"] for name, about in data.items()})

        def note(status: str, failed: Mapping[Path, str] | None = None) -> None:
            _write(setting.folder / RECORD, _record(plan, setting, jobs, data, status, failed or {}))

        note("running")
        try:
            for place in jobs:
                _copy(finished(place, reuse), place)
            left = [place for place in jobs if not is_done(place)]
            here = address is None and (workers == 1 or len(left) <= 1)
            if not here:
                forget_datasets()
            pool = partial(_in_this_process, setting) if here else partial(_on_ray, setting, workers, address)
            failed = _all_done(jobs, pool, tell or (lambda now: None))
        except BaseException:
            with suppress(EquipoiseError):  # what stopped us says more
                note("interrupted")
            raise
        note("failed" if failed else "finished", failed)
    done = [place for place in jobs if is_done(place)]
    return Swept(done, failed, [place for place in jobs if place not in done and place not in failed])


def _jobs(plan: Plan, setting: Setting, sizes: Mapping[str, int]) -> dict[Path, Job]:
    """The tasks of the plan by their folders, each after those it builds on."""
    jobs = {}
    for task in plan.tasks():
        needs = frozenset(setting.place(one) for one in task.needs)
        jobs[setting.place(task)] = Job(task, setting.place(task), needs, cost.seconds(task, sizes))
    return jobs


def is_done(place: Path) -> bool:
    """Whether the task of that folder is finished."""
    return "seconds" in _read(place / DONE)


def finished(place: Path, elsewhere: Sequence[Path] = ()) -> Path | None:
    """Where the task of that folder is finished: there, or in another experiment's folder, under the same name, which
    stands for the task, its data and the code. None if nowhere.
    """
    return next((one for one in (place, *(other / place.name for other in elsewhere)) if is_done(one)), None)


def _copy(found: Path | None, place: Path) -> None:
    """Copy a finished task to its place, if it is elsewhere and there is nothing."""
    if found is None or place.exists():
        return
    scratch = place.with_name(f"{place.name}.copying")
    try:
        rmtree(scratch, ignore_errors=True)
        copytree(found, scratch, ignore=ignore_patterns("*.lock"))
        scratch.replace(place)
    except OSError as error:
        raise EquipoiseError(
            f"cannot copy {found} to {place}: {error.strerror or 'it changed meanwhile'}; free some space and run the "
            "same command again, or leave that folder out."
        ) from error


def require_experiments(folders: Sequence[Path]) -> None:
    """Raise `EquipoiseError` if one of the folders holds no experiment."""
    for folder in folders:
        require(
            bool(_read(folder / RECORD)),
            f"{folder} holds no experiment to take finished tasks from: expected the --out of an earlier reproduce.",
        )


def claim(plan: Plan, folder: Path) -> None:
    """Raise `EquipoiseError` if a folder is not free for the plan: it holds something else, or cannot be read."""
    require(not folder.exists() or folder.is_dir(), f"{folder} is a file: expected a folder, which may not exist yet.")
    here = _read(folder / RECORD)
    if not here:
        others = [file.name for file in folder.iterdir() if file.name not in _OURS] if folder.exists() else []
        require(not others, f"{folder} is not empty and holds no experiment: choose another place.")
        return
    seeds = "" if here.get("seeds") is None else f", {here['seeds']} seeds"
    only = f", {' and '.join(here['only'])} only" if here.get("only") else ""
    only += f", {here['examples']} examples" if here.get("examples") else ""
    only += "".join(f", {name} = {value}" for name, value in here.get("changes", {}).items())
    for name, now in _asked(plan).items():
        require(
            (here.get(name, {}) if name == "changes" else here.get(name, now)) == json.loads(json.dumps(now)),
            f"{folder} holds {here.get('name')} at scale {here.get('scale')}, {here.get('variant')}{seeds}{only}: ask "
            "for the same to continue it, or choose another place.",
        )


def _asked(plan: Plan) -> dict[str, Any]:
    """All that tells one plan from another."""
    return {
        "name": plan.experiment.name,
        "scale": plan.scale,
        "variant": plan.variant,
        "seeds": plan.seeds,
        "only": list(plan.only),
        "examples": plan.examples,
        "changes": dict(plan.changes),
    }


def _same_data(folder: Path, data: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `EquipoiseError` if the folder was begun with other data."""
    for name, then in _read(folder / RECORD).get("data", {}).items():
        require(
            then.get("sha256") == data.get(name, {}).get("sha256"),
            f"{folder} was begun with another {name}, {then.get('name')} of SHA-256 {str(then.get('sha256'))[:12]}...: "
            "give the same to continue it, or choose another place.",
        )


_OURS = ("sweep.lock", "sweep.json", "data")  # what may lie in a folder before the experiment's record does


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder: the system's lock on a file, which goes with the process, however that ends."""
    holder = folder / "sweep.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "sweep.lock")
        lock.acquire(timeout=0)
    except Timeout:
        other = _read(holder)
        raise EquipoiseError(
            f"{folder} is being worked on by process {other.get('pid', '?')} on {other.get('host', '?')} since "
            f"{other.get('since', '?')}: wait for it, or choose another place."
        ) from None
    except OSError as error:
        raise EquipoiseError(f"cannot write into {folder}: {error.strerror}; choose another place.") from error
    try:
        _write(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()})
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


@runtime_checkable
class _Pool(Protocol):
    """Who does the jobs."""

    slots: int
    """How many at a time."""

    def submit(self, job: Job, look: Callable[[], None]) -> None:
        """Take a job, and call `look` now and then where nobody else does."""
        ...

    def finished(self) -> Iterable[tuple[Path, str | None]]:
        """The jobs that have ended since, after a while, and what went wrong with each."""
        ...


class _RayDied(Exception):
    """A process of the Ray that we started is gone, without which it does nothing."""


def _all_done(
    jobs: Mapping[Path, Job], start: Callable[[], AbstractContextManager[_Pool]], show: Show
) -> dict[Path, str]:
    """Have all jobs done, in a new pool if one dies. Returns what went wrong with which."""
    failed: dict[Path, str] = {}
    for _ in range(_RETRIES + 1):
        with suppress(_RayDied), start() as pool:
            _drive(jobs, pool, failed, show)
            return failed
    raise EquipoiseError(f"Ray died {_RETRIES + 1} times: run the same command again to continue, or with --workers 1.")


def _drive(jobs: Mapping[Path, Job], pool: _Pool, failed: dict[Path, str], show: Show) -> None:
    """Have the jobs done that are not yet and did not fail, each after those it builds on, long ones first. What goes
    wrong is added to `failed`.
    """
    spent = {place: _seconds(place) for place in jobs if is_done(place)}
    left = [job for place, job in jobs.items() if place not in spent and place not in failed]
    waiting = {job.place: job for job in sorted(left, key=lambda job: -job.seconds)}
    running: set[Path] = set()
    hopeless: set[Path] = set()

    def look() -> None:
        show(_progress(jobs, spent, running, {*failed, *hopeless}, pool.slots))

    while waiting or running:
        for place, job in list(waiting.items()):
            if job.needs & (failed.keys() | hopeless):
                hopeless.add(place)
                del waiting[place]
            elif len(running) < pool.slots and not job.needs & (waiting.keys() | running):
                del waiting[place]
                running.add(place)
                pool.submit(job, look)
        for place, sentence in pool.finished():
            running.discard(place)
            if sentence is None:
                spent[place] = _seconds(place)
            else:
                failed[place] = f"{jobs[place].task.label}: {sentence}"
        look()


def _seconds(place: Path) -> float:
    """What a finished task took."""
    return float(_read(place / DONE).get("seconds", 0.0))


def _progress(
    jobs: Mapping[Path, Job], spent: Mapping[Path, float], running: set[Path], lost: set[Path], slots: int
) -> Progress:
    """Where the sweep is. The time left is what was estimated for the rest, times how wrong the estimates were of what
    is over.
    """
    now = {place: _read(place / PROGRESS) for place in sorted(running)}
    share = {place: min(float(state.get("share", 0.0)), 1.0) for place, state in now.items()}
    over = sum(jobs[place].seconds for place in spent) + sum(jobs[p].seconds * share[p] for p in now)
    took = sum(spent.values()) + sum(float(state.get("seconds", 0.0)) for state in now.values())
    factor = took / over if over > 0 and took > 0 else 1.0
    rest = [
        job.seconds * (1 - share.get(place, 0.0)) * factor
        for place, job in jobs.items()
        if place not in spent and place not in lost
    ]
    labels = [(jobs[place].task.label, share[place]) for place in now]
    return Progress(len(spent), len(jobs), len(lost), labels, max([sum(rest) / slots, *rest]) if rest else 0.0)


@dataclass
class _Here:
    """This process, one job at a time."""

    setting: Setting
    slots: int = 1
    ended: "tuple[Path, str | None] | None" = None

    def submit(self, job: Job, look: Callable[[], None]) -> None:
        self.ended = (job.place, work(job.task, self.setting, look))

    def finished(self) -> Iterable[tuple[Path, str | None]]:
        ended, self.ended = self.ended, None
        return [] if ended is None else [ended]


@contextmanager
def _in_this_process(setting: Setting) -> Iterator[_Here]:
    """With one thread, as every worker, so that the numbers are the same to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield _Here(setting)
    finally:
        torch.set_num_threads(threads)


@dataclass
class _OnRay:
    """Processes of Ray."""

    ray: Any
    do: Any
    setting: Setting
    slots: int
    running: dict[Any, Path]
    node: Any
    """What we started of Ray; None if it is somebody else's."""

    def submit(self, job: Job, look: Callable[[], None]) -> None:
        self.running[self.do.remote(os.getcwd(), job.task, self.setting)] = job.place

    def finished(self) -> Iterable[tuple[Path, str | None]]:
        try:
            ended, _ = self.ray.wait(list(self.running), timeout=_EVERY) if self.running else ([], [])
            results = [(one, self._result(one)) for one in ended]
        except self.ray.exceptions.RayError as error:
            raise _RayDied from error
        # Ray waits for such a process for ever, or takes us with it.
        if self.node is not None and any(kind in ("raylet", "gcs_server") for kind, _ in self.node.dead_processes()):
            raise _RayDied
        return [(self.running.pop(one), sentence) for one, sentence in results]

    def _result(self, one: Any) -> str | None:
        try:
            return self.ray.get(one)
        except self.ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            return f"its worker was lost {_RETRIES + 1} times, killed or out of memory ({why}); give fewer --workers."


@contextmanager
def _on_ray(setting: Setting, workers: int | None, address: str | None) -> Iterator[_OnRay]:
    """Workers of Ray: of a cluster, or started here and gone afterwards."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in quiet}
    os.environ.update(quiet)
    try:
        ray: Any = import_module("ray")
        inside: Any = import_module("ray._private.worker")
    except ImportError as error:
        _restore(before)
        raise EquipoiseError(
            "several workers need Ray, which is not installed: pip install 'equipoise[sweeps]', or give --workers 1."
        ) from error
    own, printing = not ray.is_initialized(), getattr(inside, "print_to_stdstream", None)
    options: dict[str, Any] = {"address": address}
    if address is None:  # our objects are sentences: the smallest store will do
        options = {"address": "local", "num_cpus": workers, "include_dashboard": False, "object_store_memory": 80 << 20}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if own:
                # Ray prints into our output that a worker died, which we see to, and has no option against it.
                inside.print_to_stdstream = lambda *_, **__: None
                try:
                    with _signals_as_they_were():
                        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
                except (ConnectionError, RuntimeError, ValueError) as error:
                    where = "this machine" if address is None else address
                    raise EquipoiseError(
                        f"Ray does not start on {where} ({str(error).strip().splitlines()[0]}): give --workers 1, or "
                        "the address of a running cluster."
                    ) from error
            there = ray.cluster_resources()
            slots = min(workers or 1 << 30, max(int(there.get("CPU", 1)), 1))
            gpus = min(int(10_000 * there.get("GPU", 0) / slots) / 10_000, 1.0)
            do = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=_RETRIES)(_work_there)
            node = inside._global_node if own and address is None else None
            yield _OnRay(ray, do, setting, slots, {}, node if hasattr(node, "dead_processes") else None)
    finally:
        if own:
            ray.shutdown()
            inside.print_to_stdstream = printing
        _restore(before)


@contextmanager
def _signals_as_they_were() -> Iterator[None]:
    """Leave SIGINT and SIGTERM to whoever handled them: Ray takes SIGTERM, and prints its native stack at one."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _restore(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work_there(where: str, task: Task, setting: Setting) -> str | None:
    """`work` in a process of Ray, in the folder where the sweep was started."""
    torch.set_num_threads(1)
    try:
        os.chdir(where)
    except OSError:
        return f"{platform.node()} does not see the folder {where}: all machines of a cluster need the same folders."
    return work(task, setting)


def work(task: Task, setting: Setting, look: Callable[[], None] = lambda: None) -> str | None:
    """Do a task, or go on with it, unless it is done. Returns what went wrong, in a sentence, or None."""
    try:
        place = setting.place(task)
    except (EquipoiseError, OSError) as error:  # its data cannot be read here
        return str(error)
    try:
        require(
            code_version() == setting.code or not setting.code,
            "the library was changed since the sweep began: run the same command again, which begins with the new one.",
        )
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / "task.lock", timeout=_PATIENCE):  # nobody else, be it a worker that should be dead
            if not is_done(place):
                _do(task, setting, place, look)
    except Timeout:
        return f"{place} is still held by process {_read(place / PROGRESS).get('pid', '?')}: end that one first."
    except (EquipoiseError, OSError) as error:
        return _sentence(error, [place, *(setting.place(one) for one in task.needs)])
    except Exception as error:  # a mistake of ours or of a user's network: it must not stop the others
        with suppress(EquipoiseError):
            write_atomically(place / "error.txt", traceback.format_exc())
        return f"{type(error).__name__}: {error} (the traceback is in {place / 'error.txt'})."
    return None


def _do(task: Task, setting: Setting, place: Path, look: Callable[[], None]) -> None:
    """The work itself, with what is written before, meanwhile and after."""
    if not (place / TASK).exists():
        about = {name: {"name": setting.dataset(name).name, "sha256": setting.sha256(name)} for name in datasets(task)}
        _write(place / TASK, {"label": task.label, "data": about, "code": setting.code, "task": described(task)})
    past = _read(place / PROGRESS)
    before, sittings = float(past.get("seconds", 0.0)), int(past.get("sittings", 0)) + 1
    began, told = time.monotonic(), 0.0

    def note(what: str, share: float) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < _EVERY:
            return
        told = now
        state = {"what": what, "share": share, "seconds": before + now - began, "sittings": sittings}
        with suppress(EquipoiseError):  # whether there is space is found out by what matters
            _write(place / PROGRESS, state | {"pid": os.getpid(), "host": socket.gethostname()})
        look()

    note("begins", float(past.get("share", 0.0)))
    task.run(setting, note)
    seconds = before + time.monotonic() - began
    origin = asdict(provenance(0, _device(), setting.command))
    del origin["seed"]  # which is the task's
    _write(
        place / DONE,
        {"kind": task.kind, "label": task.label, "seconds": seconds, "sittings": sittings, "code": setting.code}
        | {"finished": _now(), "host": socket.gethostname(), "provenance": origin},
    )
    with suppress(OSError):
        (place / PROGRESS).unlink()


def _sentence(error: Exception, places: Sequence[Path]) -> str:
    """What went wrong, with what to do about it."""
    cause = error if isinstance(error, OSError) else error.__cause__
    text = str(error).rstrip(".")
    if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
        text = text.partition(";")[0]
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"{text}; {'free some space and ' if full else ''}run the same command again to continue."
    damaged = next((place for place in places if str(place) in text), None)
    if damaged is not None:
        return f"{text}; remove {damaged} and run the same command again, which does that task anew and no other."
    return f"{text}."


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _record(
    plan: Plan,
    setting: Setting,
    jobs: Mapping[Path, Job],
    data: Mapping[str, Any],
    status: str,
    failed: Mapping[Path, str],
) -> dict[str, Any]:
    """What `experiment.json` holds: all that a report needs to know. Its tasks are in the order of the plan."""
    one = plan.experiment

    def entry(task: Task) -> dict[str, Any]:
        job = jobs[setting.place(task)]
        about = {"folder": job.place.name, "kind": task.kind, "label": task.label, "estimate": round(job.seconds, 1)}
        about |= {"needs": sorted(place.name for place in job.needs), "done": is_done(job.place)}
        return about | ({"failed": failed[job.place]} if job.place in failed else {})

    return {
        "kind": "experiment",
        "schema": SCHEMA,
        **_asked(plan),
        "title": one.title,
        "source": one.source,
        "quirks": one.quirks,
        "notes": one.notes,
        "status": status,
        "command": setting.command,
        "data": data,
        "data_root": None if setting.data_root is None else str(setting.data_root),
        "sources": dict(setting.sources),
        "code": setting.code,
        "tasks": [entry(task) for task in plan.tasks()],
        "provenance": asdict(provenance(0, _device(), setting.command)),
    }


def _about(name: str, setting: Setting) -> dict[str, Any]:
    """What is behind the name of a dataset."""
    data = setting.dataset(name)
    sizes = {"n_train": len(data.train), "n_test": len(data.test)}
    return {"name": data.name, "sha256": data.sha256, "synthetic": stand_in.is_stand_in(data.name), **sizes}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def _read(path: Path) -> dict[str, Any]:
    """The JSON of a file of ours; empty if it is missing or damaged."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
