"""Where the metrics of each epoch go besides the record: a function, or a logger of a tracking program.

eq.train(method, net, data, logger=wandb)                 # after wandb.init(); so is trackio, mlflow
eq.train(method, net, data, logger=SummaryWriter())       # TensorBoard
eq.train(method, net, data, logger="metrics.csv")
eq.train(method, net, data, logger=lambda metrics, step: print(step, metrics["valid_pgd"]))
"""

import csv
import io
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from equipoise.core.errors import EquipoiseError, kind_of, require
from equipoise.core.files import write_atomically
from equipoise.training.job import Progress

Log = Callable[[Mapping[str, float], int], Any]
"""Called with the metrics of an epoch by name, and its number from 1."""


def as_log(logger: Any) -> Log:
    """Return a function of metrics and step for anything that logs.

    That is a function of these two; an object or module with `log(metrics, step=)` (W&B, trackio), with
    `log_metrics(metrics, step=)` (MLflow, Lightning's loggers) or with `add_scalar(name, value, step)` (TensorBoard);
    or the path of a CSV file. Raises `EquipoiseError` for anything else.
    """
    if isinstance(logger, str | Path):
        return CsvLog(Path(logger))
    require(not isinstance(logger, logging.Logger), "a logging.Logger takes text: give a function of metrics and step.")
    for name in ("log_metrics", "log"):  # MLflow has a `log` only in its submodules
        method = getattr(logger, name, None)
        if callable(method):
            return lambda metrics, step, method=method: method(dict(metrics), step=step)
    if callable(getattr(logger, "add_scalar", None)):
        return lambda metrics, step: [logger.add_scalar(name, value, step) for name, value in metrics.items()]
    if callable(logger):
        return logger
    raise EquipoiseError(
        f"logger is {kind_of(logger)}: expected a function of metrics and step, an object with log, log_metrics or "
        "add_scalar, or the path of a CSV file."
    )


class CsvLog:
    """A CSV file with a row for each step, whole at any time. Rows of the same or later steps, which a run that was
    resumed wrote before, are replaced.
    """

    def __init__(self, path: Path) -> None:
        require(path.suffix == ".csv", f"logger = {str(path)!r}: expected a file that ends in .csv.")
        self.path = path

    def __call__(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the metrics of a step."""
        rows: list[dict[str, Any]] = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if _number(row.get("step")) < step]
        rows.append({"step": step, **metrics})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, text.getvalue(), durable=False)


def _number(text: "str | None") -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def with_logger(progress: Callable[[Progress], None] | None, logger: Any) -> Callable[[Progress], None] | None:
    """Return a `progress` function that also logs the metrics of each epoch; the given one without a logger."""
    if logger is None:
        return progress
    log = as_log(logger)

    def report(now: Progress) -> None:
        if now.metrics is not None:
            log({name: value for name, value in now.metrics.items() if name != "epoch"}, now.epoch)
        if progress is not None:
            progress(now)

    return report
