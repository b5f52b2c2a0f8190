"""The disk: where files are kept between runs, and what to do when a place cannot be written."""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from equipoise.core.errors import EquipoiseError, require


def cache_folder() -> Path | None:
    """Return the folder that keeps downloads, decoded archives and compiled kernels from one run to the next.

    It is `$EQUIPOISE_CACHE`, or else `equipoise` in `$XDG_CACHE_HOME` or `~/.cache`; None for a user without a home
    folder. The folder need not exist, and it may be one that can only be read: a writer has to expect an `OSError`.
    """
    if chosen := os.environ.get("EQUIPOISE_CACHE"):
        return Path(chosen)
    if users := os.environ.get("XDG_CACHE_HOME"):
        return Path(users, "equipoise")
    try:
        return Path.home() / ".cache" / "equipoise"
    except RuntimeError:  # no $HOME, and a user that the system does not know
        return None


@contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """Within the context `folder` is there, with its parents; those that were not, and are empty at the end, go again.

    Raises `OSError` if it cannot be made.
    """
    made = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]  # the innermost first
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for place in made:
            try:
                place.rmdir()
            except OSError:  # it holds something, or was never made
                continue


def plain_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return what a file holds. Raises `OSError` if it cannot be read, also for one that may never end: a device or a
    pipe.
    """
    kind = os.stat(path).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # that of a folder, the system says itself
        raise OSError(errno.EINVAL, "it is not a plain file", os.fspath(path))
    return Path(path).read_bytes()


def plain_json(path: str | os.PathLike[str]) -> Any:
    """Return the data in a file of JSON. Raises `OSError` as `plain_bytes`, and `ValueError` if it is something else,
    also if it is nested too deeply to be read.
    """
    try:
        return json.loads(plain_bytes(path))
    except RecursionError as error:
        raise ValueError(str(error)) from error


def printable(text: object) -> str:
    """Return the text with control characters and bytes that are not UTF-8 escaped, so that it is one line."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def reason(error: OSError) -> str:
    """Return why the system refused, without a full stop, such as `No space left on device`."""
    return error.strerror or str(error) or type(error).__name__


def advice(error: OSError, option: str = "--out") -> str:
    """Return what helps against a file that could not be written: space where there is none, else another place."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"free some space or choose another place with {option}" if full else f"choose another place with {option}"


def write_atomically(path: str | os.PathLike[str], content: bytes | str, *, durable: bool = True) -> Path:
    """Write `content` to `path` so that `path` holds either its old content or all of the new, also after a crash.

    Text is written in UTF-8; the bytes of a file name in another encoding are written as escapes.
    Without `durable` that holds when a process is killed, but not when the machine loses power, and takes less time.
    Raises `EquipoiseError` if it cannot be written (no space, no permission); nothing is left behind then.
    """
    path = Path(path)
    content = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    real = path.resolve()  # a link keeps pointing to the file, which is what changes
    require(
        not os.path.exists(real) or os.path.isfile(real) or os.path.isdir(real),
        f"cannot write {path}: it is not a plain file; choose another place with --out.",
    )
    temporary = real.with_name(f".{real.name}.{os.getpid()}.tmp")
    try:
        with folder_made(real.parent):
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    if durable:
                        file.flush()
                        os.fsync(file.fileno())
                temporary.replace(real)
            finally:
                with suppress(OSError):  # after success it is gone already
                    temporary.unlink()
    except OSError as error:
        raise EquipoiseError(f"cannot write {path}: {reason(error)}; {advice(error)}.") from error
    return path


def write_once(path: str | os.PathLike[str], content: bytes, overwrite: bool = False, option: str = "--out") -> Path:
    """Write `content` to `path` unless it is there already. Raises `EquipoiseError` if other content is there and may
    not be overwritten; `option` is the one that names the place.
    """
    path = Path(path)
    try:
        there = plain_bytes(path) if os.path.lexists(path) else None
    except OSError as error:
        raise EquipoiseError(f"cannot read {path}: {reason(error)}; choose another place with {option}.") from error
    if there == content:
        return path
    require(
        overwrite or there is None,
        f"{path} exists already, with other content: add --overwrite to replace it, or choose another place with "
        f"{option}.",
    )
    return write_atomically(path, content)


def require_room(folder: Path, option: str = "--out") -> None:
    """See that files can be written into `folder`, which need not exist: better refused now than after hours of work.

    Nothing is left behind. Raises `EquipoiseError` if they cannot; `option` is the one that names the place.
    """
    try:
        with folder_made(folder), TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EquipoiseError(f"cannot write into {folder}: {reason(error)}; {advice(error, option)}.") from error
