"""What experiments cost: the time of each on a reference machine, which is kept beside the code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import msgspec

KEPT = "overview.json"


@dataclass(frozen=True)
class Work:
    """Estimated time of several tasks."""

    seconds: float
    """On one worker."""
    chain: float
    """Of the longest chain of tasks that need each other, which no number of workers shortens."""

    def by(self, workers: int) -> float:
        """Return the seconds with this number of workers."""
        return max(self.seconds / workers, self.chain)


@dataclass(frozen=True)
class Listed:
    """One experiment at the papers' scale."""

    title: str
    source: str
    data: Sequence[str]
    seconds: Mapping[str, float]
    """By variant, on one worker."""
    chain: Mapping[str, float]
    """The same of the tasks that wait for each other."""


@dataclass(frozen=True)
class Overview:
    """All experiments, and where their times were estimated."""

    machine: str
    """One core of which processor."""
    experiments: Mapping[str, Listed]
    rates: Mapping[str, float]
    """Seconds of a pass through each of their networks, as `cost.seconds` takes them."""


def kept() -> Overview:
    """Return the overview that comes with the package; `benchmarks/overview.py` writes it."""
    return msgspec.json.decode(files("equipoise.results").joinpath(KEPT).read_bytes(), type=Overview)
