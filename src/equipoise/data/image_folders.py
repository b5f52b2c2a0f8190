"""Folders and archives of images as arrays."""

from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import printable
from equipoise.data.decoding import decode_all
from equipoise.data.files import opened, require_memory
from equipoise.data.formats import Arrays, Samples, count
from equipoise.data.layouts import Layout
from equipoise.data.reading import Reading


def read_images(path: Path, reading: Reading = Reading()) -> Arrays:
    """Read a folder or archive of images: `train/CLASS/**`, `test/CLASS/**` and `val/CLASS/**` in any case; `CLASS/**`
    without a split; or images named by a `labels.csv` or `train.csv`. All may be in one top folder.

    Links are followed (`files.opened`). Classes and samples are in the order of their names, in which numbers count as
    numbers. Images are turned as their EXIF orientation says. If all are grey they get one channel, otherwise all get
    three. The notes count everything that was changed or not read. Raises `EquipoiseError` for no images, unreadable
    images, different sizes without `reading.size`, two top folders, a class without images in a split, and an
    unreadable class folder.
    """
    size = None if reading.size is None else reading.pixels()
    with opened(path) as tree:
        layout = Layout.of(path, tree, reading)
        notes, warnings = layout.report()
        pixels: dict[PurePosixPath, np.ndarray] = {}
        remarks: Counter[str] = Counter()
        unreadable: list[PurePosixPath] = []
        for name, image in decode_all(path, tree, list(layout.samples), size, reading.skip_unreadable):
            if isinstance(image, EquipoiseError):
                unreadable.append(name)
                continue
            pixels[name] = image.pixels
            remarks.update(image.remarks)
    require(bool(pixels), f"{printable(path)} holds no readable image.")
    channels = max(image.shape[2] for image in pixels.values())
    grey = sum(image.shape[2] == 1 for image in pixels.values())
    sides = next(iter(pixels.values())).shape[:2]
    require_memory(len(pixels) * channels * sides[0] * sides[1], printable(path))
    number = {name: i for i, name in enumerate(layout.classes)}
    if unreadable:
        warnings += (f"{count(len(unreadable), ('unreadable image', ''))} left out ({printable(unreadable[0])})",)
    if channels == 3 and grey:
        notes += (f"{count(grey, ('grey image', ''))} among coloured ones, copied into three channels",)
    notes += tuple(f"{count(n, ('image', ''))} {remark}" for remark, n in sorted(remarks.items()))
    splits: dict[str, Samples] = {}
    names: dict[str, list[str]] = {}
    for kind in dict.fromkeys(split for split, _ in layout.samples.values()):
        chosen = [name for name, (split, _) in layout.samples.items() if split == kind and name in pixels]
        x = np.empty((len(chosen), channels, *sides), np.uint8)
        for sample, name in zip(x, chosen, strict=True):
            sample[:] = pixels.pop(name).transpose(2, 0, 1)  # a grey image among coloured ones fills each channel
        splits[kind] = x, np.array([number[layout.samples[name][1]] for name in chosen], np.int64)
        names[kind] = [str(name.relative_to(layout.top)) for name in chosen]
    return Arrays(splits, tuple(map(printable, layout.classes)), notes, warnings, names)
