"""Finding datasets: by name among the published ones, or by path among the user's own."""

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from equipoise.core.checks import checked_call
from equipoise.core.errors import EquipoiseError, EquipoiseWarning, require, unknown
from equipoise.core.files import cache_folder, printable, write_atomically
from equipoise.data.array_files import read_npy, read_npz
from equipoise.data.dataset import Dataset, stratified_order
from equipoise.data.files import content, is_archive, members
from equipoise.data.formats import Arrays, read_idx, read_mnist
from equipoise.data.image_folders import read_images
from equipoise.data.layouts import is_image
from equipoise.data.making import make, with_validation
from equipoise.data.published import SOURCES, Source, names, places
from equipoise.data.reading import Reading
from equipoise.data.tables import read_tables, table_files


@checked_call(Reading, unless=("name_or_path", *(field.name for field in fields(Reading))))
def load(
    name_or_path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    **options: Any,
) -> Dataset:
    """Return a dataset by name (`names()`), or the user's own: a folder or an archive of images, arrays as `.npz` or
    `.npy`, tables as `.csv`.

    Files of a published dataset are looked for in `root/NAME` and `root`, packed or not, and otherwise downloaded into
    the cache (`cache_folder`) if `download` allows; the digest of their decompressed content is checked either way.
    Images of an archive are decoded once and kept in the cache. `options` are the fields of `Reading`: `size=64`
    resizes images, `test_share=0.2` says how much is held out where there is no test split. `Dataset.notes` say what
    was passed over, and why; what is probably a mistake is also an `EquipoiseWarning`. Raises `EquipoiseError` for an
    unknown name, a missing, truncated, damaged or altered file, and whatever `Split` and `Dataset` refuse.
    """
    return load_as(Reading.of(options), name_or_path, root, download)


def load_as(
    reading: Reading,
    name_or_path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    preprocessing: Mapping[str, Any] | None = None,
) -> Dataset:
    """Return a dataset as `load` does, with the choices of `reading`. With the `preprocessing` of another dataset, the
    size of images, the scale of features and the box are those that a network trained on that one expects.
    """
    require(
        isinstance(name_or_path, str | os.PathLike),
        f"{name_or_path!r} is not a dataset: expected a name ({', '.join(names())}) or a path.",
    )
    name, given = os.fsdecode(name_or_path), preprocessing or {}
    require(bool(name), "the name of a dataset is empty; expected a dataset's name, a file or a folder.")
    if name == "digits" or name in SOURCES:
        chosen = [name for name, value in vars(reading).items() if value not in (None, False, ())]
        require(not chosen, f"{', '.join(chosen)}: the dataset {name!r} is published as it is; that is for own data.")
        if name == "digits":
            return make("digits", _digits())
        return published(name, SOURCES[name], None if root is None else Path(root), download)
    reading = replace(reading, size=reading.size or given.get("size"))
    dataset = make(*_read(name, reading), reading, preprocessing)
    if reading.validation_data is None:
        return dataset
    return with_validation(dataset, _read(os.fsdecode(reading.validation_data), reading)[1])


def _read(name: str, reading: Reading) -> tuple[str, Arrays]:
    """The name and the content of the user's own files."""
    path = Path(name)
    if not os.path.exists(path):
        if len(path.parts) == 1 and not path.suffix:
            raise unknown("dataset", name, names())
        raise EquipoiseError(
            f"there is no file or folder {printable(name)}; expected a dataset's name "
            f"({', '.join(names())}), an .npz, .npy or .csv file, or a folder or archive of images."
        )
    if path.is_dir():
        return path.resolve().name, _folder(path, reading)
    require(os.path.isfile(path), f"{printable(name)} is neither a file nor a folder; expected one with data.")
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        return path.stem, (read_npz if suffix == ".npz" else read_npy)(path, reading)
    if path.name.lower().endswith((".csv", ".csv.gz")):
        return path.name.partition(".")[0], read_tables({"train": path}, reading)
    require(
        is_archive(path),
        f"cannot tell the format of {printable(name)} from its name; expected .npz, .npy, .csv, .tar, .tar.gz, "
        ".tar.bz2, .tar.xz or .zip.",
    )
    return path.name.removesuffix(path.suffix).removesuffix(".tar"), _archive(path, reading)


def _folder(path: Path, reading: Reading) -> Arrays:
    """What lies in a folder: arrays or tables if it holds these and no other folders, else images."""
    try:
        with os.scandir(path) as entries:
            is_flat = not any(entry.is_dir() for entry in entries)
    except OSError as error:
        raise EquipoiseError(f"cannot read {printable(path)}: {error.strerror}.") from error
    if is_flat and any(path.glob("*.npy")):
        return read_npy(path, reading)
    tables = table_files(path) if is_flat else {}
    if tables and not any(is_image(PurePosixPath(file.name)) for file in path.iterdir()):
        return read_tables(tables, reading)
    if any(
        os.path.exists(path / folder / f"train-images-idx3-ubyte{end}") for folder in ("", "raw") for end in ("", ".gz")
    ):
        return _idx_folder(path)
    return read_images(path, reading)


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


def _digits() -> Arrays:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn; every fifth one, stratified, is for testing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise EquipoiseError("the dataset 'digits' comes with scikit-learn; install it (scikit-learn).") from error
    features, target = load_digits(return_X_y=True)
    x, y = (np.asarray(features).reshape(-1, 1, 8, 8) / 16).astype(np.float32), np.asarray(target, np.int64)
    order = stratified_order(torch.from_numpy(y), seed=0).numpy()
    train, test = np.split(order, [round(0.8 * len(y))])
    return Arrays({"train": (x[train], y[train]), "test": (x[test], y[test])}, tuple("0123456789"))


def _locate(name: str, source: Source, file: tuple[str, ...], root: Path | None, download: bool) -> Path:
    """The first of the file's names that exists under `root`, or the downloaded file."""
    folders = [] if root is None else places(name, root)
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


def _idx_folder(path: Path) -> Arrays:
    """The images of a folder as torchvision keeps them, in the format of MNIST, their classes called by their numbers
    or, in a folder called FashionMNIST, as they are published.
    """
    wanted = frozenset(SOURCES["mnist"].digests)
    contents: dict[str, bytes] = {}
    for folder in (path, path / "raw"):
        for file in (folder / f"{name}{end}" for name in wanted for end in (".gz", "")):
            if file.is_file():
                contents[file.name.removesuffix(".gz")] = content(file)
    missing = sorted(wanted - contents.keys())
    require(not missing, f"{printable(path)} holds files in the format of MNIST, but not {', '.join(missing)}.")
    if path.resolve().name.lower() == "fashionmnist":
        return SOURCES["fashion-mnist"].read(contents)
    labels = [read_idx(contents[name], name, 1) for name in wanted if "labels" in name]
    return read_mnist(contents, [str(c) for c in range(1 + max(int(y.max(initial=0)) for y in labels))])


def _archive(path: Path, reading: Reading) -> Arrays:
    """The images of an archive, from the cache if they were decoded before."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise EquipoiseError(f"cannot read {path}: {error.strerror}.") from error
    cache = cache_folder()
    if cache is None:
        return read_images(path, reading)
    digest.update(repr((reading.size, reading.skip_unreadable, reading.label_column)).encode())
    cached = cache / f"images-3-{digest.hexdigest()}.npz"
    if os.path.exists(cached):  # unlike Path.exists, does not raise for a folder that cannot be listed
        with contextlib.suppress(Exception):  # damaged: decode and write it again
            return _restored(cached)
    arrays = read_images(path, reading)
    buffer = io.BytesIO()
    content = {"classes": arrays.classes, "notes": arrays.notes, "warnings": arrays.warnings}
    kept = {name: np.array(texts, str) for name, texts in content.items()}
    for split, (x, y) in arrays.splits.items():
        kept |= {f"x {split}": x, f"y {split}": y, f"names {split}": np.array(arrays.names[split], str)}
    np.savez(buffer, **kept)  # pyright: ignore[reportArgumentType]
    try:
        write_atomically(cached, buffer.getvalue())
    except EquipoiseError as error:
        warnings.warn(f"the decoded images could not be kept for next time: {error}", EquipoiseWarning, stacklevel=3)
    return arrays


def _restored(cached: Path) -> Arrays:
    """The content of an archive as it was kept."""
    with np.load(cached, allow_pickle=False) as kept:
        splits = [name.removeprefix("x ") for name in kept.files if name.startswith("x ")]
        classes, notes, warnings = (tuple(kept[name].tolist()) for name in ("classes", "notes", "warnings"))
        samples = {split: (kept[f"x {split}"], kept[f"y {split}"]) for split in splits}
        return Arrays(samples, classes, notes, warnings, {split: kept[f"names {split}"].tolist() for split in splits})
