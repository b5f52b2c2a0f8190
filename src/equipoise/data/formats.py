"""The published formats: bytes in, arrays out. No network, no checksums, no tensors."""

import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from equipoise.data.files import members, reason, unpickle
from equipoise.errors import EquipoiseError, require

Contents = Mapping[str, bytes]
"""Decompressed content of each file of a dataset, by its published name."""

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_SPLITS = ("train", "test")


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
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


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
    classes = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)

    def batch(name: str) -> tuple[np.ndarray, np.ndarray]:
        found = unpickle(contents[name], name)
        x = _entry(found, "data", name)
        require(
            isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 2 and x.shape[1] == 3 * 32 * 32,
            f"{name} holds data of another kind; expected bytes of shape (n, 3072), images of 3 x 32 x 32 pixels.",
        )
        y = _entry(found, key, name)
        require(
            isinstance(y, list) and all(isinstance(label, int) for label in y),
            f"{name} holds labels of another kind; expected a list of whole numbers.",
        )
        return x.reshape(-1, 3, 32, 32), _labels(np.array(y, np.int64), name, len(x), len(classes))

    def split(batches: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        xs, ys = zip(*map(batch, batches), strict=True)
        return np.concatenate(xs), np.concatenate(ys)

    return Arrays(*split(train), *split(test), classes)


def read_svhn(contents: Contents) -> Arrays:
    """SVHN, cropped digits: two MATLAB files with `X` (32, 32, 3, n) and `y` (n, 1), where 10 is the digit 0."""
    from scipy.io import loadmat

    def split(name: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            found = loadmat(io.BytesIO(contents[name]), variable_names=("X", "y"))
        except Exception as error:  # a damaged file can raise anything
            raise EquipoiseError(
                f"{name} is truncated or not a MATLAB file of version 5 ({reason(error)}); get it again."
            ) from error
        x, y = _entry(found, "X", name), np.ravel(_entry(found, "y", name))
        require(
            x.dtype == np.uint8 and x.ndim == 4 and x.shape[:3] == (32, 32, 3),
            f"{name} holds {x.dtype} images of shape {x.shape}; expected uint8 of shape (32, 32, 3, n).",
        )
        require(not np.any(y == 0), f"{name} holds the label 0; expected 1 to 10, where 10 is the digit 0.")
        y = _labels(y, name, x.shape[3], 11)
        return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), y % 10

    return Arrays(*split("train_32x32.mat"), *split("test_32x32.mat"), tuple("0123456789"))


def read_npz(path: Path) -> Arrays:
    """An `.npz` file with x_train, y_train, x_test, y_test, and `classes` (names) if it likes; no pickled objects.

    `x` is uint8, or floats in [0, 1]: features (n, d); grey images (n, h, w); or images with 1 or 3 channels, last
    (n, h, w, c), which is preferred where both readings fit, or first (n, c, h, w). `y` is integers from 0 on.
    """
    wanted = ("x_train", "y_train", "x_test", "y_test")
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            require(hasattr(file, "files"), "it is a single array")
            missing = [name for name in wanted if name not in file.files]
            require(not missing, f"it has no array {', '.join(missing)}")
            found = [file[name] for name in wanted]
            classes = tuple(str(c) for c in file["classes"]) if "classes" in file.files else None
    except Exception as error:  # a damaged file can raise anything
        raise EquipoiseError(
            f"cannot read {path}: {reason(error)}; expected an .npz file with {', '.join(wanted)}."
        ) from error
    x_train, y_train, x_test, y_test = found
    y_train, y_test = (np.ravel(y) if y.ndim == 2 and y.shape[1] == 1 else y for y in (y_train, y_test))
    if classes is None:
        highest = max((int(y.max()) for y in (y_train, y_test) if y.size and y.dtype.kind in "ui"), default=-1)
        require(highest < 1_000_000, f"{path} holds the label {highest}; expected class numbers 0, 1, 2, ...")
        classes = tuple(str(c) for c in range(highest + 1))
    return Arrays(
        _samples(x_train, f"{path}, x_train"),
        _labels(y_train, f"{path}, y_train", len(x_train), len(classes)),
        _samples(x_test, f"{path}, x_test"),
        _labels(y_test, f"{path}, y_test", len(x_test), len(classes)),
        classes,
    )


def read_images(path: Path) -> Arrays:
    """A folder or archive of images laid out `train/CLASS/*` and `test/CLASS/*`, possibly inside one top folder.

    Classes and samples are in the order of their names. Images that are all grey get one channel, otherwise all get
    three; transparency is dropped. Hidden files and files that are not images by name are passed over. Raises
    `EquipoiseError` for no images, unreadable images, sizes that differ, two top folders, or a class missing in one
    split.
    """
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        futures: dict[PurePosixPath, Future[np.ndarray]] = {
            name: pool.submit(_decode, data, f"{path}, {name}") for name, data in members(path, _is_sample)
        }
    found = {name: futures[name].result() for name in sorted(futures)}
    layout = "images laid out train/CLASS/* and test/CLASS/*"
    require(bool(found), f"{path} holds no images; expected {layout}.")
    tops = sorted({"/".join(name.parts[:-3]) for name in found})
    require(
        len(tops) == 1, f"{path} holds images under {' and '.join(repr(top or '.') for top in tops)}; expected one set."
    )
    names = {kind: {name.parts[-2] for name in found if name.parts[-3] == kind} for kind in _SPLITS}
    for kind, other in (_SPLITS, _SPLITS[::-1]):
        require(bool(names[kind]), f"{path} holds no images in {kind}/; expected {layout}.")
        for missing in sorted(names[other] - names[kind])[:1]:
            raise EquipoiseError(
                f"{path} has images of class {missing!r} in {other}/ but none in {kind}/; expected it in both."
            )
    classes = sorted(names["train"])
    first, *rest = found
    size = found[first].shape[:2]
    for name in rest:
        other_size = found[name].shape[:2]
        require(
            other_size == size,
            f"{path} has images of mixed sizes: {first} has {size[1]} x {size[0]} pixels and {name} has "
            f"{other_size[1]} x {other_size[0]}; expected one size.",
        )
    channels = max(image.shape[2] for image in found.values())
    number = {name: i for i, name in enumerate(classes)}

    def split(kind: str) -> tuple[np.ndarray, np.ndarray]:
        chosen = [name for name in found if name.parts[-3] == kind]
        x = np.empty((len(chosen), channels, *size), np.uint8)
        for row, name in zip(x, chosen, strict=True):
            row[:] = found[name].transpose(2, 0, 1)  # a grey image among coloured ones is copied into each channel
        return x, np.array([number[name.parts[-2]] for name in chosen], np.int64)

    return Arrays(*split("train"), *split("test"), tuple(classes))


def _is_sample(name: PurePosixPath) -> bool:
    return (
        len(name.parts) in (3, 4)
        and name.parts[-3] in _SPLITS
        and name.suffix.lower() in _IMAGES
        and not any(part.startswith(".") for part in name.parts)
    )


def _decode(data: bytes, where: str) -> np.ndarray:
    """Pixels (h, w, c) of an encoded image, c = 1 if it is grey, else 3."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            require(image.mode[0] not in "IF", f"it has pixels of mode {image.mode}, not of 8 bits")
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except Exception as error:  # a damaged image can raise anything
        raise EquipoiseError(f"{where} is not a readable image: {reason(error)}; replace or delete it.") from error
    return pixels.reshape(*pixels.shape[:2], -1)


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
        x.dtype == np.uint8 or x.dtype.kind == "f",
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
