"""Reading files that are not trusted: plain or compressed files, folders, and archives without unpacking them."""

import gzip
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import printable
from equipoise.data.archives import GZIP, tar_tree, zip_tree
from equipoise.data.trees import MAX_BYTES, Tree, folder_tree

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
"""How the names of archives that `opened` reads end."""


def reason(error: Exception) -> str:
    """Return the first line of an exception's message, as part of a sentence."""
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

    Raises `EquipoiseError` if the file is unreadable, truncated, not a plain file, or unpacks to more than `MAX_BYTES`.
    """
    with _readable(path, "truncated or damaged"):
        _require_plain(path)
        with path.open("rb") as file:
            is_gzip = file.read(len(GZIP)) == GZIP
            file.seek(0)
            stream, chunks, size = gzip.GzipFile(fileobj=file) if is_gzip else file, [], 0
            while chunk := stream.read(1 << 20):
                chunks.append(chunk)
                size += len(chunk)
                require(size <= MAX_BYTES, f"{path} unpacks to more than {MAX_BYTES:,} bytes; it is refused.")
            return b"".join(chunks)


@contextmanager
def opened(path: Path) -> Iterator[Tree]:
    """List a folder or an archive, whose files can be read inside the context; nothing is written to disk.

    Links are followed: on disk wherever they point, in an archive to its own members. Raises `EquipoiseError` if any
    member's path is absolute or climbs out with `..`, or if the archive is truncated, damaged or not an archive.
    """
    fault = "no usable folder" if path.is_dir() else "truncated, damaged or not an archive"
    with ExitStack() as stack:
        with _readable(path, fault):
            if path.is_dir():
                tree = folder_tree(path)
            else:
                _require_plain(path)
                tree = (zip_tree if path.name.lower().endswith(".zip") else tar_tree)(path, stack)

        def read(name: PurePosixPath) -> bytes:
            with _readable(path / name if path.is_dir() else path, fault):
                return tree.read(name)

        yield replace(tree, read=read)


def members(path: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Names and bytes of the files of a folder or an archive that are `wanted`. Raises `EquipoiseError` as `opened`."""
    with opened(path) as tree:
        for name in tree.files:
            if wanted(name):
                yield name, tree.read(name)


@contextmanager
def _readable(path: Path, fault: str) -> Iterator[None]:
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
