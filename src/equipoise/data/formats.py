"""The published formats: bytes in, arrays out. No network, no checksums, no tensors."""

import io
import os
import re
import struct
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from equipoise.core.errors import EquipoiseError, require
from equipoise.data.files import (
    BROKEN,
    LOCKED,
    MOST,
    NOWHERE,
    Kind,
    Tree,
    opened,
    printable,
    reason,
    require_memory,
    unpickle,
)

Contents = Mapping[str, bytes]
"""Decompressed content of each file of a dataset, by its published name."""

_IMAGES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".bmp",
    ".dib",
    ".gif",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".tif",
    ".tiff",
    ".webp",
)
_READ = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "AVIF")  # others may run programs
_SPLITS = ("train", "test")
_VALIDATION = ("val", "valid", "validation", "dev")
_AHEAD = 64  # images being decoded
_PIXELS = 89_478_485  # from where Pillow warns of images that are small files and fill the memory
_CLASSES = 1_000_000


@dataclass(frozen=True, eq=False)
class Arrays:
    """A dataset as a reader found it: `x` (n, c, h, w) or (n, d), uint8 or floats in [0, 1]; `y` (n,), integers."""

    x_train: np.ndarray
    """Training samples."""
    y_train: np.ndarray
    """Their classes."""
    x_test: np.ndarray
    """Test samples."""
    y_test: np.ndarray
    """Their classes."""
    classes: tuple[str, ...]
    """Names of the classes."""
    notes: tuple[str, ...] = ()
    """What else is to be said about how they were read, each a phrase."""
    doubts: tuple[str, ...] = ()
    """What was probably not meant, each a phrase: samples that could not be read, pixels that are nearly black."""


def read_idx(data: bytes, where: str, dimensions: int) -> np.ndarray:
    """An array of bytes in the IDX format: `00 00 08 d`, d big-endian 32-bit sizes, then the values (LeCun, MNIST).

    Raises `EquipoiseError` naming `where` for a wrong magic number or number of dimensions, or a size that differs
    from the one declared.
    """
    magic, header = bytes((0, 0, 8, dimensions)), 4 + 4 * dimensions
    require(
        data[:4] == magic,
        f"{where} starts with {data[:4].hex() or 'nothing'}; expected {magic.hex()}, an IDX file of bytes with "
        f"{dimensions} dimension(s).",
    )
    require(len(data) >= header, f"{where} is truncated: its header has {len(data)} of {header} bytes; get it again.")
    shape = np.frombuffer(data, ">u4", dimensions, 4).tolist()
    size = header + int(np.prod(shape, dtype=object))
    fault = "is truncated" if len(data) < size else "is too long"
    require(len(data) == size, f"{where} {fault}: it has {len(data)} bytes and declares {size}; get it again.")
    try:
        return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
    except ValueError as error:  # no values, in a shape that no array has
        raise EquipoiseError(f"{where} declares the shape {tuple(shape)}; get it again.") from error


def read_mnist(contents: Contents, classes: Sequence[str]) -> Arrays:
    """MNIST and the sets made in its image: four IDX files."""

    def split(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        x, y = read_idx(contents[images], images, 3), read_idx(contents[labels], labels, 1)
        return x[:, None], _labels(y, labels, len(x), len(classes))

    return Arrays(*split("train"), *split("t10k"), tuple(classes))


def read_cifar10(contents: Contents) -> Arrays:
    """CIFAR-10, the batches for Python: five of training samples, one of test samples, and the names."""
    train = [f"data_batch_{i}" for i in range(1, 6)]
    return _cifar(contents, train, ["test_batch"], "labels", ("batches.meta", "label_names"))


def read_cifar100(contents: Contents) -> Arrays:
    """CIFAR-100, the batches for Python, with its 100 fine classes."""
    return _cifar(contents, ["train"], ["test"], "fine_labels", ("meta", "fine_label_names"))


def _cifar(contents: Contents, train: Sequence[str], test: Sequence[str], key: str, meta: tuple[str, str]) -> Arrays:
    names = _entry(unpickle(contents[meta[0]], meta[0]), meta[1], meta[0])
    require(isinstance(names, list), f"{meta[0]} has no list of class names; expected a file of the published dataset.")
    require(
        all(isinstance(name, str | bytes) for name in names),
        f"{meta[0]} has class names that are no text; expected a file of the published dataset.",
    )
    classes = tuple(name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name for name in names)

    def batch(name: str) -> tuple[np.ndarray, np.ndarray]:
        found = unpickle(contents[name], name)
        x = _entry(found, "data", name)
        require(
            isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 2 and x.shape[1] == 3 * 32 * 32,
            f"{name} holds data of another kind; expected bytes of shape (n, 3072), images of 3 x 32 x 32 pixels.",
        )
        y = _entry(found, key, name)
        y = y.tolist() if isinstance(y, np.ndarray) else y
        require(
            isinstance(y, list) and all(isinstance(label, int) and abs(label) < 2**31 for label in y),
            f"{name} holds labels of another kind; expected a list of whole numbers.",
        )
        return x.reshape(-1, 3, 32, 32), _labels(np.array(y, np.int64), name, len(x), len(classes))

    def split(batches: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        xs, ys = zip(*map(batch, batches), strict=True)
        return np.concatenate(xs), np.concatenate(ys)

    return Arrays(*split(train), *split(test), classes)


def read_svhn(contents: Contents) -> Arrays:
    """SVHN, cropped digits: two MATLAB files with `X` (32, 32, 3, n) and `y` (n, 1), where 10 is the digit 0."""

    def split(name: str) -> tuple[np.ndarray, np.ndarray]:
        found = read_mat(contents[name], name)
        x, y = (_entry(found, key, name) for key in ("X", "y"))
        require(
            x.dtype == np.uint8 and x.ndim == 4 and x.shape[:3] == (32, 32, 3),
            f"{name} holds {x.dtype} images of shape {x.shape}; expected uint8 of shape (32, 32, 3, n).",
        )
        y = _labels(np.ravel(y), name, x.shape[3], 11)
        require(not np.any(y == 0), f"{name} holds the label 0; expected 1 to 10, where 10 is the digit 0.")
        return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), y % 10

    return Arrays(*split("train_32x32.mat"), *split("test_32x32.mat"), tuple("0123456789"))


_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_OF_MATLAB = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_MATRIX, _COMPRESSED = 14, 15


def read_mat(data: bytes, where: str) -> dict[str, np.ndarray]:
    """Return the arrays of numbers in a MATLAB file of version 5, by name; other variables as empty arrays of objects.

    SciPy's reader ends the interpreter on some damaged files. Raises `EquipoiseError` naming `where` for a truncated
    file, or one of another kind. Source: MathWorks, MAT-File Format, 2023.
    """
    try:
        order = {b"IM": "<", b"MI": ">"}[data[126:128]]
        found: dict[str, np.ndarray] = {}
        for kind, content in _elements(memoryview(data)[128:], order):
            if kind == _COMPRESSED:
                unpacker = zlib.decompressobj()
                content = memoryview(unpacker.decompress(content, MOST))
                if not unpacker.eof:
                    raise ValueError(f"a variable is cut off or has more than {MOST:,} bytes")
                ((kind, content),) = _elements(content, order)
            if kind == _MATRIX:
                name, array = _matrix(content, order)
                found[name] = array
        return found
    except Exception as error:  # a damaged file can raise anything
        raise EquipoiseError(
            f"{where} is truncated or not a MATLAB file of version 5 ({reason(error)}); get it again."
        ) from error


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The data elements one after another: type and content."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:  # at most four bytes, in the place of the size
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start = at + 8
            end = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if start + size > len(data):
            raise ValueError(f"it ends within an element of {size:,} bytes")
        yield kind, data[start : start + size]
        at = end


def _matrix(data: memoryview, order: str) -> tuple[str, np.ndarray]:
    """Name and values of a variable."""
    (_, flags), (_, sizes), (_, name), *parts = _elements(data, order)
    dtype = _OF_MATLAB.get(np.frombuffer(flags, f"{order}u4", 1).item() & 0xFF)
    if dtype is None or len(parts) != 1 or parts[0][0] not in _STORED:  # text, cells, complex numbers
        return bytes(name).decode(), np.empty(0, object)
    kind, content = parts[0]
    shape = np.frombuffer(sizes, f"{order}i4").tolist()
    values = np.frombuffer(content, order + _STORED[kind])
    if min(shape, default=0) < 0:
        raise ValueError(f"it declares the shape {tuple(shape)}")
    return bytes(name).decode(), values.astype(dtype, copy=False).reshape(shape, order="F")


def read_npz(path: Path) -> Arrays:
    """An `.npz` file with x_train, y_train, x_test, y_test, and `classes` (names) if it likes; no pickled objects.

    `x` is uint8, or floats in [0, 1]: features (n, d); grey images (n, h, w); or images with 1 or 3 channels, last
    (n, h, w, c), which is preferred where both readings fit, or first (n, c, h, w). `y` is integers from 0 on.
    `notes` and `doubts`, texts, become those of the arrays; other arrays are named in the notes.
    """
    wanted, texts = ("x_train", "y_train", "x_test", "y_test"), ("classes", "notes", "doubts")
    try:
        with path.open("rb") as stream:
            require(stream.read(6) != np.lib.format.MAGIC_PREFIX, "it is a single array")
            with zipfile.ZipFile(stream) as archive:
                there = Counter(member.filename.removesuffix(".npy") for member in archive.infolist())
                missing = [name for name in wanted if name not in there]
                require(not missing, f"it has no array {', '.join(missing)}")
                twice = [name for name in (*wanted, *texts) if there[name] > 1]
                require(not twice, f"it has two arrays {', '.join(twice)}")
                found = {name: _array(archive, name) for name in (*wanted, *texts) if name in there}
    except Exception as error:  # a damaged file can raise anything
        raise EquipoiseError(
            f"cannot read {printable(path)}: {reason(error)}; expected an .npz file with {', '.join(wanted)}."
        ) from error
    x_train, y_train, x_test, y_test = (found[name] for name in wanted)
    y_train, y_test = (np.ravel(y) if y.ndim == 2 and y.shape[1] == 1 else y for y in (y_train, y_test))
    names, notes, doubts = (tuple(printable(t) for t in np.ravel(found.get(name, ()))) for name in texts)
    if "classes" not in found:
        highest = max((int(y.max()) for y in (y_train, y_test) if y.size and y.dtype.kind in "ui"), default=-1)
        require(highest < _CLASSES, f"{path} holds the label {highest}; expected class numbers 0, 1, 2, ...")
        names = tuple(str(c) for c in range(highest + 1))
    if others := sorted(printable(name) for name in there if name not in found):
        notes += (f"arrays that were not read: {_some(others)}",)
    return Arrays(
        _samples(x_train, f"{path}, x_train"),
        _labels(y_train, f"{path}, y_train", len(x_train), len(names)),
        _samples(x_test, f"{path}, x_test"),
        _labels(y_test, f"{path}, y_test", len(x_test), len(names)),
        names,
        notes,
        doubts,
    )


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an `.npz` file, whose header is compared with its size before there is any room made for it."""
    npy = np.lib.format
    member = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
    require(not member.flag_bits & 1, "it is locked with a password")
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        require(version in ((1, 0), (2, 0)), f"{name} is in version {version} of the format, of structured arrays")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(stream)
        if not dtype.hasobject:  # which numpy refuses better
            size = int(np.prod(shape, dtype=object)) * dtype.itemsize
            require(
                min(shape, default=0) >= 0 and stream.tell() + size == member.file_size,
                f"{name} declares the shape {shape} and has {member.file_size:,} bytes, which do not fit",
            )
            require_memory(size, name)
    with archive.open(member) as stream:
        return npy.read_array(stream, allow_pickle=False)


def read_images(path: Path) -> Arrays:
    """A folder or archive of images laid out `train/CLASS/**` and `test/CLASS/**`, possibly inside one top folder.

    Links are followed (`files.opened`). Classes are in the order of their names, of their numbers if all of them are
    numbers; samples are in the order of their names. Images that are all grey get one channel, otherwise all get three.
    The notes count everything that was not read. Raises `EquipoiseError` for no images, unreadable images, sizes that
    differ, two top folders, a class missing in one split or without any image, and a folder or link in the place of a
    class that cannot be followed.
    """
    with opened(path) as tree:
        layout = _Layout.of(path, tree)
        notes, doubts = layout.report()
        pixels: dict[PurePosixPath, np.ndarray] = {}
        remarks: Counter[str] = Counter()
        for name, image in _decoded(path, tree, [name for name in tree.files if name in layout.samples]):
            pixels[name] = image.pixels
            remarks.update(image.remarks)
    channels = max(image.shape[2] for image in pixels.values())
    grey = sum(image.shape[2] == 1 for image in pixels.values())
    size = next(iter(pixels.values())).shape[:2]
    require_memory(len(pixels) * channels * size[0] * size[1], printable(path))
    number = {name: i for i, name in enumerate(layout.classes)}

    def split(kind: str) -> tuple[np.ndarray, np.ndarray]:
        chosen = sorted(name for name, (of, _) in layout.samples.items() if of == kind)
        x = np.empty((len(chosen), channels, *size), np.uint8)
        for row, name in zip(x, chosen, strict=True):
            row[:] = pixels.pop(name).transpose(2, 0, 1)  # a grey image among coloured ones fills each channel
        return x, np.array([number[layout.samples[name][1]] for name in chosen], np.int64)

    if channels == 3 and grey:
        notes += (f"{_count(grey, ('grey image', ''))} among coloured ones, copied into three channels",)
    notes += tuple(f"{_count(n, ('image', ''))} {remark}" for remark, n in sorted(remarks.items()))
    return Arrays(*split("train"), *split("test"), tuple(map(printable, layout.classes)), notes, doubts)


@dataclass(frozen=True, eq=False)
class _Layout:
    """Which files of a tree are samples, and what the others are."""

    samples: Mapping[PurePosixPath, tuple[str, str]]
    """Split and class of each image."""
    classes: tuple[str, ...]
    """Class folders in the order of the labels."""
    passed: Sequence[tuple[PurePosixPath, Kind]]
    """Files that are no samples, and why."""
    lost: Sequence[tuple[PurePosixPath, Kind]]
    """What would be samples if it could be read, or probably was meant to be."""
    shared: Sequence[tuple[PurePosixPath, Kind]]
    """Samples whose file is also a sample of another class or split."""
    depth: int
    """Parts of the name of a sample that lies directly in its class folder."""

    @staticmethod
    def of(path: Path, tree: Tree) -> "_Layout":
        """Sort the files of a tree. Raises `EquipoiseError` where a class is missing or may be."""
        where, layout = printable(path), "images laid out train/CLASS/* and test/CLASS/*"
        images = [name for name in tree.files if not _hidden(name) and name.suffix.lower() in _IMAGES]
        top = _top(where, images)
        samples: dict[PurePosixPath, tuple[str, str]] = {}
        passed: list[tuple[PurePosixPath, Kind]] = []
        lost: list[tuple[PurePosixPath, Kind]] = []
        for name in tree.files:
            below = _below(name, top)
            split, *inside = below or ("",)
            if _hidden(name):
                passed.append((name, ("hidden file", "")))
            elif name.suffix.lower() not in _IMAGES:
                passed.append((name, _other_file(name.suffix.lower())))
            elif split in _SPLITS and len(inside) > 1:
                samples[name] = split, inside[0]
            elif split in _SPLITS:
                lost.append((name, ("image", f" directly in {split}/, in no class")))
            else:
                folder = ((below or name.parts)[:-1] or ("",))[0]
                kind = ("image", f" in {printable(folder)}/" if folder else " outside train/ and test/")
                (lost if folder.lower() in _VALIDATION else passed).append((name, kind))
        for name, kind in sorted(tree.lost):
            split, *inside = _below(name, top) or ("",)
            if split not in _SPLITS or _hidden(name):
                passed.append((name, kind))
                continue
            require(
                kind not in (BROKEN, LOCKED, NOWHERE)
                or (kind != LOCKED and (len(inside) > 1 or name.suffix.lower() in _IMAGES)),
                f"{where}, {printable(name)} is {_a(kind)}, where a class may be lost; mend it or delete it.",
            )
            lost.append((name, kind))
        for folder in tree.folders:
            if folder.suffix.lower() in _IMAGES and not any(folder in name.parents for name in tree.files):
                passed.append((folder, ("folder", " named like an image")))
        there = _summary([*passed, *lost])
        there = f", but {there}" if there else ""
        in_splits = "" if not there else " in train/CLASS/ or test/CLASS/"
        require(bool(samples), f"{where} holds no images{in_splits}{there}; expected {layout}.")
        held = {kind: {of for split, of in samples.values() if split == kind} for kind in _SPLITS}
        for kind, other in (_SPLITS, _SPLITS[::-1]):
            require(bool(held[kind]), f"{where} holds no images in {kind}/{there}; expected {layout}.")
            for missing in sorted(held[other] - held[kind])[:1]:
                raise EquipoiseError(
                    f"{where} has images of class {printable(missing)!r} in {other}/ but none in {kind}/; expected it "
                    "in both."
                )
        for folder in sorted(tree.folders):
            below = _below(folder, top)
            if below and below[0] in _SPLITS and len(below) == 2 and not _hidden(folder):
                require(
                    below[1] in held["train"],
                    f"{where} has the class folder {printable(folder)} without any image{there}; add images or delete "
                    "it.",
                )
        classes = sorted(held["train"])
        if all(_NUMBER.fullmatch(name) for name in classes):
            classes.sort(key=lambda name: (Decimal(name), name))
        shared: list[tuple[PurePosixPath, Kind]] = []
        first: dict[Hashable, tuple[str, str]] = {}
        for name, place in samples.items():
            if first.setdefault(tree.identity(name), place) != place:
                shared.append((name, ("image", "")))
        return _Layout(samples, tuple(classes), passed, lost, shared, len(top.parts) + 3)

    def report(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Notes on the order of the classes and on the files passed over; and the doubts, on what should be samples."""
        notes = (
            ("the classes are in the order of their numbers",) if self.classes != tuple(sorted(self.classes)) else ()
        )
        if nested := [(name, ("image", "")) for name in self.samples if len(name.parts) > self.depth]:
            notes += (f"{_summary(nested)} in folders inside a class folder, counted to that class",)
        if self.passed:
            notes += (f"{len(self.passed):,} passed over: {_summary(self.passed)}",)
        doubts = (f"{len(self.lost):,} not read: {_summary(self.lost)}",) if self.lost else ()
        if self.shared:
            doubts += (f"by a link samples of another class or split as well: {_summary(self.shared)}",)
        return notes, doubts


_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def _top(where: str, images: Iterable[PurePosixPath]) -> PurePosixPath:
    """The folder that train/ and test/ are in."""
    folders: dict[PurePosixPath, set[str]] = {}
    nested: dict[PurePosixPath, set[str]] = {}
    for name in images:
        for depth in (0, 1):
            if len(name.parts) >= depth + 3 and name.parts[depth] in _SPLITS:
                top = PurePosixPath(*name.parts[:depth])
                folders.setdefault(top, set()).add(name.parts[depth])
                if len(name.parts) >= depth + 4:
                    nested.setdefault(top / name.parts[depth], set()).add(name.parts[depth + 1])
                break
    if len(folders) > 1:
        tops = " and ".join(repr(printable(top)) for top in sorted(folders))
        raise EquipoiseError(f"{where} holds images under {tops}; expected one set.")
    if not folders:
        return PurePosixPath()
    ((top, splits),) = folders.items()
    inner = [top / split for split in splits if set(_SPLITS) <= nested.get(top / split, set())]
    return inner[0] if len(splits) == 1 and inner else top  # a top folder that is itself called train or test


def _below(name: PurePosixPath, top: PurePosixPath) -> tuple[str, ...]:
    return name.parts[len(top.parts) :] if name.parts[: len(top.parts)] == top.parts else ()


def _hidden(name: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.parts)


def _other_file(suffix: str) -> Kind:
    if not suffix:
        return "file", " without an extension"
    return (f"{printable(suffix)} file", "") if len(suffix) <= 8 else ("file", " of other kinds")


def _count(n: int, kind: Kind) -> str:
    return f"{n:,} {kind[0]}{'' if n == 1 else 's'}{kind[1]}"


def _a(kind: Kind) -> str:
    noun = "".join(kind)
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _summary(found: Sequence[tuple[PurePosixPath, Kind]]) -> str:
    """How many of each kind, each with the first name."""
    first: dict[Kind, PurePosixPath] = {}
    for name, kind in sorted(found):
        first.setdefault(kind, name)
    counts = Counter(kind for _, kind in found)
    said = [
        f"{_count(n, kind)} ({printable(first[kind])}{', ...' if n > 1 else ''})" for kind, n in counts.most_common()
    ]
    return _some(said, 10)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _READ if name in Image.OPEN)


@dataclass(frozen=True, eq=False)
class _Decoded:
    """An image."""

    pixels: np.ndarray
    """(h, w, c), c = 1 if it is grey, else 3."""
    remarks: tuple[str, ...]
    """What of it was dropped."""


def _decoded(path: Path, tree: Tree, names: Sequence[PurePosixPath]) -> Iterator[tuple[PurePosixPath, _Decoded]]:
    """The images of those names, which must have one size; a few are decoded ahead, so that the first fault ends it."""
    where = {name: printable(f"{path}, {name}") for name in names}
    first = _decode(tree.read(names[0]), where[names[0]])
    yield names[0], first
    height, width = first.pixels.shape[:2]
    require_memory(len(names) * first.pixels.size, printable(path))

    def decoded(name: PurePosixPath, future: Future[_Decoded]) -> tuple[PurePosixPath, _Decoded]:
        image = future.result()
        other_height, other_width = image.pixels.shape[:2]
        require(
            (other_height, other_width) == (height, width),
            f"{printable(path)} has images of mixed sizes: {printable(names[0])} has {width} x {height} pixels and "
            f"{printable(name)} has {other_width} x {other_height}; expected one size.",
        )
        return name, image

    pending: deque[tuple[PurePosixPath, Future[_Decoded]]] = deque()
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        for name in names[1:]:
            pending.append((name, pool.submit(_decode, tree.read(name), where[name], (width, height))))
            if len(pending) >= _AHEAD:
                yield decoded(*pending.popleft())
        for one in pending:
            yield decoded(*one)


def _decode(data: bytes, where: str, size: tuple[int, int] | None = None) -> _Decoded:
    """An encoded image, of which only the shape is read if it is not of the `size` (width, height) that is given."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            width, height = image.size
            require(width * height <= _PIXELS, f"it has {width} x {height} pixels, more than {_PIXELS:,}")
            if image.size != (size or image.size):
                return _Decoded(np.empty((height, width, 0), np.uint8), ())
            require(image.mode[0] not in "IF", f"it has pixels of mode {image.mode}, not of 8 bits")
            transparent = image.has_transparency_data
            plain = image.convert("RGBA") if transparent and image.mode == "P" else image  # else Pillow warns
            pixels = np.asarray(plain.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
            remarks = ("with an alpha channel, which was dropped",) if transparent else ()
            if getattr(image, "is_animated", False):
                remarks += ("with several frames, of which the first was read",)
    except UnidentifiedImageError as error:
        raise EquipoiseError(
            f"{where} is not a readable image: cannot identify its format; replace or delete it."
        ) from error
    except Exception as error:  # a damaged image can raise anything
        raise EquipoiseError(f"{where} is not a readable image: {reason(error)}; replace or delete it.") from error
    return _Decoded(pixels.reshape(*pixels.shape[:2], -1), remarks)


def _entry(found: Mapping[str, Any], key: str, where: str) -> Any:
    require(key in found, f"{where} has no entry {key!r}; expected a file of the published dataset.")
    return found[key]


def _labels(y: np.ndarray, where: str, samples: int, classes: int) -> np.ndarray:
    require(y.dtype.kind in "ui", f"{where} holds labels of type {y.dtype}; expected whole numbers.")
    require(y.shape == (samples,), f"{where} holds labels of shape {y.shape} for {samples} images; expected one each.")
    low, high = (int(y.min()), int(y.max())) if y.size else (0, 0)
    require(low >= 0 and high < classes, f"{where} holds labels from {low} to {high}; expected 0 to {classes - 1}.")
    return y.astype(np.int64)


def _samples(x: np.ndarray, where: str) -> np.ndarray:
    require(
        x.dtype == np.uint8 or (x.dtype.kind == "f" and x.dtype.itemsize <= 8),
        f"{where} has dtype {x.dtype}; expected uint8, or floats in [0, 1].",
    )
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in (1, 3):
        return x.transpose(0, 3, 1, 2)
    require(
        x.ndim == 2 or (x.ndim == 4 and x.shape[1] in (1, 3)),
        f"{where} has shape {x.shape}; expected (n, h, w, c) with c = 1 or 3, (n, h, w) or (n, d).",
    )
    return x
