"""All tasks of an experiment: each once, after those it needs, in this process or on many cores and machines."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from equipoise.core.deprecation import renamed_arguments, renamed_names
from equipoise.core.errors import EquipoiseError, require_integer
from equipoise.core.locks import locked
from equipoise.core.processors import available_cores
from equipoise.reproduce import cost
from equipoise.reproduce.experiment import Plan
from equipoise.reproduce.running import Setting, code_version, forget_datasets
from equipoise.reproduce.stand_in import PREFIX
from equipoise.reproduce.sweep_folder import (
    DONE,
    PROGRESS,
    RECORD,
    DataEntry,
    ExperimentRecord,
    TaskEntry,
    asked,
    claim,
    copy_finished,
    earlier,
    is_done,
    read_state,
    require_experiments,
    require_same_data,
    write_record,
)
from equipoise.reproduce.workers import Job, Pool, device, in_processes, in_this_process, on_ray
from equipoise.results.provenance import provenance


@dataclass(frozen=True)
class Progress:
    """Where a sweep is."""

    done: int
    """Number of finished tasks, those of earlier sweeps included."""
    total: int
    failed: int
    """Number of tasks that failed, or need one that did."""
    running: Sequence[tuple[str, float]]
    """Tasks under way: the label, and the share of the work that is done."""
    remaining: float
    """Estimated seconds left."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep leaves."""

    finished: Sequence[Path]
    failed: Mapping[Path, str]
    """Folders of those that failed, and why, in a sentence each."""
    not_begun: Sequence[Path]
    """Folders of those that need one that failed."""


@renamed_arguments(tell="report_progress")
def sweep(
    plan: Plan,
    setting: Setting,
    *,
    workers: int | None = None,
    address: str | None = None,
    report_progress: Callable[[Progress], None] | None = None,
    reuse: Sequence[Path] = (),
) -> SweepResult:
    """Compute all tasks of the plan that are not finished yet, and write what there is into `experiment.json`. Those
    that are finished in experiments' folders, `reuse`, are copied from there, whatever version of the code computed
    them.

    One worker works in this process. More are processes of this machine (`workers`, by default one per core; a script
    then needs the guard `if __name__ == "__main__":`) or of the Ray cluster at `address`, all of whose machines see the
    same folder; each has one thread. A task whose worker dies is continued by another. A task that fails stops nothing
    but those that need it. Raises `EquipoiseError` if the folder holds another experiment, or another sweep works on
    it, if data is missing or there is no such cluster.
    """
    if workers is not None:
        require_integer("workers", workers, 1)
    claim(plan, setting.folder)
    require_experiments(reuse)
    with locked(setting.folder / RECORD):
        data = {
            name: DataEntry(one.name, one.sha256, one.name.startswith(PREFIX), len(one.train), len(one.test))
            for name, one in ((name, setting.dataset(name)) for name in plan.datasets())
        }
        require_same_data(setting.folder, data)
        setting = replace(setting, code=setting.code or code_version())
        jobs = _jobs(plan, setting, {name: entry.n_train for name, entry in data.items()})
        elsewhere = earlier(setting, reuse)

        def record(status: str, failed: Mapping[Path, str] = {}) -> None:
            write_record(setting.folder, _record(plan, setting, jobs, data, status, failed))

        record("running")
        try:
            for job in jobs.values():
                copy_finished(job.task, setting, elsewhere)
            remaining = sum(not is_done(folder) for folder in jobs)
            if address is not None:
                start = on_ray(setting, workers, address)
            elif workers == 1 or remaining <= 1:
                start = in_this_process(setting)
            else:
                start = in_processes(setting, workers or available_cores())
                forget_datasets()
            with start as pool:
                failed = _run_all(jobs, pool, report_progress or (lambda progress: None))
        except BaseException:
            with suppress(EquipoiseError):  # what stopped us says more
                record("interrupted")
            raise
        record("failed" if failed else "finished", failed)
    done = [folder for folder in jobs if is_done(folder)]
    return SweepResult(done, failed, [folder for folder in jobs if folder not in done and folder not in failed])


def _jobs(plan: Plan, setting: Setting, sizes: Mapping[str, int]) -> dict[Path, Job]:
    """The tasks of the plan by their folders, each after those it needs."""
    jobs = {}
    for task in plan.tasks():
        needs = frozenset(setting.folder_of(one) for one in task.needs)
        folder = setting.folder_of(task)
        jobs[folder] = Job(task, folder, needs, cost.seconds(task, sizes))
    return jobs


def _run_all(jobs: Mapping[Path, Job], pool: Pool, report_progress: Callable[[Progress], None]) -> dict[Path, str]:
    """Run the jobs that are not finished, each after those it needs, long ones first. Returns what went wrong."""
    seconds = {folder: _seconds(folder) for folder in jobs if is_done(folder)}
    waiting = [job for folder, job in jobs.items() if folder not in seconds]
    waiting.sort(key=lambda job: -job.seconds)
    running: set[Path] = set()
    failed: dict[Path, str] = {}
    skipped: set[Path] = set()

    def report() -> None:
        report_progress(_progress(jobs, seconds, running, {*failed, *skipped}, pool.slots))

    while waiting or running:
        for job in list(waiting):
            if job.needs & (failed.keys() | skipped):
                skipped.add(job.folder)
                waiting.remove(job)
            elif len(running) < pool.slots and job.needs <= seconds.keys():
                waiting.remove(job)
                running.add(job.folder)
                pool.submit(job, report)
        for folder, error in pool.finished():
            running.discard(folder)
            if error is None:
                seconds[folder] = _seconds(folder)
            else:
                failed[folder] = f"{jobs[folder].task.label}: {error}"
        report()
    return failed


def _seconds(folder: Path) -> float:
    """What a finished task took."""
    return float(read_state(folder / DONE).get("seconds", 0.0))


def _progress(
    jobs: Mapping[Path, Job], seconds: Mapping[Path, float], running: set[Path], failed: set[Path], slots: int
) -> Progress:
    """Where the sweep is. The time left is what was estimated for the rest, times how wrong the estimates were of what
    is done.
    """
    states = {folder: read_state(folder / PROGRESS) for folder in sorted(running)}
    share = {folder: min(float(state.get("share", 0.0)), 1.0) for folder, state in states.items()}
    estimated = sum(jobs[folder].seconds * share.get(folder, 1.0) for folder in (*seconds, *states))
    measured = sum(seconds.values()) + sum(float(state.get("seconds", 0.0)) for state in states.values())
    factor = measured / estimated if estimated > 0 and measured > 0 else 1.0
    rest = [
        job.seconds * (1 - share.get(folder, 0.0)) * factor
        for folder, job in jobs.items()
        if folder not in seconds and folder not in failed
    ]
    labels = [(jobs[folder].task.label, share[folder]) for folder in states]
    return Progress(len(seconds), len(jobs), len(failed), labels, max([sum(rest) / slots, *rest]) if rest else 0.0)


def _record(
    plan: Plan,
    setting: Setting,
    jobs: Mapping[Path, Job],
    data: Mapping[str, DataEntry],
    status: str,
    failed: Mapping[Path, str],
) -> ExperimentRecord:
    def entry(job: Job) -> TaskEntry:
        needs = sorted(folder.name for folder in job.needs)
        name, task, estimate = job.folder.name, job.task, round(job.seconds, 1)
        return TaskEntry(name, task.kind, task.label, estimate, needs, is_done(job.folder), failed.get(job.folder))

    one = plan.experiment
    return ExperimentRecord(
        **asked(plan),
        title=one.title,
        source=one.source,
        quirks=one.quirks,
        notes=one.notes,
        status=status,
        command=setting.command,
        data=data,
        data_root=None if setting.data_root is None else str(setting.data_root),
        sources=dict(setting.sources),
        code=setting.code,
        tasks=[entry(job) for job in jobs.values()],
        provenance=asdict(provenance(0, device(), setting.command)),
    )


__getattr__ = renamed_names(__name__, {"Swept": "SweepResult"})
