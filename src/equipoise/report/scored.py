"""Scores in a report: a table for each score and each test set, with a line per model, and their curves."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.errors import EquipoiseError, require
from equipoise.results.records import Provenance


@dataclass(frozen=True)
class Scored:
    """One score of one model, as its record says."""

    file: Path
    """Where it was read."""
    key: str
    """What the record calls it, such as `r2`."""
    record: Mapping[str, Any]
    """The whole record."""
    value: float
    """The score."""
    interval: tuple[float, float] | None
    """Its 95 % interval; None for one sample."""
    n: int
    """Number of samples."""
    eps: Sequence[float]
    """Radii of its curve."""
    curve: Sequence[float]
    """The mean of H(R) at each."""
    band: Sequence[tuple[float, float]]
    """95 % intervals of these."""
    won: Mapping[str, float]
    """Share of each attack in the nearest points."""
    settings: Mapping[str, Any]
    """Every parameter of the score."""

    @property
    def name(self) -> str:
        """What to call it."""
        return str(self.settings.get("name", self.key))

    @property
    def weights(self) -> str:
        """`best` or `last` of a run, or `given`."""
        return str(self.record.get("weights", "given"))


def read_scores(path: Path, record: Mapping[str, Any]) -> list[Scored]:
    """The scores of a record that `equipoise score` wrote. Raises `EquipoiseError` if it is damaged."""
    try:
        found = [_score(path, key, record, one) for key, one in record["scores"].items()]
        whole = len(found) > 0 and isinstance(record["target"], str) and isinstance(record["data"], Mapping)
        Provenance(**record["provenance"])
    except EquipoiseError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EquipoiseError(f"{path} is not a complete record of scores: {type(error).__name__} {error}.") from error
    require(whole, f"{path} is damaged: it holds no score, or its target, data or provenance is missing.")
    return found


def _score(path: Path, key: str, record: Mapping[str, Any], one: Mapping[str, Any]) -> Scored:
    curve, interval = one["curve"], one["interval"]
    eps, value = (np.array(curve[part], float) for part in ("eps", "value"))
    band = np.array(curve.get("interval", [value, value]), float)
    numbers = [one["value"], *(interval or ()), *eps, *value, *band.flatten(), *one["won"].values()]
    require({"H", "G", "radii"} <= one["settings"].keys(), f"{path} is damaged: {key} lacks H, G or its radii.")
    require(
        eps.shape == value.shape == band.shape[1:] and len(eps) > 0 and all(map(math.isfinite, numbers)),
        f"{path} is damaged: the curve of {key} has not one finite value for each radius.",
    )
    ends = None if interval is None else (float(interval[0]), float(interval[1]))
    return Scored(
        path, key, record, float(one["value"]), ends, int(one["n"]),
        eps.tolist(), value.tolist(), list(zip(*band.tolist(), strict=True)), dict(one["won"]), dict(one["settings"]),
    )  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Models under one score on one test set."""

    data: Mapping[str, Any]
    """Of the test set."""
    settings: Mapping[str, Any]
    """Of the score."""
    lines: Sequence[tuple[Any, Scored]]
    """A model, in whatever way the report names it, and one of its scores; a certified one after that of attacks."""

    @property
    def name(self) -> str:
        """The score."""
        return str(self.settings.get("name", "score"))

    @property
    def curves(self) -> Sequence[tuple[Any, Scored]]:
        """The lines whose curves are shares: of samples, or of the points near them."""
        return [line for line in self.lines if min(line[1].curve) >= 0 and max(line[1].curve) <= 1 + 1e-9]


def tables(found: Sequence[tuple[Any, Scored]]) -> list[Table]:
    """A table for each score and each test set, of pairs of a model and a score. The scores of one record stay
    together: they bound each other.
    """
    first: dict[Path, Scored] = {}
    together: dict[str, list[tuple[Any, Scored]]] = {}
    for model, scored in found:
        leader = first.setdefault(scored.file, scored)
        test_set = [str(leader.record["data"].get(part, "")) for part in ("name", "sha256", "split")]
        together.setdefault(json.dumps([test_set, leader.settings], sort_keys=True), []).append((model, scored))
    return [Table(e[0][1].record["data"], first[e[0][1].file].settings, e) for e in together.values()]
