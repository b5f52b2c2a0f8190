"""Reading and writing files: the cache folder, atomic writes, and messages for what goes wrong."""

import errno
import gzip
import json
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from equipoise.core.errors import EquipoiseError, require


def cache_folder() -> Path | None:
    """Return the folder that keeps downloads, decoded archives and compiled kernels between runs.

    It is `$EQUIPOISE_CACHE`, else `equipoise` in `$XDG_CACHE_HOME` or `~/.cache`; None for a user without a home
    folder. It need not exist and may be read-only: writing may raise `OSError`.
    """
    if cache := os.environ.get("EQUIPOISE_CACHE"):
        return Path(cache)
    if users := os.environ.get("XDG_CACHE_HOME"):
        return Path(users, "equipoise")
    try:
        return Path.home() / ".cache" / "equipoise"
    except RuntimeError:  # no $HOME, and a user that the system does not know
        return None


_GZIP = b"\x1f\x8b"  # how such a file begins


@contextmanager
def ensured_folder(folder: Path) -> Iterator[None]:
    """Create `folder` and its parents for the context; those created and still empty at the end are removed again.

    Raises `OSError` if it cannot be created.
    """
    created = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]  # innermost first
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in created:
            with suppress(OSError):  # it is not empty, or was never created
                path.rmdir()


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file. Raises `OSError` if it cannot be read, also for a device or a pipe, which may never
    end.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # for a folder the system has its own message
        raise OSError(errno.EINVAL, "it is not a plain file", os.fspath(path))
    return Path(path).read_bytes()


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the data in a JSON file, which may be compressed by gzip. Raises `OSError` as `read_bytes`, and
    `ValueError` for other content, also if nested too deeply.
    """
    content = read_bytes(path)
    try:
        return json.loads(gzip.decompress(content) if content.startswith(_GZIP) else content)
    except (RecursionError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(str(error)) from error


def printable(text: object) -> str:
    """Return the text on one line: control characters and bytes that are not UTF-8 are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def reason(error: OSError) -> str:
    """Return why the system refused, without a full stop, such as `No space left on device`."""
    return error.strerror or str(error) or type(error).__name__


def advice(error: OSError, option: str = "--out") -> str:
    """Return the remedy for a failed write: free space if the disk is full, or another place given by `option`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"free some space or choose another place with {option}" if full else f"choose another place with {option}"


def write_atomically(path: str | os.PathLike[str], content: bytes | str, *, durable: bool = True) -> Path:
    """Write `content` to `path`, which holds either its old content or all of the new at any time, also after a crash.

    Text is written in UTF-8; bytes of a file name in another encoding are escaped. Without `durable` the guarantee
    covers a killed process but not a power failure, and writing is faster. Raises `EquipoiseError` if the file cannot
    be written (no space, no permission); nothing is left behind then.
    """
    path = Path(path)
    content = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    target = path.resolve()  # a link stays, and the file it points to changes
    require(
        not os.path.exists(target) or os.path.isfile(target) or os.path.isdir(target),
        f"cannot write {path}: it is not a plain file; choose another place with --out.",
    )
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with ensured_folder(target.parent):
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    if durable:
                        file.flush()
                        os.fsync(file.fileno())
                temporary.replace(target)
            finally:
                with suppress(OSError):  # after success it is gone already
                    temporary.unlink()
    except OSError as error:
        raise EquipoiseError(f"cannot write {path}: {reason(error)}; {advice(error)}.") from error
    return path


def write_once(path: str | os.PathLike[str], content: bytes, overwrite: bool = False, option: str = "--out") -> Path:
    """Write `content` to `path` unless it is there already. Raises `EquipoiseError` if other content is there and
    `overwrite` is False; `option` names the command-line option for the path.
    """
    path = Path(path)
    try:
        old = read_bytes(path) if os.path.lexists(path) else None
    except OSError as error:
        raise EquipoiseError(f"cannot read {path}: {reason(error)}; choose another place with {option}.") from error
    if old == content:
        return path
    require(
        overwrite or old is None,
        f"{path} exists already, with other content: add --overwrite to replace it, or choose another place with "
        f"{option}.",
    )
    return write_atomically(path, content)


def require_writable(folder: Path, option: str = "--out") -> None:
    """Raise `EquipoiseError` unless files can be written into `folder`, which need not exist: before hours of work, not
    after. Nothing is left behind. `option` names the command-line option for the folder.
    """
    try:
        with ensured_folder(folder), TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EquipoiseError(f"cannot write into {folder}: {reason(error)}; {advice(error, option)}.") from error
