"""The command predict: what a trained model says about single inputs."""

import json
from dataclasses import asdict

import torch
from rich.table import Table

from equipoise.cli.console import say
from equipoise.cli.recorded import require_file
from equipoise.cli.using_requests import Predict
from equipoise.core.errors import require
from equipoise.core.files import printable, require_writable, write_once
from equipoise.data.single_images import read_inputs
from equipoise.evaluation.predicting import predict as predictions_of
from equipoise.evaluation.verification import fingerprint
from equipoise.geometry import Box
from equipoise.results.predictions import Predictions
from equipoise.results.provenance import provenance
from equipoise.training import Recipe, load_run

_ENDINGS = (".json", ".csv")


def predict(options: Predict, command: str) -> None:
    """Predict, print a table or JSON, and write a file if one is asked for."""
    if options.out is not None:
        require_file(options.out)
        require(
            options.out.suffix in _ENDINGS,
            f"--out {options.out}: expected a file that ends in {' or '.join(_ENDINGS)}.",
        )
        require_writable(options.out.parent)
    device = Recipe(device=options.device).pick_device()
    model, run = load_run(options.target, options.weights, device)
    inputs, sources, preprocessing = [], [], run.data.get("preprocessing", {})
    for path in options.inputs:
        x, note = read_inputs(path, tuple(run.data["shape"]), preprocessing)
        if note and not options.json:
            say(note)
        name = printable(path)
        inputs.append(x)
        sources += [name] if len(x) == 1 else [f"{name}[{number}]" for number in range(len(x))]
    found = predictions_of(
        model,
        torch.cat(inputs).to(device),
        norm=options.norm,
        radius=options.radius,
        certified=options.certified,
        box=Box(*preprocessing.get("box", (0.0, 1.0))),
        classes=[str(name) for name in run.data["classes"]],
        sources=sources,
        seed=options.seed,
    )
    about = {"target": options.target, "weights": options.weights, "model": fingerprint(model)}
    record = found.to_json() | about | {"provenance": asdict(provenance(options.seed, device, command))}
    text = json.dumps(record, indent=1) + "\n"
    if options.json:
        print(text, end="")
    else:
        say(_shown(found))
    if options.out is not None:
        content = found.to_csv() if options.out.suffix == ".csv" else text
        say(f"wrote {write_once(options.out, content.encode('utf-8', 'backslashreplace'), options.overwrite)}")


def _shown(predictions: Predictions) -> Table:
    header, rows = predictions._table()
    table = Table()
    for name in header:
        table.add_column(name, justify="left" if name in ("input", "class") else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
