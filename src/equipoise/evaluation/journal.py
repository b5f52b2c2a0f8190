"""An evaluation that can be stopped: finished blocks on disk, and the adversarial images in one file at the end.

Beside the record `aa.json` lies `aa.json.partial/` while the evaluation runs, with what is being evaluated
(`evaluation.json`), a file for every finished block, and for the block under way one for every finished attack and
every finished part of a composite attack. Each is written atomically, so that after a kill at any moment what is there
is whole. A block or a part carries a seal, and one whose seal does not fit, because it is damaged or belongs elsewhere,
counts as not finished.
"""

import hashlib
import io
import json
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipoise.attacks.result import AttackResult
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import read_json, write_atomically
from equipoise.evaluation.evaluate import Block
from equipoise.results.records import AttackRecord, CorruptionResult
from equipoise.training.interruption import Interrupted

Points = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Journal:
    """The finished blocks of one evaluation."""

    folder: Path
    """Where they lie."""
    what: Mapping[str, Any]
    """Everything the outcome depends on."""

    @classmethod
    def of(cls, out: "Path | str", what: Mapping[str, Any]) -> "Journal":
        """The journal of the evaluation whose record will be `out`. `what` is everything the outcome depends on."""
        return cls(Path(f"{out}.partial"), json.loads(json.dumps(what)))

    @property
    def is_begun(self) -> bool:
        """Whether this evaluation, and no other, was begun here."""
        try:
            return read_json(self._header) == self.what
        except (OSError, ValueError):
            return False

    def claim(self, resume: bool = False, overwrite: bool = False) -> None:
        """See to it that the folder is free, or that the evaluation in it is to be continued.

        Raises `EquipoiseError` if an unfinished evaluation lies there and `resume` is not set, if nothing says what it
        is of, or if it is of something else, naming the difference. With `overwrite` such a one is removed.
        """
        folder, header, what = self.folder, self._header, self.what
        if not any(file.name != header.name for kind in ("json", "pt") for file in folder.rglob(f"*.{kind}")):
            return
        if overwrite and not (resume and self.is_begun):
            self.discard()
            return
        require(
            resume,
            f"an unfinished evaluation lies in {folder}: continue it with --resume, or remove that folder.",
        )
        require(
            header.is_file(),
            f"{header} is missing, which says what the finished blocks beside it are of: remove {folder} and "
            "evaluate anew.",
        )
        try:
            before = read_json(header)
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise EquipoiseError(f"{header} is damaged: remove {folder} and evaluate anew.")
        changed = [key for key in {**what, **before} if what.get(key) != before.get(key)]
        require(
            not changed,
            f"{folder} is of another evaluation, with other {', '.join(changed)}: give the same options as then, "
            "or remove that folder.",
        )

    def begin(self) -> None:
        """Write down what is being evaluated."""
        content = (json.dumps(self.what, indent=1) + "\n").encode()
        if not self._header.is_file() or self._header.read_bytes() != content:
            write_atomically(self._header, content)

    def read(self, number: int) -> Block | None:
        """The finished block of that number, or None if there is none that is whole and of this evaluation."""
        results, points = self._files(number)
        try:
            kept = read_json(results)
            packed = points.read_bytes() if points.is_file() else b""
            entries, corruptions = kept["results"], kept.get("corruptions", [])
            if kept["seal"] != self._seal(number, [*entries, *corruptions], packed):
                return None
            found = [AttackRecord(**entry) for entry in entries]
            corrupted = [CorruptionResult(**entry) for entry in corruptions]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Block(found, read_points(points) if packed else [{} for _ in found[1:]], corrupted)

    def write(self, number: int, block: Block) -> None:
        """Keep a finished block. Its results are written last: where they are, its points are too."""
        results, points = self._files(number)
        self.begin()
        packed = b""
        if any(len(kept.get("rows", ())) for kept in block.points):
            packed = pack_points(block.points)
            write_atomically(points, packed)
        else:
            points.unlink(missing_ok=True)
        entries = [asdict(result) for result in block.results]
        corruptions = [asdict(result) for result in block.corruptions]
        content = {"seal": self._seal(number, [*entries, *corruptions], packed), "results": entries}
        content |= {"corruptions": corruptions} if corruptions else {}
        write_atomically(results, (json.dumps(content) + "\n").encode())
        self.parts(number).discard()

    def parts(self, number: int) -> "Parts":
        """The finished parts of the block of that number, which is under way."""
        return Parts(self, number)

    def finished(self, numbers: Sequence[int]) -> tuple[int, int]:
        """How many of the blocks of these numbers are finished, and how many attacks on others."""
        return sum(self._files(n)[0].is_file() for n in numbers), len(list(self.folder.glob("block-*.pt")))

    def discard(self) -> None:
        """Remove all of it, once the record is written."""
        with suppress(OSError):  # what is left behind does no harm, and is named when it is met again
            shutil.rmtree(self.folder)

    @property
    def _header(self) -> Path:
        return self.folder / "evaluation.json"

    def _seal(self, number: int, results: Sequence[Mapping[str, Any]], packed: bytes) -> str:
        """SHA-256 of what a block is of, its number, and all that was found."""
        text = json.dumps([self.what, number, results], sort_keys=True)
        return hashlib.sha256(text.encode() + b"\n" + packed).hexdigest()

    def _files(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"block-{number:06d}.json", self.folder / f"block-{number:06d}.npz"


def note_kept(stop: KeyboardInterrupt, blocks: int, of: int, attacks: int) -> None:
    """Add to an interrupt what is kept of an evaluation of `of` blocks: so many, and attacks on those under way."""
    found = [f"{blocks} of {of} blocks"] if blocks else []
    found += [f"{attacks} finished attack{'s' * (attacks > 1)} on what is under way"] if attacks else []
    kept = f"{' and '.join(found)} {'are' if blocks + attacks > 1 else 'is'} kept"
    stop.add_note(kept if found else "nothing was finished yet")
    if isinstance(stop, Interrupted):
        stop.kept = bool(found)


@dataclass(frozen=True)
class Parts:
    """What the attacks on one block have found so far: a store of `equipoise.core.caching.caching`."""

    journal: Journal
    """Where they are kept."""
    number: int
    """The number of the block."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long those that were read had taken, by the place of the attack: the first part of a path."""
    begun: dict[tuple[str, ...], float] = field(default_factory=dict)
    """When those that were not there were asked for, on the clock of `_clock`."""

    def read(self, path: tuple[str, ...]) -> AttackResult | None:
        """Return what was kept at `path`, or None if there is nothing that is whole and of this block."""
        try:
            seal, packed = self._file(path).read_bytes().split(b"\n", 1)
            if seal == self._seal(path, packed):
                found = torch.load(io.BytesIO(packed), weights_only=True)
                self.seconds[path[0]] = self.seconds.get(path[0], 0.0) + found["seconds"]
                return AttackResult(**found["value"])
        except (OSError, ValueError, TypeError):  # not there, damaged, or of another version
            pass
        self.begun[path] = self._clock(path)
        return None

    def write(self, path: tuple[str, ...], value: object) -> None:
        """Keep what an attack found, in place of the parts inside it, which are needed no more."""
        if not isinstance(value, AttackResult):
            return
        self.journal.begin()
        buffer, spent = io.BytesIO(), self._clock(path) - self.begun[path]
        torch.save({"value": {f.name: getattr(value, f.name) for f in fields(value)}, "seconds": spent}, buffer)
        packed = buffer.getvalue()
        write_atomically(self._file(path), self._seal(path, packed) + b"\n" + packed, durable=False)
        for file in self.journal.folder.glob(f"{self._file(path).stem}.*.pt"):
            file.unlink()

    def discard(self) -> None:
        """Remove all of them, once the block is written."""
        for file in self.journal.folder.glob(f"block-{self.number:06d}.*.pt"):
            file.unlink()

    def timed(self, block: Block) -> Block:
        """The block, its attacks with the time that was spent on what had been kept."""
        clean, *attacked = block.results
        before = {int(place.split("-", 1)[0]): seconds for place, seconds in self.seconds.items()}
        return replace(
            block,
            results=[clean, *(replace(r, seconds=r.seconds + before.get(i, 0.0)) for i, r in enumerate(attacked))],
        )

    def _clock(self, path: tuple[str, ...]) -> float:
        """Seconds, to which reading a part of an attack adds what that part had taken."""
        return time.monotonic() + self.seconds.get(path[0], 0.0)

    def _file(self, path: tuple[str, ...]) -> Path:
        places = ".".join(name.split("-", 1)[0] for name in path)
        return self.journal.folder / f"block-{self.number:06d}.{places}.pt"

    def _seal(self, path: tuple[str, ...], packed: bytes) -> bytes:
        text = json.dumps([self.journal.what, self.number, path], sort_keys=True)
        return hashlib.sha256(text.encode() + b"\n" + packed).hexdigest().encode()


def pack_points(points: Sequence[Points]) -> bytes:
    """The points of every attack as a compressed `.npz`; the same points give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, kept in enumerate(points):
            for name, array in kept.items():
                inner = io.BytesIO()
                np.lib.format.write_array(inner, np.ascontiguousarray(array), allow_pickle=False)
                entry = zipfile.ZipInfo(f"{number}.{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                archive.writestr(entry, inner.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=6)
    return buffer.getvalue()


def read_points(path: "Path | str") -> list[dict[str, np.ndarray]]:
    """Per attack, in the order of the record's entries without `clean` and the worst cases, the adversarial points:
    `rows` in the order of the record and `x`. Raises `EquipoiseError` if the file cannot be read or holds other things.
    """
    found: dict[int, dict[str, np.ndarray]] = {}
    unread = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                number, name = key.split(".", 1)
                found.setdefault(int(number), {})[name] = arrays[key]
    except unread as error:
        raise EquipoiseError(f"cannot read the stored images {path}: {error}.") from error
    for number in range(len(found)):
        kept = found.get(number, {})
        require(set(kept) == {"rows", "x"}, f"{path} has not both rows and images of attack {number}.")
        rows, x = kept["rows"], kept["x"]
        require(
            rows.dtype == np.int64 and rows.ndim == 1 and bool((np.diff(rows, prepend=-1) > 0).all()),
            f"{path}: the rows of attack {number} are not increasing numbers of samples (int64).",
        )
        require(
            x.dtype in (np.float32, np.float64) and x.ndim >= 2 and len(x) == len(rows),
            f"{path}: the images of attack {number} are {x.dtype} of shape {x.shape}: expected {len(rows)} of float32.",
        )
    return [found[number] for number in range(len(found))]


def joined_points(blocks: Iterable[tuple[Sequence[Points], Sequence[int]]]) -> list[dict[str, np.ndarray]]:
    """The points of several blocks as those of one; each block comes with the new places of its rows."""
    parts = [
        [{"rows": np.asarray(places)[kept["rows"]], "x": kept["x"]} for kept in points] for points, places in blocks
    ]
    attacks = []
    for of_attack in zip(*parts, strict=True):
        rows = np.concatenate([kept["rows"] for kept in of_attack])
        order = np.argsort(rows, kind="stable")
        attacks.append({"rows": rows[order], "x": np.concatenate([kept["x"] for kept in of_attack])[order]})
    return attacks


def images_of(out: "Path | str") -> Path:
    """Where the adversarial images of the record `out` lie."""
    return Path(out).with_name(f"{Path(out).stem}.images.npz")


def save_points(out: "Path | str", packed: bytes) -> dict[str, str]:
    """Write the adversarial images of the record `out` beside it; its `images` entry: name of the file and SHA-256."""
    path = images_of(out)
    write_atomically(path, packed)
    return {"file": path.name, "sha256": hashlib.sha256(packed).hexdigest()}
