"""What this installation computes with: versions, processor, kernels, threads, devices, extras and caches."""

import os
import platform
import re
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.table import Table

from equipoise.cli.console import say
from equipoise.cli.requests import Doctor
from equipoise.core.files import cache_folder
from equipoise.core.processors import available_cores
from equipoise.kernels.native import compiler, library, way
from equipoise.results.provenance import provenance

_EXTRAS = {
    "report": "matplotlib",
    "logs": "tensorboard",
    "gp": "gpytorch",
    "sweeps": "ray",
    "frames": "pandas",
    "onnx": "onnxruntime",
}
"""The package that each extra installs."""
_THREADING = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "MKL_NUM_THREADS")
_INSTRUCTIONS = ("avx2", "avx512f", "amx_tile", "amx_bf16", "asimd", "sve")
"""Instruction sets that decide how fast the kernels are, as Linux calls them."""


def diagnose(options: Doctor) -> None:
    """Print what a report of a problem, or of a measurement, should say of the machine."""
    table = Table("what", "found", show_header=False, box=None, padding=(0, 2, 0, 0))
    for what, found in findings():
        table.add_row(what, found)
    say(table)
    if not _is_installed(_EXTRAS["report"]):
        say("next: pip install 'equipoise[report]'")


def findings() -> Iterator[tuple[str, str]]:
    """Yield what was looked for, and what was found."""
    kernels = _kernels()  # first, as whatever needs them next is no longer told why there are none
    origin = provenance(0, "cpu")
    commit = f", commit {origin.commit[:12]}" if origin.commit else ""
    yield "equipoise", f"{origin.versions['equipoise']}{commit}"
    yield "python", f"{origin.versions['python']} on {platform.platform()}"
    yield "torch", f"{origin.versions['torch']}, numpy {origin.versions['numpy']}"
    yield "processor", f"{origin.device.removeprefix('cpu: ')}, {os.cpu_count()} cores{_instructions()}"
    yield "threads", f"{origin.threads} for {available_cores()} available cores{_settings()}"
    yield "kernels", kernels
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield "GPUs", ", ".join(names) or "none"
    for extra, package in _EXTRAS.items():
        yield f"extra {extra}", _installed(extra, package)
    yield "cache", _cache()


def _settings() -> str:
    """What the environment says about threads; idle ones spin unless `OMP_WAIT_POLICY` is `passive`."""
    names = [name for name in _THREADING if name in os.environ]
    return f" ({', '.join(f'{name}={os.environ[name]}' for name in names)})" if names else ""


def _instructions() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text("utf-8", errors="replace") if info.is_file() else ""
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    words = line[1].split() if line else []
    found = [name for name in _INSTRUCTIONS if name in words]
    return f" with {', '.join(found)}" if found else ""


def _kernels() -> str:
    """Whether small networks are computed by the C kernels, and if not, why."""
    if os.environ.get("EQUIPOISE_NATIVE") == "0":
        return "off, by EQUIPOISE_NATIVE=0"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kernels, command = library(), compiler()
    if kernels is not None:
        return f"{way()}: {kernels._name}"
    if command is None:
        return "none: install a C compiler, such as gcc, or name one in CC"
    return str(caught[-1].message) if caught else f"none: {command} did not compile them"


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _installed(extra: str, package: str) -> str:
    missing = f"not installed: pip install 'equipoise[{extra}]'"
    return f"{package} {version(package)}" if _is_installed(package) else missing


def _cache() -> str:
    folder = cache_folder()
    if folder is None:
        return "none: this user has no home; name a folder in EQUIPOISE_CACHE"
    if not folder.is_dir():
        return f"{folder} (empty)"
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{folder} ({size / 1e6:.0f} MB)"
