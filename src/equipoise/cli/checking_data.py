"""The command data check: what would be read, how far apart the classes are, and which eps that allows."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from equipoise.cli.console import say, suggest
from equipoise.cli.options import Positional
from equipoise.cli.recorded import require_file
from equipoise.core.files import require_writable, write_once
from equipoise.data import Dataset, Reading, load_as
from equipoise.data.decoding import MixedSizesError
from equipoise.data.distances import NORMS, ClassDistances, class_distances
from equipoise.report.figures import picture
from equipoise.report.pages import template

_SHOWN = 8  # samples of a class on the page
_MAX_ROWS = 30  # classes in the terminal
_USUAL_SIZES = (28, 32, 64)


@dataclass(frozen=True)
class Data(Reading):
    """Say what would be read of a dataset, how far apart its classes are, and which eps that allows.

    Example: equipoise data check photos --size 64 --out photos.html
    """

    path: Positional[str]
    """Dataset or your own data, as for train."""
    data_root: Path | None = None
    """Folder to look for datasets in."""
    seed: int = 0
    """Random seed of the samples that are compared and shown."""
    out: Path | None = None
    """Page to write, with samples of every class."""
    overwrite: bool = False
    """Replace another page in --out."""


def check_data(options: Data) -> None:
    """Say what would be read; write the page if one is asked for."""
    if options.out is not None:
        require_file(options.out, ".html")
        require_writable(options.out.parent)
    data = _read(options)
    say(data.summary)
    counts = _counts(data)
    say(_table(["class", *(kind for kind, _ in _splits(data))], counts[:_MAX_ROWS]))
    if len(counts) > _MAX_ROWS:
        say(f"and {len(counts) - _MAX_ROWS:,} more classes")
    distances = [class_distances(data.train, norm, options.seed) for norm in NORMS]
    rows = [_row(found) for found in distances]
    columns = ["norm", "smallest", "5 %", "median", "eps up to"]
    say(f"distance of a training sample from the nearest one of another class ({_compared(distances[0])})")
    say(_table(columns, rows))
    sentences = _advice(data, distances)
    for sentence in sentences:
        say(sentence)
    if options.out is not None:
        _write(options, data, counts, columns, rows, distances, sentences)
    size = data.preprocessing.get("size")
    suggest("train", options.path, *([] if size is None else ["--size", size]), "--minutes", "5")


def _write(
    options: Data,
    data: Dataset,
    counts: list[list[str]],
    columns: list[str],
    rows: list[list[str]],
    distances: list[ClassDistances],
    sentences: list[str],
) -> None:
    """Write the page."""
    assert options.out is not None
    text = template("data.html.j2").render(
        data=data,
        counts=counts,
        splits=[kind for kind, _ in _splits(data)],
        columns=columns,
        distances=rows,
        compared=_compared(distances[0]),
        sentences=sentences,
        samples=_samples(data, options.seed),
    )
    say(f"wrote {write_once(options.out, text.encode('utf-8', 'backslashreplace'), options.overwrite)}")


def _read(options: Data) -> Dataset:
    """The data; images of mixed sizes as if a usual size had been given, which is said."""
    try:
        return load_as(options.reading, options.path, options.data_root)
    except MixedSizesError as error:
        size = max((usual for usual in _USUAL_SIZES if usual <= error.smallest), default=_USUAL_SIZES[0])
        say(f"the images have mixed sizes: shown as --size {size} would read them, which training needs too")
        return load_as(replace(options.reading, size=str(size)), options.path, options.data_root)


def _splits(data: Dataset) -> list[tuple[str, Any]]:
    named = [("training", data.train), ("validation", data.valid), ("test", data.test)]
    return [(kind, split) for kind, split in named if split is not None]


def _counts(data: Dataset) -> list[list[str]]:
    """A row for each class: its name, and how many samples it has in each split."""
    n = len(data.classes)
    columns = [torch.bincount(split.y, minlength=n).tolist() for _, split in _splits(data)]
    return [[name, *(f"{column[i]:,}" for column in columns)] for i, name in enumerate(data.classes)]


def _row(found: ClassDistances) -> list[str]:
    return [found.norm, *(f"{value:.4g}" for value in (found.smallest, found.rare, found.median, found.eps))]


def _compared(found: ClassDistances) -> str:
    return f"{found.samples:,} samples, each with {found.candidates:,}"


def _advice(data: Dataset, distances: list[ClassDistances]) -> list[str]:
    """What the distances say about eps."""
    linf = distances[0]
    if linf.smallest == 0:
        first, second = (data.classes[int(data.train.y[i])] for i in linf.nearest)
        return [
            f"Two training samples are the same and have different classes, {first} and {second} (numbers "
            f"{linf.nearest[0]} and {linf.nearest[1]}): no classifier gets both right; correct the labels first."
        ]
    scale = "" if data.box == (0, 1) else f", on the scale of {data.box[0]:g} to {data.box[1]:g}"
    return [
        f"In linf take eps of at most {linf.eps:.4g}{_levels(data, linf.eps)}{scale}: beyond it the balls of more than "
        "5 % of the samples reach half-way to a sample of another class, where being robust asks for two answers. "
        f"Below {linf.smallest / 2:.4g}, half the smallest distance, no two of these balls meet.",
        "These are upper limits: samples that were not compared can only be nearer, and people may see another class "
        "before a sample of it is reached.",
    ]


def _levels(data: Dataset, eps: float) -> str:
    """A radius in grey levels, of images."""
    return f" ({eps * 255:.3g}/255)" if data.train.x.ndim == 4 and data.box == (0, 1) and eps > 0 else ""


def _samples(data: Dataset, seed: int) -> list[tuple[str, list[str]]]:
    """Pictures of some samples of each class; none for features, and images that have no colours as people see them."""
    if data.train.x.ndim != 4 or data.shape[0] not in (1, 3):
        return []
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    low, high = data.box
    shown = []
    for label, name in enumerate(data.classes):
        chosen = order[data.train.y[order] == label][:_SHOWN]
        images = ((data.train.x[chosen] - low) / (high - low)).numpy()
        shown.append((name, [picture(image) for image in images]))
    return shown


def _table(columns: list[str], rows: list[list[str]]) -> Table:
    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
