"""The command push: a run as a folder that can be given to others."""

from equipoise.cli.console import say, suggest
from equipoise.cli.requests import Push
from equipoise.core.errors import EquipoiseError, require
from equipoise.evaluation.verification import fingerprint
from equipoise.pretrained import publish
from equipoise.results.records import Evaluation, load
from equipoise.training import load_run


def push(options: Push) -> None:
    """Write the folder, and say where it is. Raises `EquipoiseError` if the evaluation is of other weights."""
    last = "-last" if options.weights == "last" else ""
    record = options.evaluation or options.target / f"evaluation{last}.json"
    model, _ = load_run(options.target, options.weights)
    evaluation = load(record)
    if not isinstance(evaluation, Evaluation):
        raise EquipoiseError(f"{record} is no evaluation: give one that `equipoise evaluate` wrote.")
    require(
        evaluation.model.get("sha256") == fingerprint(model)["sha256"],
        f"{record} is about other weights than the {options.weights} ones of {options.target}: evaluate those with "
        f"--weights {options.weights}.",
    )
    require("shard" not in evaluation.data, f"{record} is about one shard: merge all of them first.")
    images = record.parent / str(evaluation.images["file"]) if evaluation.images else None
    publish(
        options.target,
        options.weights,
        evaluation,
        options.out,
        name=options.name or "",
        licence=options.license,
        images=images,
        overwrite=options.overwrite,
    )
    say(f"wrote {options.out}; nothing was sent")
    suggest("verify", options.out)
