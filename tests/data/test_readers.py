"""Every reader on small files in the published formats, and everything that it refuses."""

import gzip
import hashlib
import http.server
import io
import pickle
import shutil
import struct
import sys
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.data import Dataset, load, names
from equipoise.data.formats import read_idx
from equipoise.data.load import SOURCES, Source, published

MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EQUIPOISE_CACHE", str(folder))
    return folder


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


def test_the_written_pickles_are_what_the_standard_unpickler_reads() -> None:
    data = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy.core has another name by now
        found = pickle.loads(python2_pickle({b"data": data, b"labels": [1, 300, 2]}), encoding="bytes")
    assert found[b"labels"] == [1, 300, 2] and np.array_equal(found[b"data"], data)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, "PNG")
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


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    compression = {".gz": "w:gz", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, compression) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


class ReaderContract:
    """What holds for every format."""

    content: Content
    truncates: tuple[str, ...]
    """Files of which a half must be refused."""

    def write(self, root: Path, content: Content) -> None:
        """Write `content` under `root` in this format."""
        raise TypeError("a contract is not a format")

    def read(self, root: Path) -> Dataset:
        """Read what `write` wrote."""
        raise TypeError("a contract is not a format")

    def test_it_reads_what_was_written(self, tmp_path: Path) -> None:
        self.write(tmp_path, self.content)
        data = self.read(tmp_path)
        assert data.train.x.dtype == data.test.x.dtype == torch.float32
        assert np.array_equal(data.train.x.numpy(), self.content.x.astype(np.float32) / np.float32(255))
        assert np.array_equal(data.test.x.numpy(), self.content.x_test.astype(np.float32) / np.float32(255))
        assert data.train.y.tolist() == self.content.y.tolist()
        assert data.test.y.tolist() == self.content.y_test.tolist()
        assert data.classes == self.content.classes

    def test_the_digest_is_of_the_content(self, tmp_path: Path) -> None:
        pixel, test_pixel = (replace(self.content, **{key: vars(self.content)[key].copy()}) for key in ("x", "x_test"))
        pixel.x[-1].flat[-1] ^= 1
        test_pixel.x_test[0].flat[0] ^= 1
        digests = []
        for folder, content in enumerate((self.content, self.content, pixel, test_pixel)):
            (tmp_path / str(folder)).mkdir()
            self.write(tmp_path / str(folder), content)
            digests.append(self.read(tmp_path / str(folder)).sha256)
        assert digests[0] == digests[1] and len(set(digests)) == 3

    def test_half_a_file_is_refused(self, tmp_path: Path) -> None:
        self.write(tmp_path, self.content)
        for name in self.truncates:
            whole = (tmp_path / name).read_bytes()
            for size in (len(whole) // 2, 3):
                (tmp_path / name).write_bytes(whole[:size])
                with pytest.raises(EquipoiseError, match=name.split("/")[-1].removesuffix(".gz")) as caught:
                    self.read(tmp_path)
                assert "\n" not in str(caught.value)
            (tmp_path / name).write_bytes(whole)
        self.read(tmp_path)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        self.write(tmp_path, self.content)
        for name in self.truncates:
            (tmp_path / name).rename(tmp_path / "elsewhere")
            with pytest.raises(EquipoiseError, match=name.split("/")[-1].removesuffix(".gz")):
                self.read(tmp_path)
            (tmp_path / "elsewhere").rename(tmp_path / name)


class TestMnistGzip(ReaderContract):
    content = make_content(10, (1, 5, 4))
    truncates = tuple(f"mnist/{name}.gz" for name in MNIST)
    name = "mnist"

    def write(self, root: Path, content: Content) -> None:
        arrays = (content.x[:, 0], content.y, content.x_test[:, 0], content.y_test)
        (root / "mnist").mkdir()
        for name, array in zip(MNIST, arrays, strict=True):
            (root / "mnist" / f"{name}.gz").write_bytes(gzip.compress(idx(array)))

    def read(self, root: Path) -> Dataset:
        return published("mnist", unchecked("mnist"), root, download=False)


class TestFashionMnistRawBesideOthers(ReaderContract):
    """Not compressed, and directly in the root."""

    content = replace(make_content(10, (1, 3, 3)), classes=(
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ))  # fmt: skip
    truncates = MNIST

    def write(self, root: Path, content: Content) -> None:
        arrays = (content.x[:, 0], content.y, content.x_test[:, 0], content.y_test)
        for name, array in zip(MNIST, arrays, strict=True):
            (root / name).write_bytes(idx(array))

    def read(self, root: Path) -> Dataset:
        return published("fashion-mnist", unchecked("fashion-mnist"), root, download=False)


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


class TestCifar10Archive(ReaderContract):
    content = replace(make_content(4, (3, 32, 32)), classes=("airplane", "bird", "cat", "ship"))
    truncates = ("cifar10/cifar-10-python.tar.gz",)

    def write(self, root: Path, content: Content) -> None:
        (root / "cifar10").mkdir()
        write_tar(root / "cifar10" / "cifar-10-python.tar.gz", cifar10_files(content))

    def read(self, root: Path) -> Dataset:
        return published("cifar10", unchecked("cifar10"), root, download=False)


class TestCifar10Unpacked(TestCifar10Archive):
    truncates = tuple(f"cifar-10-batches-py/{name}" for name in ("data_batch_3", "test_batch", "batches.meta"))

    def write(self, root: Path, content: Content) -> None:
        write_folder(root, cifar10_files(content))


class TestCifar100(ReaderContract):
    content = replace(make_content(3, (3, 32, 32)), classes=("apple", "bear", "crab"))
    truncates = ("cifar-100-python.tar.gz",)

    def write(self, root: Path, content: Content) -> None:
        def batch(x: np.ndarray, y: np.ndarray) -> bytes:
            entries = {b"data": x.reshape(len(x), -1), b"coarse_labels": [0] * len(y), b"fine_labels": y.tolist()}
            return python2_pickle(entries)

        files = {
            "train": batch(content.x, content.y),
            "test": batch(content.x_test, content.y_test),
            "meta": python2_pickle({b"fine_label_names": [c.encode() for c in content.classes]}),
        }
        write_tar(root / self.truncates[0], {f"cifar-100-python/{name}": data for name, data in files.items()})

    def read(self, root: Path) -> Dataset:
        return published("cifar100", unchecked("cifar100"), root, download=False)


class TestSvhn(ReaderContract):
    content = make_content(10, (3, 32, 32))
    truncates = ("train_32x32.mat", "test_32x32.mat")

    def write(self, root: Path, content: Content) -> None:
        splits = ((content.x, content.y), (content.x_test, content.y_test))
        for name, (x, y) in zip(self.truncates, splits, strict=True):
            labels = np.where(y == 0, 10, y).astype(np.uint8)[:, None]
            savemat(root / name, {"X": x.transpose(2, 3, 1, 0), "y": labels}, do_compression=True)

    def read(self, root: Path) -> Dataset:
        return published("svhn", unchecked("svhn"), root, download=False)


class TestNpzChannelsLast(ReaderContract):
    content = make_content(3, (3, 6, 5))
    truncates = ("my.npz",)

    def write(self, root: Path, content: Content) -> None:
        np.savez(
            root / "my.npz",
            x_train=content.x.transpose(0, 2, 3, 1),
            y_train=content.y.astype(np.uint8)[:, None],
            x_test=content.x_test.transpose(0, 2, 3, 1),
            y_test=content.y_test.astype(np.int32),
        )

    def read(self, root: Path) -> Dataset:
        return load(root / "my.npz")


class TestNpzGrey(TestNpzChannelsLast):
    content = make_content(3, (1, 6, 5))

    def write(self, root: Path, content: Content) -> None:
        np.savez_compressed(
            root / "my.npz",
            x_train=content.x[:, 0],
            y_train=content.y,
            x_test=content.x_test[:, 0],
            y_test=content.y_test,
        )


class TestNpzFloatFeatures(TestNpzChannelsLast):
    content = replace(make_content(3, (7,)), classes=("a", "b", "c"))

    def write(self, root: Path, content: Content) -> None:
        x, x_test = (array.astype(np.float32) / np.float32(255) for array in (content.x, content.x_test))
        labels = {"y_train": content.y, "y_test": content.y_test, "classes": np.array(content.classes)}
        np.savez(root / "my.npz", x_train=x, x_test=x_test, **labels)


class TestImageFolder(ReaderContract):
    content = replace(make_content(3, (3, 6, 5)), classes=("cat", "dog", "emu"))
    truncates = ("mine/train/cat/000.png", "mine/test/emu/005.png")

    def write(self, root: Path, content: Content) -> None:
        write_folder(root / "mine", image_files(content))
        extra = {"train/cat/.hidden.png": b"", "train/cat/notes.txt": b"", "README": b"", "other/dog/1.png": b""}
        write_folder(root / "mine", extra)

    def read(self, root: Path) -> Dataset:
        data = load(root / "mine")
        assert data.name == "mine"
        return data

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        self.write(tmp_path, self.content)
        (tmp_path / self.truncates[0]).unlink()
        assert len(self.read(tmp_path).train) == len(self.content.y) - 1


class TestGreyTar(ReaderContract):
    content = replace(make_content(3, (1, 6, 5)), classes=("cat", "dog", "emu"))
    truncates = ("grey.tar",)

    def write(self, root: Path, content: Content) -> None:
        write_tar(root / self.truncates[0], image_files(content, "./"))

    def read(self, root: Path) -> Dataset:
        data = load(root / self.truncates[0])
        assert data.name == self.truncates[0].split(".")[0]
        return data


class TestTarGzip(TestGreyTar):
    content = TestImageFolder.content
    truncates = ("colour.tar.gz",)

    def write(self, root: Path, content: Content) -> None:
        write_tar(root / self.truncates[0], image_files(content, "top folder/"))


class TestTarXz(TestTarGzip):
    truncates = ("colour.tar.xz",)


class TestZip(TestTarGzip):
    truncates = ("colour.zip",)

    def write(self, root: Path, content: Content) -> None:
        write_zip(root / "colour.zip", image_files(content, "top/") | {"__MACOSX/train/cat/._000.png": b""})


def test_the_same_images_have_one_digest_in_every_format(tmp_path: Path) -> None:
    content = TestImageFolder.content
    arrays = {"x_train": content.x, "y_train": content.y, "x_test": content.x_test, "y_test": content.y_test}
    np.savez(tmp_path / "a.npz", classes=np.array(content.classes), **arrays)
    paths = (
        tmp_path / "a.npz",
        write_folder(tmp_path / "folder", image_files(content)),
        write_tar(tmp_path / "b.tar.xz", image_files(content, "top/")),
        write_zip(tmp_path / "c.zip", image_files(content)),
    )
    assert len({load(path).sha256 for path in paths}) == 1


def test_channels_first_is_read_too(tmp_path: Path) -> None:
    content = make_content(2, (3, 5, 4))
    arrays = {"x_train": content.x, "y_train": content.y, "x_test": content.x_test, "y_test": content.y_test}
    np.savez(tmp_path / "a.npz", **arrays)
    assert np.array_equal(np.rint(load(tmp_path / "a.npz").train.x.numpy() * 255), content.x)


def test_a_grey_image_among_coloured_ones_is_copied(tmp_path: Path) -> None:
    content = make_content(2, (3, 4, 4))
    files = image_files(content)
    grey = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    files["train/0/000.png"] = png(grey)
    data = load(write_folder(tmp_path / "mixed", files))
    assert np.array_equal(data.train.x[0].numpy() * 255, np.repeat(grey, 3, 0))
    assert data.shape == (3, 4, 4)


# What is refused


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"here starts with nothing; expected 00000803"),
        (b"PK\3\4", r"here starts with 504b0304; expected 00000803, an IDX file of bytes with 3 dimension"),
        (idx(np.zeros(4)), "starts with 00000801; expected 00000803"),
        (idx(np.zeros((2, 2, 2)))[:9], "is truncated: its header has 9 of 16 bytes"),
        (idx(np.zeros((2, 2, 2)))[:-1], "is truncated: it has 23 bytes and declares 24"),
        (idx(np.zeros((2, 2, 2))) + b"0", "is too long: it has 25 bytes and declares 24"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "is truncated"),
    ],
)
def test_idx_refuses(data: bytes, message: str) -> None:
    with pytest.raises(EquipoiseError, match=message):
        read_idx(data, "here", 3)


def test_mnist_refuses_labels_and_empty_sets(tmp_path: Path) -> None:
    good = TestMnistGzip.content
    for content, message in (
        (replace(good, y=good.y + 1), "train-labels-idx1-ubyte holds labels from 1 to 10; expected 0 to 9"),
        (replace(good, y=good.y[1:]), r"train-labels-idx1-ubyte holds labels of shape \(29,\) for 30 images"),
        (replace(good, x=good.x[:0], y=good.y[:0]), "dataset 'mnist', training split: there are no samples"),
        (replace(good, x=good.x[:27], y=good.y[:27]), "'mnist' has no training samples of class '9'"),
        (replace(good, x_test=good.x_test[..., :3]), r"training samples of shape \(1, 5, 4\) and test samples of"),
    ):
        shutil.rmtree(tmp_path / "mnist", ignore_errors=True)
        TestMnistGzip().write(tmp_path, content)
        with pytest.raises(EquipoiseError, match=message):
            TestMnistGzip().read(tmp_path)


def test_the_wrong_content_is_refused_whatever_its_wrapper(tmp_path: Path) -> None:
    TestMnistGzip().write(tmp_path, TestMnistGzip.content)
    with pytest.raises(
        EquipoiseError, match=r"train-images-idx3-ubyte is not the published file: its sha256 is .* expected ba89"
    ):
        load("mnist", tmp_path, download=False)
    TestCifar10Archive().write(tmp_path, TestCifar10Archive.content)
    with pytest.raises(
        EquipoiseError, match=r"tar.gz, data_batch_1 is not the published file: its md5 is .* expected c99c"
    ):
        load("cifar10", tmp_path, download=False)


def test_the_digest_of_the_content_decides_not_that_of_the_gzip_file(tmp_path: Path) -> None:
    TestMnistGzip().write(tmp_path, TestMnistGzip.content)
    content = {name: gzip.decompress((tmp_path / "mnist" / f"{name}.gz").read_bytes()) for name in MNIST}
    digests = {name: f"sha256:{hashlib.sha256(data).hexdigest()}" for name, data in content.items()}
    source = replace(SOURCES["mnist"], digests=digests)
    for level in (0, 9):
        for name, data in content.items():
            (tmp_path / "mnist" / f"{name}.gz").write_bytes(gzip.compress(data, level))
        assert len(published("mnist", source, tmp_path, download=False).train) == 30


def cifar10_with(root: Path, name: str, data: bytes) -> Callable[[], Dataset]:
    files = cifar10_files(TestCifar10Archive.content) | {f"cifar-10-batches-py/{name}": data}
    (root / "cifar10").mkdir()
    write_tar(root / "cifar10" / "cifar-10-python.tar.gz", files)
    return lambda: TestCifar10Archive().read(root)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data_batch_2", [1], "data_batch_2 is not a readable batch of arrays: it is not a dictionary"),
        ("data_batch_2", {b"labels": [0]}, "data_batch_2 has no entry 'data'"),
        ("data_batch_2", {b"data": np.zeros((1, 3072), np.uint8)}, "data_batch_2 has no entry 'labels'"),
        ("test_batch", {b"data": np.zeros((1, 99), np.uint8), b"labels": [0]}, r"expected bytes of shape \(n, 3072\)"),
        ("test_batch", {b"data": [1, 2], b"labels": [0]}, "test_batch holds data of another kind"),
        ("test_batch", {b"data": np.zeros((1, 3072), np.uint8), b"labels": [[0]]}, "expected a list of whole numbers"),
        ("test_batch", {b"data": np.zeros((1, 3072), np.uint8), b"labels": [4]}, "labels from 4 to 4; expected 0 to 3"),
        ("test_batch", {b"data": np.zeros((1, 3072), np.uint8), b"labels": []}, r"shape \(0,\) for 1 images"),
        ("batches.meta", {b"label_names": 7}, "batches.meta has no list of class names"),
    ],
)
def test_cifar_refuses(tmp_path: Path, name: str, value: Any, message: str) -> None:
    with pytest.raises(EquipoiseError, match=message):
        cifar10_with(tmp_path, name, python2_pickle(value))()


def test_cifar_archives_without_a_batch_are_refused(tmp_path: Path) -> None:
    files = cifar10_files(TestCifar10Archive.content)
    del files["cifar-10-batches-py/test_batch"]
    write_tar(tmp_path / "cifar-10-python.tar", files)
    with pytest.raises(EquipoiseError, match=r"the files of 'cifar10' lack test_batch"):
        TestCifar10Archive().read(tmp_path)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, "train_32x32.mat has no entry 'y'"),
        ({"y": [[1], [2]]}, "train_32x32.mat has no entry 'X'"),
        ({"X": np.zeros((32, 32, 2), np.uint8), "y": [[1], [2]]}, r"uint8 images of shape \(32, 32, 2\); expected"),
        ({"X": np.zeros((32, 32, 3, 2)), "y": [[1], [2]]}, "holds float64 images"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[0], [2]]}, "holds the label 0; expected 1 to 10"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[11], [2]]}, "labels from 2 to 11"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[1.5], [2]]}, "labels of type float64; expected whole"),
    ],
)
def test_svhn_refuses(tmp_path: Path, train: dict[str, Any], message: str) -> None:
    TestSvhn().write(tmp_path, TestSvhn.content)
    savemat(tmp_path / "train_32x32.mat", train)
    with pytest.raises(EquipoiseError, match=message):
        TestSvhn().read(tmp_path)


GOOD = {"x_train": np.zeros((4, 3)), "y_train": [0, 1, 0, 1], "x_test": np.zeros((2, 3)), "y_test": [0, 1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": None}, "it has no array x_train; expected an .npz file with x_train, y_train"),
        ({"y_train": np.array([0, 1, None, 1], object)}, "Object arrays cannot be loaded"),
        ({"x_train": np.zeros((4, 3), np.int64)}, "x_train has dtype int64; expected uint8, or floats"),
        ({"x_train": np.zeros((4, 5, 5, 4))}, r"x_train has shape \(4, 5, 5, 4\); expected \(n, h, w, c\)"),
        ({"x_train": np.zeros(4)}, r"x_train has shape \(4,\)"),
        ({"x_train": np.full((4, 3), 255.0)}, "training split: x has values from 255 to 255; expected .*divide"),
        ({"x_test": np.full((2, 3), np.nan)}, "test split: x holds NaN"),
        ({"y_train": [0.0, 1.0, 0.0, 1.0]}, "y_train holds labels of type float64"),
        ({"y_train": [0, 1]}, r"y_train holds labels of shape \(2,\) for 4 images"),
        ({"y_train": [0, 1, -1, 1]}, "y_train holds labels from -1 to 1; expected 0 to 1"),
        ({"y_train": [0, 10**12, 0, 1]}, "holds the label 1000000000000; expected class numbers 0, 1, 2"),
        ({"y_test": [0, 2]}, "no training samples of class '2'"),
        ({"y_train": [0, 2, 0, 2], "y_test": [0, 2]}, "no training samples of class '1'"),
        ({"y_train": [0] * 4, "y_test": [0] * 2}, "has 1 class; expected at least two"),
        ({"x_test": np.zeros((2, 4))}, r"shape \(3,\) and test samples of shape \(4,\)"),
        ({"x_train": np.zeros((0, 3)), "y_train": np.zeros(0, int)}, "training split: there are no samples"),
        ({"classes": np.array(["only"])}, "labels from 0 to 1; expected 0 to 0"),
    ],
)
def test_npz_refuses(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {key: np.asarray(value) for key, value in (GOOD | change).items() if value is not None}
    np.savez(tmp_path / "my.npz", **arrays)
    with pytest.raises(EquipoiseError, match=message):
        load(tmp_path / "my.npz")


def test_an_array_is_not_a_dataset(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    with pytest.raises(EquipoiseError, match=r"cannot read .*x.npz: it is a single array; expected an .npz file with"):
        load(tmp_path / "x.npz")


PIXELS = png(np.zeros((3, 6, 5), np.uint8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train/cat/000.png": png(np.zeros((3, 5, 5), np.uint8))}, "mixed sizes: test/cat/000.png has 5 x 6 pixels "),
        ({"train/cat/000.png": b"not an image"}, "train/cat/000.png is not a readable image: cannot identify"),
        ({"train/cat/000.png": png(np.zeros((1, 6, 5), np.uint16))}, "not a readable image: it has pixels of mode I"),
        ({"train/fox/1.png": PIXELS}, "has images of class 'fox' in train/ but none in test/"),
        ({"test/fox/1.png": PIXELS}, "has images of class 'fox' in test/ but none in train/"),
        ({"more/train/cat/1.png": PIXELS}, "holds images under '.' and 'more'; expected one set"),
    ],
)
@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_images_refuse(tmp_path: Path, write: Callable[..., Path], change: dict[str, bytes], message: str) -> None:
    files = image_files(TestImageFolder.content) | change
    with pytest.raises(EquipoiseError, match=message):
        load(write(tmp_path / "set.zip", files))


def test_empty_and_half_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EquipoiseError, match=r"holds no images; expected images laid out train/CLASS/"):
        load(tmp_path)
    write_folder(tmp_path, {"train/cat/1.png": PIXELS, "train/dog/1.png": PIXELS})
    with pytest.raises(EquipoiseError, match=r"holds no images in test/"):
        load(tmp_path)
    write_folder(tmp_path / "one", {"train/cat/1.png": PIXELS, "test/cat/1.png": PIXELS})
    with pytest.raises(EquipoiseError, match=r"dataset 'one' has 1 class"):
        load(tmp_path / "one")


def test_names_and_paths_that_are_not_there(tmp_path: Path) -> None:
    assert names() == ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn")
    with pytest.raises(EquipoiseError, match=r"unknown dataset 'fashion_mnist': did you mean 'fashion-mnist'"):
        load("fashion_mnist")
    with pytest.raises(EquipoiseError, match=r"there is no file or folder .*nothing.npz; expected a dataset's name"):
        load(tmp_path / "nothing.npz")
    (tmp_path / "x.rar").write_bytes(b"")
    with pytest.raises(EquipoiseError, match=r"cannot tell the format of .*x.rar from its name; expected .npz, .tar"):
        load(tmp_path / "x.rar")


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    data, found = load("digits"), load_digits()
    assert data.shape == (1, 8, 8) and (len(data.train), len(data.test)) == (1438, 359)
    x, y = torch.cat([data.train.x, data.test.x]).flatten(1) * 16, torch.cat([data.train.y, data.test.y])
    ours = sorted(zip(x.tolist(), y.tolist(), strict=True))
    assert ours == sorted(zip(found.data.tolist(), found.target.tolist(), strict=True))
    counts = torch.bincount(data.test.y)
    assert counts.min() >= 34 and counts.max() <= 37
    assert load("digits").sha256 == data.sha256


# The network and the cache


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A local server of the folder `served`, and the paths that were asked of it."""
    (tmp_path / "served").mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    monkeypatch.setenv("no_proxy", "*")
    handler = partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{service.server_port}/", asked
        service.shutdown()
        thread.join()


def test_a_download_is_kept_and_read_again_without_the_network(
    tmp_path: Path, server: tuple[str, list[str]], cache: Path
) -> None:
    url, asked = server
    write_tar(tmp_path / "served" / "cifar-10-python.tar.gz", cifar10_files(TestCifar10Archive.content))
    source = unchecked("cifar10", url=url)
    first = published("cifar10", source, tmp_path / "nowhere")
    again = published("cifar10", source)
    assert first.sha256 == again.sha256 and asked == ["/cifar-10-python.tar.gz"]
    assert (cache / "cifar10" / "cifar-10-python.tar.gz").exists()


def test_a_download_with_another_digest_is_refused(tmp_path: Path, server: tuple[str, list[str]], cache: Path) -> None:
    url, _ = server
    (tmp_path / "served" / "cifar-10-python.tar.gz").write_bytes(b"something else")
    source = replace(SOURCES["cifar10"], url=url)
    with pytest.raises(EquipoiseError, match=r"cifar-10-python.tar.gz .* is not the published one; put it"):
        published("cifar10", source)
    assert not (cache / "cifar10" / "cifar-10-python.tar.gz").exists()


def test_without_a_network_the_file_the_places_and_the_way_out_are_named(
    tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    url, asked = server
    with pytest.raises(
        EquipoiseError,
        match=rf"train-images-idx3-ubyte.gz of the dataset 'mnist' was not found in {tmp_path}/mnist or {tmp_path} and "
        r"could not be downloaded \(the server .*\); put it into a folder and name that with --data-root, or get it",
    ):
        published("mnist", replace(SOURCES["mnist"], url=url), tmp_path)
    assert len(asked) > 0
    with pytest.raises(EquipoiseError, match=r"'svhn' is not here and downloading is off; put it .* --data-root"):
        load("svhn", download=False)


def test_downloading_needs_pooch_and_reading_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(EquipoiseError, match=r"downloading needs pooch, which is not installed; put it into a folder"):
        load("mnist")
    TestMnistGzip().write(tmp_path, TestMnistGzip.content)
    assert published("mnist", unchecked("mnist"), tmp_path).name == "mnist"


def test_decoded_archives_are_kept_until_the_archive_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "a.zip", image_files(TestImageFolder.content))
    first = load(path)
    (kept,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(import_module("equipoise.data.load"), "read_images", lambda path: pytest.fail("decoded again"))
        again = load(path)
    assert again.sha256 == first.sha256 and again.train.x.equal(first.train.x) and again.classes == first.classes
    kept.write_bytes(b"damaged")
    assert load(path).sha256 == first.sha256
    assert kept.stat().st_size > 1000
    write_zip(path, image_files(replace(TestImageFolder.content, x=255 - TestImageFolder.content.x)))
    assert load(path).sha256 != first.sha256


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "file" / "inside"))
    path = write_zip(tmp_path / "a.zip", image_files(TestImageFolder.content))
    with pytest.warns(EquipoiseWarning, match=r"decoded images could not be kept for next time: cannot write"):
        assert len(load(path).train) == 9
