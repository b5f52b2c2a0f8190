"""All experiments with their time on a reference machine: kept beside the code, so that they are listed at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import msgspec

KEPT = "overview.json"


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
    return msgspec.json.decode(files("equipoise.reproduce").joinpath(KEPT).read_bytes(), type=Overview)
