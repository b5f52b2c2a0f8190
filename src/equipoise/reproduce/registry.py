"""All experiments by name."""

from importlib import import_module
from pkgutil import iter_modules

from equipoise.core.errors import unknown
from equipoise.reproduce import papers
from equipoise.reproduce.experiment import Experiment


def names() -> list[str]:
    """The names of all experiments."""
    return sorted(module.name.replace("_", "-") for module in iter_modules(papers.__path__))


def experiment(name: str) -> Experiment:
    """The experiment of that name. Raises `EquipoiseError` if there is none."""
    if name not in names():
        raise unknown("experiment", name, names())
    return import_module(f"{papers.__name__}.{name.replace('-', '_')}").experiment
