"""Terminal output: a progress line, a line per epoch, tables of accuracies."""

import time
from collections.abc import Callable, Mapping, Sequence

from rich.table import Table

from equipoise.cli.console import duration, moving, say
from equipoise.evaluation import Progress as EvaluationProgress
from equipoise.report import chains
from equipoise.report.studies import interval, mean
from equipoise.results.findings import Findings
from equipoise.results.outcomes import MeanResult, Outcomes
from equipoise.results.records import AttackRecord, Evaluation
from equipoise.training import Progress

_EVERY = 0.1  # seconds between two looks of the moving line
_COLUMNS = ("train_loss", "train_accuracy", "valid_clean", "valid_fgsm", "valid_pgd")


class TrainingProgress:
    """The callback of `fit`. It holds no open display, so that it can be sent to the process that trains."""

    def __init__(self) -> None:
        self._shown = 0.0
        self._begun = False

    def __call__(self, now: Progress) -> None:
        """Show where the training is, and the metrics of an epoch that is over."""
        if now.metrics is not None:
            moving("")
            self._epoch(now, now.metrics)
        elif time.monotonic() - self._shown > _EVERY:
            self._shown = time.monotonic()
            moving(
                f"epoch {now.epoch}/{now.epochs}, step {now.step}/{now.steps}, {duration(now.seconds)} so far, "
                f"{duration(now.remaining)} left"
            )

    def _epoch(self, now: Progress, metrics: Mapping[str, float]) -> None:
        if not self._begun:
            self._begun = True
            say(f"{'':>9} {'training':>17}   {'validation accuracy':>25}")
            say(f"{'epoch':>9} {'loss':>8} {'accuracy':>8}   {'clean':>8} {'fgsm':>8} {'pgd':>7}   {'left':>7}")
        loss, *shares = (metrics.get(name, float("nan")) for name in _COLUMNS)
        accuracy, clean, fgsm, pgd = (f"{share:.1%}" for share in shares)
        say(
            f"{f'{now.epoch}/{now.epochs}':>9} {loss:>8.4f} {accuracy:>8}   {clean:>8} {fgsm:>8} {pgd:>7}   "
            f"{duration(now.remaining):>7}"
        )


def evaluation_progress(title: str) -> EvaluationProgress:
    """A callback of `evaluate` that shows what is done and how long the rest will take."""
    report = share_progress(title)

    def show(what: str, done: int, total: int) -> None:
        if done >= total:
            moving("")
        else:
            report(what, done / total)

    return show


def share_progress(title: str) -> Callable[[str, float], None]:
    """A callback that shows what is being done, which share of the whole is over, and how long the rest will take."""
    began = shown = time.monotonic()

    def report(what: str, share: float) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > _EVERY:
            shown = now
            left = f", {duration((now - began) / share * max(1 - share, 0))} left" if share > 0 else ""
            moving(f"{title}: {what}, {share:.0%}{left}")

    return report


def accuracies(evaluations: Sequence[Evaluation]) -> Table:
    """Accuracy with its interval: a line per attack and radius, a column per evaluation."""
    table = Table()
    for name in ("attack", "norm", "eps"):
        table.add_column(name)
    for evaluation in evaluations:
        table.add_column(f"{evaluation.weights} weights" if len(evaluations) > 1 else "accuracy", justify="right")
    for results in zip(*(e.by_ball for e in evaluations), strict=True):
        first = results[0]
        ball = ("", "") if first.attack == "clean" else (first.norm, f"{first.eps:.4g}")
        table.add_row(first.attack, *ball, *map(_with_interval, results))
    return table


def queries(evaluation: Evaluation) -> Table | None:
    """The queries that each attack spent on a model that is only asked; None for any other."""
    attacked = [result for result in evaluation.by_ball if isinstance(result, AttackRecord) and result.queries]
    if "answers" not in evaluation.model or not attacked:
        return None
    table = Table()
    for name in ("queries of", "eps"):
        table.add_column(name)
    for name in ("mean", "max", "total"):
        table.add_column(name, justify="right")
    for result in attacked:
        total = sum(result.queries)
        mean = total / len(result.queries)
        table.add_row(result.attack, f"{result.eps:.4g}", f"{mean:.1f}", str(max(result.queries)), str(total))
    return table


def _with_interval(result: Outcomes | MeanResult) -> str:
    low, high = result.interval
    return f"{result.accuracy:.1%}  [{low:.1%}, {high:.1%}]"


def corrupted(evaluation: Evaluation) -> Table | None:
    """Accuracy with its interval on each corruption, over its severities, and their mean; None if there are none (F,
    Table 3).
    """
    if evaluation.corrupted is None:
        return None
    families = evaluation.corrupted.by_corruption
    graded = any(len(family.results) > 1 for family in families.values())
    table = Table()
    table.add_column("corruption")
    table.add_column("accuracy", justify="right")
    if graded:
        table.add_column("% by severity", justify="right")
    for name, family in families.items():
        severities = " ".join(f"{100 * result.accuracy:.0f}" for result in family.results if len(family.results) > 1)
        table.add_row(name.replace("_", " "), _with_interval(family), *[severities] * graded)
    table.add_section()
    table.add_row("mean", _with_interval(evaluation.corrupted))
    table.add_row("mean corruption error", f"{evaluation.corrupted.error:.1%}")
    return table


def stages(evaluation: Evaluation) -> Table | None:
    """How many samples each part of the composite attacks fooled, and the accuracy it left; None if there are none."""
    attacks = [result for results in chains.composites(evaluation) for result in results]
    table = Table()
    for name in ("part", "norm", "eps"):
        table.add_column(name)
    for name in ("fooled", "accuracy left"):
        table.add_column(name, justify="right")
    for result in attacks:
        for stage in chains.stages(result)[1:]:
            table.add_row(
                stage.name, result.norm, f"{result.eps:.4g}", str(stage.fooled), f"{stage.remaining / result.n:.1%}"
            )
    return table if attacks else None


def numbers(findings: Findings) -> Table:
    """Each number with its mean, its interval and the repeats behind it."""
    table = Table()
    table.add_column("measured", overflow="fold")
    for name in ("mean", "95 % interval", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for number in findings.numbers:
        table.add_row(number.name, mean(number), interval(number), f"{len(number.values)} {number.unit}")
    return table
