"""Reading files that are not trusted: archives without unpacking them, gzip, and pickles without running them."""

import gzip
import io
import lzma
import pickle
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, cast

import numpy as np

from equipoise.errors import EquipoiseError, require

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".zip")
"""How the names of archives that `members` reads end."""

_BROKEN = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError)
_GZIP = b"\x1f\x8b"

Wanted = Callable[[PurePosixPath], bool]


def reason(error: Exception) -> str:
    """The first line of what an exception says, as part of a sentence."""
    return str(error).split("\n", 1)[0].rstrip(" .,:") or type(error).__name__


def is_archive(path: Path) -> bool:
    """Whether the name of `path` is that of an archive."""
    return path.name.lower().endswith(ARCHIVES)


def content(path: Path) -> bytes:
    """The bytes of a file, decompressed if it is gzip. Raises `EquipoiseError` if it is unreadable or truncated."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data.startswith(_GZIP) else data
    except _BROKEN as error:
        raise EquipoiseError(
            f"cannot read {path}: it is truncated or damaged ({reason(error)}); get it again."
        ) from error


def members(path: Path, wanted: Wanted) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Names and bytes of the regular files that are `wanted` in a folder or an archive; nothing is written to disk.

    Links and devices inside an archive are passed over. Raises `EquipoiseError` if any member's path is absolute or
    climbs out with `..`, or if the archive is truncated, damaged, encrypted or no archive at all.
    """
    if path.is_dir():
        yield from _folder(path, wanted)
        return
    read = _zip if path.name.lower().endswith(".zip") else _tar
    try:
        yield from read(path, wanted)
    except (*_BROKEN, RuntimeError, NotImplementedError) as error:  # zipfile's words for passwords and odd compressions
        raise EquipoiseError(
            f"cannot read {path}: it is truncated, damaged or not an archive ({reason(error)}); get it again."
        ) from error


def _folder(path: Path, wanted: Wanted) -> Iterator[tuple[PurePosixPath, bytes]]:
    for file in sorted(path.rglob("*")):
        name = PurePosixPath(file.relative_to(path).as_posix())
        if wanted(name) and file.is_file():
            try:
                yield name, file.read_bytes()
            except OSError as error:
                raise EquipoiseError(f"cannot read {file}: {error.strerror}.") from error


def _tar(path: Path, wanted: Wanted) -> Iterator[tuple[PurePosixPath, bytes]]:
    with tarfile.open(path) as tar:
        for member in tar:
            name = _safe(path, member.name)
            if member.isreg() and wanted(name):
                yield name, cast(IO[bytes], tar.extractfile(member)).read()
        stream = cast(IO[bytes], tar.fileobj)
        stream.seek(tar.offset)  # tarfile takes a cut between two members for the end; the real end is zeros
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("the end of the archive is missing")
        while stream.read(1 << 20):  # to the end, where compression keeps its checksum
            pass


def _zip(path: Path, wanted: Wanted) -> Iterator[tuple[PurePosixPath, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = _safe(path, member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if not member.is_dir() and kind in (0, stat.S_IFREG) and wanted(name):
                yield name, archive.read(member)


def _safe(path: Path, name: str) -> PurePosixPath:
    windows = PureWindowsPath(name)  # knows both separators and drive letters
    require(
        not (windows.anchor or ".." in windows.parts),
        f"{path} holds the path {name!r}, which leads outside the archive; it is refused.",
    )
    return PurePosixPath(name)


class _DType:
    """Stands in for `numpy.dtype` in a pickle: plain numbers only."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]

    def real(self) -> np.dtype[Any]:
        dtype = np.dtype(self.order + self.code if self.order in "<>" else self.code)
        require(dtype.kind in "uif", f"dtype {dtype} is not a plain number")
        return dtype


class _Array:
    """Stands in for `numpy.ndarray` in a pickle, and becomes a real array in `value`."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        require(isinstance(raw, bytes), "the content of an array is not bytes")
        self.value = np.frombuffer(raw, dtype.real()).reshape(shape, order="F" if fortran else "C")


def _new_array(*_: object) -> _Array:
    return _Array()


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _new_array,
    ("numpy._core.multiarray", "_reconstruct"): _new_array,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        require((module, name) in _ALLOWED, f"it asks for {module}.{name}, which may run code")
        return _ALLOWED[module, name]


def unpickle(data: bytes, where: str) -> dict[str, Any]:
    """The dictionary in a pickle of basic types and numeric arrays, the only kind that is read; byte keys become text.

    Nothing a pickle names is imported or called: arrays are built by stand-ins. Raises `EquipoiseError` naming `where`
    for a pickle that asks for anything else, is truncated, or is not a dictionary.
    """
    try:
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        require(isinstance(found, dict), "it is not a dictionary")
        return {
            key.decode() if isinstance(key, bytes) else str(key): value.value if isinstance(value, _Array) else value
            for key, value in found.items()
        }
    except Exception as error:  # a damaged pickle can raise anything
        raise EquipoiseError(f"{where} is not a readable batch of arrays: {reason(error)}; get it again.") from error
