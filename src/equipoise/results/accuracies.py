"""Accuracies of one model under several attacks, as a table, as numbers and as a curve. No torch."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from equipoise.core.tables import Row, Tabular
from equipoise.results.outcomes import ACCURACY, CertifiedResult, CorruptionResult, accuracy_cells
from equipoise.results.plots import accuracy_against_eps

if TYPE_CHECKING:
    from equipoise.results.records import AttackRecord


class Accuracies(Tabular):
    """Base class of the results of one model: a row per attack and ball, per certificate and per corruption."""

    @abstractmethod
    def _entries(self) -> "Sequence[AttackRecord | CertifiedResult | CorruptionResult]":
        """The results in the order of the rows."""

    def _table(self) -> tuple[Row, list[Row]]:
        rows: list[Row] = []
        for entry in self._entries():
            name, norm, eps = _ball(entry)
            rows.append((name, norm or "", "" if eps is None else f"{eps:.4g}", *accuracy_cells(entry)))
        return ("attack", "norm", "eps", *ACCURACY), rows

    def _columns(self) -> dict[str, list[Any]]:
        rows = [(*_ball(entry), entry.n, entry.accuracy, *entry.interval) for entry in self._entries()]
        names = "attack", "norm", "eps", "n", "accuracy", "low", "high"
        return {name: [row[column] for row in rows] for column, name in enumerate(names)}

    def plot(self) -> Any:
        """Return a matplotlib figure of accuracy against eps: a line per attack, from the accuracy without one at 0, in
        a panel per norm, with 95 % intervals. Raises `EquipoiseError` without an attack or without matplotlib.
        """
        entries = [entry for entry in self._entries() if not isinstance(entry, CorruptionResult)]
        points = [(entry, (float(entry.eps), entry.accuracy, *entry.interval)) for entry in entries]
        curves: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
        clean = [point for entry, point in points if entry.attack == "clean"]
        for entry, point in sorted(points, key=lambda pair: pair[1]):
            if entry.attack != "clean":
                curves.setdefault((entry.attack, entry.norm), list(clean)).append(point)
        return accuracy_against_eps(curves)


def _ball(entry: "AttackRecord | CertifiedResult | CorruptionResult") -> tuple[str, str | None, float | None]:
    """Name, norm and radius; of a corruption the name alone."""
    if isinstance(entry, CorruptionResult):
        return entry.corruption, None, None
    return entry.attack, entry.norm, entry.eps


class Results(Accuracies, list["AttackRecord"]):
    """The list of results that `equipoise.evaluate` returns: without an attack, then by ball."""

    def _entries(self) -> "Sequence[AttackRecord]":
        return self
