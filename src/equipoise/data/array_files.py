"""The user's own arrays: `.npz` files, and folders of `.npy` files, with the usual names or those that are given."""

import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import printable
from equipoise.data.files import reason, require_memory
from equipoise.data.formats import Arrays, Samples, checked_labels, some
from equipoise.data.ordering import in_order
from equipoise.data.reading import Reading, role_of

_MAX_CLASSES = 1_000_000
_TEXTS = ("classes", "notes", "doubts")
_POSITIONAL = {"arr_0": "x", "arr_1": "y"}
"""What `np.savez(file, x, y)` calls its arrays."""


@dataclass(frozen=True)
class _Source:
    """The arrays of a file or folder: how often each name occurs, and how one is read."""

    kind: str
    """What is expected, in words."""
    names: Mapping[str, int]
    read: Callable[[str], np.ndarray]


def read_npz(path: Path, reading: Reading = Reading()) -> Arrays:
    """Read an `.npz` file with arrays for inputs and labels; no pickled objects.

    Their names are those of `reading.keys`, or the usual ones: `x_train` or `train_images`, `y_train` or
    `train_labels`, the same with `test` and `val`, or `x` and `y` without a split. `classes` are names of classes,
    texts in `notes` and `doubts` become the notes and warnings; other arrays are named in the notes.

    Inputs are uint8 or floats: features (n, d); grey images (n, h, w); or images with 1 or 3 channels, last
    (n, h, w, c), which is preferred where both readings fit, or first (n, c, h, w). Labels are integers from 0 on, or
    names of classes.
    """
    with _explained(path, "an .npz file"), path.open("rb") as stream:
        require(stream.read(6) != np.lib.format.MAGIC_PREFIX, "it is a single array")
        with zipfile.ZipFile(stream) as archive:
            present = Counter(member.filename.removesuffix(".npy") for member in archive.infolist())
            arrays, unread = _read(_Source("array", present, lambda name: _member(archive, name)), reading)
    return _arrays(path, arrays, unread, {text: arrays[text] for text in _TEXTS if text in arrays})


def read_npy(path: Path, reading: Reading = Reading()) -> Arrays:
    """Read the `.npy` files of a folder as `read_npz` reads the arrays of one file; `path` may be one of the files."""
    folder = path if path.is_dir() else path.parent
    with _explained(path, "a folder of .npy files"):
        files = {file.stem: file for file in sorted(folder.glob("*.npy"))}
        arrays, unread = _read(_Source("file", Counter(list(files)), lambda name: _file(files[name])), reading)
    return _arrays(folder, arrays, unread, {text: arrays[text] for text in _TEXTS[:1] if text in arrays})


@contextmanager
def _explained(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a damaged file can raise into one sentence."""
    try:
        yield
    except Exception as error:
        why = str(error).rstrip(".") if isinstance(error, EquipoiseError) else reason(error)
        raise EquipoiseError(
            f"cannot read {printable(path)}: {why}; expected {kind} with x_train, y_train, x_test, y_test, or x and y; "
            "other names are given as --keys x=NAME y=NAME."
        ) from error


def _read(source: _Source, reading: Reading) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays by role, and the names of those that were not read."""
    roles = _roles(source, reading)
    names = {role: name for name, role in roles.items()}
    splits = [split for split in ("", "_train", "_test", "_validation") if f"x{split}" in names or f"y{split}" in names]
    if "" in splits and "_train" not in splits:
        needed = ["x", "y"]
    else:
        needed = ["x_train", "y_train", *(("x_test", "y_test") if "_test" in splits else ())]
    missing = [role for role in needed if role not in names]
    held = f", but {some([printable(name) for name in source.names], 8)}" if missing and reading.keys else ""
    require(not missing, f"it has no {source.kind} {', '.join(missing)}{held}")
    if {"x_validation", "y_validation"} <= names.keys():
        needed += ["x_validation", "y_validation"]
    wanted = {role: names[role] for role in needed} | {text: text for text in _TEXTS if text in source.names}
    twice = [name for name in wanted.values() if source.names[name] > 1]
    require(not twice, f"it has two {source.kind}s {', '.join(twice)}")
    arrays = {role: source.read(name) for role, name in wanted.items()}
    return arrays, sorted(printable(name) for name in source.names if name not in wanted.values())


def _roles(source: _Source, reading: Reading) -> dict[str, str]:
    """The role of each name, as given or by its usual meaning."""
    roles = reading.roles()
    absent = [name for name in roles if name not in source.names]
    require(not absent, f"it has no {source.kind} {', '.join(absent)}, but {some(sorted(source.names), 8)}")
    usual = {name: role_of(name) for name in source.names}
    if not any(usual.values()):
        usual = {name: _POSITIONAL.get(name) for name in source.names}
    for name, role in usual.items():
        if role is None or name in roles or role in reading.roles().values():
            continue
        other = next((first for first, taken in roles.items() if taken == role), None)
        require(other is None, f"both {other} and {name} may be {role}: say which, as --keys {role}={name}")
        roles[name] = role
    return roles


def _arrays(path: Path, arrays: dict[str, np.ndarray], unread: list[str], texts: Mapping[str, np.ndarray]) -> Arrays:
    splits = {"train": "" if "x" in arrays else "_train", "test": "_test", "validation": "_validation"}
    splits = {split: suffix for split, suffix in splits.items() if f"x{suffix}" in arrays}
    y = {split: arrays[f"y{suffix}"] for split, suffix in splits.items()}
    y = {split: np.ravel(a) if a.ndim == 2 and a.shape[1] == 1 else a for split, a in y.items()}
    names, notes, warnings = (tuple(printable(t) for t in np.ravel(texts.get(text, ()))) for text in _TEXTS)
    y, names = numbered(y, names if "classes" in texts else None, path)
    if unread:
        notes += (f"arrays that were not read: {some(unread)}",)
    samples: dict[str, Samples] = {}
    for split, suffix in splits.items():
        x = as_samples(arrays[f"x{suffix}"], f"{path}, x{suffix}")
        samples[split] = x, checked_labels(y[split], f"{path}, y{suffix}", len(x), len(names))
    return Arrays(samples, names, notes, warnings)


def numbered(
    y: Mapping[str, np.ndarray], classes: tuple[str, ...] | None, where: object
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return labels of all splits as class numbers, and the names of the classes.

    Labels that are text become their index among all of them in order (`in_order`), or in `classes` where these are
    given. Raises `EquipoiseError` for a text that is no class, and for numbers that are implausibly large.
    """
    if any(labels.dtype.kind in "US" for labels in y.values()):
        texts = {split: [printable(_text(label)) for label in np.ravel(labels)] for split, labels in y.items()}
        named = {text for labels in texts.values() for text in labels}
        classes = in_order(named) if classes is None else classes
        index = {name: number for number, name in enumerate(classes)}
        strange = sorted(named - index.keys())
        require(not strange, f"{printable(where)} has the label {''.join(strange[:1])!r}, which is not a class.")
        numbers = {split: np.array([index[t] for t in labels], np.int64) for split, labels in texts.items()}
        return {split: array.reshape(y[split].shape) for split, array in numbers.items()}, classes
    if classes is None:
        highest = max((int(a.max()) for a in y.values() if a.size and a.dtype.kind in "ui"), default=-1)
        require(
            highest < _MAX_CLASSES,
            f"{printable(where)} holds the label {highest}; expected class numbers 0, 1, 2, ...",
        )
        classes = tuple(str(c) for c in range(highest + 1))
    return dict(y), classes


def _text(label: Any) -> str:
    return label.decode("utf-8", "backslashreplace") if isinstance(label, bytes) else str(label)


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an `.npz` file."""
    member = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
    require(not member.flag_bits & 1, "it is locked with a password")
    return _array(lambda: archive.open(member), member.file_size, name)


def _file(path: Path) -> np.ndarray:
    require(path.is_file(), f"{path.name} is not a plain file")
    return _array(lambda: path.open("rb"), path.stat().st_size, path.name)


def _array(opened: Callable[[], IO[bytes]], size_of_file: int, name: str) -> np.ndarray:
    """An array in NumPy's format, whose header is compared with its size before memory is allocated."""
    npy = np.lib.format
    with opened() as stream:
        version = npy.read_magic(stream)
        require(version in ((1, 0), (2, 0)), f"{name} is in version {version} of the format, of structured arrays")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(stream)
        if not dtype.hasobject:  # which numpy refuses better
            size = int(np.prod(shape, dtype=object)) * dtype.itemsize
            require(
                min(shape, default=0) >= 0 and stream.tell() + size == size_of_file,
                f"{name} declares the shape {shape} and has {size_of_file:,} bytes, which do not fit",
            )
            require_memory(size, name)
    with opened() as stream:
        return npy.read_array(stream, allow_pickle=False)


def as_samples(x: np.ndarray, where: str) -> np.ndarray:
    """Return inputs as features (n, d) or images (n, c, h, w). Raises `EquipoiseError` for another type or shape."""
    require(
        x.dtype == np.uint8 or (x.dtype.kind == "f" and x.dtype.itemsize <= 8),
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
