"""The published formats: bytes in, arrays out. No network, no checksums, no tensors."""

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from equipoise.core.errors import EquipoiseError, require
from equipoise.data.files import reason
from equipoise.data.pickles import unpickle
from equipoise.data.trees import MAX_BYTES

Contents = Mapping[str, bytes]
"""Decompressed content of each file of a dataset, by its published name."""


Samples = tuple[np.ndarray, np.ndarray]
"""Inputs (n, c, h, w) or (n, d), uint8 or floats, and their classes (n,), integers."""


@dataclass(frozen=True, eq=False)
class Arrays:
    """A dataset as read from its files."""

    splits: Mapping[str, Samples]
    """Samples by split: `train`, and where they are given `test` and `validation`."""
    classes: tuple[str, ...]
    """Names of the classes."""
    notes: tuple[str, ...] = ()
    """Remarks on how they were read, each a phrase."""
    warnings: tuple[str, ...] = ()
    """Probable mistakes, each a phrase: samples that could not be read, pixels that are nearly black."""
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of the samples of each split, if they have some."""
    is_table: bool = False
    """Whether the inputs are the columns of a table, which may have any scale."""


def read_idx(data: bytes, where: str, dimensions: int) -> np.ndarray:
    """Return an array of bytes in IDX format: `00 00 08 d`, d big-endian 32-bit sizes, then the values (LeCun, MNIST).

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
    """Read MNIST, or a dataset in the same format: four IDX files."""

    def split(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        x, y = read_idx(contents[images], images, 3), read_idx(contents[labels], labels, 1)
        return x[:, None], checked_labels(y, labels, len(x), len(classes))

    return Arrays({"train": split("train"), "test": split("t10k")}, tuple(classes))


def read_cifar10(contents: Contents) -> Arrays:
    """Read CIFAR-10, the Python version: five batches of training samples, one of test samples, and the class names."""
    train = [f"data_batch_{i}" for i in range(1, 6)]
    return _cifar(contents, train, ["test_batch"], "labels", ("batches.meta", "label_names"))


def read_cifar100(contents: Contents) -> Arrays:
    """Read CIFAR-100, the Python version, with its 100 fine classes."""
    return _cifar(contents, ["train"], ["test"], "fine_labels", ("meta", "fine_label_names"))


def _cifar(contents: Contents, train: Sequence[str], test: Sequence[str], key: str, meta: tuple[str, str]) -> Arrays:
    names = _entry(unpickle(contents[meta[0]], meta[0]), meta[1], meta[0])
    require(isinstance(names, list), f"{meta[0]} has no list of class names; expected a file of the published dataset.")
    require(
        all(isinstance(name, str | bytes) for name in names),
        f"{meta[0]} has class names that are not text; expected a file of the published dataset.",
    )
    classes = tuple(name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name for name in names)

    def batch(name: str) -> tuple[np.ndarray, np.ndarray]:
        arrays = unpickle(contents[name], name)
        x = _entry(arrays, "data", name)
        require(
            isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 2 and x.shape[1] == 3 * 32 * 32,
            f"{name} holds data of another kind; expected bytes of shape (n, 3072), images of 3 x 32 x 32 pixels.",
        )
        y = _entry(arrays, key, name)
        y = y.tolist() if isinstance(y, np.ndarray) else y
        require(
            isinstance(y, list) and all(isinstance(label, int) and abs(label) < 2**31 for label in y),
            f"{name} holds labels of another kind; expected a list of whole numbers.",
        )
        return x.reshape(-1, 3, 32, 32), checked_labels(np.array(y, np.int64), name, len(x), len(classes))

    def split(batches: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        xs, ys = zip(*map(batch, batches), strict=True)
        return np.concatenate(xs), np.concatenate(ys)

    return Arrays({"train": split(train), "test": split(test)}, classes)


def read_svhn(contents: Contents) -> Arrays:
    """Read SVHN, cropped digits: two MATLAB files with `X` (32, 32, 3, n) and `y` (n, 1), where 10 is the digit 0."""

    def split(name: str) -> tuple[np.ndarray, np.ndarray]:
        arrays = read_mat(contents[name], name)
        x, y = (_entry(arrays, key, name) for key in ("X", "y"))
        require(
            x.dtype == np.uint8 and x.ndim == 4 and x.shape[:3] == (32, 32, 3),
            f"{name} holds {x.dtype} images of shape {x.shape}; expected uint8 of shape (32, 32, 3, n).",
        )
        y = checked_labels(np.ravel(y), name, x.shape[3], 11)
        require(not np.any(y == 0), f"{name} holds the label 0; expected 1 to 10, where 10 is the digit 0.")
        return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), y % 10

    return Arrays({"train": split("train_32x32.mat"), "test": split("test_32x32.mat")}, tuple("0123456789"))


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
        arrays: dict[str, np.ndarray] = {}
        for kind, content in _elements(memoryview(data)[128:], order):
            if kind == _COMPRESSED:
                unpacker = zlib.decompressobj()
                content = memoryview(unpacker.decompress(content, MAX_BYTES))
                if not unpacker.eof:
                    raise ValueError(f"a variable is cut off or has more than {MAX_BYTES:,} bytes")
                ((kind, content),) = _elements(content, order)
            if kind == _MATRIX:
                name, array = _matrix(content, order)
                arrays[name] = array
        return arrays
    except Exception as error:  # a damaged file can raise anything
        raise EquipoiseError(
            f"{where} is truncated or not a MATLAB file of version 5 ({reason(error)}); get it again."
        ) from error


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield type and content of each data element."""
    offset = 0
    while offset < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, offset)
        if kind >> 16:  # at most four bytes, in place of the size
            kind, size, start, end = kind & 0xFFFF, kind >> 16, offset + 4, offset + 8
        else:
            start = offset + 8
            end = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if start + size > len(data):
            raise ValueError(f"it ends within an element of {size:,} bytes")
        yield kind, data[start : start + size]
        offset = end


def _matrix(data: memoryview, order: str) -> tuple[str, np.ndarray]:
    """Name and values of a variable."""
    (_, flags), (_, sizes), (_, name), *values = _elements(data, order)
    dtype = _OF_MATLAB.get(np.frombuffer(flags, f"{order}u4", 1).item() & 0xFF)
    if dtype is None or len(values) != 1 or values[0][0] not in _STORED:  # text, cells, complex numbers
        return bytes(name).decode(), np.empty(0, object)
    ((kind, content),) = values
    shape = np.frombuffer(sizes, f"{order}i4").tolist()
    array = np.frombuffer(content, order + _STORED[kind])
    if min(shape, default=0) < 0:
        raise ValueError(f"it declares the shape {tuple(shape)}")
    return bytes(name).decode(), array.astype(dtype, copy=False).reshape(shape, order="F")


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def count(n: int, noun: tuple[str, str]) -> str:
    """Return a number of things; of their noun the text before and after its plural `s` is given."""
    return f"{n:,} {noun[0]}{'' if n == 1 else 's'}{noun[1]}"


def _entry(arrays: Mapping[str, Any], key: str, where: str) -> Any:
    require(key in arrays, f"{where} has no entry {key!r}; expected a file of the published dataset.")
    return arrays[key]


def checked_labels(y: np.ndarray, where: str, samples: int, classes: int) -> np.ndarray:
    """Return labels as int64. Raises `EquipoiseError` unless there is one class number for each sample."""
    require(y.dtype.kind in "ui", f"{where} holds labels of type {y.dtype}; expected whole numbers.")
    require(y.shape == (samples,), f"{where} holds labels of shape {y.shape} for {samples} images; expected one each.")
    low, high = (int(y.min()), int(y.max())) if y.size else (0, 0)
    require(low >= 0 and high < classes, f"{where} holds labels from {low} to {high}; expected 0 to {classes - 1}.")
    return y.astype(np.int64)
