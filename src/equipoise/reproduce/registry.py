"""All experiments by name, and the time of each on a reference machine, which is kept beside the code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import msgspec

from equipoise.core.errors import unknown
from equipoise.reproduce.experiment import Experiment

KEPT = "overview.json"


@cache
def _experiments() -> dict[str, Experiment]:
    from equipoise.reproduce.papers import framework, rethinking, udp, uta

    every = (one for paper in (framework, rethinking, udp, uta) for one in paper.EXPERIMENTS)
    return {one.name: one for one in sorted(every, key=lambda one: one.name)}


def names() -> list[str]:
    """Return the names of all experiments."""
    return list(_experiments())


def experiment(name: str) -> Experiment:
    """Return the experiment of that name. Raises `EquipoiseError` if there is none."""
    if name not in names():
        raise unknown("experiment", name, names())
    return _experiments()[name]


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
