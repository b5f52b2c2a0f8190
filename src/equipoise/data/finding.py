"""Finding datasets: by name among the published ones, or by path among the user's own."""

import contextlib
import hashlib
import io
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from equipoise.core.errors import EquipoiseError, EquipoiseWarning, require, unknown
from equipoise.core.files import cache_folder, printable, write_atomically
from equipoise.data.dataset import Dataset, Split, stratified_order
from equipoise.data.files import content, is_archive, members
from equipoise.data.formats import Arrays, read_npz
from equipoise.data.image_folders import read_images
from equipoise.data.published import SOURCES, Source, names

_MAX_RATIO = 50  # of the largest values of the two splits; beyond it their scales may differ


def load(
    name_or_path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, download: bool = True
) -> Dataset:
    """Return a dataset by name (`names()`), or from an `.npz` file, a folder or an archive of images.

    Files of a published dataset are looked for in `root/NAME` and `root`, packed or not, and otherwise downloaded into
    the cache (`cache_folder`) if `download` allows; the digest of their decompressed content is checked either way.
    Images of an archive are decoded once and kept in the cache. `Dataset.notes` say what was passed over, and why; what
    is probably a mistake is also an `EquipoiseWarning`. Raises `EquipoiseError` for an unknown name, a missing,
    truncated, damaged or altered file, and whatever `Split` and `Dataset` refuse.
    """
    require(
        isinstance(name_or_path, str | os.PathLike),
        f"{name_or_path!r} is not a dataset: expected a name ({', '.join(names())}) or a path.",
    )
    name = os.fsdecode(name_or_path)
    path = Path(name)
    require(bool(name), "the name of a dataset is empty; expected a dataset's name, a file or a folder.")
    if name == "digits":
        return make("digits", _digits())
    if name in SOURCES:
        return published(name, SOURCES[name], None if root is None else Path(root), download)
    if not os.path.exists(path):
        if len(path.parts) == 1 and not path.suffix:
            raise unknown("dataset", name, names())
        raise EquipoiseError(
            f"there is no file or folder {printable(name)}; expected a dataset's name "
            f"({', '.join(names())}), an .npz file, or a folder or archive of images."
        )
    if path.is_dir():
        return make(path.resolve().name, read_images(path))
    require(os.path.isfile(path), f"{printable(name)} is neither a file nor a folder; expected one with data.")
    if path.suffix.lower() == ".npz":
        return make(path.stem, read_npz(path))
    require(
        is_archive(path),
        f"cannot tell the format of {printable(name)} from its name; expected .npz, .tar, .tar.gz, .tar.xz or .zip.",
    )
    return make(path.name.removesuffix(path.suffix).removesuffix(".tar"), _archive(path))


def published(name: str, source: Source, root: Path | None = None, download: bool = True) -> Dataset:
    """Return the published dataset `name`, read from the files of `source` as `load` describes."""
    contents: dict[str, bytes] = {}
    for file in source.files:
        path = _locate(name, source, file, root, download)
        for member, data in _members(path, frozenset(source.digests)):
            _check_digest(data, source.digests[member], f"{path}, {member}" if path.name != member else str(path))
            contents[member] = data
    missing = [member for member in source.digests if member not in contents]
    require(not missing, f"the files of {name!r} lack {', '.join(missing)}; get the published ones again.")
    dataset = make(name, source.read(contents))
    return dataset if source.validation is None else replace(dataset, validation=source.validation)


def make(name: str, arrays: Arrays) -> Dataset:
    """Return the dataset of `arrays`, with pixels of 0 to 255 scaled to [0, 1] and the digest of the arrays.

    Bytes of both splits are divided by 255. If one split is bytes and the other floats in [0, 1], bytes that are all 0
    or 1 are taken as they are, with a note. Warns of what is probably a mistake. The digest is SHA-256 over the type,
    shape and little-endian values of x and y of both splits and over the names of the classes, so the same samples have
    the same digest in every format.
    """
    name = printable(name)
    digest = hashlib.sha256("\n".join(arrays.classes).encode())
    for array in (arrays.x_train, arrays.y_train, arrays.x_test, arrays.y_test):
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    train, test, notes, remarks = _scaled(arrays.x_train, arrays.x_test)
    remarks = (*arrays.warnings, *remarks)

    def split(kind: str, x: np.ndarray, y: np.ndarray) -> Split:
        try:
            return Split(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64)))
        except EquipoiseError as error:
            raise EquipoiseError(f"dataset {name!r}, {kind} split: {error}") from error

    splits = split("training", train, arrays.y_train), split("test", test, arrays.y_test)
    dataset = Dataset(name, *splits, arrays.classes, digest.hexdigest(), (*arrays.notes, *notes, *remarks))
    for remark in remarks:
        warnings.warn(f"dataset {name!r}: {remark}.", EquipoiseWarning, stacklevel=3)
    return dataset


def _scaled(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Both splits as float32 on one scale, with notes and warnings about it."""
    splits = {"training": train, "test": test}
    highest = {kind: float(x.max()) if x.size else 0.0 for kind, x in splits.items()}
    of_bytes = [kind for kind, x in splits.items() if x.dtype == np.uint8]
    mixed = len(of_bytes) == 1
    divided = [kind for kind in of_bytes if not mixed or highest[kind] > 1]
    notes = tuple(
        f"the {kind} samples are {'bytes' if kind in of_bytes else 'floats'}, "
        + ("divided by 255" if kind in divided else "taken as they are")
        for kind in splits
        if mixed
    )
    dark = [kind for kind in divided if highest[kind] <= 1]
    warnings = (
        f"no byte of the {' and '.join(dark)} samples is above 1: divided by 255 they are nearly black; give floats if "
        "1 stands for white",
    ) * bool(dark)
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large for float32 is refused as infinite
        scaled = [
            np.divide(x, 255, dtype=np.float32) if kind in divided else np.array(x, np.float32)
            for kind, x in splits.items()
        ]
    low, high = sorted(highest[kind] / (255 if kind in divided else 1) for kind in splits)
    if 0 < low < high / _MAX_RATIO and not warnings:
        warnings = (f"the largest value of one split is {low:g} and of the other {high:g}: they may have two scales",)
    return scaled[0], scaled[1], notes, warnings


def _digits() -> Arrays:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn; every fifth one, stratified, is for testing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise EquipoiseError("the dataset 'digits' comes with scikit-learn; install it (scikit-learn).") from error
    features, target = load_digits(return_X_y=True)
    x, y = (features.reshape(-1, 1, 8, 8) / 16).astype(np.float32), target.astype(np.int64)
    order = stratified_order(torch.from_numpy(y), seed=0).numpy()
    train, test = np.split(order, [round(0.8 * len(y))])
    return Arrays(x[train], y[train], x[test], y[test], tuple("0123456789"))


def _locate(name: str, source: Source, file: tuple[str, ...], root: Path | None, download: bool) -> Path:
    """The first of the file's names that exists under `root`, or the downloaded file."""
    folders = [] if root is None else [root / name, root]
    for path in (folder / alternative for folder in folders for alternative in file):
        if os.path.exists(path):
            return path
    sought = f"was not found in {' or '.join(map(str, folders))}" if folders else "is not here"
    advice = f"put it into a folder and name that with --data-root, or get it from {source.url}"
    missing = f"{file[0]} of the dataset {name!r} {sought}"
    require(download, f"{missing} and downloading is off; {advice}.")
    try:
        import pooch
    except ImportError as error:
        raise EquipoiseError(f"{missing} and downloading needs pooch, which is not installed; {advice}.") from error
    cache = cache_folder()
    if cache is None:
        raise EquipoiseError(
            f"{missing}, and there is no home folder to download it to: set EQUIPOISE_CACHE to a folder, or {advice}."
        )
    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(
            pooch.retrieve(source.url + file[0], source.archives.get(file[0]), fname=file[0], path=cache / name)
        )
    except ValueError as error:  # a digest that does not match
        raise EquipoiseError(f"{missing}, and the file at {source.url} is not the published one; {advice}.") from error
    except OSError as error:
        why = error.strerror or "the server cannot be reached, or does not have it"
        raise EquipoiseError(f"{missing} and could not be downloaded ({why}); {advice}.") from error


def _members(path: Path, wanted: frozenset[str]) -> list[tuple[str, bytes]]:
    if path.is_dir() or is_archive(path):
        return [(name.name, data) for name, data in members(path, lambda name: name.name in wanted)]
    return [(path.name.removesuffix(".gz"), content(path))]


def _check_digest(data: bytes, expected: str | None, where: str) -> None:
    if expected is None:
        return
    algorithm, digest = expected.split(":")
    actual = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
    require(
        actual == digest,
        f"{where} is not the published file: its {algorithm} is {actual}, expected {digest}; get it again.",
    )


def _archive(path: Path) -> Arrays:
    """The images of an archive, from the cache if they were decoded before."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EquipoiseError(f"cannot read {path}: {error.strerror}.") from error
    cache = cache_folder()
    if cache is None:
        return read_images(path)
    cached = cache / f"images-2-{digest}.npz"
    if os.path.exists(cached):  # unlike Path.exists, does not raise for a folder that cannot be listed
        with contextlib.suppress(EquipoiseError):  # damaged: decode and write it again
            return read_npz(cached)
    arrays = read_images(path)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        x_train=arrays.x_train,
        y_train=arrays.y_train,
        x_test=arrays.x_test,
        y_test=arrays.y_test,
        classes=np.array(arrays.classes),
        notes=np.array(arrays.notes, str),
        doubts=np.array(arrays.warnings, str),
    )
    try:
        write_atomically(cached, buffer.getvalue())
    except EquipoiseError as error:
        warnings.warn(f"the decoded images could not be kept for next time: {error}", EquipoiseWarning, stacklevel=3)
    return arrays
