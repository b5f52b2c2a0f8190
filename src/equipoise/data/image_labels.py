"""Images whose classes stand in a table beside them: a `train.csv` or `labels.csv` of file names and labels."""

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from equipoise.core.errors import require
from equipoise.core.files import printable
from equipoise.data.formats import some
from equipoise.data.reading import SPLITS
from equipoise.data.tables import Table, parse_table
from equipoise.data.trees import Kind, Tree

_TABLE = re.compile("(?:labels?|annotations?|metadata)|(?:(?P<split>[a-z]+)[-_]?)?(?:labels?|set|annotations?)?")
_FOUND = 0.5  # share of the cells of a column that must be images


@dataclass(frozen=True, eq=False)
class Labelled:
    """The images that tables name."""

    samples: Mapping[PurePosixPath, tuple[str, str]]
    """Split and class of each image."""
    tables: Sequence[PurePosixPath]
    """The tables that name them."""
    unlabelled: list[tuple[PurePosixPath, Kind]]
    """The other images, and tables with rows whose image is not there."""


def labelled_by_table(
    tree: Tree, images: Sequence[PurePosixPath], label_column: str | None, where: str
) -> Labelled | None:
    """Return the images named in tables that have a column of file names and one of classes; None if there is none.

    A file is named by its path or its name, with or without the extension. `test.csv` and `val.csv` are other splits.
    Of several images of one name that in a folder of the table's split is meant. Raises `EquipoiseError` for a table
    from which the column of the class, or which of several images is meant, cannot be told.
    """
    by_name: dict[str, list[PurePosixPath]] = {}
    for image in images:
        for key in {image.stem, *("/".join(image.parts[i:]) for i in range(len(image.parts)))}:
            by_name.setdefault(key, []).append(image)
    samples: dict[PurePosixPath, tuple[str, str]] = {}
    tables: list[PurePosixPath] = []
    absent: list[tuple[PurePosixPath, Kind]] = []
    for name, split in _tables(tree):
        table = parse_table(tree.read(name), printable(f"{where}, {name}"))
        files = _file_column(table, by_name)
        if files is None:
            continue
        label = _label_column(table, files, label_column, printable(f"{where}, {name}"))
        if label is None:
            continue
        tables.append(name)
        for row in table.rows:
            image = _meant(by_name.get(_key(row[files]), []), split, printable(f"{where}, {name}"))
            if image is not None and row[label]:
                samples[image] = split, row[label]
            elif image is None:
                absent.append((name / row[files], ("row", f" of {printable(name.name)} without an image")))
    if not samples:
        return None
    rest = [(image, ("image", f" that {printable(tables[0].name)} does not name")) for image in images]
    return Labelled(samples, tables, [*absent, *(entry for entry in rest if entry[0] not in samples)])


def _meant(images: Sequence[PurePosixPath], split: str, where: str) -> PurePosixPath | None:
    """The image that a row of a table means, of those with its name; None if there is none."""
    if len(images) > 1:
        images = [i for i in images if any(SPLITS.get(part.lower()) == split for part in i.parts[:-1])] or images
    require(
        len(images) <= 1,
        f"{where} may mean {' or '.join(map(printable, images[:2]))}: name the images by their paths.",
    )
    return images[0] if images else None


def _tables(tree: Tree) -> list[tuple[PurePosixPath, str]]:
    """The tables that may name images, with their split."""
    found = []
    for name in tree.files:
        match = _TABLE.fullmatch(name.stem.lower()) if name.suffix.lower() == ".csv" and len(name.parts) <= 3 else None
        split = SPLITS.get(match["split"] or "train") if match else None
        if split is not None and not name.name.startswith("."):
            found.append((name, split))
    return sorted(found)


def _file_column(table: Table, by_name: Container[str]) -> int | None:
    """The column with the most names of images, if most of its cells are such."""
    rows = table.rows
    known = [sum(_key(row[i]) in by_name for row in rows) for i in range(len(rows[0]))]
    return known.index(max(known)) if max(known) > _FOUND * len(rows) else None


def _key(cell: str) -> str:
    return cell.replace("\\", "/").removeprefix("./")


def _label_column(table: Table, files: int, given: str | None, where: str) -> int | None:
    """The column of the class; None for a table of file names alone."""
    others = [i for i in range(len(table.header)) if i != files]
    if given is not None:
        return table.label_column(given, where)
    usual = [i for i in others if i in table.usual_labels]
    chosen = usual if len(usual) == 1 else others
    require(
        len(chosen) <= 1,
        f"{where} has the columns {some(table.header, 8)}: say which names the class, as --label-column NAME.",
    )
    return chosen[0] if chosen else None
