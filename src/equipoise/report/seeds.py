"""Rows of the accuracy table that differ in their seed alone, put together."""

from collections import Counter
from dataclasses import replace

from equipoise.report.accuracy import Comparison, Row
from equipoise.results.records import AttackRecord
from equipoise.results.seeds import but_for_seed, mean, single_runs


def grouped(comparison: Comparison) -> Comparison:
    """Return the comparison with one row for all runs that differ in their seed alone: their mean under each attack.

    A row is that of single runs (best or last weights) or has them as `members`. Two runs of one seed are not put
    together, nor models that were trained elsewhere.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    repeats: Counter[tuple[object, ...]] = Counter()
    for row in comparison.rows:
        run = row.source.run
        if run is None:
            groups[(id(row),)] = [row]
            continue
        key = but_for_seed(run), row.weights, row.shown_files
        seeded = *key, run.provenance.seed
        groups.setdefault((*key, repeats[seeded]), []).append(row)
        repeats[seeded] += 1
    names = [_method(rows[0]) for rows in {id(rows[0].source): rows for rows in groups.values()}.values()]
    return replace(comparison, rows=[_together(rows, names.count(_method(rows[0])) == 1) for rows in groups.values()])


def _method(row: Row) -> str:
    return str(row.source.run.method.get("name", row.source.name)) if row.source.run else row.source.name


def _together(rows: list[Row], unique: bool) -> Row:
    """One row for several; called after their method, if no other row has it."""
    first, *others = rows
    if not others:
        return first
    results: dict[object, list[AttackRecord]] = {}
    for row in rows:
        for column, result in row.results.items():
            results.setdefault(column, []).extend(single_runs(result))
    return replace(
        first,
        results={column: mean(of_runs) for column, of_runs in results.items()},
        brackets={},
        members=rows,
        name_of_all=_method(first) if unique else f"{first.source.name} and {len(others)} more",
    )
