"""Small datasets and images, written in the formats that are read."""

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from equipoise.core.errors import EquipoiseWarning
from equipoise.data import Dataset, load
from equipoise.data.finding import published
from equipoise.data.published import SOURCES, Source

MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(frozen=True, eq=False)
class Content:
    """What is written: uint8 images (n, c, h, w) and labels, sorted by class."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]


def make_content(classes: int, shape: tuple[int, ...], seed: int = 0) -> Content:
    rng = np.random.default_rng(seed)
    y, y_test = np.repeat(np.arange(classes), 3), np.repeat(np.arange(classes), 2)
    x, x_test = (rng.integers(0, 256, (len(labels), *shape), np.uint8) for labels in (y, y_test))
    return Content(x, y, x_test, y_test, tuple(str(c) for c in range(classes)))


def unchecked(name: str, **changes: Any) -> Source:
    """The source of a published dataset without its checksums: small files cannot have them."""
    source = SOURCES[name]
    return replace(source, digests=dict.fromkeys(source.digests), archives={}, **changes)


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def python2_pickle(value: Any) -> bytes:
    """Protocol 2 as Python 2 wrote it: texts are bytes, arrays come from `numpy.core`."""
    integer = partial(struct.pack, "<ci", b"J")

    def encode(value: Any) -> bytes:
        match value:
            case None:
                return b"N"
            case bool():
                return b"\x88" if value else b"\x89"
            case int():
                return integer(value)
            case bytes():
                code, kind = (b"U", "B") if len(value) < 256 else (b"T", "i")
                return struct.pack(f"<c{kind}", code, len(value)) + value
            case list():
                return b"](" + b"".join(map(encode, value)) + b"e"
            case tuple():
                return b"(" + b"".join(map(encode, value)) + b"t"
            case dict():
                return b"}(" + b"".join(encode(k) + encode(v) for k, v in value.items()) + b"u"
            case np.ndarray():
                new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + encode((0,)) + b"U\x01b\x87R"
                byte = b"cnumpy\ndtype\n" + encode((b"u1", 0, 1)) + b"R"
                byte += encode((3, b"|", None, None, None, -1, -1, 0)) + b"b"
                state = encode(1) + encode(value.shape) + byte + encode(False) + encode(value.tobytes())
                return new + b"(" + state + b"tb"
        raise TypeError(type(value))

    return b"\x80\x02" + encode(value) + b"."


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """An image file of these pixels (h, w) or (h, w, c)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def image_files(content: Content, top: str = "") -> dict[str, bytes]:
    """Names and bytes of a tree of images, in an order that is not theirs."""
    files = {}
    for split, x, y in (("train", content.x, content.y), ("test", content.x_test, content.y_test)):
        for i in reversed(range(len(x))):
            files[f"{top}{split}/{content.classes[y[i]]}/{i:03}.png"] = png(x[i])
    return files


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_tar(path: Path, files: Mapping[str, bytes | tuple[bytes, str]]) -> Path:
    """An archive of files, and of links where there is a type and a target in place of content."""
    mode: Any = {".gz": "w:gz", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(data, tuple):
                member.type, member.linkname = data
                archive.addfile(member)
            else:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def cifar10_files(content: Content) -> dict[str, bytes]:
    parts = zip(np.array_split(content.x, 5), np.array_split(content.y, 5), strict=True)
    batches = {f"data_batch_{i}": part for i, part in enumerate(parts, 1)}
    batches["test_batch"] = (content.x_test, content.y_test)
    files = {
        name: python2_pickle({b"batch_label": b"one", b"labels": y.tolist(), b"data": x.reshape(len(x), -1)})
        for name, (x, y) in batches.items()
    }
    files["batches.meta"] = python2_pickle({b"num_vis": 3072, b"label_names": [c.encode() for c in content.classes]})
    files["readme.html"] = b"<html>"
    return {f"cifar-10-batches-py/{name}": data for name, data in files.items()}


CLASSES = ("cat", "dog", "emu")


def image(value: int = 0, kind: str = "PNG", size: tuple[int, int] = (5, 4), **options: Any) -> bytes:
    """An encoded image in colour, of noise that depends on `value`."""
    pixels = np.random.default_rng(value).integers(0, 256, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def good(classes: tuple[str, ...] = CLASSES, top: str = "") -> dict[str, bytes]:
    """Two images per class and split."""
    names = [f"{split}/{c}/{i}.png" for split in ("train", "test") for c in classes for i in range(2)]
    return {top + name: image(i) for i, name in enumerate(names)}


def told(path: Path, *phrases: str) -> Dataset:
    """The dataset, whose summary and one warning hold the phrases."""
    with pytest.warns(EquipoiseWarning) as caught:
        data = load(path)
    assert len(caught) == 1
    for phrase in phrases:
        assert phrase in data.summary and phrase in str(caught[0].message)
    return data


def npz_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = {f"x_{split}": rng.integers(0, 256, (8, 5, 4), np.uint8) for split in ("train", "test")}
    return x | {f"y_{split}": np.arange(8) % 2 for split in ("train", "test")}


SVHN = ("train_32x32.mat", "test_32x32.mat")


class MnistFiles:
    """The published files of MNIST."""

    content = make_content(10, (1, 5, 4))

    def write(self, root: Path, content: Content) -> None:
        arrays = (content.x[:, 0], content.y, content.x_test[:, 0], content.y_test)
        (root / "mnist").mkdir()
        for name, array in zip(MNIST, arrays, strict=True):
            (root / "mnist" / f"{name}.gz").write_bytes(gzip.compress(idx(array)))

    def read(self, root: Path) -> Dataset:
        return published("mnist", unchecked("mnist"), root, download=False)


class Cifar10Files:
    """The published archive of CIFAR-10."""

    content = replace(make_content(4, (3, 32, 32)), classes=("airplane", "bird", "cat", "ship"))

    def write(self, root: Path, content: Content) -> None:
        (root / "cifar10").mkdir()
        write_tar(root / "cifar10" / "cifar-10-python.tar.gz", cifar10_files(content))

    def read(self, root: Path) -> Dataset:
        return published("cifar10", unchecked("cifar10"), root, download=False)


class SvhnFiles:
    """The published files of SVHN."""

    content = make_content(10, (3, 32, 32))

    def write(self, root: Path, content: Content) -> None:
        splits = ((content.x, content.y), (content.x_test, content.y_test))
        for name, (x, y) in zip(SVHN, splits, strict=True):
            labels = np.where(y == 0, 10, y).astype(np.uint8)[:, None]
            savemat(root / name, {"X": x.transpose(2, 3, 1, 0), "y": labels}, do_compression=True)

    def read(self, root: Path) -> Dataset:
        return published("svhn", unchecked("svhn"), root, download=False)


class ImageFolder:
    """A folder of images, with files beside them that are no images."""

    content = replace(make_content(3, (3, 6, 5)), classes=("cat", "dog", "emu"))

    def write(self, root: Path, content: Content) -> None:
        write_folder(root / "mine", image_files(content))
        extra = {"train/cat/.hidden.png": b"", "train/cat/notes.txt": b"", "README": b"", "other/dog/1.png": b""}
        write_folder(root / "mine", extra)

    def read(self, root: Path) -> Dataset:
        data = load(root / "mine")
        assert data.name == "mine"
        return data
