"""The command that follows another one: what its last line suggests."""

import re
from pathlib import Path

from equipoise.cli.console import suggest
from equipoise.cli.options import flag_of
from equipoise.cli.requests import ModelRequest
from equipoise.report.pages import radius
from equipoise.results.records import Evaluation


def after_evaluation(out: Path, evaluation: Evaluation) -> None:
    """Suggest to join shards, to check the record with its images, or to see it on a page."""
    number, _, count = str(evaluation.data.get("shard", "")).partition("/")
    ending = re.compile(rf"-{number}of{count}(?=\.json$)")
    if count and ending.search(out.name):
        suggest("merge", *(out.with_name(ending.sub(f"-{i}of{count}", out.name)) for i in range(1, int(count) + 1)))
    elif evaluation.images:
        suggest("verify", out)
    else:
        to_report(evaluation.target, out)


def to_report(target: str, *records: Path) -> None:
    """Suggest a page about a run and the records that are not in its folder as evaluations, or about these alone."""
    folder = Path(target)
    is_run = (folder / "run.json").is_file()
    found = [file.resolve() for file in folder.glob("evaluation*.json")] if is_run else []
    apart = [record for record in records if record.resolve() not in found]
    suggest("report", *([target] if is_run else []), *apart, "--out", "report.html")


def to_evaluate(options: ModelRequest, norm: str | None, eps: float | None) -> None:
    """Suggest to attack the model of a request in earnest, at the norm and radius that were typed; a page about a run
    that has been.
    """
    if list(Path(options.target).glob("evaluation*autoattack*.json")):
        to_report(options.target)
        return
    words = [options.target]
    for name in ("data", "data_root", "checkpoint"):
        if (value := getattr(options, name)) is not None:
            words += [flag_of(name), str(value)]
    words += ["--weights", options.weights] if options.weights != "best" else []
    words += ["--net-option", *options.net_option] if options.net_option else []
    words += ["--norm", norm] if norm is not None else []
    words += ["--eps", radius(eps)] if eps is not None else []
    suggest("evaluate", *words, "--attacks", "autoattack")
