"""What the readers of each format refuse, in one sentence."""

import gzip
import hashlib
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import (
    MNIST,
    Cifar10Files,
    ImageFolder,
    MnistFiles,
    SvhnFiles,
    cifar10_files,
    encoded,
    idx,
    image_files,
    png,
    python2_pickle,
    write_folder,
    write_tar,
    write_zip,
)
from scipy.io import savemat

from equipoise.core.errors import EquipoiseError
from equipoise.data import Dataset, load, names
from equipoise.data.finding import published
from equipoise.data.formats import read_idx
from equipoise.data.published import SOURCES


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
    good = MnistFiles.content
    for content, message in (
        (replace(good, y=good.y + 1), "train-labels-idx1-ubyte holds labels from 1 to 10; expected 0 to 9"),
        (replace(good, y=good.y[1:]), r"train-labels-idx1-ubyte holds labels of shape \(29,\) for 30 images"),
        (replace(good, x=good.x[:0], y=good.y[:0]), "dataset 'mnist', training split: there are no samples"),
        (replace(good, x=good.x[:27], y=good.y[:27]), "'mnist' has no training samples of class '9'"),
        (replace(good, x_test=good.x_test[..., :3]), r"training samples of shape \(1, 5, 4\) and test samples of"),
    ):
        shutil.rmtree(tmp_path / "mnist", ignore_errors=True)
        MnistFiles().write(tmp_path, content)
        with pytest.raises(EquipoiseError, match=message):
            MnistFiles().read(tmp_path)


def test_the_wrong_content_is_refused_whatever_its_wrapper(tmp_path: Path) -> None:
    MnistFiles().write(tmp_path, MnistFiles.content)
    with pytest.raises(
        EquipoiseError, match=r"train-images-idx3-ubyte is not the published file: its sha256 is .* expected ba89"
    ):
        load("mnist", tmp_path, download=False)
    Cifar10Files().write(tmp_path, Cifar10Files.content)
    with pytest.raises(
        EquipoiseError, match=r"tar.gz, data_batch_1 is not the published file: its md5 is .* expected c99c"
    ):
        load("cifar10", tmp_path, download=False)


def test_the_digest_of_the_content_decides_not_that_of_the_gzip_file(tmp_path: Path) -> None:
    MnistFiles().write(tmp_path, MnistFiles.content)
    content = {name: gzip.decompress((tmp_path / "mnist" / f"{name}.gz").read_bytes()) for name in MNIST}
    digests = {name: f"sha256:{hashlib.sha256(data).hexdigest()}" for name, data in content.items()}
    source = replace(SOURCES["mnist"], digests=digests)
    for level in (0, 9):
        for name, data in content.items():
            (tmp_path / "mnist" / f"{name}.gz").write_bytes(gzip.compress(data, level))
        assert len(published("mnist", source, tmp_path, download=False).train) == 30


def cifar10_with(root: Path, name: str, data: bytes) -> Callable[[], Dataset]:
    files = cifar10_files(Cifar10Files.content) | {f"cifar-10-batches-py/{name}": data}
    (root / "cifar10").mkdir()
    write_tar(root / "cifar10" / "cifar-10-python.tar.gz", files)
    return lambda: Cifar10Files().read(root)


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
    files = cifar10_files(Cifar10Files.content)
    del files["cifar-10-batches-py/test_batch"]
    write_tar(tmp_path / "cifar-10-python.tar", files)
    with pytest.raises(EquipoiseError, match=r"the files of 'cifar10' lack test_batch"):
        Cifar10Files().read(tmp_path)


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
    SvhnFiles().write(tmp_path, SvhnFiles.content)
    savemat(tmp_path / "train_32x32.mat", train)
    with pytest.raises(EquipoiseError, match=message):
        SvhnFiles().read(tmp_path)


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
FLOATS = encoded(np.zeros((6, 5), np.float32), "TIFF")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train/cat/000.png": png(np.zeros((3, 5, 5), np.uint8))}, "mixed sizes: test/cat/000.png has 5 x 6 pixels "),
        ({"train/cat/000.png": b"not an image"}, "train/cat/000.png is not a readable image: cannot identify"),
        ({"train/cat/000.png": FLOATS}, "not a readable image: it has pixels of mode F, not of 8 or 16 bits"),
        ({"train/fox/1.png": PIXELS}, "has images of class 'fox' in train/ but none in test/"),
        ({"test/fox/1.png": PIXELS}, "has images of class 'fox' in test/ but none in train/"),
        ({"more/train/cat/1.png": PIXELS}, "holds images under '.' and 'more'; expected one set"),
    ],
)
@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_images_refuse(tmp_path: Path, write: Callable[..., Path], change: dict[str, bytes], message: str) -> None:
    files = image_files(ImageFolder.content) | change
    with pytest.raises(EquipoiseError, match=message):
        load(write(tmp_path / "set.zip", files))


def test_empty_and_half_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EquipoiseError, match=r"holds no images; expected images laid out train/CLASS/"):
        load(tmp_path)
    write_folder(tmp_path, {"train/cat/1.png": PIXELS, "train/dog/1.png": PIXELS})
    with pytest.raises(
        EquipoiseError, match=r"class cat, dog has a single sample: expected one to train on and one to test"
    ):
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
    with pytest.raises(
        EquipoiseError, match=r"cannot tell the format of .*x.rar from its name; expected .npz, .npy, .csv, .tar"
    ):
        load(tmp_path / "x.rar")
