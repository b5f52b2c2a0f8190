"""The C files beside, compiled for this processor the first time they are needed, and kept in the cache folder.

Where there is no cache folder, or one that cannot be used, every process compiles them for itself.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from equipoise.core.errors import EquipoiseError, EquipoiseWarning, require
from equipoise.core.files import cache_folder

_OPTIONS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC")


def compiler() -> str | None:
    """The C compiler: `$CC`, else `cc`. None without one, and where `EQUIPOISE_NATIVE=0` forbids it.

    Raises `EquipoiseError` if `$CC` is not a command line.
    """
    chosen = os.environ.get("CC", "").strip() or "cc"
    if os.environ.get("EQUIPOISE_NATIVE") == "0":
        return None
    try:
        program = shlex.split(chosen)[0]
    except ValueError as error:
        raise EquipoiseError(f"CC={chosen} is not a command ({error}): expected a C compiler, such as gcc.") from error
    return chosen if shutil.which(program) else None


def library() -> ctypes.CDLL | None:
    """The kernels; None without a compiler, and, with a warning, if it does not compile them."""
    found = compiler()
    return None if found is None else _compiled(found)


@cache
def _compiled(found: str) -> ctypes.CDLL | None:
    folder = files("equipoise.kernels.native")
    sources = {one.name: one.read_bytes() for one in folder.iterdir() if one.name.endswith((".c", ".h"))}
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"
    command = [*shlex.split(found), *_OPTIONS, native]
    about = [*command, _instructions(), repr(sorted(sources.items()))]
    name = f"kernels-{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}.so"
    try:
        loaded = _kept(command, sources, name) or _for_now(command, sources, name)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        warnings.warn(
            f"{found} did not compile the kernels ({said[0] if said else 'without a reason'}): PyTorch's are "
            "used, which are slower; EQUIPOISE_NATIVE=0 chooses that without a warning.",
            EquipoiseWarning,
            stacklevel=2,
        )
        return None
    loaded.tape.restype = ctypes.c_size_t
    return loaded


def _kept(command: list[str], sources: dict[str, bytes], name: str) -> ctypes.CDLL | None:
    """The kernels in the cache folder, compiled if they are not there whole; None where no program can be kept."""
    cache = cache_folder()
    if cache is None:
        return None
    kept = cache / "native" / name
    with suppress(OSError):  # not there, or damaged
        return ctypes.CDLL(str(kept))
    try:
        _compile(command, sources, kept)
        return ctypes.CDLL(str(kept))
    except (OSError, subprocess.CalledProcessError):  # a folder that cannot be written or is full, or holds no programs
        return None


def _for_now(command: list[str], sources: dict[str, bytes], name: str) -> ctypes.CDLL:
    """The kernels compiled for this process alone; a loaded library outlives its file."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        _compile(command, sources, Path(scratch, name))
        return ctypes.CDLL(str(Path(scratch, name)))


def shared(rows: int, lanes: int, work: Callable[[int, int], int]) -> None:
    """Do `work(first, count)` on all rows, each thread a part that begins at a multiple of `lanes`; how many threads
    there are changes nothing in the results. Raises `EquipoiseError` if a part returns that it had no memory.
    """
    blocks = -(-rows // lanes)
    threads = max(min(torch.get_num_threads(), blocks), 1)
    share = -(-blocks // threads) * lanes
    parts = [(first, min(share, rows - first)) for first in range(0, rows, share)]
    if len(parts) == 1:
        failed = work(*parts[0])
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            failed = sum(pool.map(lambda part: work(*part), parts))
    require(not failed, f"no memory is left for the work on {rows} samples: attack fewer at a time.")


def place(tensor: Tensor | None, row: int = 0) -> ctypes.c_void_p | None:
    """Where a row of a contiguous tensor lies in memory."""
    return (
        None if tensor is None else ctypes.c_void_p(tensor.data_ptr() + row * tensor.stride(0) * tensor.element_size())
    )


def _compile(command: list[str], sources: dict[str, bytes], kept: Path) -> None:
    """Compile into a folder beside and move the result to its place, which never holds half of it."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        for name, source in sources.items():
            Path(scratch, name).write_bytes(source)
        names = [name for name in sorted(sources) if name.endswith(".c")]
        done = [*command, "-o", kept.name, *names, "-lm"]
        subprocess.run(done, check=True, capture_output=True, text=True, timeout=120, cwd=scratch)
        Path(scratch, kept.name).replace(kept)


def _instructions() -> str:
    """What tells one processor from another for which a program may have been compiled, on a shared disk."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:  # another system
        lines = []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
