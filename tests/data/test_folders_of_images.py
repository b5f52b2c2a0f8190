"""Folders and archives of images as they lie on real disks: read, counted and named, in their order."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import (
    CLASSES,
    good,
    image,
    npz_arrays,
    told,
    write_folder,
    write_tar,
    write_zip,
)
from PIL import Image

from equipoise.core.errors import EquipoiseError
from equipoise.data import load


def test_everything_passed_over_is_counted_with_its_reason(tmp_path: Path) -> None:
    files = good(top="top/") | {
        "top/README": b"", "top/train/labels.csv": b"", "top/train/cat/notes.txt": b"", "top/test/cat/b.txt": b"",
        "top/train/cat/raw.heic": b"", "top/test/dog/more.zip": b"", "top/other/dog/1.png": b"", "stray.png": b"",
        "top/.DS_Store": b"", "__MACOSX/top/train/cat/._0.png": b"", "top/train/cat/a.averylongsuffix": b"",
    }  # fmt: skip
    for path in (write_folder(tmp_path / "d", files), write_zip(tmp_path / "a.zip", files)):
        data = load(path)
        assert data.classes == CLASSES and len(data.train) == len(data.test) == 6
        (note,) = data.notes
        assert note.startswith("11 passed over: 2 ")
        for phrase in (
            "2 .txt files (top/test/cat/b.txt, ...)",
            "2 hidden files (__MACOSX/top/train/cat/._0.png, ...)",
            "1 image in other/ (top/other/dog/1.png)",
            "1 image outside train/ and test/ (stray.png)",
            "1 .heic file (top/train/cat/raw.heic)",
            "1 .zip file",
            "1 .csv file",
            "1 file without an extension (top/README)",
            "1 file of other kinds",
        ):
            assert phrase in note
        assert data.summary.startswith(
            f"{data.name}: 6 training and 6 test images of shape 3 x 4 x 5; 3 classes, in this order: cat, dog, emu\n"
        )
        assert load(path).notes == data.notes  # of the archive from the cache


def test_images_that_were_probably_meant_are_a_warning(tmp_path: Path) -> None:
    files = good() | {"val/x.png": image(), "train/stray.png": image()}
    for path in (write_folder(tmp_path / "d", files), write_zip(tmp_path / "a.zip", files)):
        for _ in range(2):  # of the archive first decoded, then from the cache
            told(
                path,
                "1 image directly in val/, in no class (val/x",
                "1 image directly in train/, in no class (train/stray",
            )


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    files = good() | {"train/cat/tabby/deep/a.png": image(1), "train/cat/tabby/b.png": image(2)}
    data = load(write_folder(tmp_path / "d", files))
    assert torch.bincount(data.train.y).tolist() == [4, 2, 2]
    assert data.notes == (
        "2 images (train/cat/tabby/b.png, ...) in folders inside a class folder, counted to that class",
    )


@pytest.mark.parametrize("suffix", [".jfif", ".JPG", ".JpEg", ".jpe", ".PNG"])
def test_suffixes_of_images_in_any_case(tmp_path: Path, suffix: str) -> None:
    files = good() | {f"train/cat/new{suffix}": image(1, "PNG" if suffix == ".PNG" else "JPEG")}
    data = load(write_folder(tmp_path / "d", files))
    assert len(data.train) == 7 and data.notes == ()


def test_folders_named_like_files_and_empty_classes(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", good())
    (path / "train" / "cat" / "9.png").mkdir()
    assert load(path).notes == ("1 passed over: 1 folder named like an image (train/cat/9.png)",)
    (path / "train" / "fox").mkdir()
    (path / "test" / "fox").mkdir()
    with pytest.raises(EquipoiseError, match=r"has the class folder test/fox without any image"):
        load(path)
    (path / "test" / "fox" / "a.heic").write_bytes(b"")
    (path / "train" / "fox" / "a.heic").write_bytes(b"")
    with pytest.raises(EquipoiseError, match=r"class folder test/fox without any image, but 2 .heic files .test/fox"):
        load(path)


def test_a_pipe_among_the_images_blocks_nothing(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", good())
    os.mkfifo(path / "train" / "cat" / "pipe.png")
    told(path, "1 device or pipe (train/cat/pipe.png)")
    os.mkfifo(tmp_path / "a.npz")
    os.mkfifo(tmp_path / "a.tar")
    for name in ("a.npz", "a.tar"):
        with pytest.raises(EquipoiseError, match=rf"{name} is neither a file nor a folder"):
            load(tmp_path / name)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            [f"only/{i}.png" for i in range(102)],
            r"d holds no images in class folders, but 102 images in only/, the only folder \(only/0.png, ...\); "
            r"expected images laid out train/CLASS/\* and test/CLASS/\*, or CLASS/\*, or beside a labels.csv",
        ),
        (["Train/1.png", "TEST/1.png"], r"but 1 image in TEST/, the only folder"),
        (["test/cat/1.png", "test/dog/1.png"], r"d holds no images in train/; expected images laid"),
        (["train/cat/1.png", "Train/cat/2.png"], r"d holds Train/ and train/, both for train; expected one of them"),
        (["1.png", "2.png", "a.txt"], r"but 2 images, in no class \(1.png, ...\), 1 .txt file \(a.txt\); expected"),
        (["train/cat/1.png", "val/cat/1.png", "val/dog/1.png"], r"class 'dog' in validation/ but none in train/"),
    ],
)
def test_other_layouts_are_described(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(EquipoiseError, match=message):
        load(write_folder(tmp_path / "d", dict.fromkeys(files, b"")))


def test_a_top_folder_may_be_called_train(tmp_path: Path) -> None:
    plain = load(write_folder(tmp_path / "d", good()))
    assert load(write_zip(tmp_path / "a.zip", good(top="train/"))).sha256 == plain.sha256
    assert load(write_zip(tmp_path / "b.zip", good(("train", "test")))).classes == ("test", "train")


def test_frames_and_transparency_that_are_dropped_are_said(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 5), v, np.uint8)) for v in (10, 200)]
    buffer, clear = io.BytesIO(), io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((4, 5, 4), 90, np.uint8)).save(clear, "PNG")
    data = load(
        write_folder(
            tmp_path / "d", good() | {"train/cat/a.gif": buffer.getvalue(), "train/cat/b.png": clear.getvalue()}
        )
    )
    assert data.notes == (
        "1 image with an alpha channel, which was dropped",
        "1 image with several frames, of which the first was read",
    )


def test_grey_images_among_coloured_ones_are_said(tmp_path: Path) -> None:
    grey = io.BytesIO()
    Image.fromarray(np.full((4, 5), 90, np.uint8)).save(grey, "PNG")
    data = load(write_folder(tmp_path / "d", good() | {"train/cat/a.png": grey.getvalue()}))
    assert data.notes == ("1 grey image among coloured ones, copied into three channels",)


def test_members_of_one_name_are_counted(tmp_path: Path) -> None:
    with tarfile.open(write_tar(tmp_path / "a.tar", good()), "a") as archive:  # as `tar -r` does
        for value in (98, 99):
            member = tarfile.TarInfo("train/cat/0.png")
            member.size = len(image(value))
            archive.addfile(member, io.BytesIO(image(value)))
    data = told(tmp_path / "a.tar", "2 members replaced by a later one of the same name (train/cat/0.png, ...)")
    latest = load(write_folder(tmp_path / "d", good() | {"train/cat/0.png": image(99)}))
    assert data.sha256 == latest.sha256 and len(data.train) == 6


def test_what_follows_the_end_of_a_tar_is_said(tmp_path: Path) -> None:
    both = (
        write_tar(tmp_path / "a.tar", good()).read_bytes() + write_tar(tmp_path / "b.tar", good(("fox",))).read_bytes()
    )
    (tmp_path / "c.tar").write_bytes(both)
    assert load(tmp_path / "c.tar").notes == ("1 passed over: 1 part after the end of the archive (c.tar)",)


def test_arrays_of_an_npz_that_are_not_read_are_named(tmp_path: Path) -> None:
    arrays = npz_arrays() | {"x_val": np.zeros(3), "weights": np.ones(2)}
    np.savez(tmp_path / "a.npz", **arrays)
    assert load(tmp_path / "a.npz").notes == ("arrays that were not read: weights, x_val",)


def test_folders_of_numbers_are_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    numbers = tuple(str(c) for c in range(12))
    data = load(write_folder(tmp_path / "d", good(numbers)))
    assert data.classes == numbers and "the classes are in the order of their numbers" in data.summary
    assert data.train.y.tolist() == [int(c) for c in numbers for _ in range(2)]
    for i, name in enumerate(numbers):
        pixels = np.asarray(Image.open(tmp_path / "d" / "train" / name / "0.png")).transpose(2, 0, 1)
        assert np.array_equal(np.rint(data.train.x[2 * i].numpy() * 255), pixels) and data.train.y[2 * i] == int(name)
    assert load(write_folder(tmp_path / "e", good(("0.5", "10", "-1", "007")))).classes == ("-1", "0.5", "007", "10")


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    data = load(write_folder(tmp_path / "d", good(("c10", "c2", "1", "d"))))
    assert data.classes == ("1", "c2", "c10", "d")
    assert data.notes == ("the classes are in the order of their numbers",)


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    names = ("caf\udce9", "two\nlines", "naïve")
    data = load(write_folder(tmp_path / "d", good(names)))
    assert data.classes == (r"caf\udce9", "naïve", r"two\nlines")
    data.summary.encode()
    (tmp_path / "d" / "train" / names[0] / "0.png").write_bytes(b"")
    with pytest.raises(EquipoiseError, match=r"train/caf\\udce9/0.png is not a readable image: cannot identify its f"):
        load(tmp_path / "d")
    assert load(write_tar(tmp_path / "a.tar", good(names))).classes == data.classes


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **npz_arrays(), classes=np.array(["a", "a"]))
    with pytest.raises(EquipoiseError, match="several classes of the name 'a'"):
        load(tmp_path / "a.npz")


def test_a_zip_with_the_separators_of_windows_is_read(tmp_path: Path) -> None:
    files = {name.replace("/", "\\"): data for name, data in good().items()}
    assert load(write_zip(tmp_path / "a.zip", files)).sha256 == load(write_folder(tmp_path / "d", good())).sha256


@pytest.mark.parametrize("write", [write_folder, write_zip, write_tar])
def test_the_summary_of_a_plain_dataset_has_no_notes(tmp_path: Path, write: Callable[..., Path]) -> None:
    data = load(write(tmp_path / "d.tar" if write is write_tar else tmp_path / "d.zip", good()))
    assert data.notes == () and "\n" not in data.summary
