"""Every reader on small files in the published formats."""

import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import (
    MNIST,
    Cifar10Files,
    Content,
    ImageFolder,
    MnistFiles,
    SvhnFiles,
    cifar10_files,
    idx,
    image_files,
    make_content,
    png,
    python2_pickle,
    unchecked,
    write_folder,
    write_tar,
    write_zip,
)

from equipoise.core.errors import EquipoiseError
from equipoise.data import Dataset, load
from equipoise.data.finding import published


def test_the_written_pickles_are_what_the_standard_unpickler_reads() -> None:
    data = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy.core has another name by now
        found = pickle.loads(python2_pickle({b"data": data, b"labels": [1, 300, 2]}), encoding="bytes")
    assert found[b"labels"] == [1, 300, 2] and np.array_equal(found[b"data"], data)


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


class TestMnistGzip(MnistFiles, ReaderContract):
    truncates = tuple(f"mnist/{name}.gz" for name in MNIST)
    name = "mnist"


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


class TestCifar10Archive(Cifar10Files, ReaderContract):
    truncates = ("cifar10/cifar-10-python.tar.gz",)


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


class TestSvhn(SvhnFiles, ReaderContract):
    truncates = ("train_32x32.mat", "test_32x32.mat")


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


class TestImageFolder(ImageFolder, ReaderContract):
    truncates = ("mine/train/cat/000.png", "mine/test/emu/005.png")

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
    content = ImageFolder.content
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
    content = ImageFolder.content
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
