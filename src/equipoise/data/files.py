"""Reading files that are not trusted: archives without unpacking them, gzip, and pickles without running them."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import pickletools
import re
import stat
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, cast

import numpy as np

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import printable

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".zip")
"""How the names of archives that `opened` reads end."""

MOST = 1 << 30
"""Bytes that a single file may unpack to; every file of a published dataset, and every image, is smaller."""

_GZIP, _XZ, _BZIP2 = b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh"
_DEEPEST = 256  # folders inside one another, in an archive
_FOLDERS = 200_000  # visited in one dataset: links among folders can repeat without end
_HOPS = 40  # links to links, as Linux allows

Wanted = Callable[[PurePosixPath], bool]
Kind = tuple[str, str]
"""A kind of thing that was not read, as a noun: what stands before and after its plural `s`."""

BROKEN: Kind = ("broken link", "")
LOOP: Kind = ("link", " back to a folder above")
NOWHERE: Kind = ("link", " to nothing inside the archive")
LOCKED: Kind = ("unreadable folder", "")
_UNREADABLE: Kind = ("unreadable file", "")
_SPECIAL: Kind = ("device", " or pipe")
_REPLACED: Kind = ("member", " replaced by a later one of the same name")
_TAIL: Kind = ("part", " after the end of the archive")


def reason(error: Exception) -> str:
    """Return the first line of what an exception says, as part of a sentence."""
    first = str(error).split("\n", 1)[0].rstrip(" .,:") or type(error).__name__
    return printable(re.sub(r" at 0x[0-9a-fA-F]+", "", first)[:200])


def is_archive(path: Path) -> bool:
    """Whether the name of `path` is that of an archive."""
    return path.name.lower().endswith(ARCHIVES)


def require_memory(size: int, what: str) -> None:
    """Raise `EquipoiseError` if `size` bytes are more than the memory of this machine."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # the system does not tell
        return
    require(
        size <= memory,
        f"{what} takes {size / 2**30:,.1f} GiB, more than the {memory / 2**30:,.1f} GiB of memory of this machine.",
    )


def content(path: Path) -> bytes:
    """Return the bytes of a file, decompressed if it is gzip.

    Raises `EquipoiseError` if it is unreadable, truncated, no plain file, or unpacks to more than `MOST` bytes.
    """
    with _guarded(path, "truncated or damaged"):
        _require_plain(path)
        with path.open("rb") as file:
            packed = file.read(len(_GZIP)) == _GZIP
            file.seek(0)
            stream, chunks, size = gzip.GzipFile(fileobj=file) if packed else file, [], 0
            while chunk := stream.read(1 << 20):
                chunks.append(chunk)
                size += len(chunk)
                require(size <= MOST, f"{path} unpacks to more than {MOST:,} bytes; it is refused.")
            return b"".join(chunks)


@dataclass(frozen=True, eq=False)
class Tree:
    """What a folder or an archive holds, with links followed."""

    files: Mapping[PurePosixPath, Any]
    """Plain files by name, in the order in which they are best read."""
    folders: frozenset[PurePosixPath]
    """Names of the folders."""
    lost: Sequence[tuple[PurePosixPath, Kind]]
    """Name and kind of everything that cannot be read."""
    read: Callable[[PurePosixPath], bytes]
    """From the name of a file to its bytes. Raises `EquipoiseError` if it is damaged, locked or larger than `MOST`."""
    identity: Callable[[PurePosixPath], Hashable]
    """From the name of a file to what is the same for all names of that file."""


@contextmanager
def opened(path: Path) -> Iterator[Tree]:
    """List a folder or an archive, whose files can be read while the context lasts; nothing is written to disk.

    Links are followed: on disk wherever they point, in an archive to what it holds. Raises `EquipoiseError` if any
    member's path is absolute or climbs out with `..`, or if the archive is truncated, damaged or no archive at all.
    """
    fault = "no usable folder" if path.is_dir() else "truncated, damaged or not an archive"
    with ExitStack() as stack:
        with _guarded(path, fault):
            if path.is_dir():
                tree = _disk(path)
            else:
                _require_plain(path)
                tree = (_zip if path.name.lower().endswith(".zip") else _tar)(path, stack)

        def read(name: PurePosixPath) -> bytes:
            with _guarded(path / name if path.is_dir() else path, fault):
                return tree.read(name)

        yield replace(tree, read=read)


def members(path: Path, wanted: Wanted) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Names and bytes of the files that are `wanted` in a folder or an archive. Raises `EquipoiseError` as `opened`."""
    with opened(path) as tree:
        for name in tree.files:
            if wanted(name):
                yield name, tree.read(name)


@contextmanager
def _guarded(path: Path, fault: str) -> Iterator[None]:
    """Turn whatever reading a damaged file can raise into one sentence."""
    try:
        yield
    except EquipoiseError:
        raise
    except Exception as error:
        where = printable(path)
        if isinstance(error, OSError) and error.strerror:
            raise EquipoiseError(f"cannot read {where}: {error.strerror}.") from error
        raise EquipoiseError(f"cannot read {where}: it is {fault} ({reason(error)}); get it again.") from error


def _require_plain(path: Path) -> None:
    require(
        stat.S_ISREG(path.stat().st_mode),  # opening a pipe would wait for ever
        f"cannot read {printable(path)}: it is not a plain file.",
    )


@dataclass(frozen=True)
class _Child:
    """An entry of a folder: a file or a folder, by what reads or lists it, or else the kind of what is lost."""

    name: str
    file: Any = None
    folder: Any = None
    identity: Hashable = None
    lost: Kind | None = None


def _walk(root: Any, identity: Hashable, scan: Callable[[Any], Iterable[_Child]]) -> Tree:
    """List everything below `root`; a folder that is reached again from inside itself is not entered."""
    files: dict[PurePosixPath, Any] = {}
    folders: set[PurePosixPath] = set()
    lost: list[tuple[PurePosixPath, Kind]] = []
    pending = [(PurePosixPath(), root, frozenset({identity}))]
    while pending:
        name, folder, above = pending.pop()
        try:
            children = list(scan(folder))
        except OSError:
            if not name.parts:
                raise
            lost.append((name, LOCKED))
            continue
        for child in children:
            below = name / child.name
            if child.lost is not None:
                lost.append((below, child.lost))
            elif child.folder is None:
                files[below] = child.file
            elif child.identity in above:
                lost.append((below, LOOP))
            else:
                folders.add(below)
                pending.append((below, child.folder, above | {child.identity}))
        if len(folders) > _FOLDERS:
            raise ValueError(f"more than {_FOLDERS:,} folders, as when links among them repeat")
    return Tree(files, frozenset(folders), lost, files.__getitem__, files.__getitem__)


def _disk(path: Path) -> Tree:
    status = path.stat()
    tree = _walk(path, (status.st_dev, status.st_ino), _scan_disk)
    return replace(
        tree,
        files=dict(sorted(tree.files.items())),
        read=lambda name: tree.files[name][0].read_bytes(),
        identity=lambda name: tree.files[name][1],
    )


def _scan_disk(folder: Path) -> Iterator[_Child]:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            try:
                status = path.stat()
            except OSError:
                yield _Child(entry.name, lost=BROKEN if entry.is_symlink() else _UNREADABLE)
                continue
            identity = status.st_dev, status.st_ino
            if stat.S_ISDIR(status.st_mode):
                yield _Child(entry.name, folder=path, identity=identity)
            elif stat.S_ISREG(status.st_mode):
                yield _Child(entry.name, file=(path, identity))
            else:
                yield _Child(entry.name, lost=_SPECIAL)


@dataclass(eq=False)
class _Index:
    """The members of an archive by name, and the links among them."""

    path: Path
    files: dict[PurePosixPath, Any] = field(default_factory=dict)
    links: dict[PurePosixPath, PurePosixPath] = field(default_factory=dict)
    lost: list[tuple[PurePosixPath, Kind]] = field(default_factory=list)
    children: dict[PurePosixPath, set[str]] = field(default_factory=lambda: defaultdict(set))

    def name(self, text: str) -> PurePosixPath:
        """The path of a member. Raises `EquipoiseError` if it leads outside."""
        windows = PureWindowsPath(text)  # knows both separators and drive letters
        require(
            not (windows.anchor or ".." in windows.parts),
            f"{printable(self.path)} holds the path {printable(text)!r}, which leads outside the archive; it is "
            "refused.",
        )
        name = PurePosixPath(text)
        require(
            len(name.parts) <= _DEEPEST,
            f"{printable(self.path)} holds a path of more than {_DEEPEST} folders; it is refused.",
        )
        return name

    def folder(self, text: str) -> None:
        """Add a folder."""
        name = self.name(text)
        self._place(name)
        self.children[name].update()

    def file(self, text: str, member: Any) -> None:
        """Add a file."""
        name = self.name(text)
        self._place(name)
        self._make_room(name)
        self.files[name] = member

    def link(self, text: str, target: str, *, hard: bool = False) -> None:
        """Add a link, whose target is relative to its folder, or if it is hard to the archive."""
        name = self.name(text)
        self._place(name)
        self._make_room(name)
        absolute = target.startswith("/")
        self.links[name] = PurePosixPath("..") if absolute else (PurePosixPath() if hard else name.parent) / target

    def other(self, text: str) -> None:
        """Add what is neither file nor folder nor link, and cannot be read."""
        self.lost.append((self.name(text), _SPECIAL))

    def _place(self, name: PurePosixPath) -> None:
        for child in (name, *name.parents)[:-1]:
            self.children[child.parent].add(child.name)

    def _make_room(self, name: PurePosixPath) -> None:
        if name in self.files or name in self.links:
            self.files.pop(name, None)
            self.links.pop(name, None)
            self.lost.append((name, _REPLACED))

    def real(self, name: PurePosixPath) -> PurePosixPath | None:
        """The member that a name leads to through links; None if it leads out of the archive or in circles."""
        real, pending, hops = PurePosixPath(), list(reversed(name.parts)), 0
        while pending:
            part = pending.pop()
            link = self.links.get(real / part)
            if link is not None:
                real, hops = PurePosixPath(), hops + 1
                pending.extend(reversed(link.parts))
            elif part != "..":
                real /= part
            elif real.parts:
                real = real.parent
            else:
                return None
            if hops > _HOPS or len(pending) > _DEEPEST:
                return None
        return real

    def scan(self, folder: PurePosixPath) -> Iterator[_Child]:
        """What is in a folder."""
        for child in sorted(self.children[folder]):
            name = folder / child
            real = self.real(name) if name in self.links else name
            if real in self.files:
                yield _Child(child, file=self.files[real])
            if real in self.children:
                yield _Child(child, folder=real, identity=real)
            elif real not in self.files:
                yield _Child(child, lost=NOWHERE)

    def tree(
        self, order: Callable[[tuple[PurePosixPath, Any]], Any], read: Callable[[PurePosixPath, Any], bytes]
    ) -> Tree:
        """Everything, with links followed, the files in an `order` and each of at most `MOST` bytes."""
        tree = _walk(PurePosixPath(), PurePosixPath(), self.scan)
        return Tree(
            dict(sorted(tree.files.items(), key=order)),
            tree.folders,
            [*tree.lost, *self.lost],
            lambda name: read(name, tree.files[name]),
            lambda name: id(tree.files[name]),
        )

    def require_size(self, name: PurePosixPath, size: int) -> None:
        """Raise `EquipoiseError` for a file that declares more than `MOST` bytes."""
        require(
            size <= MOST,
            f"{printable(self.path / name)} declares {size:,} bytes; more than {MOST:,} are refused.",
        )


class _Capped:
    """A stream of which no single read is longer than `MOST`: a header of a tar can ask for any number of bytes."""

    def __init__(self, stream: Any) -> None:
        self.seek, self.tell, self._read = stream.seek, stream.tell, stream.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MOST:
            raise ValueError(f"a header declares {size:,} bytes")
        return self._read(size)


def _tar(path: Path, stack: ExitStack) -> Tree:
    file = stack.enter_context(path.open("rb"))
    start = file.read(6)
    file.seek(0)
    stream: Any = file
    for magic, unpack in ((_GZIP, gzip.open), (_XZ, lzma.open), (_BZIP2, bz2.open)):
        if start.startswith(magic):
            stream = stack.enter_context(unpack(file))
    tar = stack.enter_context(tarfile.TarFile(fileobj=cast(Any, _Capped(stream))))
    index = _Index(path)
    for member in tar:
        if member.isdir():
            index.folder(member.name)
        elif member.issym() or member.islnk():
            index.link(member.name, member.linkname, hard=member.islnk())
        elif member.isreg():
            index.file(member.name, member)
        else:
            index.other(member.name)
    stream.seek(tar.offset)  # tarfile takes a cut between two members for the end; the real end is zeros
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise EOFError("the end of the archive is missing")
    tail = False
    while chunk := stream.read(1 << 20):  # to the end, where compression keeps its checksum
        tail = tail or chunk.count(0) != len(chunk)
    if tail:
        index.lost.append((PurePosixPath(path.name), _TAIL))
    last: list[Any] = [None, b""]

    def read(name: PurePosixPath, member: tarfile.TarInfo) -> bytes:
        index.require_size(name, member.size)
        if last[0] is not member:  # a hard link comes right after its file: going back would unpack all again
            last[:] = member, cast(IO[bytes], tar.extractfile(member)).read()
        return last[1]

    return index.tree(lambda item: (item[1].offset_data, item[0]), read)


def _zip(path: Path, stack: ExitStack) -> Tree:
    archive = stack.enter_context(zipfile.ZipFile(path))
    index = _Index(path)

    def read(name: PurePosixPath, member: zipfile.ZipInfo) -> bytes:
        require(
            not member.flag_bits & 1,
            f"cannot read {printable(path)}: it is locked with a password; unpack it, and give the folder.",
        )
        index.require_size(name, member.file_size)
        return archive.read(member)

    for member in archive.infolist():
        text = member.filename.replace("\\", "/")  # some programs for Windows write their own separator
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.is_dir() or text.endswith("/"):
            index.folder(text)
        elif kind == stat.S_IFLNK:
            index.require_size(index.name(text), member.file_size)
            index.link(text, read(index.name(text), member).decode("utf-8", "surrogateescape"))
        elif kind in (0, stat.S_IFREG):
            index.file(text, member)
        else:
            index.other(text)
    return index.tree(lambda item: item[0], read)


_PLAIN = re.compile("b1|[iuf][1248]")


class _DType:
    """Stands in for `numpy.dtype` in a pickle: plain numbers only."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]

    def real(self) -> np.dtype[Any]:
        require(bool(_PLAIN.fullmatch(self.code)), f"dtype {self.code} is not a plain number")
        return np.dtype(self.order + self.code if self.order in ("<", ">") else self.code)


class _Array:
    """Stands in for `numpy.ndarray` in a pickle, and becomes a real array in `value`."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: _DType, shape: tuple[int, ...], order: Any) -> "_Array":
        require(isinstance(raw, bytes | bytearray), "the content of an array is not bytes")
        self.value = np.frombuffer(raw, dtype.real()).reshape(shape, order=order)
        return self


class _Call:
    """Stands in for a function in a pickle, which can call it and do nothing else with it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        raise EquipoiseError("it sets the state of a function")


def _encoded(text: str, encoding: str) -> bytes:
    require(encoding == "latin1", f"it encodes text as {encoding}")
    return text.encode("latin-1")  # how protocols 0 to 2 write bytes


def _scalar(dtype: _DType, raw: bytes) -> int | float:
    return np.frombuffer(raw, dtype.real())[0].item()


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Call(_DType),
    ("numpy", "ndarray"): _Call(_Array),
    ("_codecs", "encode"): _Call(_encoded),
    ("builtins", "bytes"): _Call(lambda: b""),
    ("__builtin__", "bytes"): _Call(lambda: b""),
} | {
    (f"numpy.{core}.{module}", name): call
    for core in ("core", "_core")
    for module, name, call in (
        ("multiarray", "_reconstruct", _Call(lambda *_: _Array())),
        ("multiarray", "scalar", _Call(_scalar)),
        ("numeric", "_frombuffer", _Call(lambda *args: _Array().fill(*args))),
    )
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        require((module, name) in _ALLOWED, f"it asks for {module}.{name}, which may run code")
        return _ALLOWED[module, name]


def unpickle(data: bytes, where: str) -> dict[str, Any]:
    """Return the dictionary in a pickle of basic types and numeric arrays, of any protocol; byte keys become text.

    Nothing a pickle names is imported or called: arrays are built by stand-ins. Raises `EquipoiseError` naming `where`
    for a pickle that asks for anything else, is truncated, or is not a dictionary.
    """
    try:
        for code, value, _ in pickletools.genops(data):  # sizes that are declared are not yet allocated here
            require(not code.name.endswith("PUT") or int(value or 0) <= len(data), f"it remembers {value} things")
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        require(isinstance(found, dict), "it is not a dictionary")
        return {
            key.decode() if isinstance(key, bytes) else str(key): value.value if isinstance(value, _Array) else value
            for key, value in found.items()
        }
    except Exception as error:  # a damaged pickle can raise anything
        raise EquipoiseError(f"{where} is not a readable batch of arrays: {reason(error)}; get it again.") from error
