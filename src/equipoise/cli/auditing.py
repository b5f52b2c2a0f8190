"""The audit command: is a model robust, or are its gradients masked?"""

import json
from dataclasses import asdict, replace

from rich.table import Table

from equipoise.cli.display import duration, moving, say, share_progress
from equipoise.cli.evaluating import norm_of, subject_of
from equipoise.cli.options import Audit, Evaluate
from equipoise.diagnostics.verdict import investigate
from equipoise.errors import EquipoiseError, require
from equipoise.evaluation import radii
from equipoise.provenance import provenance
from equipoise.records import write_atomically
from equipoise.report.figures import canvas
from equipoise.report.masking import clearest_first, p_value, page
from equipoise.training import Recipe, load_run
from equipoise.verdicts import Verdict


def audit(options: Audit, command: str) -> None:
    """Look for signs of masked gradients, write the page and its record, and say what came out."""
    out = options.out
    require(not out.is_dir(), f"--out {out} is a directory: expected a file, such as audit.html.")
    require(out.suffix == ".html", f"--out {out}: expected a page that ends in .html.")
    require(options.minutes > 0, f"--minutes {options.minutes}: expected a number > 0.")
    canvas(1, 1)  # is matplotlib there?
    subject = subject_of(
        Evaluate(
            options.target,
            data=options.data,
            data_root=options.data_root,
            weights=options.weights,
            checkpoint=options.checkpoint,
            net_option=options.net_option,
            seed=options.seed,
            device=options.device,
        )
    )
    device = Recipe(device=options.device).pick_device()
    recorded = subject.recorded
    norm = norm_of(options.norm, recorded)
    if options.eps is None and recorded is None:
        raise EquipoiseError("give the radius at which the model is said to be robust, such as --eps 8/255.")
    eps = options.eps if recorded is None or options.eps is not None else radii(recorded)[1]
    assert eps is not None
    proxy = None if options.transfer_from is None else load_run(options.transfer_from, device=device)[0]
    test = subject.data.test.limit(2000).to(device)
    verdict = investigate(
        subject.model,
        test.x,
        test.y,
        eps,
        norm,
        proxy=proxy,
        minutes=options.minutes,
        seed=options.seed,
        target=options.target,
        progress=share_progress(f"auditing {options.target}"),
    )
    moving("")
    verdict = replace(verdict, provenance=asdict(provenance(options.seed, device, command)))
    write_atomically(out, page(verdict).encode())
    record = out.with_suffix(".json")
    write_atomically(record, (json.dumps(verdict.to_json(), indent=1) + "\n").encode())
    say(_table(verdict))
    say(str(verdict))
    say(f"wrote {out} and {record} in {duration(verdict.seconds)}")


def _table(verdict: Verdict) -> Table:
    """Each sign with its figure."""
    table = Table()
    table.add_column("sign", overflow="fold")
    table.add_column("found")
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("measured", overflow="fold")
    for sign in clearest_first(verdict):
        table.add_row(sign.name, "yes" if sign.raised else "no", p_value(sign.p), sign.figure)
    return table
