"""Metrics go where they are sent: functions, and stand-ins for the loggers of tracking programs."""

import csv
import logging

import pytest
import torch

import equipoise as eq
from equipoise.data import Dataset, Split
from equipoise.training.loggers import as_log


@pytest.fixture(scope="module")
def toy() -> Dataset:
    x = torch.rand(40, 4, generator=torch.Generator().manual_seed(0))
    split = Split(x, (x[:, 0] > x[:, 1]).long())
    return Dataset("toy", split, split, ("a", "b"), "")


class Recorder:
    """As W&B's run: `log(metrics, step=)`."""

    def __init__(self) -> None:
        self.rows = []

    def log(self, metrics, step):
        self.rows.append((step, metrics))


class MLflow(Recorder):
    """As the module mlflow: `log_metrics(metrics, step=)`, and something else called `log`."""

    def log(self, *_):
        raise AssertionError("not this one")

    def log_metrics(self, metrics, step):
        self.rows.append((step, metrics))


class TensorBoard(Recorder):
    """As a SummaryWriter, of which `log` is not a method."""

    log = None  # pyright: ignore[reportAssignmentType]

    def add_scalar(self, name, value, step):
        if not self.rows or self.rows[-1][0] != step:
            self.rows.append((step, {}))
        self.rows[-1][1][name] = value


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore")
def test_a_training_logs_its_metrics_after_every_epoch(toy, tmp_path):
    """All ways at once, by a function that hands them on; the numbers are those of the record and of metrics.jsonl."""
    loggers = [Recorder(), MLflow(), TensorBoard()]
    logs = [as_log(logger) for logger in (*loggers, tmp_path / "a.csv")]
    shown = []
    net = eq.nets.build("mlp", (4,), 2, widths=(4,))
    run = eq.train(
        eq.methods.standard(),
        net,
        toy,
        eq.Recipe(epochs=2, valid_steps=1),
        logger=lambda metrics, step: [log(metrics, step) for log in logs],
        progress=shown.append,
    )
    for logger in loggers:
        assert [step for step, _ in logger.rows] == [1, 2]
        assert logger.rows[1][1] == {name: value for name, value in run.last.items() if name != "epoch"}
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert float(rows[1]["valid_clean"]) == run.last["valid_clean"]
    assert sum(now.metrics is not None for now in shown) == 2


def test_a_resumed_run_replaces_the_rows_that_it_repeats(tmp_path):
    log = as_log(str(tmp_path / "a.csv"))
    for step, loss in ((1, 1.0), (2, 0.9), (3, 0.8)):
        log({"loss": loss}, step)
    as_log(tmp_path / "a.csv")({"loss": 0.7, "more": 1.0}, 2)
    assert (tmp_path / "a.csv").read_text() == "step,loss,more\n1,1.0,\n2,0.7,1.0\n"


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        (3, "logger is an int: expected a function"),
        ("metrics.txt", r"ends in \.csv"),
        (logging.getLogger("x"), "takes text"),
    ],
)
def test_what_is_no_logger_is_refused_before_training(toy, logger, message):
    with pytest.raises(eq.EquipoiseError, match=message):
        eq.train(eq.methods.standard(), eq.nets.build("mlp", (4,), 2, widths=(4,)), toy, logger=logger)
