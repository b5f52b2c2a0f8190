"""Links in folders and archives of images: followed within them, else counted or refused."""

import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from data_files import CLASSES, good, told, write_folder, write_tar, write_zip

from equipoise.core.errors import EquipoiseError
from equipoise.data import load


def test_links_to_class_folders_are_followed_wherever_they_point(tmp_path: Path) -> None:
    files = good()
    path = write_folder(tmp_path / "d", {name: data for name, data in files.items() if "emu" not in name})
    for split in ("train", "test"):
        elsewhere = {name: data for name, data in files.items() if name.startswith(f"{split}/emu")}
        write_folder(tmp_path / "elsewhere", elsewhere)
        (path / split / "emu").symlink_to(tmp_path / "elsewhere" / split / "emu")
    assert load(path).sha256 == load(write_folder(tmp_path / "plain", files)).sha256
    assert load(path).classes == CLASSES


def test_a_split_and_an_image_may_be_links(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", good())
    (path / "test").rename(tmp_path / "held out")
    (path / "test").symlink_to(tmp_path / "held out")
    (path / "train" / "cat" / "0.png").rename(tmp_path / "a cat")
    (path / "train" / "cat" / "0.png").symlink_to("../../../a cat")
    assert load(path).sha256 == load(write_folder(tmp_path / "plain", good())).sha256


def test_links_in_circles_end_and_are_counted(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", good())
    (path / "train" / "cat" / "up").symlink_to("../..")
    (path / "train" / "cat" / "me.png").symlink_to("me.png")
    (path / "test" / "dog" / "gone.png").symlink_to("nowhere")
    data = told(path, "3 not read", "2 broken links (test/dog/gone.png, ...)", "1 link back to a folder above (train/c")
    assert len(data.train) == len(data.test) == 6


def test_a_class_that_is_a_broken_link_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", good(("cat", "dog")))
    for split in ("train", "test"):
        (path / split / "emu").symlink_to("nowhere")
    with pytest.raises(
        EquipoiseError, match=r"d, test/emu is a broken link, where a class may be lost; repair it or d"
    ):
        load(path)


def test_a_class_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_folder(tmp_path / "d", good())
    scan = os.scandir

    def closed(where: Any) -> Any:
        if Path(where).name == "emu":
            raise PermissionError(13, "Permission denied", str(where))
        return scan(where)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(EquipoiseError, match=r"/emu is an unreadable folder, where a class may be lost"):
        load(path)


def test_links_between_classes_and_splits_are_questioned(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", good())
    (path / "train" / "cat" / "more").symlink_to("../dog")
    told(path, "by a link samples of another class or split as well: 2 images (train/dog/0.png, ...)")
    (path / "train" / "cat" / "more").unlink()
    for name in good():
        if name.startswith("test/"):
            (path / name).unlink()
            (path / name).hardlink_to(path / name.replace("test", "train", 1))
    told(path, "by a link samples of another class or split as well: 6 images (train/cat/0.png, ...)")


def test_links_that_multiply_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_folder(tmp_path / "d", good())
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
    data = load(write_tar(tmp_path / name, files | emu))
    plain = good()
    plain["train/dog/1.png"], plain["test/dog/1.png"] = plain["train/dog/0.png"], plain["test/dog/0.png"]
    assert data.sha256 == load(write_folder(tmp_path / "plain", plain)).sha256
    assert data.notes == ("4 passed over: 4 images in store/ (store/test-emu/0.png, ...)",)


def test_links_out_of_a_tar_are_counted_and_classes_are_not_lost(tmp_path: Path) -> None:
    files: dict[str, Any] = good()
    files["train/cat/x.png"] = tarfile.SYMTYPE, "/etc/passwd"
    files["train/cat/y.png"] = tarfile.SYMTYPE, "../../../../etc/passwd"
    files["train/cat/z.png"] = tarfile.LNKTYPE, "gone.png"
    files["train/cat/p.png"] = tarfile.SYMTYPE, "q.png"
    files["train/cat/q.png"] = tarfile.SYMTYPE, "p.png"
    data = told(
        write_tar(tmp_path / "a.tar", files), "5 not read: 5 links to nothing inside the archive (train/cat/p.png, ...)"
    )
    assert len(data.train) == 6
    files["train/fox"] = files["test/fox"] = tarfile.SYMTYPE, "../../foxes"
    with pytest.raises(EquipoiseError, match=r"test/fox is a link to nothing inside the archive, where a class may be"):
        load(write_tar(tmp_path / "b.tar", files))


def test_a_link_in_a_zip_is_followed(tmp_path: Path) -> None:
    with zipfile.ZipFile(write_zip(tmp_path / "a.zip", good()), "a") as archive:
        link = zipfile.ZipInfo("train/cat/2.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "../dog/0.png")
    data = told(tmp_path / "a.zip", "by a link samples of another class or split as well: 1 image (train/dog/0.png)")
    assert len(data.train) == 7 and data.train.x[2].equal(data.train.x[3])
