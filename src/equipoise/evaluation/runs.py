"""Evaluations as records: of any model on a dataset, and the standard one that follows every training."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from equipoise.data import Dataset
from equipoise.errors import EquipoiseError, require
from equipoise.evaluation.evaluate import Progress, cautions, evaluate
from equipoise.evaluation.samples import samples
from equipoise.evaluation.suites import Suite, suite
from equipoise.provenance import provenance
from equipoise.records import Evaluation, Run, save, write_atomically
from equipoise.training import load_run
from equipoise.types import Precision, Predictive

STANDARD = ("fgsm", "pgd")
_LARGE = 1_000_000  # parameters from which a CPU is slow enough to evaluate on fewer samples


def assess(
    model: "nn.Module | Predictive",
    data: Dataset,
    attacks: Suite,
    *,
    target: str,
    examples: int = 1000,
    weights: str = "best",
    seed: int = 0,
    batch_size: int = 256,
    command: str = "",
    progress: Progress | None = None,
) -> Evaluation:
    """`evaluate` on `examples` test samples (0: all of them), as a record that says what was run on what.

    The samples are the start of a fixed stratified order: the same ones for every model, and those of a smaller number
    are among those of a larger. Raises `EquipoiseError` as `evaluate` does.
    """
    require(examples >= 0, f"examples = {examples}: expected a number of test samples, or 0 for all.")
    test = data.test.limit(examples) if examples else data.test
    results = evaluate(model, test.x, test.y, attacks, seed=seed, batch_size=batch_size, progress=progress)
    module = model if isinstance(model, nn.Module) else model.module
    weight = next(module.parameters(), None)
    return Evaluation(
        target=target,
        data={"name": data.name, "sha256": data.sha256, "split": "test", "n": len(test), "n_test": len(data.test)},
        results=results,
        provenance=provenance(seed, torch.device("cpu") if weight is None else weight.device, command),
        weights=weights,
        warnings=cautions(results),
    )


def radii(run: Run) -> tuple[float, ...]:
    """The radii a run is evaluated at by default: half, once and twice that of its validation attacks."""
    eps = run.recipe.get("valid_eps")
    if not isinstance(eps, int | float) or eps <= 0:
        raise EquipoiseError("the run's record names no radius of its validation attacks: give some eps, as 8/255.")
    return (eps / 2, float(eps), 2 * eps)


def affordable_examples(parameters: int, device: "torch.device | str") -> int:
    """How many test samples the evaluation after a training uses: 1000, or 200 for a large network on a CPU."""
    return 200 if parameters > _LARGE and torch.device(device).type == "cpu" else 1000


def evaluate_run(
    path: "Path | str",
    data: Dataset,
    *,
    attacks: Sequence[str] = STANDARD,
    eps: Sequence[float] | None = None,
    examples: int | None = None,
    precision: Precision = "32",
    device: "torch.device | str" = "cpu",
    batch_size: int = 256,
    command: str = "",
    progress: Callable[[str], Progress] | None = None,
) -> list[Evaluation]:
    """The evaluation that follows a training: best weights to `evaluation.json`, last to `evaluation-last.json`.

    Clean accuracy and `attacks` at `eps` (by default `radii`) in the norm of the run's validation attacks, on
    `examples` test samples (by default `affordable_examples`). Images to look at go into `samples.npz`, if the data are
    images. Both evaluations are returned, best first. `progress` is given the weights and makes the callback of
    `evaluate`. Raises `EquipoiseError` if the run cannot be read or its files cannot be written.
    """
    path, evaluations = Path(path), []
    for weights, file in (("best", "evaluation.json"), ("last", "evaluation-last.json")):
        model, run = load_run(path, weights, device)
        if evaluations and run.best.get("epoch") == run.last.get("epoch"):  # the same weights
            evaluations.append(replace(evaluations[0], weights=weights))
            save(path / file, evaluations[-1])
            break
        n = affordable_examples(run.net["parameters"], device) if examples is None else examples
        at, norm = radii(run) if eps is None else eps, run.recipe.get("valid_norm", "linf")
        chosen = suite(attacks, at, norm, precision=precision)
        evaluation = assess(
            model,
            data,
            chosen,
            target=str(path),
            examples=n,
            weights=weights,
            seed=run.provenance.seed,
            batch_size=batch_size,
            command=command,
            progress=None if progress is None else progress(weights),
        )
        save(path / file, evaluation)
        evaluations.append(evaluation)
        if weights == "best" and data.test.x.ndim == 4 and data.test.x.shape[1] in (1, 3):
            few = data.test.limit(1000)
            buffer = io.BytesIO()
            arrays = samples(model, few.x, few.y, seed=run.provenance.seed)
            np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
            write_atomically(path / "samples.npz", buffer.getvalue())
    return evaluations
