"""Saving unfinished evaluations block by block, so that they can be resumed, and adversarial images in one file.

While an evaluation to `aa.json` runs, the folder `aa.json.partial/` beside it holds what is being evaluated
(`evaluation.json`), a file for every finished block, and for an unfinished block one for every finished attack and
member of a composite attack. All are written atomically, so that they are complete even after a kill. Each carries a
seal; a file whose seal does not match, because it is damaged or of another evaluation, counts as missing.
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
from equipoise.results.outcomes import CertifiedResult, CorruptionResult
from equipoise.results.records import AttackRecord
from equipoise.training.interruption import Interrupted

Points = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Journal:
    """The finished blocks of one evaluation."""

    folder: Path
    key: Mapping[str, Any]
    """Everything on which the outcome depends."""

    @classmethod
    def of(cls, out: "Path | str", key: Mapping[str, Any]) -> "Journal":
        """Return the journal of the evaluation whose record will be `out`; its outcome depends on `key`."""
        return cls(Path(f"{out}.partial"), json.loads(json.dumps(key)))

    @property
    def is_begun(self) -> bool:
        """Whether this evaluation, and no other, was begun here."""
        try:
            return read_json(self._header) == self.key
        except (OSError, ValueError):
            return False

    def claim(self, resume: bool = False, overwrite: bool = False) -> None:
        """Check that the folder is free, or that the evaluation in it is to be resumed.

        Raises `EquipoiseError` if it holds an unfinished evaluation and `resume` is not set, if nothing says what was
        evaluated, or if that is something else, naming the difference. With `overwrite` such a folder is removed.
        """
        folder, header, key = self.folder, self._header, self.key
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
        changed = [name for name in {**key, **before} if key.get(name) != before.get(name)]
        require(
            not changed,
            f"{folder} is of another evaluation, with other {', '.join(changed)}: give the same options as then, "
            "or remove that folder.",
        )

    def begin(self) -> None:
        """Write down what is being evaluated."""
        content = (json.dumps(self.key, indent=1) + "\n").encode()
        if not self._header.is_file() or self._header.read_bytes() != content:
            write_atomically(self._header, content)

    def read(self, number: int) -> Block | None:
        """Return the block of this number, or None unless it is finished, undamaged and of this evaluation."""
        results, points = self._files(number)
        try:
            saved = read_json(results)
            packed = points.read_bytes() if points.is_file() else b""
            entries, corruptions = saved["results"], saved.get("corruptions", [])
            certified = saved.get("certified", [])
            if saved["seal"] != self._seal(number, [*entries, *corruptions, *certified], packed):
                return None
            block = Block(
                [AttackRecord(**entry) for entry in entries],
                read_points(points) if packed else [],
                [CorruptionResult(**entry) for entry in corruptions],
                [CertifiedResult(**entry) for entry in certified],
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        # Earlier versions saved no images of a block in which no attack succeeded.
        complete = not self.key.get("images") or len(block.points) == len(block.results) - 1
        return block if complete else None

    def write(self, number: int, block: Block) -> None:
        """Save a finished block. Its results are written last: where they are, its points are too."""
        results, points = self._files(number)
        self.begin()
        packed = b""
        if block.points:
            packed = pack_points(block.points)
            write_atomically(points, packed)
        else:
            points.unlink(missing_ok=True)
        entries = [asdict(result) for result in block.results]
        corruptions = [asdict(result) for result in block.corruptions]
        certified = [asdict(result) for result in block.certified]
        content = {"seal": self._seal(number, [*entries, *corruptions, *certified], packed), "results": entries}
        content |= {"corruptions": corruptions} if corruptions else {}
        content |= {"certified": certified} if certified else {}
        write_atomically(results, (json.dumps(content) + "\n").encode())
        self.unfinished(number).discard()

    def unfinished(self, number: int) -> "UnfinishedBlock":
        """Return what is saved of the block of this number before it is finished."""
        return UnfinishedBlock(self, number)

    def finished(self, numbers: Sequence[int]) -> tuple[int, int]:
        """Return how many of these blocks are finished, and how many attacks on other blocks."""
        return sum(self._files(n)[0].is_file() for n in numbers), len(list(self.folder.glob("block-*.pt")))

    def discard(self) -> None:
        """Remove the folder, once the record is written."""
        with suppress(OSError):  # a folder that is left behind does no harm, and the next evaluation names it
            shutil.rmtree(self.folder)

    @property
    def _header(self) -> Path:
        return self.folder / "evaluation.json"

    def _seal(self, number: int, results: Sequence[Mapping[str, Any]], packed: bytes) -> str:
        text = json.dumps([self.key, number, results], sort_keys=True)
        return hashlib.sha256(text.encode() + b"\n" + packed).hexdigest()

    def _files(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"block-{number:06d}.json", self.folder / f"block-{number:06d}.npz"


def note_saved(stop: KeyboardInterrupt, blocks: int, total: int, attacks: int) -> None:
    """Note on an interrupt how many of `total` blocks, and of the attacks on unfinished blocks, are saved."""
    saved = [f"{blocks} of {total} blocks"] if blocks else []
    saved += [f"{attacks} finished attack{'s' * (attacks > 1)} on unfinished blocks"] if attacks else []
    verb = "are" if blocks + attacks > 1 else "is"
    stop.add_note(f"{' and '.join(saved)} {verb} kept" if saved else "nothing was finished yet")
    if isinstance(stop, Interrupted):
        stop.kept = bool(saved)


@dataclass(frozen=True)
class UnfinishedBlock:
    """The results of attacks on a block before it is finished: a store of `equipoise.core.caching.caching`."""

    journal: Journal
    number: int
    seconds: dict[str, float] = field(default_factory=dict)
    """Computing time of the results that were read, by attack: the first component of a path."""
    begun: dict[tuple[str, ...], float] = field(default_factory=dict)
    """When the computation of each missing result began, on the clock of `_clock`."""

    def read(self, path: tuple[str, ...]) -> AttackResult | None:
        """Return the result saved at `path`, or None unless it is there, undamaged and of this block."""
        try:
            seal, packed = self._file(path).read_bytes().split(b"\n", 1)
            if seal == self._seal(path, packed):
                saved = torch.load(io.BytesIO(packed), weights_only=True)
                self.seconds[path[0]] = self.seconds.get(path[0], 0.0) + saved["seconds"]
                return AttackResult(**saved["value"])
        except (OSError, ValueError, TypeError):  # missing, damaged, or of another version
            pass
        self.begun[path] = self._clock(path)
        return None

    def write(self, path: tuple[str, ...], value: object) -> None:
        """Save the result of an attack, in place of those of its members, which are no longer needed."""
        if not isinstance(value, AttackResult):
            return
        self.journal.begin()
        buffer, seconds = io.BytesIO(), self._clock(path) - self.begun[path]
        torch.save({"value": {f.name: getattr(value, f.name) for f in fields(value)}, "seconds": seconds}, buffer)
        packed = buffer.getvalue()
        write_atomically(self._file(path), self._seal(path, packed) + b"\n" + packed, durable=False)
        for file in self.journal.folder.glob(f"{self._file(path).stem}.*.pt"):
            file.unlink()

    def discard(self) -> None:
        """Remove all results, once the block is written."""
        for file in self.journal.folder.glob(f"block-{self.number:06d}.*.pt"):
            file.unlink()

    def timed(self, block: Block) -> Block:
        """Return the block, with the time of earlier calls added to that of its attacks."""
        clean, *attacked = block.results
        before = {int(name.split("-", 1)[0]): seconds for name, seconds in self.seconds.items()}
        return replace(
            block,
            results=[clean, *(replace(r, seconds=r.seconds + before.get(i, 0.0)) for i, r in enumerate(attacked))],
        )

    def _clock(self, path: tuple[str, ...]) -> float:
        """Seconds; reading the result of a member of an attack adds the time that member had taken."""
        return time.monotonic() + self.seconds.get(path[0], 0.0)

    def _file(self, path: tuple[str, ...]) -> Path:
        positions = ".".join(name.split("-", 1)[0] for name in path)
        return self.journal.folder / f"block-{self.number:06d}.{positions}.pt"

    def _seal(self, path: tuple[str, ...], packed: bytes) -> bytes:
        text = json.dumps([self.journal.key, self.number, path], sort_keys=True)
        return hashlib.sha256(text.encode() + b"\n" + packed).hexdigest().encode()


def pack_points(points: Sequence[Points]) -> bytes:
    """Return the points of every attack as a compressed `.npz`; the same points give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, arrays in enumerate(points):
            for name, array in arrays.items():
                inner = io.BytesIO()
                np.lib.format.write_array(inner, np.ascontiguousarray(array), allow_pickle=False)
                entry = zipfile.ZipInfo(f"{number}.{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                archive.writestr(entry, inner.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=6)
    return buffer.getvalue()


def read_points(path: "Path | str") -> list[dict[str, np.ndarray]]:
    """Return for each attack of a record, in the order of its results, the adversarial points: `rows`, the positions of
    the samples in the record, and `x`. Raises `EquipoiseError` if the file cannot be read or has other content.
    """
    points: dict[int, dict[str, np.ndarray]] = {}
    errors = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                number, name = key.split(".", 1)
                points.setdefault(int(number), {})[name] = arrays[key]
    except errors as error:
        raise EquipoiseError(f"cannot read the stored images {path}: {error}.") from error
    for number in range(len(points)):
        arrays = points.get(number, {})
        require(set(arrays) == {"rows", "x"}, f"{path} has not both rows and images of attack {number}.")
        rows, x = arrays["rows"], arrays["x"]
        require(
            rows.dtype == np.int64 and rows.ndim == 1 and bool((np.diff(rows, prepend=-1) > 0).all()),
            f"{path}: the rows of attack {number} are not increasing numbers of samples (int64).",
        )
        require(
            x.dtype in (np.float32, np.float64) and x.ndim >= 2 and len(x) == len(rows),
            f"{path}: the images of attack {number} are {x.dtype} of shape {x.shape}: expected {len(rows)} of float32.",
        )
    return [points[number] for number in range(len(points))]


def joined_points(blocks: Iterable[tuple[Sequence[Points], Sequence[int]]]) -> list[dict[str, np.ndarray]]:
    """Return the points of several blocks as those of one; each block comes with the new positions of its samples."""
    moved = [
        [(np.asarray(positions)[arrays["rows"]], arrays["x"]) for arrays in points] for points, positions in blocks
    ]
    attacks = []
    for blocks_of_attack in zip(*moved, strict=True):
        rows, x = (np.concatenate(arrays) for arrays in zip(*blocks_of_attack, strict=True))
        order = np.argsort(rows, kind="stable")
        attacks.append({"rows": rows[order], "x": x[order]})
    return attacks


def images_of(out: "Path | str") -> Path:
    """Return the file of the adversarial images of the record `out`."""
    return Path(out).with_name(f"{Path(out).stem}.images.npz")


def save_points(out: "Path | str", packed: bytes) -> dict[str, str]:
    """Write the adversarial images of the record `out` beside it; return its `images`: name of the file and SHA-256."""
    path = images_of(out)
    write_atomically(path, packed)
    return {"file": path.name, "sha256": hashlib.sha256(packed).hexdigest()}
