"""The folder of a run: who may write there, what a new run replaces, and what happens to it meanwhile.

A run holds the lock of its folder while it writes. A run that replaces another sets the old one aside in `.replaced`,
and deletes it only once its own first checkpoint holds work; if it ends before, the old one is put back.
"""

import re
import shutil
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import read_json, require_writable
from equipoise.core.locks import locked
from equipoise.results.records import Run, changed_weights, load
from equipoise.training.interruption import Interrupted
from equipoise.training.manifold import MANIFOLD_FILE

_REPLACED, _MOVING = ".replaced", ".replacing"
_RECORD = "run.json"
_FILES = ("metrics.jsonl", "samples.npz", "evaluation.json", "evaluation-last.json")
_CHECKPOINT = "checkpoint.safetensors"
_WEIGHTS = ("best.safetensors", "last.safetensors", _CHECKPOINT)
_MANIFOLD = (MANIFOLD_FILE, "manifold.png")
_PLAYER = ("{}.safetensors", "{}_pictures.safetensors", "{}.png")
_ABOUT_A_MODEL = ("evaluation", "score", "masking")


@contextmanager
def claimed(out: "Path | None", *, resume: bool = False, overwrite: bool = False) -> Iterator[None]:
    """Hold the lock of the run folder `out`, made if there is none; None claims nothing.

    With `overwrite` the run in it is set aside, and put back unless the new one calls `forget_replaced`. Raises
    `EquipoiseError` where another process trains in `out`, it cannot be written, holds a run and neither `resume` nor
    `overwrite` is given, has nothing to resume, or holds files under the names of a run's that no run wrote.
    """
    if out is None:
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
            _put_back(out)
        for file in _leftovers(out):
            file.unlink()
        _require_free(out, resume, overwrite)
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
                _put_back(out)
            elif not (resume or (out / _CHECKPOINT).exists()):  # nothing that could be continued
                for file in _own_files(out, _MANIFOLD):
                    file.unlink()
            if new:
                _remove_if_empty(out)


def forget_replaced(out: Path) -> None:
    """Delete the run that was set aside, if one was: the new one has done work that is kept."""
    shutil.rmtree(out / _REPLACED, ignore_errors=True)


def _require_free(out: Path, resume: bool, overwrite: bool) -> None:
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
    found = load(out / _RECORD)
    if resume:
        begun = isinstance(found, Run) and found.status == "running" and not found.weights
        require((out / _CHECKPOINT).exists() or begun, f"nothing to resume in {out}: it has no checkpoint.")
        return
    status = f" ({found.status})" if isinstance(found, Run) else ""
    require(
        overwrite,
        f"{out} already holds a run{status}: add --resume to continue it, --overwrite to replace it, or choose another "
        "place with --out.",
    )
    require(isinstance(found, Run), f"{out / _RECORD} is not the record of a training run: choose another --out.")
    if isinstance(found, Run) and found.status != "running":
        for name in changed_weights(out, found):
            raise EquipoiseError(
                f"{out / name} is not the file that the run wrote: move it away before --overwrite replaces the run."
            )


def _set_aside(out: Path) -> None:
    """Move the run's files to `.replaced`; whoever is killed on the way leaves `.replacing`, which is put back."""
    (out / _MOVING).mkdir()
    for file in _own_files(out):
        place = out / _MOVING / file.relative_to(out)
        place.parent.mkdir(exist_ok=True)
        file.replace(place)
    _remove_if_empty(out / "tensorboard")
    (out / _MOVING).rename(out / _REPLACED)


def _put_back(out: Path) -> None:
    """Remove the new run and move the old one back, however far either had come."""
    if (out / _REPLACED).exists():
        for file in _own_files(out):
            file.unlink()
        (out / _REPLACED).rename(out / _MOVING)
    for file in [file for file in (out / _MOVING).rglob("*") if file.is_file()]:
        place = out / file.relative_to(out / _MOVING)
        place.parent.mkdir(exist_ok=True)
        file.replace(place)
    _remove_if_empty(out / "tensorboard")
    shutil.rmtree(out / _MOVING)


def _own_files(out: Path, but: Sequence[str] = ()) -> list[Path]:
    """The files of the run in `out`, and the records about it that lie beside them, except some names."""
    players = {name for name in _players(out) if name != "manifold"}
    names = [*_FILES, *_WEIGHTS, *_MANIFOLD, *(form.format(player) for player in players for form in _PLAYER)]
    files = [out / name for name in names if name not in but]
    files += [file for record in sorted(out.glob("*.json")) for file in _if_about(record, out)]
    files += sorted((out / "tensorboard").glob("events.out.tfevents.*"))
    return [file for file in dict.fromkeys([*files, out / _RECORD]) if file.is_file()]


def _players(out: Path) -> Iterable[str]:
    """Names of the other networks of the run, whose weights its record lists."""
    with suppress(EquipoiseError):
        found = load(out / _RECORD)
        if isinstance(found, Run):
            return [name.removesuffix(".safetensors") for name in found.weights if name not in _WEIGHTS]
    return ()


def _if_about(record: Path, out: Path) -> list[Path]:
    """A record of an evaluation of the run in `out` and the file of its images; nothing for any other file."""
    try:
        content = read_json(record)
    except (OSError, ValueError):
        return []
    if not isinstance(content, Mapping) or content.get("kind") not in _ABOUT_A_MODEL:
        return []
    target = content.get("target")
    if not isinstance(target, str) or Path(target).resolve().name != out.resolve().name:
        return []
    images = content.get("images")
    name = images.get("file") if isinstance(images, Mapping) else None
    return [record, *([out / Path(name).name] if isinstance(name, str) and name else [])]


def _leftovers(out: Path) -> list[Path]:
    """What a writer that was killed left of the files of a run."""
    names = "|".join(re.escape(name) for name in (_RECORD, *_FILES, *_WEIGHTS, *_MANIFOLD))
    pattern = re.compile(rf"\.({names}|\w+\.safetensors|\w+\.png)\.\d+\.tmp")
    return [file for file in out.glob(".*.tmp") if pattern.fullmatch(file.name)]


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty: something of the user's, which stays
        folder.rmdir()
