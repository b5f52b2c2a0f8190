"""How the C files of this folder are compiled: for this processor, or ahead of time for a wheel.

Only the standard library is imported, so that the build of a wheel can load this file by its path.
"""

import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_OPTIONS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden", "-Wno-psabi", "-shared", "-fPIC")

_V3 = frozenset({"avx", "avx2", "fma", "f16c", "abm", "movbe", "bmi1", "bmi2"})
LEVELS: Mapping[str, frozenset[str]] = {
    "x86-64-v4": _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": _V3,
}
"""What is compiled ahead of time, the fastest first, and the flags of the processors that can run it."""


def command_line(cc: str, machine: str) -> list[str]:
    """Return the call of the C compiler `cc`, without files, for a processor, such as `-march=native`."""
    return [*shlex.split(cc), *_OPTIONS, machine]


def compile_kernels(command: Sequence[str], sources: Mapping[str, bytes], path: Path) -> None:
    """Compile in a temporary folder beside `path`, then move the library there, so that it is never incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for name, source in sources.items():
            Path(folder, name).write_bytes(source)
        units = [name for name in sorted(sources) if name.endswith(".c")]
        call = [*command, "-o", path.name, *units, "-lm"]
        subprocess.run(call, check=True, capture_output=True, text=True, timeout=600, cwd=folder)
        Path(folder, path.name).replace(path)


def compile_ahead(cc: str, folder: Path) -> list[Path]:
    """Compile the kernels for every level into this folder; return the files."""
    own = Path(__file__).parent
    sources = {path.name: path.read_bytes() for path in own.iterdir() if path.suffix in (".c", ".h")}
    paths = [folder / f"{level}.so" for level in LEVELS]
    for path in paths:
        compile_kernels(command_line(cc, f"-march={path.stem}"), sources, path)
    return paths
