"""The audit command: is a model robust, or are its gradients masked?"""

import json
from dataclasses import asdict, replace
from pathlib import Path

from rich.table import Table

from equipoise.cli.console import duration, moving, say
from equipoise.cli.display import share_progress
from equipoise.cli.following import to_evaluate
from equipoise.cli.loaded_model import load_model, norm_of
from equipoise.cli.recorded import answered, require_file
from equipoise.cli.requests import Audit
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import read_json, require_writable, write_atomically
from equipoise.evaluation import radii
from equipoise.evaluation.verification import fingerprint
from equipoise.geometry import Box
from equipoise.masking.investigate import investigate
from equipoise.report.figures import canvas
from equipoise.report.masking import clearest_first, p_value, page
from equipoise.results.masking import KIND, MaskingReport
from equipoise.results.provenance import provenance
from equipoise.results.records import Run
from equipoise.training import Recipe, load_run

MASKED, UNDECIDED = 3, 4
"""Exit codes of an audit that found masked gradients, and of one with too few samples to tell."""


def audit(options: Audit, command: str) -> int:
    """Look for signs of masked gradients, write the page and its record, and say what came out. Returns the exit code:
    0 if no sign was found, 3 if the model is masked, and 4 if there are too few samples to tell.
    """
    require(options.time_budget > 0, f"--time-budget {options.time_budget}: expected a number > 0.")
    canvas(1, 1)  # is matplotlib there?
    out, record = _claimed(options.out)
    loaded = load_model(options)
    device = Recipe(device=options.device).pick_device()
    norm = norm_of(options.norm, loaded.run)
    eps = _radius(options, loaded.run, norm)
    proxy = None if options.transfer_from is None else load_run(options.transfer_from, device=device)[0]
    test = loaded.data.test.limit(2000).to(device)
    about = {
        "data": {"name": loaded.data.name, "sha256": loaded.data.sha256, "split": "test", "n": len(test)},
        "model": {"weights": loaded.weights, **fingerprint(loaded.model)},
    }
    before = answered(record, out, options, about, options.overwrite)
    if before is not None:
        say(str(before["verdict"]))
        say(f"finished before: {out} and {record}")
        to_evaluate(options, options.norm, options.eps)
        return MASKED if before["masked"] else UNDECIDED if before["undecided"] else 0
    report = investigate(
        loaded.model,
        test.x,
        test.y,
        eps,
        norm,
        box=Box(*loaded.data.box),
        proxy=proxy,
        proxy_name=str(options.transfer_from),
        minutes=options.time_budget,
        seed=options.seed,
        batch_size=options.batch_size,
        target=options.target,
        progress=share_progress(f"auditing {options.target}"),
    )
    moving("")
    report = replace(report, **about, provenance=asdict(provenance(options.seed, device, command)))
    text = page(report)
    write_atomically(record, (json.dumps(report.to_json(), indent=1) + "\n").encode())
    write_atomically(out, text)
    say(_table(report))
    for line in (str(report), report.accuracies, report.caution, *report.warnings):
        if line:
            say(line)
    for line in report.skipped if "answers" in report.model else ():
        say(f"left out: {line}")
    if proxy is None:
        say("to test transferred attacks too, name another run on the same data with --transfer-from.")
    say(f"wrote {out} and {record} in {duration(report.seconds)}")
    to_evaluate(options, options.norm, options.eps)
    return MASKED if report.masked else UNDECIDED if report.undecided else 0


def _radius(options: Audit, run: Run | None, norm: str) -> float:
    """The radius that was asked for, or that of the run's validation attacks."""
    if options.eps is not None:
        return options.eps
    if run is None:
        raise EquipoiseError("give the radius at which the model is said to be robust, with --eps, such as 8/255.")
    require(
        norm == norm_of(None, run),
        f"--norm {norm}: the run's own radius is of another norm ({norm_of(None, run)}), so give one with --eps.",
    )
    return radii(run)[1]


def _claimed(out: Path) -> tuple[Path, Path]:
    """The places of the page and of its record, which can be written, and where no other record is lost."""
    require_file(out, ".html")
    record = out.with_suffix(".json")
    require(
        not record.exists() or _is_audit(record),
        f"--out {out} would replace {record}, which is no record of an audit: choose another name.",
    )
    require_writable(out.parent)
    return out, record


def _is_audit(record: Path) -> bool:
    try:
        content = read_json(record)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == KIND


def _table(report: MaskingReport) -> Table:
    """Each sign with its figure."""
    table = Table()
    table.add_column("sign", overflow="fold")
    table.add_column("found")
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("measured", overflow="fold")
    for sign in clearest_first(report):
        table.add_row(sign.name, "yes" if sign.raised else "no", p_value(sign.p), sign.figure)
    return table
