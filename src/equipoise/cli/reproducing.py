"""The command reproduce: the papers' tables and figures, at any scale, their numbers beside ours."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table as RichTable

from equipoise import reproduce as experiments
from equipoise.cli.console import duration, laid_out, moving, say, suggest
from equipoise.cli.display import numbers
from equipoise.cli.listing import is_available, roughly, sources_of, variant_of
from equipoise.cli.options import pairs
from equipoise.cli.requests import Reproduce
from equipoise.core.errors import require
from equipoise.core.processors import available_cores
from equipoise.reproduce import Plan, Setting, cost, keep_numbers, reproduction
from equipoise.reproduce.stand_in import stand_in
from equipoise.reproduce.sweep import Progress, SweepResult, sweep
from equipoise.reproduce.sweep_folder import claim, earlier, finished, limits, require_experiments
from equipoise.results.reproduction import (
    ChartOutcome,
    ClaimsOutcome,
    Outcome,
    Reproduction,
    ShownOutcome,
    TableOutcome,
)

_FAILED = 1  # the exit code of a sweep of which a task failed


def reproduce(options: Reproduce, command: str) -> int:
    """Compute an experiment, print its numbers beside the paper's, and return the exit code: 1 if a task failed.

    Raises `EquipoiseError` before anything is computed for an unknown experiment, missing data, and an unusable --out.
    """
    out = options.out or Path("reproductions", options.name)
    variant = variant_of(options.variant)
    plan = experiments.experiment(options.name).plan(
        options.scale,
        variant,
        options.seeds,
        options.select,
        options.examples,
        pairs(options.set, "--set", dotted=True),
    )
    require(not (options.data and options.synthetic), "--data and --synthetic exclude each other: choose one.")
    sources = sources_of(options.data)
    missing = (
        [] if options.synthetic else [n for n in plan.datasets() if not is_available(n, sources, options.data_root)]
    )
    where = "in the cache" if options.data_root is None else f"in {options.data_root} or the cache"
    require(
        options.download or not missing,
        f"{options.name} needs {' and '.join(missing)}, not found {where}: name the folder with --data-root, a copy "
        f"with --data {''.join(missing[:1])}=PATH, get it with --download, or try it out with --synthetic.",
    )
    claim(plan, out)
    require_experiments(options.reuse)
    if options.synthetic:
        sources = {name: str(stand_in(name, out / "data")) for name in plan.datasets()}
    setting = Setting(out, options.data_root, sources, command)
    workers = options.workers or (None if options.address else available_cores())
    expected = _expected(plan, setting, workers, options.reuse)
    say(_headline(plan, options.synthetic))
    say(expected)

    def show(now: Progress) -> None:
        running = "; ".join(f"{label}, {share:.0%}" for label, share in now.running)
        failed = f", {now.failed} failed" if now.failed else ""
        moving(f"{options.name}: {now.done}/{now.total} tasks{failed}, {duration(now.remaining)} left; {running}")

    outcome = sweep(plan, setting, workers=workers, address=options.address, report_progress=show, reuse=options.reuse)
    moving("")
    result = reproduction(out)
    _print(result)
    keep_numbers(out, result)
    say(_headline(plan, options.synthetic))
    return _conclude(outcome, out)


def _headline(plan: Plan, synthetic: bool) -> str:
    """What these numbers are."""
    experiment = plan.experiment
    scale = "at the paper's scale" if plan.scale == 1 else f"at scale {plan.scale:g} of the paper's"
    variant = f", {plan.variant}" + (
        f" ({experiment.quirks})" if experiment.quirks and plan.variant == "as published" else ""
    )
    data = "; SYNTHETIC data, which says nothing about the paper" if synthetic else ""
    return f"{experiment.source}: {experiment.title}; {scale}{limits(plan)}{variant}{data}"


def _expected(plan: Plan, setting: Setting, workers: int | None, reuse: Sequence[Path]) -> str:
    """What there is to do, and how long it will take."""
    tasks = plan.tasks()
    elsewhere = earlier(setting, reuse)
    remaining = [task for task in tasks if finished(task, setting, elsewhere) is None]
    sizes = {name: len(setting.dataset(name).train) for name in plan.datasets()}
    done = f", {len(tasks) - len(remaining)} of them finished before" if len(remaining) < len(tasks) else ""
    who = "the cluster" if workers is None else "1 worker" if workers == 1 else f"{workers} workers"
    return f"{len(tasks)} tasks{done}; about {roughly(cost.work(remaining, sizes).by(workers or 1))} on {who}"


def _print(result: Reproduction) -> None:
    """The numbers of every part, beside the paper's."""
    for part in result.parts:
        if isinstance(part, ClaimsOutcome):
            say(_claims(part))
            continue
        if isinstance(part, ShownOutcome):
            if part.study is not None:
                say(part.title)
                if part.study.findings.numbers:
                    say(numbers(part.study.findings))
                say(part.study.findings.verdict or "done")
            continue
        table = RichTable(title=part.title, title_justify="left")
        corner, unit = (part.corner, part.unit) if isinstance(part, TableOutcome) else ("line", "")
        for name in (corner, "column" if isinstance(part, TableOutcome) else part.x):
            table.add_column(name, overflow="fold")
        for name in (f"paper {unit}".strip(), "here", "95 % interval", "verdict"):
            table.add_column(name, justify="right", no_wrap=True)
        for row, column, outcome in _rows(part):
            interval = "" if outcome.interval is None else f"[{', '.join(map(_digits, outcome.interval))}]"
            ours = "-" if outcome.mean is None else _digits(outcome.mean)
            table.add_row(row, column, _digits(outcome.paper), ours, interval, outcome.agreement or "")
        say(table)
    if any(result.agreements.values()) or result.claims:
        say(result.verdict)
    for caution in result.cautions:
        say(f"caution: {caution}")


def _claims(part: ClaimsOutcome) -> RichTable:
    """Every claim, and whether it holds."""
    table = RichTable(title=part.title, title_justify="left")
    table.add_column("claim", overflow="fold")
    for name in ("difference", "95 % interval", "claimed", "verdict"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in part.claims:
        gap = one.difference
        interval = "" if gap.interval is None else f"[{', '.join(map(_digits, gap.interval))}]"
        ours = "-" if gap.mean is None else _digits(gap.mean)
        statement = f"{one.statement} ({one.source})"
        table.add_row(statement, ours, interval, f"> {_digits(one.by)}", one.verdict or "not run")
    return table


def _rows(part: TableOutcome | ChartOutcome) -> Iterator[tuple[str, str, Outcome]]:
    if isinstance(part, TableOutcome):
        yield from ((outcome.row, outcome.column, outcome) for outcome in part.outcomes)
    else:
        yield from ((name, f"{x:.4g}", outcome) for name, line in part.lines.items() for x, outcome in line)


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _conclude(outcome: SweepResult, out: Path) -> int:
    """What failed, on stderr, and what to do next."""
    for sentence in outcome.failed.values():
        print(laid_out(f"failed: {sentence}", sys.stderr), file=sys.stderr)
    if outcome.failed:
        waiting = f"; {len(outcome.not_begun)} that need them were not begun" if outcome.not_begun else ""
        total = f"{len(outcome.failed)} tasks failed{waiting}; {len(outcome.finished)} are finished and stay in {out}."
        print(laid_out(total, sys.stderr), file=sys.stderr)
        return _FAILED
    say(f"wrote {out}")
    suggest("report", out, "--out", f"{out.name}.html")
    return 0
