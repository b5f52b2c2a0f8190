"""Folders and archives of images, one folder per class: which files are samples, and what they hold."""

import io
import os
import re
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import printable
from equipoise.data.files import opened, reason, require_memory
from equipoise.data.formats import Arrays, some
from equipoise.data.trees import BROKEN, LOCKED, NOWHERE, Kind, Tree

_SUFFIX = re.compile(r"\.(png|jpe?g|jpe|jfif|bmp|dib|gif|p[pgbn]m|tiff?|webp)")
_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "AVIF")  # others may run programs
_SPLITS = ("train", "test")
_VALIDATION = ("val", "valid", "validation", "dev")
_MAX_PENDING = 64  # images being decoded
_MAX_PIXELS = 89_478_485  # from which Pillow warns of small files that fill the memory


def read_images(path: Path) -> Arrays:
    """Read a folder or archive of images laid out `train/CLASS/**` and `test/CLASS/**`, possibly in one top folder.

    Links are followed (`files.opened`). Classes are in the order of their names, of their numbers if all names are
    numbers; samples are in the order of their names. If all images are grey they get one channel, otherwise all get
    three. The notes count everything that was not read. Raises `EquipoiseError` for no images, unreadable images,
    different sizes, two top folders, a class without images in a split, and an unreadable class folder.
    """
    with opened(path) as tree:
        layout = _Layout.of(path, tree)
        notes, warnings = layout.report()
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
        chosen = sorted(name for name, (split, _) in layout.samples.items() if split == kind)
        x = np.empty((len(chosen), channels, *size), np.uint8)
        for sample, name in zip(x, chosen, strict=True):
            sample[:] = pixels.pop(name).transpose(2, 0, 1)  # a grey image among coloured ones fills each channel
        return x, np.array([number[layout.samples[name][1]] for name in chosen], np.int64)

    if channels == 3 and grey:
        notes += (f"{_count(grey, ('grey image', ''))} among coloured ones, copied into three channels",)
    notes += tuple(f"{_count(n, ('image', ''))} {remark}" for remark, n in sorted(remarks.items()))
    return Arrays(*split("train"), *split("test"), tuple(map(printable, layout.classes)), notes, warnings)


@dataclass(frozen=True, eq=False)
class _Layout:
    """Which files of a tree are samples, and what the other files are."""

    samples: Mapping[PurePosixPath, tuple[str, str]]
    """Split and class of each image."""
    classes: tuple[str, ...]
    """Class folders in the order of the labels."""
    skipped: "Paths"
    """Files that are not samples, and why."""
    missing: "Paths"
    """What would be samples if it could be read, or probably should be."""
    shared: "Paths"
    """Samples whose file is also a sample of another class or split."""
    depth: int
    """Number of components in the path of a sample that lies directly in its class folder."""

    @staticmethod
    def of(path: Path, tree: Tree) -> "_Layout":
        """Sort the files of a tree. Raises `EquipoiseError` if a class is missing or may be."""
        where = printable(path)
        top = _top(where, [name for name in tree.files if not _hidden(name) and _is_image(name)])
        samples, skipped, missing = _sorted_files(tree, top)
        for name, kind in sorted(tree.unreadable):
            (missing if _may_be_a_sample(name, kind, top, where) else skipped).append((name, kind))
        for folder in tree.folders:
            if _is_image(folder) and not any(folder in name.parents for name in tree.files):
                skipped.append((folder, ("folder", " named like an image")))
        others = _summary([*skipped, *missing])
        classes = _classes(where, samples, _class_folders(tree, top), f", but {others}" if others else "")
        first: dict[Hashable, tuple[str, str]] = {}
        shared = [
            (name, ("image", ""))
            for name, label in samples.items()
            if first.setdefault(tree.identity(name), label) != label
        ]
        return _Layout(samples, classes, skipped, missing, shared, len(top.parts) + 3)

    def report(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Notes on the order of the classes and the files passed over, and warnings of what should be samples."""
        notes = (
            ("the classes are in the order of their numbers",) if self.classes != tuple(sorted(self.classes)) else ()
        )
        if nested := [(name, ("image", "")) for name in self.samples if len(name.parts) > self.depth]:
            notes += (f"{_summary(nested)} in folders inside a class folder, counted to that class",)
        if self.skipped:
            notes += (f"{len(self.skipped):,} passed over: {_summary(self.skipped)}",)
        warnings = (f"{len(self.missing):,} not read: {_summary(self.missing)}",) if self.missing else ()
        if self.shared:
            warnings += (f"by a link samples of another class or split as well: {_summary(self.shared)}",)
        return notes, warnings


_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")

Paths = list[tuple[PurePosixPath, Kind]]
"""Paths, each with what lies there."""


def _sorted_files(tree: Tree, top: PurePosixPath) -> tuple[dict[PurePosixPath, tuple[str, str]], Paths, Paths]:
    """The samples with their split and class, the files that are not samples, and those that perhaps should be."""
    samples: dict[PurePosixPath, tuple[str, str]] = {}
    skipped: Paths = []
    missing: Paths = []
    for name in tree.files:
        below = _below(name, top)
        split, *inside = below or ("",)
        if _hidden(name):
            skipped.append((name, ("hidden file", "")))
        elif not _is_image(name):
            skipped.append((name, _other_file(name.suffix.lower())))
        elif split in _SPLITS and len(inside) > 1:
            samples[name] = split, inside[0]
        elif split in _SPLITS:
            missing.append((name, ("image", f" directly in {split}/, in no class")))
        else:
            folder = ((below or name.parts)[:-1] or ("",))[0]
            kind = ("image", f" in {printable(folder)}/" if folder else " outside train/ and test/")
            (missing if folder.lower() in _VALIDATION else skipped).append((name, kind))
    return samples, skipped, missing


def _may_be_a_sample(name: PurePosixPath, kind: Kind, top: PurePosixPath, where: str) -> bool:
    """Whether an unreadable entry lies where samples do. Raises `EquipoiseError` if it may be a class."""
    split, *inside = _below(name, top) or ("",)
    if split not in _SPLITS or _hidden(name):
        return False
    require(
        kind not in (BROKEN, LOCKED, NOWHERE) or (kind != LOCKED and (len(inside) > 1 or _is_image(name))),
        f"{where}, {printable(name)} is {_a(kind)}, where a class may be lost; repair it or delete it.",
    )
    return True


def _class_folders(tree: Tree, top: PurePosixPath) -> list[tuple[PurePosixPath, str]]:
    """The class folders, with the names of the classes."""
    inside = ((folder, _below(folder, top)) for folder in sorted(tree.folders) if not _hidden(folder))
    return [(folder, below[1]) for folder, below in inside if len(below) == 2 and below[0] in _SPLITS]


def _classes(
    where: str,
    samples: Mapping[PurePosixPath, tuple[str, str]],
    folders: Sequence[tuple[PurePosixPath, str]],
    others: str,
) -> tuple[str, ...]:
    """The classes in the order of their names, or of their numbers if all are numbers. Raises `EquipoiseError` unless
    both splits have the same classes and every class folder has an image; `others` says what was found instead.
    """
    layout = "images laid out train/CLASS/* and test/CLASS/*"
    in_splits = " in train/CLASS/ or test/CLASS/" if others else ""
    require(bool(samples), f"{where} holds no images{in_splits}{others}; expected {layout}.")
    held = {kind: {label for split, label in samples.values() if split == kind} for kind in _SPLITS}
    for kind, other in (_SPLITS, _SPLITS[::-1]):
        require(bool(held[kind]), f"{where} holds no images in {kind}/{others}; expected {layout}.")
        missing = min(held[other] - held[kind], default=None)
        require(
            missing is None,
            f"{where} has images of class {printable(missing)!r} in {other}/ but none in {kind}/; expected it in both.",
        )
    for folder, name in folders:
        require(
            name in held["train"],
            f"{where} has the class folder {printable(folder)} without any image{others}; add images or delete it.",
        )
    classes = sorted(held["train"])
    if all(_NUMBER.fullmatch(name) for name in classes):
        classes.sort(key=lambda name: (Decimal(name), name))
    return tuple(classes)


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


def _is_image(name: PurePosixPath) -> bool:
    return _SUFFIX.fullmatch(name.suffix.lower()) is not None


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


def _summary(paths: "Paths") -> str:
    """The number of each kind, with the first path."""
    first: dict[Kind, PurePosixPath] = {}
    for name, kind in sorted(paths):
        first.setdefault(kind, name)
    counts = Counter(kind for _, kind in paths)
    phrases = [
        f"{_count(n, kind)} ({printable(first[kind])}{', ...' if n > 1 else ''})" for kind, n in counts.most_common()
    ]
    return some(phrases, 10)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@dataclass(frozen=True, eq=False)
class _Decoded:
    """A decoded image."""

    pixels: np.ndarray
    """(h, w, c), c = 1 if it is grey, else 3."""
    remarks: tuple[str, ...]
    """What was dropped."""


def _decoded(path: Path, tree: Tree, names: Sequence[PurePosixPath]) -> Iterator[tuple[PurePosixPath, _Decoded]]:
    """Yield the images of these names, which must have one size, decoding a few ahead."""
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
            if len(pending) >= _MAX_PENDING:
                yield decoded(*pending.popleft())
        for name, future in pending:
            yield decoded(name, future)


def _decode(data: bytes, where: str, size: tuple[int, int] | None = None) -> _Decoded:
    """Decode an image; if it does not have the given `size` (width, height), read its shape only."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            width, height = image.size
            require(width * height <= _MAX_PIXELS, f"it has {width} x {height} pixels, more than {_MAX_PIXELS:,}")
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
