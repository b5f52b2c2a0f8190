"""What a folder or an archive holds: files, folders, and what cannot be read, with links followed."""

import os
import stat
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

MAX_BYTES = 1 << 30
"""Bytes that a single file may unpack to; every file of a published dataset, and every image, is smaller."""

_MAX_FOLDERS = 200_000  # in one dataset: links among folders can repeat without end

Kind = tuple[str, str]
"""A kind of thing that was not read, as a noun: the text before and after its plural `s`."""

BROKEN: Kind = ("broken link", "")
LOOP: Kind = ("link", " back to a folder above")
NOWHERE: Kind = ("link", " to nothing inside the archive")
LOCKED: Kind = ("unreadable folder", "")
UNREADABLE: Kind = ("unreadable file", "")
SPECIAL: Kind = ("device", " or pipe")


@dataclass(frozen=True, eq=False)
class Tree:
    """What a folder or an archive holds, with links followed."""

    files: Mapping[PurePosixPath, Any]
    """Plain files by name, in the order in which they are best read."""
    folders: frozenset[PurePosixPath]
    """Names of the folders."""
    unreadable: Sequence[tuple[PurePosixPath, Kind]]
    """Name and kind of everything that cannot be read."""
    read: Callable[[PurePosixPath], bytes]
    """From the name of a file to its bytes. Raises `EquipoiseError` if the file is damaged, locked or larger than
    `MAX_BYTES`."""
    identity: Callable[[PurePosixPath], Hashable]
    """From the name of a file to a key that all names of the same file share."""


@dataclass(frozen=True)
class Entry:
    """An entry of a folder: a file or folder, by the object that reads or lists it, or the kind if it is unreadable."""

    name: str
    file: Any = None
    folder: Any = None
    identity: Hashable = None
    unreadable: Kind | None = None


def walk(root: Any, identity: Hashable, scan: Callable[[Any], Iterable[Entry]]) -> Tree:
    """List everything below `root`; a folder that is reached again from inside itself is not entered."""
    files: dict[PurePosixPath, Any] = {}
    folders: set[PurePosixPath] = set()
    unreadable: list[tuple[PurePosixPath, Kind]] = []
    pending = [(PurePosixPath(), root, frozenset({identity}))]
    while pending:
        name, folder, ancestors = pending.pop()
        try:
            entries = list(scan(folder))
        except OSError:
            if not name.parts:
                raise
            unreadable.append((name, LOCKED))
            continue
        for entry in entries:
            path = name / entry.name
            if entry.unreadable is not None:
                unreadable.append((path, entry.unreadable))
            elif entry.folder is None:
                files[path] = entry.file
            elif entry.identity in ancestors:
                unreadable.append((path, LOOP))
            else:
                folders.add(path)
                pending.append((path, entry.folder, ancestors | {entry.identity}))
        if len(folders) > _MAX_FOLDERS:
            raise ValueError(f"more than {_MAX_FOLDERS:,} folders, as when links among them repeat")
    return Tree(files, frozenset(folders), unreadable, files.__getitem__, files.__getitem__)


def folder_tree(path: Path) -> Tree:
    """List a folder on disk."""
    status = path.stat()
    tree = walk(path, (status.st_dev, status.st_ino), _scan)
    return replace(
        tree,
        files=dict(sorted(tree.files.items())),
        read=lambda name: tree.files[name][0].read_bytes(),
        identity=lambda name: tree.files[name][1],
    )


def _scan(folder: Path) -> Iterator[Entry]:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            try:
                status = path.stat()
            except OSError:
                yield Entry(entry.name, unreadable=BROKEN if entry.is_symlink() else UNREADABLE)
                continue
            identity = status.st_dev, status.st_ino
            if stat.S_ISDIR(status.st_mode):
                yield Entry(entry.name, folder=path, identity=identity)
            elif stat.S_ISREG(status.st_mode):
                yield Entry(entry.name, file=(path, identity))
            else:
                yield Entry(entry.name, unreadable=SPECIAL)
