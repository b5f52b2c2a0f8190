"""Tar and zip archives that are not trusted, listed and read without unpacking them to disk."""

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, cast

from equipoise.core.errors import require
from equipoise.core.files import printable
from equipoise.data.trees import MAX_BYTES, NOWHERE, SPECIAL, Entry, Kind, Tree, walk

GZIP = b"\x1f\x8b"
"""The first bytes of a gzip file."""
_XZ, _BZIP2 = b"\xfd7zXZ\0", b"BZh"
_MAX_DEPTH = 256  # folders inside one another
_MAX_LINKS = 40  # links to links, as Linux allows
_REPLACED: Kind = ("member", " replaced by a later one of the same name")
_TAIL: Kind = ("part", " after the end of the archive")


@dataclass(eq=False)
class _Index:
    """The members of an archive by name, and the links among them."""

    path: Path
    files: dict[PurePosixPath, Any] = field(default_factory=dict)
    links: dict[PurePosixPath, PurePosixPath] = field(default_factory=dict)
    unreadable: list[tuple[PurePosixPath, Kind]] = field(default_factory=list)
    children: dict[PurePosixPath, set[str]] = field(default_factory=lambda: defaultdict(set))

    def name(self, text: str) -> PurePosixPath:
        """Return the path of a member. Raises `EquipoiseError` if it leads outside the archive."""
        windows = PureWindowsPath(text)  # knows both separators and drive letters
        require(
            not (windows.anchor or ".." in windows.parts),
            f"{printable(self.path)} holds the path {printable(text)!r}, which leads outside the archive; it is "
            "refused.",
        )
        name = PurePosixPath(text)
        require(
            len(name.parts) <= _MAX_DEPTH,
            f"{printable(self.path)} holds a path of more than {_MAX_DEPTH} folders; it is refused.",
        )
        return name

    def add_folder(self, text: str) -> None:
        self.children[self._placed(text)].update()

    def add_file(self, text: str, member: Any) -> None:
        name = self._placed(text)
        self._remove(name)
        self.files[name] = member

    def add_link(self, text: str, target: str, *, hard: bool = False) -> None:
        """Add a link; the target of a hard link is relative to the archive, that of another to the link's folder."""
        name = self._placed(text)
        self._remove(name)
        absolute = target.startswith("/")
        self.links[name] = PurePosixPath("..") if absolute else (PurePosixPath() if hard else name.parent) / target

    def add_special(self, text: str) -> None:
        """Add a member that is neither file nor folder nor link."""
        self.unreadable.append((self.name(text), SPECIAL))

    def _placed(self, text: str) -> PurePosixPath:
        """The path of a member, entered into the folders that lead to it."""
        name = self.name(text)
        for child in (name, *name.parents)[:-1]:
            self.children[child.parent].add(child.name)
        return name

    def _remove(self, name: PurePosixPath) -> None:
        if name in self.files or name in self.links:
            self.files.pop(name, None)
            self.links.pop(name, None)
            self.unreadable.append((name, _REPLACED))

    def resolve(self, name: PurePosixPath) -> PurePosixPath | None:
        """Return the member that a name leads to through links; None if they leave the archive or form a circle."""
        resolved, pending, followed = PurePosixPath(), list(reversed(name.parts)), 0
        while pending:
            component = pending.pop()
            link = self.links.get(resolved / component)
            if link is not None:
                resolved, followed = PurePosixPath(), followed + 1
                pending.extend(reversed(link.parts))
            elif component != "..":
                resolved /= component
            elif resolved.parts:
                resolved = resolved.parent
            else:
                return None
            if followed > _MAX_LINKS or len(pending) > _MAX_DEPTH:
                return None
        return resolved

    def scan(self, folder: PurePosixPath) -> Iterator[Entry]:
        """Yield the entries of a folder."""
        for child in sorted(self.children[folder]):
            name = folder / child
            target = self.resolve(name) if name in self.links else name
            if target in self.files:
                yield Entry(child, file=self.files[target])
            if target in self.children:
                yield Entry(child, folder=target, identity=target)
            elif target not in self.files:
                yield Entry(child, unreadable=NOWHERE)

    def tree(
        self, order: Callable[[tuple[PurePosixPath, Any]], Any], read: Callable[[PurePosixPath, Any], bytes]
    ) -> Tree:
        """Return all members, with links followed and the files sorted by `order`."""
        tree = walk(PurePosixPath(), PurePosixPath(), self.scan)
        return Tree(
            dict(sorted(tree.files.items(), key=order)),
            tree.folders,
            [*tree.unreadable, *self.unreadable],
            lambda name: read(name, tree.files[name]),
            lambda name: id(tree.files[name]),
        )

    def require_size(self, name: PurePosixPath, size: int) -> None:
        """Raise `EquipoiseError` for a file that declares more than `MAX_BYTES` bytes."""
        require(
            size <= MAX_BYTES,
            f"{printable(self.path / name)} declares {size:,} bytes; more than {MAX_BYTES:,} are refused.",
        )


class _Capped:
    """A stream of which no single read is longer than `MAX_BYTES`: a tar header can ask for any number of bytes."""

    def __init__(self, stream: Any) -> None:
        self.seek, self.tell, self._read = stream.seek, stream.tell, stream.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_BYTES:
            raise ValueError(f"a header declares {size:,} bytes")
        return self._read(size)


def tar_tree(path: Path, stack: ExitStack) -> Tree:
    """List a tar archive, compressed or not, which stays open until `stack` is closed."""
    file = stack.enter_context(path.open("rb"))
    start = file.read(6)
    file.seek(0)
    stream: Any = file
    for magic, unpack in ((GZIP, gzip.open), (_XZ, lzma.open), (_BZIP2, bz2.open)):
        if start.startswith(magic):
            stream = stack.enter_context(unpack(file))
    tar = stack.enter_context(tarfile.TarFile(fileobj=cast(Any, _Capped(stream))))
    index = _Index(path)
    for member in tar:
        if member.isdir():
            index.add_folder(member.name)
        elif member.issym() or member.islnk():
            index.add_link(member.name, member.linkname, hard=member.islnk())
        elif member.isreg():
            index.add_file(member.name, member)
        else:
            index.add_special(member.name)
    stream.seek(tar.offset)  # tarfile takes a cut between two members for the end; the real end is zeros
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise EOFError("the end of the archive is missing")
    has_tail = False
    while chunk := stream.read(1 << 20):  # to the end, where compression keeps its checksum
        has_tail = has_tail or chunk.count(0) != len(chunk)
    if has_tail:
        index.unreadable.append((PurePosixPath(path.name), _TAIL))
    last: list[Any] = [None, b""]

    def read(name: PurePosixPath, member: tarfile.TarInfo) -> bytes:
        index.require_size(name, member.size)
        if last[0] is not member:  # a hard link comes right after its file: going back would unpack all again
            last[:] = member, cast(IO[bytes], tar.extractfile(member)).read()
        return last[1]

    return index.tree(lambda item: (item[1].offset_data, item[0]), read)


def zip_tree(path: Path, stack: ExitStack) -> Tree:
    """List a zip archive, which stays open until `stack` is closed."""
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
            index.add_folder(text)
        elif kind == stat.S_IFLNK:
            index.add_link(text, read(index.name(text), member).decode("utf-8", "surrogateescape"))
        elif kind in (0, stat.S_IFREG):
            index.add_file(text, member)
        else:
            index.add_special(text)
    return index.tree(lambda item: item[0], read)
