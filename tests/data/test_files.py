"""Files that mean harm: paths that climb out, links, pickles that run code, archives cut short."""

import io
import pickle
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from equipoise.core.errors import EquipoiseError
from equipoise.data.files import content, members
from equipoise.data.pickles import unpickle


def everything(name: PurePosixPath) -> bool:
    return True


def tar_of(path: Path, *entries: tarfile.TarInfo | str, mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for entry in entries:
            member = tarfile.TarInfo(entry) if isinstance(entry, str) else entry
            data = b"content of " + member.name.encode() if member.isreg() else b""
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png"])
@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_paths_that_lead_outside_are_refused(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / "box" / f"bad.{suffix}"
    path.parent.mkdir()
    if suffix == "tar":
        tar_of(path, "good.png", name)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("good.png", b"")
            archive.writestr(name, b"")
    with pytest.raises(EquipoiseError, match=r"bad\.\w+ holds the path '.*evil.png', which leads outside the archive"):
        list(members(path, lambda _: False))
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == [path.name]


def test_links_and_devices_are_passed_over(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "links.tar",
        special("passwords", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard", tarfile.LNKTYPE, "../../etc/passwd"),
        special("zero", tarfile.CHRTYPE),
        special("pipe", tarfile.FIFOTYPE),
        special("folder", tarfile.DIRTYPE),
        "./folder/plain",
    )
    assert [(str(name), data) for name, data in members(path, everything)] == [
        ("folder/plain", b"content of ./folder/plain")
    ]
    with zipfile.ZipFile(tmp_path / "links.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.mkdir("folder")
        archive.writestr("folder/plain", b"here")
    assert list(members(tmp_path / "links.zip", everything)) == [(PurePosixPath("folder/plain"), b"here")]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_cut_anywhere_is_refused(tmp_path: Path, mode: str) -> None:
    path = tar_of(tmp_path / "cut.tar", "a", "b", "c", mode=mode)
    whole = path.read_bytes()
    assert len(list(members(path, everything))) == 3
    used = 6 * 512 + 512 if mode == "w" else len(whole)  # what follows the first block of zeros only pads
    for size in range(0, used, 128 if mode == "w" else 7):
        path.write_bytes(whole[:size])
        with pytest.raises(EquipoiseError, match=r"cannot read .*cut.tar: it is truncated, damaged or not an archive"):
            list(members(path, everything))


def test_a_locked_or_damaged_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one", b"some content")
    whole = path.read_bytes()
    encrypted = bytearray(whole)
    encrypted[6] |= 1
    encrypted[whole.index(b"PK\1\2") + 8] |= 1
    damaged = r"it is truncated, damaged or not an archive"
    for data, message in (
        (bytes(encrypted), "it is locked with a password; unpack it, and give the folder"),
        (whole.replace(b"some", b"none"), damaged),
        (whole[:-9], damaged),
        (b"", damaged),
    ):
        path.write_bytes(data)
        with pytest.raises(EquipoiseError, match=rf"cannot read .*a.zip: {message}"):
            list(members(path, everything))


def test_a_gzip_file_is_recognised_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(b"plain")
    assert content(tmp_path / "x.gz") == b"plain"
    (tmp_path / "x.gz").write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(EquipoiseError, match=r"cannot read .*x.gz: it is truncated or damaged"):
        content(tmp_path / "x.gz")
    with pytest.raises(EquipoiseError, match=r"cannot read .*absent"):
        content(tmp_path / "absent")


class Touch:
    """Creates a file when it is unpickled by somebody careless."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    data = pickle.dumps({"data": Touch(marker)}, protocol=protocol)
    pickle.loads(data)
    assert marker.exists()
    marker.unlink()
    with pytest.raises(
        EquipoiseError, match=r"here is not a readable batch of arrays: it asks for .*, which may run code"
    ):
        unpickle(data, "here")
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"(S'true'\nios\nsystem\n.",  # INST
        b"cnumpy\nload\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0bdtype.__new__\x93.",  # a dotted name below an allowed one
        b"cnumpy\ndtype\n(S'O'\ntR.",
        b"P1\n.",  # a persistent id
        b"\x80\x02}",
        b"",
        b"\xff\xff",
        b"cnumpy\nndarray\n)\x81}b.",  # a state that is not an array's
    ],
)
def test_other_pickles_are_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(EquipoiseError, match=r"here is not a readable batch of arrays: ") as caught:
        unpickle(data, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "<f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_and_basic_types_are_read(dtype: str, order: Any) -> None:
    array = np.asarray(np.arange(12).reshape(3, 4), dtype, order=order)
    found = unpickle(pickle.dumps({b"data": array, "labels": [1, 2], b"name": b"x"}, protocol=4), "here")
    assert np.array_equal(found["data"], array) and found["data"].dtype == array.dtype
    assert found["labels"] == [1, 2] and found["name"] == b"x"


def test_arrays_of_objects_are_refused() -> None:
    with pytest.raises(EquipoiseError, match=r"here is not a readable batch of arrays"):
        unpickle(pickle.dumps({"data": np.array([None, {}], object)}, protocol=4), "here")
