"""Finding datasets: by name among the published ones, or by path among the user's own."""

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from equipoise.core.errors import EquipoiseError, EquipoiseWarning, require, unknown
from equipoise.core.files import cache_folder, printable, write_atomically
from equipoise.data.dataset import Dataset, Split, stratified_order
from equipoise.data.files import content, is_archive, members
from equipoise.data.formats import Arrays, Contents, read_cifar10, read_cifar100, read_mnist, read_npz, read_svhn
from equipoise.data.image_folders import read_images

_MAX_RATIO = 50  # of the largest values of the two splits; beyond it their scales may differ


@dataclass(frozen=True)
class Source:
    """Where a published dataset comes from and how it is read."""

    url: str
    """Address of the folder with the files."""
    files: tuple[tuple[str, ...], ...]
    """The files: the published name, then other names under which the same content is accepted."""
    digests: Mapping[str, str | None]
    """Digest, as `md5:...` or `sha256:...`, of the decompressed content of every file; None if it is not checked."""
    read: Callable[[Contents], Arrays]
    """From the decompressed content of the files to arrays."""
    archives: Mapping[str, str]
    """Digests of the files as published, checked on download."""
    validation: float = Dataset.validation
    """Share of the training samples that is usually held out for validation."""


def _mnist(url: str, digests: Mapping[str, str | None], classes: tuple[str, ...]) -> Source:
    files = tuple((f"{name}.gz", name) for name in digests)
    return Source(url, files, digests, partial(read_mnist, classes=classes), archives={})


def _cifar(name: str, md5: str, folder: str, read: Callable[[Contents], Arrays], digests: Mapping[str, str]) -> Source:
    files = ((f"{name}.tar.gz", f"{name}.tar", folder),)
    return Source("https://www.cs.toronto.edu/~kriz/", files, digests, read, archives={f"{name}.tar.gz": md5})


_SVHN = {
    "train_32x32.mat": "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "md5:eb5a983be6a315427106f1b164d9cef3",
}

SOURCES: Mapping[str, Source] = {
    "mnist": _mnist(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte": "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        tuple("0123456789"),
    ),
    "fashion-mnist": _mnist(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte": "sha256:c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "sha256:bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "sha256:5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "sha256:0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": _cifar(
        "cifar-10-python",
        "md5:c58f30108f718f92721af3b95e74349a",
        "cifar-10-batches-py",
        read_cifar10,
        {
            "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
            "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
            "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "md5:40351d587109b95175f43aff81a1287e",
            "batches.meta": "md5:5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
    "cifar100": _cifar(
        "cifar-100-python",
        "md5:eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-python",
        read_cifar100,
        {
            "train": "md5:16019d7e3df5f24257cddd939b257f8d",
            "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "md5:7973b15100ade9c7d40fb424638fde48",
        },
    ),
    "svhn": Source(
        "http://ufldl.stanford.edu/housenumbers/",
        tuple((name, f"{name}.gz") for name in _SVHN),
        _SVHN,
        read_svhn,
        archives=_SVHN,
        validation=6_257 / 73_257,  # as the authors of UDP: 67,000 to train on
    ),
}
"""The published datasets that are found or downloaded, by name."""


def names() -> tuple[str, ...]:
    """Return the names of datasets that `load` knows."""
    return ("digits", *SOURCES)


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


def available(name: str, root: str | os.PathLike[str] | None = None) -> bool:
    """Whether the files of a published dataset are under `root` or in the cache, so that `load` downloads nothing."""
    if name not in SOURCES:
        return name == "digits"
    folders = [] if root is None else [Path(root) / name, Path(root)]
    cache = cache_folder()
    return all(
        any(os.path.exists(folder / alternative) for folder in folders for alternative in file)
        or (cache is not None and os.path.exists(cache / name / file[0]))
        for file in SOURCES[name].files
    )


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
    return replace(make(name, source.read(contents)), validation=source.validation)


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
