"""The folder of a run: its lock, and the replacement of an old run by a new one.

A run that replaces another moves the old one to `.replaced`, and deletes it once it has made progress and saved a
checkpoint; if it ends before, the old run is restored.
"""

import re
import shutil
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import read_json, require_writable
from equipoise.core.locks import locked
from equipoise.core.torchrun import is_main_process
from equipoise.results.records import Run, changed_weights, load
from equipoise.training.interruption import Interrupted
from equipoise.training.job import Job
from equipoise.training.manifold import MANIFOLD_FILE

_REPLACED, _MOVING = ".replaced", ".replacing"
_RECORD = "run.json"
_FILES = ("metrics.jsonl", "samples.npz", "evaluation.json", "evaluation-last.json")
_CHECKPOINT = "checkpoint.safetensors"
_WEIGHTS = ("best.safetensors", "last.safetensors", _CHECKPOINT)
_MANIFOLD = (MANIFOLD_FILE, "manifold.png")
_AUXILIARY = ("{}.safetensors", "{}_pictures.safetensors", "{}.png")
_EVALUATIONS = ("evaluation", "score", "masking")


@contextmanager
def locked_run_folder(job: Job) -> Iterator[None]:
    """Lock the folder of a run, if it has one, in the process that writes there; make the folder if there is none.

    With `job.overwrite` the run in it is set aside, and restored unless the new one calls `delete_replaced`. Raises
    `EquipoiseError` if another process trains there, the folder cannot be written, holds a run and neither `resume`
    nor `overwrite` is given, has nothing to resume, or holds files under the names of a run's that no run wrote.
    """
    out, resume, overwrite = job.out, job.resume, job.overwrite
    if out is None or not is_main_process():
        yield
        return
    require(not (resume and overwrite), "--resume and --overwrite exclude each other: choose one.")
    require(not out.exists() or out.is_dir(), f"--out {out} is a file: expected a directory, which may not exist yet.")
    require(out.exists() or not resume, f"nothing to resume in {out}: it holds no run.")
    new = not out.exists()
    with locked(out):
        require_writable(out)
        out.mkdir(parents=True, exist_ok=True)
        if (out / _MOVING).exists() or (overwrite and (out / _REPLACED).exists()):
            _restore_replaced(out)
        for file in _temporary_files(out):
            file.unlink()
        _require_usable(out, resume, overwrite)
        if overwrite and (out / _RECORD).exists():
            _set_aside(out)
        try:
            yield
        except KeyboardInterrupt as error:
            if overwrite and (out / _REPLACED).exists():
                raise Interrupted(getattr(error, "signal", signal.SIGINT), kept=False) from None
            raise
        finally:
            if overwrite and (out / _REPLACED).exists():
                _restore_replaced(out)
            elif not (resume or (out / _CHECKPOINT).exists()):  # there is nothing to resume
                for file in _run_files(out):
                    if file.name not in _MANIFOLD:
                        file.unlink()
            if new:
                _remove_if_empty(out)


def delete_replaced(out: Path) -> None:
    """Delete the run that was set aside, if one was."""
    shutil.rmtree(out / _REPLACED, ignore_errors=True)


def _require_usable(out: Path, resume: bool, overwrite: bool) -> None:
    if not (out / _RECORD).exists():
        begun = (out / MANIFOLD_FILE).exists()  # interrupted while its manifold was trained
        require(begun or not resume, f"nothing to resume in {out}: it holds no run.")
        foreign = [name for name in (*_FILES, *_WEIGHTS) if (out / name).exists()]
        require(
            not foreign,
            f"{out} holds {' and '.join(foreign)} but no {_RECORD}, so no run wrote them: move them, or choose another "
            "place with --out.",
        )
        if begun and overwrite:
            (out / MANIFOLD_FILE).unlink()
        return
    record = load(out / _RECORD)
    if resume:
        begun = isinstance(record, Run) and record.status == "running" and not record.weights
        require((out / _CHECKPOINT).exists() or begun, f"nothing to resume in {out}: it has no checkpoint.")
        return
    status = f" ({record.status})" if isinstance(record, Run) else ""
    require(
        overwrite,
        f"{out} already holds a run{status}: add --resume to continue it, --overwrite to replace it, or choose another "
        "place with --out.",
    )
    if not isinstance(record, Run):
        raise EquipoiseError(f"{out / _RECORD} is not the record of a training run: choose another --out.")
    for name in changed_weights(out, record) if record.status != "running" else ():
        raise EquipoiseError(
            f"{out / name} is not the file that the run wrote: move it away before --overwrite replaces the run."
        )


def _set_aside(out: Path) -> None:
    """Move the run's files to `.replaced`, by way of `.replacing`, from which a killed move is undone."""
    (out / _MOVING).mkdir()
    for file in _run_files(out):
        destination = out / _MOVING / file.relative_to(out)
        destination.parent.mkdir(exist_ok=True)
        file.replace(destination)
    _remove_if_empty(out / "tensorboard")
    (out / _MOVING).rename(out / _REPLACED)


def _restore_replaced(out: Path) -> None:
    """Remove the new run and move the old one back, also if a move was killed halfway."""
    if (out / _REPLACED).exists():
        for file in _run_files(out):
            file.unlink()
        (out / _REPLACED).rename(out / _MOVING)
    for file in [file for file in (out / _MOVING).rglob("*") if file.is_file()]:
        destination = out / file.relative_to(out / _MOVING)
        destination.parent.mkdir(exist_ok=True)
        file.replace(destination)
    _remove_if_empty(out / "tensorboard")
    shutil.rmtree(out / _MOVING)


def _run_files(out: Path) -> list[Path]:
    """The files of the run in `out`, and the records of its evaluations beside them."""
    auxiliary = [form.format(name) for name in _auxiliary_networks(out) for form in _AUXILIARY if name != "manifold"]
    files = [out / name for name in (*_FILES, *_WEIGHTS, *_MANIFOLD, *auxiliary)]
    files += [file for record in sorted(out.glob("*.json")) for file in _evaluation_files(record, out)]
    files += sorted((out / "tensorboard").glob("events.out.tfevents.*"))
    return [file for file in dict.fromkeys([*files, out / _RECORD]) if file.is_file()]


def _auxiliary_networks(out: Path) -> Iterable[str]:
    """Names of the auxiliary networks of the run, whose weights its record lists."""
    with suppress(EquipoiseError):
        record = load(out / _RECORD)
        if isinstance(record, Run):
            return [name.removesuffix(".safetensors") for name in record.weights if name not in _WEIGHTS]
    return ()


def _evaluation_files(record: Path, out: Path) -> list[Path]:
    """The record and the file of its images if it is of an evaluation of the run in `out`; nothing otherwise."""
    try:
        content = read_json(record)
    except (OSError, ValueError):
        return []
    if not isinstance(content, Mapping) or content.get("kind") not in _EVALUATIONS:
        return []
    target = content.get("target")
    if not isinstance(target, str) or Path(target).resolve().name != out.resolve().name:
        return []
    images = content.get("images")
    name = images.get("file") if isinstance(images, Mapping) else None
    return [record, *([out / Path(name).name] if isinstance(name, str) and name else [])]


def _temporary_files(out: Path) -> list[Path]:
    """Temporary files that a killed run left behind."""
    names = "|".join(re.escape(name) for name in (_RECORD, *_FILES, *_WEIGHTS, *_MANIFOLD))
    pattern = re.compile(rf"\.({names}|\w+\.safetensors|\w+\.png)\.\d+\.tmp")
    return [file for file in out.glob(".*.tmp") if pattern.fullmatch(file.name)]


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # it holds files of the user's
        folder.rmdir()
