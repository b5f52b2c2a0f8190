"""The provenance of a number: command, seed, versions, commit, device."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy
import torch

from equipoise.kernels.native import way
from equipoise.results.records import Provenance

_options: ContextVar[Mapping[str, Any] | None] = ContextVar("_options", default=None)


@contextmanager
def recorded_options(options: Mapping[str, Any]) -> Iterator[None]:
    """Store `options`, the JSON-ready options of a command, in every provenance that is made inside the context."""
    token = _options.set(options)
    try:
        yield
    finally:
        _options.reset(token)


def provenance(seed: int, device: "torch.device | str", command: str = "") -> Provenance:
    """Return the provenance of a computation that starts now; `command` defaults to that of this process."""
    try:
        own = version("equipoise")
    except PackageNotFoundError:
        own = "source tree"
    return Provenance(
        command=command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        seed=seed,
        versions={
            "equipoise": own,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
        commit=_commit(),
        device=_in_words(torch.device(device)),
        threads=torch.get_num_threads(),
        kernels=way() if torch.device(device).type == "cpu" else "",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        options=_options.get() or {},
    )


def recommanded(before: Provenance, command: str) -> Provenance:
    """Return the provenance of a record that `command`, with its options, merged from parts made as `before` says."""
    return replace(before, command=command, options=_options.get() or {})


def _commit() -> str | None:
    """The commit of the source tree this package is imported from, `+` if files differ; None outside a repository."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return f"{commit}+" if commit and git("status", "--porcelain", "--untracked-files=no") else commit


def _in_words(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        return f"cpu: {_processor()}"
    return str(device)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
