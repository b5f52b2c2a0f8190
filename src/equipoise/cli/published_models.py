"""The command models: which trained models come with equipoise, and how robust they are. It needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from equipoise.cli.console import columns, say, suggest
from equipoise.cli.words import read, require_once
from equipoise.core.errors import require
from equipoise.pretrained import names
from equipoise.pretrained import read as read_model


@dataclass(frozen=True)
class Models:
    """List the trained models that come with equipoise, with their accuracy, clean and attacked.

    Their names can be given wherever a run can: to evaluate, audit, score and report, to train --init, and to
    equipoise.load in Python.

    Example: equipoise models
    """


def list_models(argv: Sequence[str]) -> None:
    """Print a line for each model and attack, as a command line that begins with `models` asks for it."""
    read(argv[1:], [], argv[0], None)
    require_once(argv)
    require(len(names()) > 0, "no models come with this installation of equipoise.")
    wide = columns() >= 110
    table = Table(title="Accuracy in % on the whole test set, with 95 % intervals", title_justify="left")
    table.add_column("name", no_wrap=True)
    for name in ("data", "net", "method") if wide else ():
        table.add_column(name)
    for name in ("clean", "attack", "attacked"):
        table.add_column(name, justify="left" if name == "attack" else "right")
    for name in names():
        model = read_model(name)
        about = (str(model.run.data["name"]), str(model.run.net["name"]), model.method) if wide else ()
        for result in model.attacked:
            accuracy, low, high = (100 * share for share in (result.accuracy, *result.interval))
            attacked = f"{accuracy:.1f} [{low:.1f}, {high:.1f}]"
            attack = f"{result.attack}, {result.norm} {result.eps:.4g}"
            table.add_row(name, *about, f"{100 * model.clean.accuracy:.1f}", attack, attacked)
    say(table)
    suggest("evaluate", "NAME", "--attacks", "autoattack")
