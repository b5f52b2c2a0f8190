"""Rows of the accuracy table that differ in their seed alone, put together."""

from dataclasses import replace

from equipoise.report.accuracy import Attacked, Comparison, Row, setting
from equipoise.results.records import AttackRecord
from equipoise.results.seeds import but_for_seed, mean, single_runs


def grouped(comparison: Comparison) -> Comparison:
    """Return the comparison with one row for all runs that differ in their seed alone: their mean under each attack.

    A row is that of single runs (best or last weights) or has them as `members`. Two runs of one seed are not put
    together, nor models that were trained elsewhere, nor runs that were attacked in different ways under one name.
    """
    together: list[list[Row]] = []
    groups: dict[tuple[object, ...], list[list[Row]]] = {}
    for row in comparison.rows:
        run = row.source.run
        key = (id(row),) if run is None else (but_for_seed(run), row.weights, row.shown_files)
        same = groups.setdefault(key, [])
        group = next((group for group in same if all(_repeats(row, other) for other in group)), None)
        if group is None:
            group = []
            same.append(group)
            together.append(group)
        group.append(row)
    names = [_method(rows[0]) for rows in {id(rows[0].source): rows for rows in together}.values()]
    return replace(comparison, rows=[_together(rows, names.count(_method(rows[0])) == 1) for rows in together])


def _repeats(row: Row, other: Row) -> bool:
    """Whether two runs have other seeds, and were attacked alike wherever both were."""
    seeds = [one.source.run.provenance.seed for one in (row, other) if one.source.run]
    both = row.results.keys() & other.results.keys()
    return seeds[0] != seeds[1] and all(_settings(row.results[c]) == _settings(other.results[c]) for c in both)


def _settings(result: Attacked) -> set[tuple[str, str]]:
    return {setting(attack) for attack in single_runs(result)}


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
