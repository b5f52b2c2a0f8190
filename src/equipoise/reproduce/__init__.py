"""The papers' tables and figures, each one command: what is computed, the paper's numbers, and whether they came out.

The experiments of a paper are the `EXPERIMENTS` of its module in `equipoise.reproduce.papers`; the tables that it
prints and the titles and notes of its experiments lie beside the module, in `udp.txt` and `udp.toml` for U.
"""

from equipoise.core.deprecation import renamed_names
from equipoise.reproduce.experiment import (
    Cell,
    Chart,
    Claim,
    Claims,
    Experiment,
    Line,
    Part,
    Plan,
    PublishedValue,
    Table,
    Variant,
    clean,
    difference,
    found,
    number,
    robust,
    trade_off,
)
from equipoise.reproduce.outcome import in_words, keep_numbers, reproduction
from equipoise.reproduce.registry import experiment, names
from equipoise.reproduce.running import Setting
from equipoise.reproduce.sweep_folder import RECORD
from equipoise.reproduce.tasks import (
    Call,
    DataManifold,
    Evaluated,
    MeasureTask,
    Net,
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
    "Claim",
    "Claims",
    "DataManifold",
    "Evaluated",
    "Experiment",
    "Line",
    "MeasureTask",
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
    "difference",
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

__getattr__ = renamed_names(__name__, {"Measured": "MeasureTask"})
