"""Odd files for every reader, as they lie on real disks: read in full, counted and named, or refused in a sentence."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.data import Dataset, load
from equipoise.data.files import members
from equipoise.data.formats import read_idx, read_mat
from equipoise.data.pickles import unpickle
from equipoise.data.trees import MAX_BYTES

CLASSES = ("cat", "dog", "emu")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EQUIPOISE_CACHE", str(folder))
    return folder


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


def folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def tar(path: Path, files: Mapping[str, bytes | tuple[bytes, str]]) -> Path:
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


def zipped(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def told(path: Path, *phrases: str) -> Dataset:
    """The dataset, whose summary and one warning hold the phrases."""
    with pytest.warns(EquipoiseWarning) as caught:
        data = load(path)
    assert len(caught) == 1
    for phrase in phrases:
        assert phrase in data.summary and phrase in str(caught[0].message)
    return data


# Links


def test_links_to_class_folders_are_followed_wherever_they_point(tmp_path: Path) -> None:
    files = good()
    path = folder(tmp_path / "d", {name: data for name, data in files.items() if "emu" not in name})
    for split in ("train", "test"):
        elsewhere = {name: data for name, data in files.items() if name.startswith(f"{split}/emu")}
        folder(tmp_path / "elsewhere", elsewhere)
        (path / split / "emu").symlink_to(tmp_path / "elsewhere" / split / "emu")
    assert load(path).sha256 == load(folder(tmp_path / "plain", files)).sha256
    assert load(path).classes == CLASSES


def test_a_split_and_an_image_may_be_links(tmp_path: Path) -> None:
    path = folder(tmp_path / "d", good())
    (path / "test").rename(tmp_path / "held out")
    (path / "test").symlink_to(tmp_path / "held out")
    (path / "train" / "cat" / "0.png").rename(tmp_path / "a cat")
    (path / "train" / "cat" / "0.png").symlink_to("../../../a cat")
    assert load(path).sha256 == load(folder(tmp_path / "plain", good())).sha256


def test_links_in_circles_end_and_are_counted(tmp_path: Path) -> None:
    path = folder(tmp_path / "d", good())
    (path / "train" / "cat" / "up").symlink_to("../..")
    (path / "train" / "cat" / "me.png").symlink_to("me.png")
    (path / "test" / "dog" / "gone.png").symlink_to("nowhere")
    data = told(path, "3 not read", "2 broken links (test/dog/gone.png, ...)", "1 link back to a folder above (train/c")
    assert len(data.train) == len(data.test) == 6


def test_a_class_that_is_a_broken_link_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "d", good(("cat", "dog")))
    for split in ("train", "test"):
        (path / split / "emu").symlink_to("nowhere")
    with pytest.raises(
        EquipoiseError, match=r"d, test/emu is a broken link, where a class may be lost; repair it or d"
    ):
        load(path)


def test_a_class_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "d", good())
    scan = os.scandir

    def closed(where: Any) -> Any:
        if Path(where).name == "emu":
            raise PermissionError(13, "Permission denied", str(where))
        return scan(where)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(EquipoiseError, match=r"/emu is an unreadable folder, where a class may be lost"):
        load(path)


def test_links_between_classes_and_splits_are_questioned(tmp_path: Path) -> None:
    path = folder(tmp_path / "d", good())
    (path / "train" / "cat" / "more").symlink_to("../dog")
    told(path, "by a link samples of another class or split as well: 2 images (train/dog/0.png, ...)")
    (path / "train" / "cat" / "more").unlink()
    for name in good():
        if name.startswith("test/"):
            (path / name).unlink()
            (path / name).hardlink_to(path / name.replace("test", "train", 1))
    told(path, "by a link samples of another class or split as well: 6 images (train/cat/0.png, ...)")


def test_links_that_multiply_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "d", good())
    for i in range(40):  # 2^40 ways through them
        (path / "deep" / str(i)).mkdir(parents=True)
        for side in ("a", "b"):
            (path / "deep" / str(i) / side).symlink_to(f"../{i + 1}")
    monkeypatch.setattr("equipoise.data.trees._MAX_FOLDERS", 2_000)
    with pytest.raises(EquipoiseError, match=r"it is no usable folder \(more than 2,000 folders, as when links among"):
        load(path)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz"])
def test_links_in_a_tar_are_followed_inside_it(tmp_path: Path, name: str) -> None:
    files: dict[str, Any] = good()
    files["train/dog/1.png"] = tarfile.LNKTYPE, "train/dog/0.png"
    files["test/dog/1.png"] = tarfile.SYMTYPE, "./0.png"
    emu = {f"store/{n.replace('/', '-', 1)}": files.pop(n) for n in list(files) if "emu" in n}
    files |= {f"{split}/emu": (tarfile.SYMTYPE, f"../store/{split}-emu") for split in ("train", "test")}
    data = load(tar(tmp_path / name, files | emu))
    plain = good()
    plain["train/dog/1.png"], plain["test/dog/1.png"] = plain["train/dog/0.png"], plain["test/dog/0.png"]
    assert data.sha256 == load(folder(tmp_path / "plain", plain)).sha256
    assert data.notes == ("4 passed over: 4 images in store/ (store/test-emu/0.png, ...)",)


def test_links_out_of_a_tar_are_counted_and_classes_are_not_lost(tmp_path: Path) -> None:
    files: dict[str, Any] = good()
    files["train/cat/x.png"] = tarfile.SYMTYPE, "/etc/passwd"
    files["train/cat/y.png"] = tarfile.SYMTYPE, "../../../../etc/passwd"
    files["train/cat/z.png"] = tarfile.LNKTYPE, "gone.png"
    files["train/cat/p.png"] = tarfile.SYMTYPE, "q.png"
    files["train/cat/q.png"] = tarfile.SYMTYPE, "p.png"
    data = told(
        tar(tmp_path / "a.tar", files), "5 not read: 5 links to nothing inside the archive (train/cat/p.png, ...)"
    )
    assert len(data.train) == 6
    files["train/fox"] = files["test/fox"] = tarfile.SYMTYPE, "../../foxes"
    with pytest.raises(EquipoiseError, match=r"test/fox is a link to nothing inside the archive, where a class may be"):
        load(tar(tmp_path / "b.tar", files))


def test_a_link_in_a_zip_is_followed(tmp_path: Path) -> None:
    with zipfile.ZipFile(zipped(tmp_path / "a.zip", good()), "a") as archive:
        link = zipfile.ZipInfo("train/cat/2.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "../dog/0.png")
    data = told(tmp_path / "a.zip", "by a link samples of another class or split as well: 1 image (train/dog/0.png)")
    assert len(data.train) == 7 and data.train.x[2].equal(data.train.x[3])


# What is there and not read


def test_everything_passed_over_is_counted_with_its_reason(tmp_path: Path) -> None:
    files = good(top="top/") | {
        "top/README": b"", "top/train/labels.csv": b"", "top/train/cat/notes.txt": b"", "top/test/cat/b.txt": b"",
        "top/train/cat/raw.heic": b"", "top/test/dog/more.zip": b"", "top/other/dog/1.png": b"", "stray.png": b"",
        "top/.DS_Store": b"", "__MACOSX/top/train/cat/._0.png": b"", "top/train/cat/a.averylongsuffix": b"",
    }  # fmt: skip
    for path in (folder(tmp_path / "d", files), zipped(tmp_path / "a.zip", files)):
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
    files = good() | {f"val/{c}/{i}.png": image(i) for c in CLASSES for i in range(4)} | {"train/stray.png": image()}
    for path in (folder(tmp_path / "d", files), zipped(tmp_path / "a.zip", files)):
        for _ in range(2):  # of the archive first decoded, then from the cache
            told(path, "12 images in val/ (val/cat/0.png, ...)", "1 image directly in train/, in no class (train/stray")


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    files = good() | {"train/cat/tabby/deep/a.png": image(1), "train/cat/tabby/b.png": image(2)}
    data = load(folder(tmp_path / "d", files))
    assert torch.bincount(data.train.y).tolist() == [4, 2, 2]
    assert data.notes == (
        "2 images (train/cat/tabby/b.png, ...) in folders inside a class folder, counted to that class",
    )


@pytest.mark.parametrize("suffix", [".jfif", ".JPG", ".JpEg", ".jpe", ".PNG"])
def test_suffixes_of_images_in_any_case(tmp_path: Path, suffix: str) -> None:
    files = good() | {f"train/cat/new{suffix}": image(1, "PNG" if suffix == ".PNG" else "JPEG")}
    data = load(folder(tmp_path / "d", files))
    assert len(data.train) == 7 and data.notes == ()


def test_folders_named_like_files_and_empty_classes(tmp_path: Path) -> None:
    path = folder(tmp_path / "d", good())
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
    path = folder(tmp_path / "d", good())
    os.mkfifo(path / "train" / "cat" / "pipe.png")
    told(path, "1 device or pipe (train/cat/pipe.png)")
    os.mkfifo(tmp_path / "a.npz")
    os.mkfifo(tmp_path / "a.tar")
    for name in ("a.npz", "a.tar"):
        with pytest.raises(EquipoiseError, match=rf"{name} is neither a file nor a folder"):
            load(tmp_path / name)


def test_another_layout_is_described(tmp_path: Path) -> None:
    path = folder(tmp_path / "d", {f"{c}/{i}.png": b"" for c in ("cat", "dog") for i in range(102)})
    with pytest.raises(
        EquipoiseError,
        match=r"d holds no images in train/CLASS/ or test/CLASS/, but 102 images in cat/ \(cat/0.png, ...\), 102 "
        r"images in dog/ \(dog/0.png, ...\); expected images laid out train/CLASS/\* and test/CLASS/\*\.$",
    ):
        load(path)
    path = folder(tmp_path / "e", {"Train/cat/1.png": b"", "Test/cat/1.png": b"", "x/readme.txt": b""})
    with pytest.raises(
        EquipoiseError, match=r"but 1 image in Test/ .*, 1 image in Train/ .*, 1 .txt file .x/readme.txt"
    ):
        load(path)
    path = folder(tmp_path / "f", {"train/cat/1.png": b"", "valid/cat/1.png": b""})
    with pytest.raises(
        EquipoiseError, match=r"holds no images in test/, but 1 image in valid/ .*; expected images laid"
    ):
        load(path)


def test_a_top_folder_may_be_called_train(tmp_path: Path) -> None:
    plain = load(folder(tmp_path / "d", good()))
    assert load(zipped(tmp_path / "a.zip", good(top="train/"))).sha256 == plain.sha256
    assert load(zipped(tmp_path / "b.zip", good(("train", "test")))).classes == ("test", "train")


def test_frames_and_transparency_that_are_dropped_are_said(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 5), v, np.uint8)) for v in (10, 200)]
    buffer, clear = io.BytesIO(), io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((4, 5, 4), 90, np.uint8)).save(clear, "PNG")
    data = load(
        folder(tmp_path / "d", good() | {"train/cat/a.gif": buffer.getvalue(), "train/cat/b.png": clear.getvalue()})
    )
    assert data.notes == (
        "1 image with an alpha channel, which was dropped",
        "1 image with several frames, of which the first was read",
    )


def test_grey_images_among_coloured_ones_are_said(tmp_path: Path) -> None:
    grey = io.BytesIO()
    Image.fromarray(np.full((4, 5), 90, np.uint8)).save(grey, "PNG")
    data = load(folder(tmp_path / "d", good() | {"train/cat/a.png": grey.getvalue()}))
    assert data.notes == ("1 grey image among coloured ones, copied into three channels",)


def test_members_of_one_name_are_counted(tmp_path: Path) -> None:
    with tarfile.open(tar(tmp_path / "a.tar", good()), "a") as archive:  # as `tar -r` does
        for value in (8, 9):
            member = tarfile.TarInfo("train/cat/0.png")
            member.size = len(image(value))
            archive.addfile(member, io.BytesIO(image(value)))
    data = told(tmp_path / "a.tar", "2 members replaced by a later one of the same name (train/cat/0.png, ...)")
    latest = load(folder(tmp_path / "d", good() | {"train/cat/0.png": image(9)}))
    assert data.sha256 == latest.sha256 and len(data.train) == 6


def test_what_follows_the_end_of_a_tar_is_said(tmp_path: Path) -> None:
    both = tar(tmp_path / "a.tar", good()).read_bytes() + tar(tmp_path / "b.tar", good(("fox",))).read_bytes()
    (tmp_path / "c.tar").write_bytes(both)
    assert load(tmp_path / "c.tar").notes == ("1 passed over: 1 part after the end of the archive (c.tar)",)


def test_arrays_of_an_npz_that_are_not_read_are_named(tmp_path: Path) -> None:
    arrays = npz_arrays() | {"x_val": np.zeros(3), "weights": np.ones(2)}
    np.savez(tmp_path / "a.npz", **arrays)
    assert load(tmp_path / "a.npz").notes == ("arrays that were not read: weights, x_val",)


# The order of classes


def test_folders_of_numbers_are_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    numbers = tuple(str(c) for c in range(12))
    data = load(folder(tmp_path / "d", good(numbers)))
    assert data.classes == numbers and "the classes are in the order of their numbers" in data.summary
    assert data.train.y.tolist() == [int(c) for c in sorted(numbers) for _ in range(2)]
    for i, name in enumerate(sorted(numbers)):
        pixels = np.asarray(Image.open(tmp_path / "d" / "train" / name / "0.png")).transpose(2, 0, 1)
        assert np.array_equal(np.rint(data.train.x[2 * i].numpy() * 255), pixels) and data.train.y[2 * i] == int(name)
    assert load(folder(tmp_path / "e", good(("0.5", "10", "-1", "007")))).classes == ("-1", "0.5", "007", "10")


def test_other_names_are_in_the_order_of_the_text(tmp_path: Path) -> None:
    data = load(folder(tmp_path / "d", good(("c10", "c2", "1"))))
    assert data.classes == ("1", "c10", "c2") and data.notes == ()


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    names = ("caf\udce9", "two\nlines", "naïve")
    data = load(folder(tmp_path / "d", good(names)))
    assert data.classes == (r"caf\udce9", "naïve", r"two\nlines")
    data.summary.encode()
    (tmp_path / "d" / "train" / names[0] / "0.png").write_bytes(b"")
    with pytest.raises(EquipoiseError, match=r"train/caf\\udce9/0.png is not a readable image: cannot identify its f"):
        load(tmp_path / "d")
    assert load(tar(tmp_path / "a.tar", good(names))).classes == data.classes


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **npz_arrays(), classes=np.array(["a", "a"]))
    with pytest.raises(EquipoiseError, match="several classes of the name 'a'"):
        load(tmp_path / "a.npz")


def test_a_zip_with_the_separators_of_windows_is_read(tmp_path: Path) -> None:
    files = {name.replace("/", "\\"): data for name, data in good().items()}
    assert load(zipped(tmp_path / "a.zip", files)).sha256 == load(folder(tmp_path / "d", good())).sha256


# Scales


def npz_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = {f"x_{split}": rng.integers(0, 256, (8, 5, 4), np.uint8) for split in ("train", "test")}
    return x | {f"y_{split}": np.arange(8) % 2 for split in ("train", "test")}


def test_black_and_white_bytes_and_floats_have_one_scale(tmp_path: Path) -> None:
    arrays = npz_arrays()
    black_and_white = np.uint8(arrays["x_train"] > 127)
    np.savez(tmp_path / "a.npz", **(arrays | {"x_train": black_and_white, "x_test": arrays["x_test"] / 255}))
    data = load(tmp_path / "a.npz")
    assert np.array_equal(data.train.x[:, 0].numpy(), black_and_white) and data.test.x.max() > 0.9
    assert data.notes == (
        "the training samples are bytes, taken as they are",
        "the test samples are floats, taken as they are",
    )


def test_bytes_and_floats_of_the_same_images_agree(tmp_path: Path) -> None:
    arrays = npz_arrays()
    np.savez(tmp_path / "a.npz", **(arrays | {"x_test": arrays["x_train"] / 255, "y_test": arrays["y_train"]}))
    data = load(tmp_path / "a.npz")
    assert torch.allclose(data.train.x, data.test.x, atol=1e-7)
    assert data.notes == (
        "the training samples are bytes, divided by 255",
        "the test samples are floats, taken as they are",
    )


def test_bytes_that_are_nearly_black_are_questioned(tmp_path: Path) -> None:
    arrays = npz_arrays()
    black_and_white = {name: np.uint8(arrays[name] > 127) for name in ("x_train", "x_test")}
    np.savez(tmp_path / "a.npz", **(arrays | black_and_white))
    data = told(
        tmp_path / "a.npz", "no byte of the training and test samples is above 1: divided by 255 they are nearly"
    )
    assert data.train.x.max() == np.float32(1 / 255)
    np.savez(tmp_path / "b.npz", **(arrays | {"x_test": black_and_white["x_test"]}))
    told(tmp_path / "b.npz", "no byte of the test samples is above 1")


def test_floats_on_two_scales_are_questioned(tmp_path: Path) -> None:
    arrays = npz_arrays()
    np.savez(tmp_path / "a.npz", **(arrays | {"x_train": arrays["x_train"] / 255, "x_test": arrays["x_test"] / 255**2}))
    told(tmp_path / "a.npz", "the largest value of one split is 0.00", "two scales")


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_the_byte_order_changes_no_digest(tmp_path: Path, kind: str) -> None:
    arrays = npz_arrays() | {
        "x_train": np.linspace(0, 1, 24).reshape(8, 3),
        "x_test": np.linspace(0, 1, 24).reshape(8, 3),
    }
    found = []
    for order in "<>":
        swapped = {name: a.astype(order + (kind if name[0] == "x" else "i4")) for name, a in arrays.items()}
        np.savez(tmp_path / "a.npz", **swapped)
        found.append(load(tmp_path / "a.npz"))
    assert found[0].sha256 == found[1].sha256 and found[0].train.x.equal(found[1].train.x)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nextafter(np.float32(1), np.float32(2)), r"x has values from 0 to 1.00000012; expected .*rounding errors"),
        (-1e-9, r"x has values from -\S+e-10 to 0; expected \[0, 1\] \(scale them, or cut off rounding"),
        (255.0, r"x has values from 0 to 255; expected \[0, 1\] \(divide pixels of 0 to 255 by 255"),
        (1e300, r"x has values from 0 to inf; expected"),
    ],
)
def test_values_out_of_range_are_told_exactly(tmp_path: Path, value: float, message: str) -> None:
    x = np.zeros((8, 3))
    x[1, 1] = value
    np.savez(tmp_path / "a.npz", **(npz_arrays() | {"x_train": x, "x_test": np.zeros((8, 3))}))
    with pytest.raises(EquipoiseError, match=message):
        load(tmp_path / "a.npz")


# Damaged and hostile files


def test_images_that_cannot_be_read_are_named_in_a_sentence(tmp_path: Path) -> None:
    whole = image(0, "JPEG", (64, 64))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n"
    for data, message in (
        (b"", "cannot identify its format"),
        (b"\0" * 100, "cannot identify its format"),
        (postscript, "cannot identify its format"),  # Pillow would start another program
        (whole[: len(whole) // 2], "truncated"),
        (image(size=(64, 64))[:40], ""),
    ):
        files = {name: image(size=(64, 64)) for name in good()}
        path = folder(tmp_path / "d", files | {"train/cat/0.png": data})
        with pytest.raises(EquipoiseError, match=rf"d, train/cat/0.png is not a readable image: .*{message}") as caught:
            load(path)
        assert "0x" not in str(caught.value) and "\n" not in str(caught.value)


def png_of(width: int, height: int) -> bytes:
    """The start of an image of any size."""
    data = bytearray(image())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", __import__("zlib").crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.mark.parametrize(("width", "height"), [(9_000, 9_900), (40_000, 40_000), (2**31 - 1, 2**31 - 1)])
def test_huge_declared_sizes_are_refused_unseen(tmp_path: Path, width: int, height: int) -> None:
    path = folder(tmp_path / "d", good() | {"test/cat/0.png": png_of(width, height)})
    with pytest.raises(EquipoiseError, match=r"test/cat/0.png is not a readable image|images of mixed sizes"):
        load(path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equipoise.data.archives.MAX_BYTES", 1 << 20)
    files = good() | {"train/cat/big.png": bytes(1 << 21)}
    for path in (tar(tmp_path / "a.tar.gz", files), zipped(tmp_path / "a.zip", files)):
        with pytest.raises(
            EquipoiseError, match=r"train/cat/big.png declares 2,097,152 bytes; more than 1,048,576 are r"
        ):
            load(path)


def test_a_tar_that_declares_too_much_is_refused(tmp_path: Path) -> None:
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.REGTYPE):
        member = tarfile.TarInfo("train/cat/0.png")
        member.type, member.size = kind, MAX_BYTES * 4
        (tmp_path / "a.tar").write_bytes(member.tobuf() + bytes(4096))
        with pytest.raises(
            EquipoiseError, match=r"cannot read .*a.tar: it is truncated, damaged or not an archive|declar"
        ):
            list(members(tmp_path / "a.tar", lambda _: True))


def test_paths_too_deep_are_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a/" * 100_000 + "x.png": b""})
    with pytest.raises(EquipoiseError, match="a path of more than 256 folders"):
        load(path)


def npz_with(path: Path, header: bytes, content: bytes = b"") -> Path:
    np.savez(path, **{name: array for name, array in npz_arrays().items() if name != "x_train"})
    with zipfile.ZipFile(path, "a") as archive:
        header = header.ljust(118, b" ") + b"\n"
        archive.writestr("x_train.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + content)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,)}",
            "x_train declares the shape .1000000000",
        ),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (8, 60000, 60000)}", "which do not fit"),
        (b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 3)}", "which do not fit"),
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "Object arrays cannot be loaded"),
        (b"{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (0,)}", "x_train has dtype"),
        (b"(" * 60, "x.npz"),
        (b"\xff\xfe", "x.npz"),
    ],
)
def test_headers_of_arrays_are_checked_before_room_is_made(tmp_path: Path, header: bytes, message: str) -> None:
    with pytest.raises(EquipoiseError, match=message) as caught:
        load(npz_with(tmp_path / "x.npz", header))
    assert "\n" not in str(caught.value)


def test_an_npz_locked_with_a_password_or_with_two_of_an_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **npz_arrays())
    locked = bytearray((tmp_path / "a.npz").read_bytes())
    locked[locked.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "b.npz").write_bytes(locked)
    with pytest.raises(EquipoiseError, match=r"cannot read .*b.npz: it is locked with a password; expected"):
        load(tmp_path / "b.npz")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("x_train.npy", archive.read("x_test.npy"))
    with pytest.raises(EquipoiseError, match="it has two arrays x_train"):
        load(tmp_path / "a.npz")


def test_an_idx_file_of_no_possible_shape_is_refused() -> None:
    with pytest.raises(EquipoiseError, match="here declares the shape"):
        read_idx(struct.pack(">4B3I", 0, 0, 8, 3, 0, 2**32 - 1, 2**32 - 1), "here", 3)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i2", "f4", "f8", "i8", "u4"])
def test_matlab_files_are_read_as_scipy_reads_them(kind: str, compressed: bool) -> None:
    values = {"X": np.arange(24).reshape(2, 3, 4).astype(kind), "y": np.array([[7]], kind), "a_longer_name": np.eye(3)}
    buffer = io.BytesIO()
    savemat(buffer, values | {"text": "words", "z": np.array([1j]), "cells": {"a": 1}}, do_compression=compressed)
    found = read_mat(buffer.getvalue(), "here")
    theirs = loadmat(io.BytesIO(buffer.getvalue()))
    for name in values:
        assert (
            np.array_equal(found[name], theirs[name]) and found[name].dtype == theirs[name].dtype == values[name].dtype
        )
    assert all(found[name].dtype == object for name in ("text", "z", "cells"))


def test_damaged_matlab_files_are_refused_where_scipy_ends_the_interpreter() -> None:
    buffer = io.BytesIO()
    savemat(buffer, {"X": np.zeros((32, 32, 3, 2), np.uint8)})
    whole = buffer.getvalue()
    for at in range(0, 200):
        for data in (whole[:at], whole[:at] + b"\xff\xff\xff\x7f" + whole[at + 4 :], whole[:at] + b"\0\0" + whole[at:]):
            try:
                read_mat(data, "here")
            except EquipoiseError as error:
                assert str(error).startswith("here is truncated or not a MATLAB file of version 5 (")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickles_of_every_protocol_are_read(protocol: int, order: Any) -> None:
    array = np.asarray(np.arange(12).reshape(3, 4), np.uint8, order=order)
    labels = [np.int64(3), np.int64(2)]
    found = unpickle(
        pickle.dumps({b"data": array, "labels": [1, 2], b"fine": labels, b"": b"\xff", b"e": b""}, protocol), "here"
    )
    assert np.array_equal(found["data"], array) and found["data"].dtype == np.uint8
    assert found["labels"] == [1, 2] and found["fine"] == [3, 2] and found[""] == b"\xff" and found["e"] == b""


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",  # bytes of 1 TiB
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a place in memory far away
        b"}p99999999999\n.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
        b"c_codecs\nencode\n(dVx\nVy\nsb.",  # sets what a function remembers
        b"c_codecs\nencode\n(Vx\nVutf-7\ntR.",
        b"c_codecs\nencode\n(Vx\nc_codecs\nencode\ntR.",
        b"cnumpy\ndtype\n(S'(1000000,)u1'\ntR.",
        b"}(I0\nI1" + b"0" * 5000 + b"\nu.",
    ],
)
def test_pickles_that_declare_too_much_or_reach_too_far_are_refused(data: bytes) -> None:
    with pytest.raises(EquipoiseError, match="here is not a readable batch of arrays: ") as caught:
        unpickle(data, "here")
    text = str(caught.value)
    assert "\n" not in text and " at 0x" not in text and len(text) < 400


def test_an_empty_name_is_not_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder(tmp_path / "d", good()))
    with pytest.raises(EquipoiseError, match="the name of a dataset is empty"):
        load("")
    assert load(".").name == "d"
    for name in ("x" * 5000 + ".npz", "a\0b.npz"):
        with pytest.raises(EquipoiseError, match="there is no file or folder"):
            load(name)


@pytest.mark.unchecked
def test_what_is_no_name_is_refused() -> None:
    name: Any = None
    with pytest.raises(EquipoiseError, match=r"None is not a dataset: expected a name .digits, mnist.* or a path"):
        load(name)


@pytest.mark.parametrize("write", [folder, zipped, tar])
def test_the_summary_of_a_plain_dataset_has_no_notes(tmp_path: Path, write: Callable[..., Path]) -> None:
    data = load(write(tmp_path / "d.tar" if write is tar else tmp_path / "d.zip", good()))
    assert data.notes == () and "\n" not in data.summary
