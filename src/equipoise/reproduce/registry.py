"""All experiments by name."""

from functools import cache

from equipoise.core.errors import unknown
from equipoise.reproduce.experiment import Experiment


@cache
def _experiments() -> dict[str, Experiment]:
    from equipoise.reproduce.papers import claims, framework, rethinking, udp, uta

    every = (one for paper in (claims, framework, rethinking, udp, uta) for one in paper.EXPERIMENTS)
    return {one.name: one for one in sorted(every, key=lambda one: one.name)}


def names() -> list[str]:
    """Return the names of all experiments."""
    return list(_experiments())


def experiment(name: str) -> Experiment:
    """Return the experiment of that name. Raises `EquipoiseError` if there is none."""
    if name not in names():
        raise unknown("experiment", name, names())
    return _experiments()[name]
