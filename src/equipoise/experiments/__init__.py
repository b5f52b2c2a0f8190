"""The papers' tables and figures, each one command: what is computed, the paper's numbers, and whether they came out.

An experiment is a module in `equipoise.experiments.papers` with an `experiment`, named as the module is:
`udp_table_2.py` holds `udp-table-2`.
"""

from importlib import import_module
from pkgutil import iter_modules

from equipoise.errors import unknown
from equipoise.experiments import papers
from equipoise.experiments.experiment import (
    Cell,
    Chart,
    Experiment,
    Found,
    Line,
    Part,
    Plan,
    Shown,
    Table,
    Variant,
    clean,
    found,
    number,
    robust,
    trade_off,
)
from equipoise.experiments.tasks import (
    Call,
    DataManifold,
    Evaluated,
    Measured,
    Net,
    Setting,
    Studied,
    Task,
    Training,
    call,
)

__all__ = [
    "Call",
    "Cell",
    "Chart",
    "DataManifold",
    "Evaluated",
    "Experiment",
    "Found",
    "Line",
    "Measured",
    "Net",
    "Part",
    "Plan",
    "Setting",
    "Shown",
    "Studied",
    "Table",
    "Task",
    "Training",
    "Variant",
    "call",
    "clean",
    "experiment",
    "found",
    "names",
    "number",
    "robust",
    "trade_off",
]


def names() -> list[str]:
    """The names of all experiments."""
    return sorted(module.name.replace("_", "-") for module in iter_modules(papers.__path__))


def experiment(name: str) -> Experiment:
    """The experiment of that name. Raises `EquipoiseError` if there is none."""
    if name not in names():
        raise unknown("experiment", name, names())
    return import_module(f"{papers.__name__}.{name.replace('-', '_')}").experiment
