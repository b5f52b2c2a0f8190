"""What a study is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ReportProgress = Callable[[str, float], None]
"""Called with what is being done and which share of the whole study is over."""


@dataclass(frozen=True)
class Options:
    """What a study is asked for."""

    quick: bool = False
    """A small version, in seconds, that shows that the study works but proves nothing."""
    seeds: int | None = None
    """Independent repeats; by default the study's own number."""
    seed: int = 0
    """Seed of the first repeat; the others follow."""
    data: str | None = None
    """Dataset of the studies that run on any; by default the study's own."""
    data_root: Path | None = None
    """Where the files of a dataset are looked for."""
    limit: int | None = None
    """Use at most so many training samples."""
    widths: tuple[int, ...] = ()
    """Widths of the network, for capacity; by default the study's own."""
    processes: int = 1
    """Processes that share a study's networks, where there are many; the result is that of one."""
