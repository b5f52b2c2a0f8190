"""What every reader promises for files damaged at random: a dataset, or one sentence; no other error, no huge room."""

import gzip
import io
import os
import pickle
import re
import struct
import tarfile
import tempfile
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.data import Dataset, load
from equipoise.data.finding import published
from equipoise.data.published import SOURCES

pytestmark = [pytest.mark.fuzz, pytest.mark.unchecked]

ROOM = 64 << 20
"""Bytes that reading a file of a few kilobytes may take."""
SECONDS = 20
"""Time that it may take, on a busy machine."""


@pytest.fixture(scope="module", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIPOISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def attempt(read: Callable[[], Dataset]) -> Dataset | None:
    """The dataset, or None where it is refused in one sentence; within the time and the room."""
    began = time.process_time()
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EquipoiseWarning)
            data = read()
        data.summary.encode()
        return data
    except EquipoiseError as error:
        text = str(error)
        note(text)
        assert text.isprintable() and text.endswith(".") and 20 < len(text) < 1500
        assert " at 0x" not in text
        return None
    finally:
        room = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert room < ROOM, f"{room:,} bytes"
        assert time.process_time() - began < SECONDS


# Files in the published formats


def pixels(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)


def encoded(kind: str, value: int = 0, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(4, 6, 5, 3)[value % 4]).save(buffer, kind, **options)
    return buffer.getvalue()


def image_tree(kind: str = "PNG", **options: Any) -> dict[str, bytes]:
    names = [f"{split}/{c}/{i}.{kind.lower()}" for split in ("train", "test") for c in "ab" for i in range(2)]
    return {name: encoded(kind, i, **options) for i, name in enumerate(names)}


def tarred(mode: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:
        for name, data in image_tree().items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, kind in (("train/a/x.png", tarfile.SYMTYPE), ("train/a/y.png", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "0.png" if kind == tarfile.SYMTYPE else "train/a/0.png"
            archive.addfile(member)
        long = tarfile.TarInfo("train/a/" + "n" * 150 + "é.png")
        long.size = len(encoded("PNG"))
        archive.addfile(long, io.BytesIO(encoded("PNG")))
    return buffer.getvalue()


def zipped(compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in image_tree().items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npz(compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    y = np.arange(8) % 2
    save = np.savez_compressed if compressed else np.savez
    save(
        buffer, x_train=pixels(8, 4, 3), y_train=y, x_test=pixels(8, 4, 3) / 255, y_test=y, classes=np.array(["a", "b"])
    )
    return buffer.getvalue()


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def unchecked(name: str) -> Any:
    return replace(SOURCES[name], digests=dict.fromkeys(SOURCES[name].digests), archives={})


def mnist() -> dict[str, bytes]:
    y = np.arange(20) % 10
    files = {}
    for split in ("train", "t10k"):
        files |= {f"{split}-images-idx3-ubyte": idx(pixels(20, 4, 3)), f"{split}-labels-idx1-ubyte": idx(y)}
    return files


def cifar(protocol: int) -> dict[str, bytes]:
    batch = {b"data": pixels(2, 3072), b"labels": [0, 1]}
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files = {name: pickle.dumps(batch, protocol) for name in names}
    return files | {"batches.meta": pickle.dumps({b"label_names": [b"cat", b"dog"]}, protocol)}


def svhn(compressed: bool) -> dict[str, bytes]:
    buffer = io.BytesIO()
    y = np.arange(1, 11, dtype=np.uint8)[:, None]
    savemat(buffer, {"X": pixels(10, 32, 32, 3).transpose(1, 2, 3, 0), "y": y}, do_compression=compressed)
    return dict.fromkeys(("train_32x32.mat", "test_32x32.mat"), buffer.getvalue())


@cache
def valid(form: str) -> tuple[dict[str, bytes], str]:
    """Files of a valid dataset by their names, and the name of the one that is damaged."""
    kind, _, detail = form.partition(" ")
    match kind:
        case "tar":
            modes = {"plain": "w", "gnu": "w", "pax": "w", "gz": "w:gz", "xz": "w:xz", "bz2": "w:bz2"}
            options = {"format": tarfile.GNU_FORMAT} if detail == "gnu" else {}
            return {"a.tar": tarred(modes[detail], **options)}, "a.tar"
        case "zip":
            return {"a.zip": zipped(int(detail))}, "a.zip"
        case "npz":
            return {"a.npz": npz(detail == "compressed")}, "a.npz"
        case "mnist":
            files = {f"{name}.gz": gzip.compress(data) for name, data in mnist().items()} if detail == "gz" else mnist()
            return files, next(iter(files))
        case "cifar10":
            files = {f"cifar-10-batches-py/{name}": data for name, data in cifar(int(detail)).items()}
            return files, "cifar-10-batches-py/data_batch_2"
        case "svhn":
            return svhn(detail == "compressed"), "train_32x32.mat"
        case _:
            tree = image_tree(detail)
            return {f"d/{name}": data for name, data in tree.items()}, f"d/{next(iter(tree))}"


FORMS = (
    *(f"tar {detail}" for detail in ("plain", "gnu", "gz", "xz", "bz2")),
    *(f"zip {method}" for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)),
    *("npz plain", "npz compressed", "mnist raw", "mnist gz", "svhn plain", "svhn compressed"),
    *(f"cifar10 {protocol}" for protocol in range(6)),
    *(f"images {kind}" for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP")),
)


def reader(form: str, folder: Path) -> Callable[[], Dataset]:
    kind = form.split(" ", 1)[0]
    if kind in SOURCES:
        return partial(published, kind, unchecked(kind), folder, download=False)
    return partial(load, folder / {"tar": "a.tar", "zip": "a.zip", "npz": "a.npz"}.get(kind, "d"))


@contextmanager
def written(files: dict[str, bytes]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        for file, data in files.items():
            (Path(name) / file).parent.mkdir(parents=True, exist_ok=True)
            (Path(name) / file).write_bytes(data)
        yield Path(name)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_before_it_is_damaged(form: str) -> None:
    with written(valid(form)[0]) as folder:
        data = attempt(reader(form, folder))
        assert data is not None and len(data.classes) in (2, 10)


# Damage

HUGE = [struct.pack(order + code, value) for order in "<>" for code, value in (("I", 2**32 - 1), ("I", 2**31 - 1))]
HUGE += [struct.pack("<Q", 2**40), struct.pack(">Q", 2**40), struct.pack("<Q", 2**64 - 1), struct.pack("<H", 2**16 - 1)]
BITS = st.tuples(st.just("flip"), st.floats(0, 1), st.integers(0, 7))
DAMAGES = st.one_of(
    BITS,
    st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
    st.tuples(
        st.just("put"), st.floats(0, 1), st.sampled_from([*HUGE, b"\0" * 8, b"\xff" * 8, b"../../", b"\x1f\x8b"])
    ),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=12)),
    st.tuples(st.just("drop"), st.floats(0, 1), st.integers(1, 40)),
    st.tuples(st.just("repeat"), st.floats(0, 1), st.integers(1, 600)),
)


def damaged(data: bytes, damages: list[tuple[str, float, Any]], near: float) -> bytes:
    """The bytes after each of the damages, at a place that is a share of the first `near` of them."""
    for kind, share, what in damages:
        at = int(share * near * (len(data) - 1)) if data else 0
        match kind:
            case "flip" if data:
                data = data[:at] + bytes([data[at] ^ (1 << what)]) + data[at + 1 :]
            case "cut":
                data = data[:at]
            case "put":
                data = data[:at] + what + data[at + len(what) :]
            case "insert":
                data = data[:at] + what + data[at:]
            case "drop":
                data = data[:at] + data[at + what :]
            case "repeat":
                data = data[: at + what] + data[at:]
    return data


def repaired(form: str, data: bytes) -> bytes:
    """The checksums set right again, so that what they would catch goes further."""
    if form.startswith("images PNG"):
        out, at = data[:8], 8
        while at + 8 <= len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            body = data[at + 4 : at + 8 + size]
            out, at = out + data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)), at + 12 + size
        return out
    if form in ("tar plain", "tar gnu"):
        blocks = [data[i : i + 512] for i in range(0, len(data), 512)]
        for i, block in enumerate(blocks):
            if block[257:262] == b"ustar" and len(block) == 512:
                total = 256 + sum(block[:148]) + sum(block[156:])
                blocks[i] = block[:148] + b"%06o\0 " % total + block[156:]
        return b"".join(blocks)
    return data


@pytest.mark.parametrize("form", FORMS)
@given(
    damages=st.lists(DAMAGES, min_size=1, max_size=4),
    near=st.sampled_from([1.0, 0.2, 0.02]),
    repair=st.booleans(),
    inside=st.booleans(),
)
def test_damaged_files(
    form: str, damages: list[tuple[str, float, Any]], near: float, repair: bool, inside: bool
) -> None:
    files, victim = valid(form)
    data = files[victim]
    unpack, pack = gzip.decompress, gzip.compress
    if inside and data.startswith(b"\x1f\x8b"):  # what is compressed is damaged, not the compression
        data = pack(damaged(unpack(data), damages, near))
    else:
        data = damaged(data, damages, near)
    with written(files | {victim: repaired(form, data) if repair else data}) as folder:
        attempt(reader(form, folder))


@given(form=st.sampled_from(FORMS), other=st.sampled_from(FORMS))
def test_one_format_in_the_place_of_another(form: str, other: str) -> None:
    (files, victim), (others, content) = valid(form), valid(other)
    with written(files | {victim: others[content]}) as folder:
        attempt(reader(form, folder))


# Members of archives and entries of folders

PARTS = (
    "train",
    "test",
    "a",
    "b",
    "top",
    "val",
    ".hidden",
    "..",
    "C:",
    "x.png",
    "0.png",
    "n\n\udce9",
    "é",
    "1.PNG",
    "r.txt",
)
NAMES = st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map("/".join)
KINDS = st.sampled_from(
    ["image", "image", "image", "text", "empty", "folder", "symbolic", "hard", "device", "huge", "zip"]
)


@given(members=st.lists(st.tuples(NAMES, KINDS, NAMES), max_size=12), good=st.booleans())
def test_members_of_any_name_and_kind(members: list[tuple[str, str, str]], good: bool) -> None:
    content = {"image": encoded("PNG"), "text": b"text", "zip": zipped()}
    tar, zip_ = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as a, zipfile.ZipFile(zip_, "w") as b, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members of one name
        for name, data in image_tree().items() if good else ():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            a.addfile(member, io.BytesIO(data))
            b.writestr(name, data)
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            types = {
                "folder": tarfile.DIRTYPE,
                "symbolic": tarfile.SYMTYPE,
                "hard": tarfile.LNKTYPE,
                "device": tarfile.CHRTYPE,
            }
            member.type, member.linkname = types.get(kind, tarfile.REGTYPE), target
            data = content.get(kind, b"")
            member.size = len(data)
            a.addfile(member, io.BytesIO(data))
            info = zipfile.ZipInfo(name.encode("utf-8", "backslashreplace").decode())
            info.create_system, info.external_attr = 3, {"symbolic": 0o120777, "device": 0o020600}.get(kind, 0) << 16
            b.writestr(info, target.encode("utf-8", "surrogateescape") if kind == "symbolic" else data)
    with written({"a.tar": tar.getvalue(), "a.zip": zip_.getvalue()}) as folder:
        for name in ("a.tar", "a.zip"):
            attempt(partial(load, folder / name))


SAFE = st.lists(st.sampled_from([p for p in PARTS if p not in ("..", "C:")]), min_size=1, max_size=4).map("/".join)


@given(entries=st.lists(st.tuples(SAFE, KINDS, NAMES), max_size=12), good=st.booleans())
def test_entries_of_a_folder_are_read_or_counted(entries: list[tuple[str, str, str]], good: bool) -> None:
    content = {"image": encoded("PNG"), "text": b"text", "zip": zipped()}
    linked = False
    with written({f"d/{name}": data for name, data in (image_tree() if good else {}).items()}) as folder:
        top = folder / "d"
        top.mkdir(exist_ok=True)
        for name, kind, target in entries:
            place = top / name
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                if kind == "folder":
                    place.mkdir()
                elif kind == "symbolic":
                    place.symlink_to(target)
                    linked = True
                elif kind == "device":
                    os.mkfifo(place)
                else:
                    with place.open("xb") as new:  # never through a pipe or a link that is there already
                        new.write(content.get(kind, b""))
            except OSError:  # there is something already
                continue
        data = attempt(partial(load, top))
        if data is None or linked:
            return
        there = [path for path in top.rglob("*") if not path.is_dir()]
        counted = [int(n) for text in data.notes for n in re.findall(r"^(\d+) (?:passed over|not read)", text)]
        named_like = [
            int(n)
            for text in data.notes
            for n in re.findall(r"(\d+) folders? (?:named like an|without any) image", text)
        ]
        samples = len(data.train) + len(data.test) + (0 if data.valid is None else len(data.valid))
        assert len(there) == samples + sum(counted) - sum(named_like)


@given(
    shape=st.lists(st.integers(-3, 2**63), max_size=4),
    kind=st.sampled_from(["|u1", "<f8", ">f4", "|O", "<U9", "|V8", "<c16", "|b1", "<M8[s]", "<f2", "zz"]),
    content=st.binary(max_size=200),
    fortran=st.booleans(),
)
def test_headers_of_arrays(shape: list[int], kind: str, content: bytes, fortran: bool) -> None:
    text = f"{{'descr': {kind!r}, 'fortran_order': {fortran}, 'shape': {tuple(shape)}, }}".ljust(117).encode() + b"\n"
    member = b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + content
    buffer = io.BytesIO(npz())
    with zipfile.ZipFile(buffer) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for victim in ("x_train.npy", "y_test.npy", "classes.npy"):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, data in (files | {victim: member}).items():
                archive.writestr(name, data)
        with written({"a.npz": out.getvalue()}) as folder:
            attempt(partial(load, folder / "a.npz"))
