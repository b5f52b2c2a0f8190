"""The command export: a trained model as a file for other programs."""

from pathlib import Path

from equipoise.cli.console import say
from equipoise.cli.recorded import require_file
from equipoise.cli.using_requests import Export
from equipoise.core.errors import require
from equipoise.models.exported import FILES  # fmt: skip
from equipoise.models.exported import export as exported
from equipoise.training import load_run


def export(options: Export) -> None:
    """Write the file, and say how it is used."""
    out = options.out or Path(FILES[options.to])
    require_file(out)
    require(
        options.overwrite or not out.exists(),
        f"{out} exists already: add --overwrite to replace it, or choose another place with --out.",
    )
    model, run = load_run(options.target, options.weights)
    shape, classes = tuple(run.data["shape"]), [str(name) for name in run.data["classes"]]
    preprocessing = run.data.get("preprocessing", {})
    exported(model, out, shape, options.to, classes=classes, preprocessing=preprocessing)
    sides, (low, high) = " x ".join(map(str, shape)), preprocessing.get("box", (0.0, 1.0))
    say(
        f"wrote {out}: float32 in [{low:g}, {high:g}] of shape batch x {sides} to logits of {len(classes)} "
        "classes; its predictions are those of PyTorch"
    )
