"""Compiles the C files of this folder for this processor on first use, and keeps the library in the cache folder.

Without a usable cache folder every process compiles its own; without a compiler the kernels that a wheel may bring
along are used, where they suit the processor.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor

from equipoise.core.errors import EquipoiseError, EquipoiseWarning, require
from equipoise.core.files import cache_folder
from equipoise.kernels.native.compiling import LEVELS, command_line, compile_kernels
from equipoise.kernels.native.threads import Kernel, run_chunks


def compiler() -> str | None:
    """Return the C compiler: `$CC`, else `cc`. None if it is not installed, or if `EQUIPOISE_NATIVE=0` forbids its use.

    Raises `EquipoiseError` if `$CC` is not a command line.
    """
    command = os.environ.get("CC", "").strip() or "cc"
    if _is_off():
        return None
    try:
        return command if _is_installed(command, os.environ.get("PATH")) else None
    except ValueError as error:
        raise EquipoiseError(f"CC={command} is not a command ({error}): expected a C compiler, such as gcc.") from error


@cache  # every training step asks several times, and a search of all folders takes a tenth of a millisecond
def _is_installed(command: str, path: str | None) -> bool:
    return shutil.which(shlex.split(command)[0], path=path) is not None


def library() -> ctypes.CDLL | None:
    """Return the kernels: compiled for this processor, or those of the wheel. None without either, if
    `EQUIPOISE_NATIVE=0` forbids it, and, with a warning, if compilation fails.
    """
    if _is_off():
        return None
    command = compiler()
    return _ahead_of_time() if command is None else _compiled(command)


def way() -> str:
    """Return which kernels compute small networks, in words; empty if PyTorch does."""
    kernels = library()
    if kernels is None:
        return ""
    origin = f"compiled by {compiler()}" if compiler() else "compiled ahead of time"
    return f"{origin}, {kernels.simd_width()} samples side by side"


def _is_off() -> bool:
    return os.environ.get("EQUIPOISE_NATIVE") == "0"


@cache
def _ahead_of_time() -> ctypes.CDLL | None:
    """The fastest kernels of the wheel that the processor can run."""
    processor = frozenset(_instruction_set().split())
    for level, flags in LEVELS.items():
        with as_file(files("equipoise.kernels.native") / "prebuilt" / f"{level}.so") as path:
            if flags <= processor and path.is_file():
                return _declared(ctypes.CDLL(str(path)))
    return None


def _declared(kernels: ctypes.CDLL) -> ctypes.CDLL:
    kernels.trace_size.restype = kernels.inputs_size.restype = ctypes.c_size_t
    return kernels


@cache
def _compiled(cc: str) -> ctypes.CDLL | None:
    folder = files("equipoise.kernels.native")
    sources = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.endswith((".c", ".h"))}
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"
    command = command_line(cc, native)
    key = [*command, _instruction_set(), repr(sorted(sources.items()))]
    name = f"kernels-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
    try:
        kernels = _load_cached(command, sources, name) or _load_temporary(command, sources, name)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        warnings.warn(
            f"{cc} did not compile the kernels ({reason[0] if reason else 'without a reason'}): PyTorch's are "
            "used, which are slower; EQUIPOISE_NATIVE=0 chooses that without a warning.",
            EquipoiseWarning,
            stacklevel=2,
        )
        return None
    return _declared(kernels)


def _load_cached(command: list[str], sources: dict[str, bytes], name: str) -> ctypes.CDLL | None:
    """The kernels in the cache folder, compiled if they are missing or damaged; None if the folder cannot be used."""
    cache = cache_folder()
    if cache is None:
        return None
    path = cache / "native" / name
    with suppress(OSError):  # missing or damaged
        return ctypes.CDLL(str(path))
    try:
        compile_kernels(command, sources, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError):  # not writable, full, or mounted without execute permission
        return None


def _load_temporary(command: list[str], sources: dict[str, bytes], name: str) -> ctypes.CDLL:
    """The kernels compiled for this process alone; a loaded library outlives its file."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        compile_kernels(command, sources, Path(folder, name))
        return ctypes.CDLL(str(Path(folder, name)))


def _instruction_set() -> str:
    """The processor's instruction set: several machines may share the cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def run_threaded(samples: int, block: int, kernel: Kernel, most: int | None = None) -> None:
    """Call `kernel(first, count)` on all samples, in chunks of multiples of `block`, at most `most` samples each, on as
    many threads as PyTorch uses (`equipoise.kernels.native.threads`). Their number does not change the results.
    Raises `EquipoiseError` if a call returns that it had no memory.
    """
    had_memory = run_chunks(samples, block, kernel, torch.get_num_threads(), most)
    require(had_memory, f"no memory is left for the work on {samples} samples: attack fewer at a time.")


def address(tensor: Tensor | None, row: int = 0) -> ctypes.c_void_p | None:
    """Return the memory address of a row of a contiguous tensor."""
    if tensor is None:
        return None
    return ctypes.c_void_p(tensor.data_ptr() + row * tensor.stride(0) * tensor.element_size())
