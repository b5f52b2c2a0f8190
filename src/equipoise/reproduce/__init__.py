"""The papers' tables and figures, each one command: what is computed, the paper's numbers, and whether they came out.

The experiments of a paper are the `EXPERIMENTS` of its module in `equipoise.reproduce.papers`; the tables that it
prints lie beside the module, in `udp.txt` for U.
"""

from equipoise.reproduce.experiment import (
    Cell,
    Chart,
    Experiment,
    Line,
    Part,
    Plan,
    PublishedValue,
    Table,
    Variant,
    clean,
    found,
    number,
    robust,
    trade_off,
)
from equipoise.reproduce.outcome import in_words, keep_numbers, reproduction
from equipoise.reproduce.registry import experiment, names
from equipoise.reproduce.sweep import RECORD
from equipoise.reproduce.tasks import (
    Call,
    DataManifold,
    Evaluated,
    Measured,
    Net,
    Setting,
    StudyTask,
    Task,
    Training,
    call,
)

__all__ = [
    "RECORD",
    "Call",
    "Cell",
    "Chart",
    "DataManifold",
    "Evaluated",
    "Experiment",
    "Line",
    "Measured",
    "Net",
    "Part",
    "Plan",
    "PublishedValue",
    "Setting",
    "StudyTask",
    "Table",
    "Task",
    "Training",
    "Variant",
    "call",
    "clean",
    "experiment",
    "found",
    "in_words",
    "keep_numbers",
    "names",
    "number",
    "reproduction",
    "robust",
    "trade_off",
]
