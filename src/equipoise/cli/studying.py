"""The study command: run one of the papers' small experiments and write what it found."""

import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from tyro.conf import FlagCreatePairsOff, Positional

from equipoise.cli.display import duration, moving, numbers, say, share_progress
from equipoise.cli.recorded import answered
from equipoise.core.errors import require, unknown
from equipoise.core.files import require_writable
from equipoise.nets.lenet import WIDEST
from equipoise.report.figures import canvas
from equipoise.reproduce.studies import STUDIES, Entry, Options, save
from equipoise.results.findings import Study as Record
from equipoise.results.provenance import provenance

RECORD = "study.json"


@dataclass(frozen=True)
class Study:
    """Run one of the papers' small experiments: its figures, with the numbers that make their point.

    Example: equipoise study narrow-corridor --out studies/narrow-corridor
    """

    name: Positional[str]
    """narrow-corridor, lms5, two-distance, due, theorem, appearance, opposite-class, overfitting, capacity,
    transfer or entropy-weight."""
    out: Path | None = None
    """Directory of the page, its figures and the data behind them; by default studies/NAME."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the study in --out."""
    quick: FlagCreatePairsOff[bool] = False
    """A small version, in seconds: shows that the study works, proves nothing."""
    seeds: int | None = None
    """Independent repeats; by default the study's own number."""
    seed: int = 0
    """Seed of the first repeat; the others follow."""
    data: str | None = None
    """Dataset or file, as for train, of the studies that run on any; by default the study's own."""
    data_root: Path | None = None
    """Where the files of a dataset are looked for before they are downloaded."""
    limit: int | None = None
    """Use at most so many training samples."""
    widths: tuple[int, ...] = ()
    """Widths of the networks of the capacity study, such as 1 2 4 8 12; by default 1 2 4."""
    processes: int = 2
    """Processes that share the networks of a study that trains many; the result is that of one."""


def study(options: Study, command: str) -> None:
    """Run a study, write it, and say what came out.

    Raises `EquipoiseError` before anything is computed for an unknown study, an unusable --out, or a missing library.
    """
    if options.name not in STUDIES:
        raise unknown("study", options.name, STUDIES)
    require(options.seeds is None or options.seeds >= 1, f"--seeds {options.seeds}: expected at least one repeat.")
    require(options.limit is None or options.limit >= 1, f"--limit {options.limit}: expected at least one sample.")
    require(options.processes >= 1, f"--processes {options.processes}: expected at least one process.")
    require(
        list(options.widths) == sorted({*options.widths})
        and all(1 <= width <= WIDEST for width in options.widths)
        and len(options.widths) != 1,
        f"--widths {' '.join(map(str, options.widths))}: expected two or more whole numbers from 1 to {WIDEST}, in "
        "rising order.",
    )
    entry, out = STUDIES[options.name], options.out or Path("studies", options.name)
    refuse_unused(entry, options)
    canvas(1, 1)  # is matplotlib there?
    if (out / RECORD).is_file() and answered(out / RECORD, out / RECORD, options, {}, options.overwrite) is not None:
        say(f"finished before: {out}")
        return
    claim(out, options.overwrite)
    asked = Options(**{f.name: getattr(options, f.name) for f in fields(Options)})
    say(f"{entry.name}: {entry.question} ({entry.source})")
    origin, began = provenance(options.seed, torch.device("cpu"), command), time.monotonic()
    findings = entry.run(asked, share_progress(entry.name))
    moving("")
    seconds = time.monotonic() - began
    record = Record(entry.name, entry.question, entry.source, findings, asdict(origin), options.quick, seconds)
    place = save(out, record)
    if findings.numbers:
        say(numbers(findings))
    say(findings.verdict or "done")
    say(f"wrote {place} in {duration(seconds)}" + ("; a quick run proves nothing" if options.quick else ""))


def refuse_unused(entry: Entry, options: Study) -> None:
    """Raise `EquipoiseError` for options that the study would not look at."""
    usual = {f.name: f.default for f in fields(Study)}
    for name in ("seeds", "data", "data_root", "limit", "widths"):
        flag = f"--{name.replace('_', '-')}"
        require(
            name in entry.takes or getattr(options, name) == usual[name],
            f"the study {entry.name} has no use for {flag}: leave it out.",
        )


def claim(out: Path, overwrite: bool) -> None:
    """See to it that `out` is free, or meant, and can be written. Raises `EquipoiseError` otherwise."""
    require(not out.exists() or out.is_dir(), f"--out {out} is a file: expected a directory, which may not exist yet.")
    holds_study = (out / "study.json").exists()
    require(
        holds_study or not out.exists() or not any(out.iterdir()),
        f"{out} is not empty and holds no study: choose another place with --out.",
    )
    require(
        not holds_study or overwrite,
        f"{out} already holds a study: add --overwrite to replace it, or choose another place with --out.",
    )
    require_writable(out)
