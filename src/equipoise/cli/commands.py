"""What the commands do: read the input, call the library, print what came out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from equipoise.cli.auditing import audit
from equipoise.cli.console import say
from equipoise.cli.doctor import diagnose
from equipoise.cli.evaluating import evaluate, merge_records
from equipoise.cli.exporting import export
from equipoise.cli.predicting import predict
from equipoise.cli.pushing import push
from equipoise.cli.recorded import as_data, require_file
from equipoise.cli.reproducing import reproduce
from equipoise.cli.requests import (
    Audit,
    Command,
    Doctor,
    Evaluate,
    Merge,
    Push,
    Report,
    Reproduce,
    Score,
    Study,
    Train,
    Verify,
)
from equipoise.cli.scoring import score
from equipoise.cli.studying import study
from equipoise.cli.tabulating import tabulate
from equipoise.cli.training import train
from equipoise.cli.using_requests import Export, Predict, Table
from equipoise.cli.verifying import verify
from equipoise.core.errors import require
from equipoise.core.files import write_once
from equipoise.reproduce import RECORD, keep_numbers, reproduction
from equipoise.results.provenance import recorded_options
from equipoise.training.interruption import listening


def run(options: Command, command: str) -> int:
    """Do what was typed, and return the exit code; `command` is the text of it, for the records.

    SIGINT and SIGTERM raise `Interrupted`, a `KeyboardInterrupt`, whatever is being done.
    """
    with listening(None), recorded_options(as_data(options)):
        return _COMMANDS[type(options)](options, command) or 0


def _report(options: Report) -> Path:
    """The page of runs, or of one experiment."""
    experiments = [folder for folder in options.runs if (folder / RECORD).is_file()]
    if experiments:
        from equipoise.report.reproduction import page as page_of_experiment

        require(
            len(options.runs) == 1, f"{experiments[0]} holds an experiment, whose page stands alone: give it by itself."
        )
        result = reproduction(experiments[0])
        say(f"{result.source}: {result.verdict}")
        say(f"wrote {keep_numbers(experiments[0], result)}")
        text = page_of_experiment(result)
    else:
        from equipoise.report import page

        require_file(options.out)
        text = page(options.runs)
    return write_once(options.out, text.encode("utf-8", "backslashreplace"), options.overwrite)


_COMMANDS: dict[type[Command], Callable[[Any, str], int | None]] = {
    Train: train,
    Evaluate: evaluate,
    Audit: audit,
    Score: score,
    Verify: lambda options, _: verify(options),
    Merge: lambda options, _: merge_records(options),
    Report: lambda options, _: say(f"wrote {_report(options)}"),
    Table: lambda options, _: tabulate(options),
    Predict: predict,
    Export: lambda options, _: export(options),
    Study: study,
    Reproduce: reproduce,
    Push: lambda options, _: push(options),
    Doctor: lambda options, _: diagnose(options),
}
