"""The folder of an experiment: its record, and the folders of its tasks.

A task's folder holds `task.json`, which says what it is, then what it computes, and at the end `done.json`: where that
is, the task is never computed again. Everything is JSON, safetensors, `.npz` and pages, readable without this library.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree
from typing import Any

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import read_json, write_atomically
from equipoise.reproduce.experiment import Plan
from equipoise.reproduce.running import Setting, result_in
from equipoise.reproduce.tasks import Task
from equipoise.results.schema import parse, read_data, require_kind

SCHEMA = 1
RECORD, TASK, DONE, PROGRESS = "experiment.json", "task.json", "done.json", "progress.json"
_BEFORE_THE_RECORD = ("data", f".{RECORD}.lock", f".{RECORD}.owner")  # may lie in a folder that holds no experiment yet


@dataclass(frozen=True)
class DataEntry:
    """What stands behind the name of a dataset: its own name, its digest, and its numbers of samples."""

    name: str
    sha256: str
    synthetic: bool
    n_train: int
    n_test: int


@dataclass(frozen=True)
class TaskEntry:
    """A task: the names of its folder and of those that it needs, the estimated seconds, and why it failed."""

    folder: str
    kind: str
    label: str
    estimate: float
    needs: Sequence[str]
    done: bool
    failed: str | None = None


@dataclass(frozen=True)
class ExperimentRecord:
    """What `experiment.json` holds: what was asked, as in `Plan`; the words of the `Experiment`; the `Setting`, and the
    tasks in the order of the plan. Its status is `running`, `interrupted`, `failed` or `finished`.
    """

    name: str
    scale: float
    variant: str
    title: str
    source: str
    quirks: str
    notes: str
    status: str
    command: str
    data: Mapping[str, DataEntry]
    code: str
    tasks: Sequence[TaskEntry]
    provenance: Mapping[str, Any]
    seeds: int | None = None
    only: Sequence[str] = field(default_factory=list)
    examples: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    data_root: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


_ASKED = ("name", "scale", "variant", "seeds", "only", "examples", "changes")


def asked(plan: Plan) -> dict[str, Any]:
    """Return all that tells one plan from another, as an `ExperimentRecord` read from a file has it."""
    values = {name: getattr(plan, name) for name in _ASKED if name != "name"}
    return json.loads(json.dumps({"name": plan.experiment.name, **values}))


def write_record(folder: Path, record: ExperimentRecord) -> None:
    """Write `experiment.json`."""
    content = asdict(record)
    for entry in content["tasks"]:
        if entry["failed"] is None:
            del entry["failed"]
    write_json(folder / RECORD, {"kind": "experiment", "schema": SCHEMA, **content})


def read_record(folder: Path) -> ExperimentRecord:
    """Read `experiment.json`. Raises `EquipoiseError` if there is none, or if it is damaged or of another version."""
    path = folder / RECORD
    content = read_data(path, "the record of an experiment")
    require_kind(content, ["experiment"], SCHEMA, str(path), "the record of an experiment")
    body = {name: value for name, value in content.items() if name not in ("kind", "schema")}
    return parse(ExperimentRecord, body, str(path))


def claim(plan: Plan, folder: Path) -> None:
    """Raise `EquipoiseError` if a folder is not free for the plan: it holds something else, or cannot be read."""
    require(not folder.exists() or folder.is_dir(), f"{folder} is a file: expected a folder, which may not exist yet.")
    if not (folder / RECORD).exists():
        files = [file.name for file in folder.iterdir()] if folder.exists() else []
        require(
            set(files).issubset(_BEFORE_THE_RECORD),
            f"{folder} is not empty and holds no experiment: choose another place.",
        )
        return
    record, wanted = read_record(folder), asked(plan)
    if all(getattr(record, name) == value for name, value in wanted.items()):
        return
    raise EquipoiseError(
        f"{folder} holds {record.name} at scale {record.scale}, {record.variant}{limits(record)}: ask for the same to "
        "continue it, or choose another place."
    )


def limits(plan: Plan | ExperimentRecord) -> str:
    """Return in words what, beside scale and variant, tells a plan from the paper; a comma before each."""
    words = [] if plan.seeds is None else [f"{plan.seeds} seed{'s' * (plan.seeds > 1)}"]
    words += [] if plan.examples is None else [f"at most {plan.examples:,} test samples"]
    words += [f"{' and '.join(plan.only)} only"] if plan.only else []
    words += [f"with {name} = {value} in place of its own" for name, value in plan.changes.items()]
    return "".join(f", {word}" for word in words)


def require_same_data(folder: Path, data: Mapping[str, DataEntry]) -> None:
    """Raise `EquipoiseError` if the experiment of the folder was begun with other data."""
    begun = read_record(folder).data if (folder / RECORD).exists() else {}
    for name, then in begun.items():
        require(
            name in data and then.sha256 == data[name].sha256,
            f"{folder} was begun with another {name}, {then.name} of SHA-256 {then.sha256[:12]}...: give the same to "
            "continue it, or choose another place.",
        )


def require_experiments(folders: Sequence[Path]) -> None:
    """Raise `EquipoiseError` if one of the folders holds no experiment."""
    for folder in folders:
        require(
            bool(read_state(folder / RECORD)),
            f"{folder} holds no experiment to take finished tasks from: expected the --out of an earlier reproduce.",
        )


def is_done(folder: Path) -> bool:
    """Return whether the task of that folder is finished."""
    return "seconds" in read_state(folder / DONE)


def earlier(setting: Setting, folders: Sequence[Path]) -> list[Setting]:
    """Return the settings under which tasks were computed in experiments' folders: those of every version of the code
    that worked there, the last one first.
    """
    settings = []
    for folder in folders:
        codes = [read_record(folder).code, *(read_state(path).get("code") for path in sorted(folder.glob(f"*/{TASK}")))]
        settings += [replace(setting, folder=folder, code=code) for code in dict.fromkeys(codes) if code]
    return settings


def finished(task: Task, setting: Setting, elsewhere: Sequence[Setting] = ()) -> Path | None:
    """Return the folder in which a task is finished on the same data: its own, or that of an earlier setting, which may
    be of another version of the code. None if nowhere; a damaged result elsewhere counts as none.
    """
    own, others = setting.folder_of(task), (one.folder_of(task) for one in elsewhere)
    return own if is_done(own) else next((one for one in others if is_done(one) and _is_readable(task, one)), None)


def _is_readable(task: Task, folder: Path) -> bool:
    try:
        result_in(task, folder)
    except EquipoiseError:
        return False
    return True


def copy_finished(task: Task, setting: Setting, elsewhere: Sequence[Setting]) -> None:
    """Copy a task that is finished elsewhere, unless there is something in its own folder."""
    source, folder = finished(task, setting, elsewhere), setting.folder_of(task)
    if source is None or folder.exists():
        return
    scratch = folder.with_name(f"{folder.name}.copying")
    try:
        rmtree(scratch, ignore_errors=True)
        copytree(source, scratch, ignore=ignore_patterns("*.lock"))
        scratch.replace(folder)
    except OSError as error:
        raise EquipoiseError(
            f"cannot copy {source} to {folder}: {error.strerror or 'it changed meanwhile'}; free some space and run "
            "the same command again, or leave that folder out."
        ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of JSON."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def read_state(path: Path) -> dict[str, Any]:
    """Return what a file of JSON holds; nothing if it is missing or damaged."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
