"""The command experiments: which tables and figures there are, the data they need and their cost.

Its usual answer is kept with the package, so that it takes no more than a look at the folders of data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table

from equipoise.cli.console import columns, say, suggest
from equipoise.cli.options import Count, options_of
from equipoise.cli.words import read, require_once
from equipoise.core.errors import require, unknown
from equipoise.core.processors import available_cores
from equipoise.data.published import available, names
from equipoise.results.costs import Listed, Overview, Work, kept

Variant = Literal["as-published", "corrected"]


@dataclass(frozen=True)
class Experiments:
    """List the papers' tables and figures that can be reproduced, the data they need and their cost.

    Example: equipoise experiments --scale 0.2 --data-root DIR
    """

    scale: float = 1.0
    """Share of the papers' epochs, samples and seeds, in (0, 1]."""
    variant: Variant = "corrected"
    """With the quirks of the papers' own code, or without."""
    data_root: Path | None = None
    """Folder to look for datasets in."""
    data: tuple[str, ...] = ()
    """Replacement of a published dataset, as NAME=PATH: a .npz file, a folder or an archive of images."""
    workers: Count | None = None
    """Processes that share the work; by default all cores."""
    measure: bool = False
    """Measure how fast the networks run here, which takes half a minute, instead of estimating it."""


def list_experiments(argv: Sequence[str]) -> None:
    """Print a line for each experiment, as a command line that begins with `experiments` asks for it."""
    options = Experiments(**read(argv[1:], options_of(Experiments), argv[0], None))
    require_once(argv)
    sources, workers = sources_of(options.data), options.workers or available_cores()
    overview = kept()
    by = "measured on this machine" if options.measure else f"estimated on {overview.machine}, or here by --measure"
    title = f"Scale {options.scale:g}, {workers} worker{'s' * (workers > 1)}; time {by}"
    table = Table(title=title, title_justify="left")
    wide, roomy = columns() >= 110, columns() >= 150
    table.add_column("name", no_wrap=True)
    table.add_column("about", justify="right", no_wrap=True)
    table.add_column("data", overflow="fold")
    for name, fits in (("source", wide), ("shows", roomy)):
        if fits:
            table.add_column(name, overflow="fold")
    for name in sorted(overview.experiments, key=_naturally):
        entry = overview.experiments[name]
        found = {n: is_available(n, sources, options.data_root) for n in entry.data}
        data = ", ".join(n if is_found else f"{n} (missing)" for n, is_found in found.items())
        about = roughly(_work(name, entry, options, overview).by(workers))
        table.add_row(name, about, data or "none", *[entry.source][:wide], *[entry.title][:roomy])
    say(table)
    suggest("reproduce", "NAME", "--scale", "0.1", "--out", "DIR")


def _work(name: str, entry: Listed, options: Experiments, overview: Overview) -> Work:
    """How long an experiment takes: as it was estimated once, or by the speed of this machine."""
    variant = variant_of(options.variant)
    if options.scale == 1 and not options.measure:
        return Work(entry.seconds[variant], entry.chain[variant])
    from equipoise.reproduce import cost, experiment

    plan = experiment(name).plan(options.scale, variant)
    return cost.work(plan.tasks(), rates=None if options.measure else overview.rates)


def _naturally(name: str) -> list[str]:
    """Table 2 before table 11."""
    return [part.zfill(4) for part in name.split("-")]


def roughly(seconds: float) -> str:
    """Such as `40 s`, `12 min`, `3.5 h`, `20 days`."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 100 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"


def variant_of(word: str) -> Literal["as published", "corrected"]:
    """The variant of an experiment that an option names."""
    return "as published" if word == "as-published" else "corrected"


def sources_of(pairs: Sequence[str]) -> dict[str, str]:
    """NAME=PATH pairs. Raises `EquipoiseError` for anything else."""
    sources = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        require(bool(equals and path), f"--data {pair!r}: expected NAME=PATH, such as cifar10=my.npz.")
        if name not in names():
            raise unknown("dataset", name, names())
        require(Path(path).exists(), f"--data {pair}: there is no file or folder {path}.")
        sources[name] = path
    return sources


def is_available(name: str, sources: Mapping[str, str], root: Path | None) -> bool:
    """Whether a dataset has a replacement, or is under `root` or in the cache."""
    return name in sources or available(name, root)
