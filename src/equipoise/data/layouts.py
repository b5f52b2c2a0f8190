"""Layouts of images in folders: which files are samples, of which split and class, and what the other files are."""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import printable
from equipoise.data.formats import count, some
from equipoise.data.image_labels import labelled_by_table
from equipoise.data.ordering import in_order, natural_path
from equipoise.data.reading import SPLITS, Reading
from equipoise.data.trees import BROKEN, LOCKED, NOWHERE, Kind, Tree

_SUFFIX = re.compile(r"\.(png|jpe?g|jpe|jfif|bmp|dib|gif|p[pgbn]m|tiff?|webp)")
_EXPECTED = (
    "images laid out train/CLASS/* and test/CLASS/*, or CLASS/*, or beside a labels.csv of file names and labels"
)

Paths = list[tuple[PurePosixPath, Kind]]
"""Paths, each with what lies there."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Which files of a tree are samples, and what the other files are."""

    top: PurePosixPath
    """The folder of the splits, or of the classes if there are no splits."""
    samples: Mapping[PurePosixPath, tuple[str, str]]
    """Split and class of each image, in the order of the samples."""
    classes: tuple[str, ...]
    """Names of the classes in the order of the labels."""
    skipped: Paths
    """Files that are not samples, and why."""
    missing: Paths
    """What would be samples if it could be read, or probably should be."""
    shared: Paths
    """Samples whose file is also a sample of another class or split."""
    nested: Paths
    """Samples in folders inside a class folder."""

    @staticmethod
    def of(path: Path, tree: Tree, reading: Reading = Reading()) -> "Layout":
        """Sort the files of a tree. Raises `EquipoiseError` if a class is missing or may be."""
        where = printable(path)
        images = [name for name in tree.files if not _hidden(name) and is_image(name)]
        top = _top(where, images)
        whole = top is None  # no folder is a split
        top = _common_folder(images) if top is None else top
        samples, skipped, missing = _sorted_files(tree, top, whole)
        nested = [(name, ("image", "")) for name in samples if len(name.parts) > len(top.parts) + 3 - whole]
        if whole and not _has_classes({label for _, label in samples.values()}):
            if labelled := labelled_by_table(tree, images, reading.label_column, where):
                samples, nested = dict(labelled.samples), []
                skipped += labelled.unlabelled
                missing = [(name, kind) for name, kind in missing if name not in samples]
                skipped = [(name, kind) for name, kind in skipped if name not in {*samples, *labelled.tables}]
            else:
                missing, samples = [*missing, *_unlabelled(samples)], {}
        for name, kind in sorted(tree.unreadable):
            (missing if _may_be_a_sample(name, kind, top, whole, where) else skipped).append((name, kind))
        for folder in tree.folders:
            if is_image(folder) and not any(folder in name.parents for name in tree.files):
                skipped.append((folder, ("folder", " named like an image")))
        classes = in_order(label for _, label in samples.values())
        if whole:
            empty = (folder for folder in tree.folders if len(_below(folder, top)) == 1 and not _hidden(folder))
            missing += [(folder, ("folder", " without any image")) for folder in empty if not _holds(folder, images)]
        others = _summary([*skipped, *missing])
        folders = [] if whole else _class_folders(tree, top)
        _require_classes(where, samples, folders, f", but {others}" if others else "")
        first: dict[Hashable, tuple[str, str]] = {}
        shared = [
            (name, ("image", ""))
            for name, label in samples.items()
            if first.setdefault(tree.identity(name), label) != label
        ]
        ordered = {name: samples[name] for name in sorted(samples, key=natural_path)}
        return Layout(top, ordered, classes, skipped, missing, shared, nested)

    def report(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Notes on the order of the classes and the files passed over, and warnings of what should be samples."""
        notes = (
            ("the classes are in the order of their numbers",) if self.classes != tuple(sorted(self.classes)) else ()
        )
        if self.nested:
            notes += (f"{_summary(self.nested)} in folders inside a class folder, counted to that class",)
        if self.skipped:
            notes += (f"{len(self.skipped):,} passed over: {_summary(self.skipped)}",)
        warnings = (f"{len(self.missing):,} not read: {_summary(self.missing)}",) if self.missing else ()
        if self.shared:
            warnings += (f"by a link samples of another class or split as well: {_summary(self.shared)}",)
        return notes, warnings


def split_of(folder: str) -> str | None:
    """Return the split that the name of a folder stands for, in any case."""
    return SPLITS.get(folder.lower())


def _sorted_files(
    tree: Tree, top: PurePosixPath, whole: bool
) -> tuple[dict[PurePosixPath, tuple[str, str]], Paths, Paths]:
    """The samples with their split and class, the files that are not samples, and those that perhaps should be."""
    samples: dict[PurePosixPath, tuple[str, str]] = {}
    skipped: Paths = []
    missing: Paths = []
    for name in tree.files:
        below = _below(name, top)
        split, inside = ("train", below) if whole else (split_of((below or ("",))[0]), below[1:])
        if _hidden(name):
            skipped.append((name, ("hidden file", "")))
        elif not is_image(name):
            skipped.append((name, _other_file(name.suffix.lower())))
        elif split is not None and len(inside) > 1:
            samples[name] = split, inside[0]
        elif split is not None and below:
            folder = f" directly in {printable(below[0])}/" if not whole else ""
            missing.append((name, ("image", f"{folder}, in no class")))
        else:
            folder = ((below or name.parts)[:-1] or ("",))[0]
            skipped.append((name, ("image", f" in {printable(folder)}/" if folder else " outside train/ and test/")))
    return samples, skipped, missing


def _may_be_a_sample(name: PurePosixPath, kind: Kind, top: PurePosixPath, whole: bool, where: str) -> bool:
    """Whether an unreadable entry lies where samples do. Raises `EquipoiseError` if it may be a class."""
    below = _below(name, top)
    split, inside = ("train", below) if whole else (split_of((below or ("",))[0]), below[1:])
    if split is None or not below or _hidden(name):
        return False
    require(
        kind not in (BROKEN, LOCKED, NOWHERE) or (kind != LOCKED and (len(inside) > 1 or is_image(name))),
        f"{where}, {printable(name)} is {_a(kind)}, where a class may be lost; repair it or delete it.",
    )
    return True


def _class_folders(tree: Tree, top: PurePosixPath) -> list[tuple[PurePosixPath, str]]:
    """The class folders, with the names of the classes."""
    inside = ((folder, _below(folder, top)) for folder in sorted(tree.folders) if not _hidden(folder))
    return [(folder, below[1]) for folder, below in inside if len(below) == 2 and split_of(below[0])]


def _holds(folder: PurePosixPath, images: Iterable[PurePosixPath]) -> bool:
    return any(folder in image.parents for image in images)


def _has_classes(folders: set[str]) -> bool:
    """Whether folders that lie side by side are classes: several, and not splits without classes."""
    return len(folders) > 1 and not all(map(split_of, folders))


def _unlabelled(samples: Iterable[PurePosixPath]) -> Paths:
    return [(name, ("image", f" in {printable(name.parent)}/, the only folder")) for name in samples]


def _require_classes(
    where: str,
    samples: Mapping[PurePosixPath, tuple[str, str]],
    folders: Sequence[tuple[PurePosixPath, str]],
    others: str,
) -> None:
    """Raise `EquipoiseError` unless training and test samples have the same classes, those for validation no other
    ones, and every class folder has an image; `others` says what was found instead.
    """
    require(
        bool(samples), f"{where} holds no images{' in class folders' if others else ''}{others}; expected {_EXPECTED}."
    )
    held: dict[str, set[str]] = {}
    for split, label in samples.values():
        held.setdefault(split, set()).add(label)
    require("train" in held, f"{where} holds no images in train/{others}; expected {_EXPECTED}.")
    for kind, other in (("train", "test"), ("test", "train"), ("train", "validation")):
        missing = min(held[other] - held[kind], default=None) if {kind, other} <= held.keys() else None
        require(
            missing is None,
            f"{where} has images of class {printable(missing)!r} in {other}/ but none in {kind}/; expected it in both.",
        )
    for folder, name in folders:
        require(
            name in held["train"],
            f"{where} has the class folder {printable(folder)} without any image{others}; add images or delete it.",
        )


def _top(where: str, images: Iterable[PurePosixPath]) -> PurePosixPath | None:
    """The folder that train/ and test/ are in; None if there is none."""
    folders: dict[PurePosixPath, set[str]] = {}
    nested: dict[PurePosixPath, set[str]] = {}
    names: dict[tuple[PurePosixPath, str], set[str]] = {}
    for name in images:
        for depth in (0, 1):
            split = split_of(name.parts[depth]) if len(name.parts) >= depth + 3 else None
            if split is not None:
                top = PurePosixPath(*name.parts[:depth])
                folders.setdefault(top, set()).add(name.parts[depth])
                names.setdefault((top, split), set()).add(name.parts[depth])
                if len(name.parts) >= depth + 4:
                    nested.setdefault(top / name.parts[depth], set()).add(split_of(name.parts[depth + 1]) or "")
                break
    if len(folders) > 1:
        tops = " and ".join(repr(printable(top)) for top in sorted(folders))
        raise EquipoiseError(f"{where} holds images under {tops}; expected one set.")
    if not folders:
        return None
    ((top, splits),) = folders.items()
    inner = [top / split for split in splits if {"train", "test"} <= nested.get(top / split, set())]
    if len(splits) == 1 and inner:
        return inner[0]  # a top folder that is itself called train or test
    for (_, split), several in names.items():
        both = " and ".join(f"{printable(name)}/" for name in sorted(several))
        require(len(several) == 1, f"{where} holds {both}, both for {split}; expected one of them.")
    return top


def _common_folder(images: Sequence[PurePosixPath]) -> PurePosixPath:
    """The folder of the class folders: that of all images, as long as it holds one folder that holds several."""
    top = PurePosixPath()
    while True:
        below = [_below(name, top) for name in images]
        first = {parts[0] for parts in below}
        if len(first) != 1 or any(len(parts) < 3 for parts in below):
            return top
        top /= first.pop()


def _below(name: PurePosixPath, top: PurePosixPath) -> tuple[str, ...]:
    return name.parts[len(top.parts) :] if name.parts[: len(top.parts)] == top.parts else ()


def is_image(name: PurePosixPath) -> bool:
    """Whether the name of a file ends like that of an image."""
    return _SUFFIX.fullmatch(name.suffix.lower()) is not None


def _hidden(name: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.parts)


def _other_file(suffix: str) -> Kind:
    if not suffix:
        return "file", " without an extension"
    return (f"{printable(suffix)} file", "") if len(suffix) <= 8 else ("file", " of other kinds")


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
        f"{count(n, kind)} ({printable(first[kind])}{', ...' if n > 1 else ''})" for kind, n in counts.most_common()
    ]
    return some(phrases, 10)
