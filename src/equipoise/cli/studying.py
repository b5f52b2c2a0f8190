"""The study command: run one of the papers' small experiments and write what it found."""

import time
from dataclasses import asdict, fields
from pathlib import Path

import torch

from equipoise.cli.console import duration, moving, say, suggest
from equipoise.cli.display import numbers, share_progress
from equipoise.cli.options import RENAMED, options_of
from equipoise.cli.recorded import answered
from equipoise.cli.requests import Study
from equipoise.core.errors import require, unknown
from equipoise.core.files import require_writable
from equipoise.nets.convolutional import WIDEST
from equipoise.report.figures import canvas
from equipoise.reproduce.studies import STUDIES, Entry, Options, save
from equipoise.results.findings import Study as Record
from equipoise.results.provenance import provenance

RECORD = "study.json"


def study(options: Study, command: str) -> None:
    """Run a study, write it, and say what came out.

    Raises `EquipoiseError` before anything is computed for an unknown study, an unusable --out, or a missing library.
    """
    if options.name not in STUDIES:
        raise unknown("study", options.name, STUDIES)
    require(
        list(options.widths) == sorted({*options.widths})
        and all(1 <= width <= WIDEST for width in options.widths)
        and len(options.widths) != 1,
        f"--widths {' '.join(map(str, options.widths))}: expected two or more integers from 1 to {WIDEST}, in "
        "rising order.",
    )
    entry, out = STUDIES[options.name], options.out or Path("studies", options.name)
    refuse_unused(entry, options)
    canvas(1, 1)  # is matplotlib there?
    if (out / RECORD).is_file() and answered(out / RECORD, out / RECORD, options, {}, options.overwrite) is not None:
        say(f"finished before: {out}")
        return
    claim(out, options.overwrite)
    names = {f.name: RENAMED.get(f.name, f.name) for f in fields(Options)}
    asked = Options(**{name: getattr(options, own) for name, own in names.items()})
    say(f"{entry.name}: {entry.question} ({entry.source})")
    origin, began = (provenance(options.seed, torch.device("cpu"), command), time.monotonic())
    findings = entry.run(asked, share_progress(entry.name))
    moving("")
    seconds = time.monotonic() - began
    record = Record(entry.name, entry.question, entry.source, findings, asdict(origin), options.quick, seconds)
    page = save(out, record)
    if findings.numbers:
        say(numbers(findings))
    say(findings.verdict or "done")
    say(f"wrote {page} in {duration(seconds)}" + ("; a quick run proves nothing" if options.quick else ""))
    if options.quick:
        suggest("study", options.name, *([] if options.out is None else ["--out", out]), "--overwrite")
    else:
        suggest("experiments")


def refuse_unused(entry: Entry, options: Study) -> None:
    """Raise `EquipoiseError` for options that the study would not look at."""
    takes = {RENAMED.get(name, name) for name in entry.takes}
    for option in options_of(Study):
        require(
            option.name in takes
            or option.name not in ("seeds", "data", "data_root", "examples", "widths")
            or getattr(options, option.name) == option.default,
            f"the study {entry.name} has no use for {option.flag}: leave it out.",
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
