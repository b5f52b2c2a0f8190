"""Damaged and hostile files: refused in a sentence, before room is made for them."""

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import (
    good,
    image,
    npz_arrays,
    write_folder,
    write_tar,
    write_zip,
)
from scipy.io import loadmat, savemat

from equipoise.core.errors import EquipoiseError
from equipoise.data import load
from equipoise.data.files import members
from equipoise.data.formats import read_idx, read_mat
from equipoise.data.pickles import unpickle
from equipoise.data.trees import MAX_BYTES


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
        path = write_folder(tmp_path / "d", files | {"train/cat/0.png": data})
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
    path = write_folder(tmp_path / "d", good() | {"test/cat/0.png": png_of(width, height)})
    with pytest.raises(EquipoiseError, match=r"test/cat/0.png is not a readable image|images of mixed sizes"):
        load(path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equipoise.data.archives.MAX_BYTES", 1 << 20)
    files = good() | {"train/cat/big.png": bytes(1 << 21)}
    for path in (write_tar(tmp_path / "a.tar.gz", files), write_zip(tmp_path / "a.zip", files)):
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
    path = write_tar(tmp_path / "a.tar", {"a/" * 100_000 + "x.png": b""})
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
    monkeypatch.chdir(write_folder(tmp_path / "d", good()))
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
