"""`chain.c`, compiled for this processor the first time it is needed, and kept in the cache folder."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from importlib.resources import files
from pathlib import Path

from equipoise.data import cache_folder
from equipoise.errors import EquipoiseWarning

_OPTIONS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC")


def compiler() -> str | None:
    """The C compiler: `$CC`, else `cc`. None without one, and where `EQUIPOISE_NATIVE=0` forbids it."""
    return None if os.environ.get("EQUIPOISE_NATIVE") == "0" else shutil.which(os.environ.get("CC", "cc"))


def library() -> ctypes.CDLL | None:
    """The kernels; None without a compiler, and, with a warning, if it does not compile them."""
    found = compiler()
    return None if found is None else _compiled(found)


@cache
def _compiled(found: str) -> ctypes.CDLL | None:
    source = files("equipoise.native").joinpath("chain.c").read_bytes()
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"
    command = [found, *_OPTIONS, native]
    digest = hashlib.sha256("\0".join([*command, _instructions()]).encode() + source).hexdigest()[:16]
    kept = cache_folder() / "native" / f"chain-{digest}.so"
    try:
        if not kept.exists():
            _compile(command, source, kept)
        loaded = ctypes.CDLL(str(kept))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"{found} did not compile the kernels for small networks ({said.strip().splitlines()[0]}): PyTorch's are "
            "used, which are slower; EQUIPOISE_NATIVE=0 chooses that without a warning.",
            EquipoiseWarning,
            stacklevel=2,
        )
        return None
    loaded.tape.restype = ctypes.c_size_t
    return loaded


def _compile(command: list[str], source: bytes, kept: Path) -> None:
    """Compile into a folder beside and move the result to its place, which never holds half of it."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        file, made = Path(scratch, "chain.c"), Path(scratch, kept.name)
        file.write_bytes(source)
        done = [*command, "-o", str(made), str(file), "-lm"]
        subprocess.run(done, check=True, capture_output=True, text=True, timeout=120)
        made.replace(kept)


def _instructions() -> str:
    """What tells one processor from another for which a program may have been compiled, on a shared disk."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
