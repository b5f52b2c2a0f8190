"""Evaluations as records: of any model on a dataset, and the standard one that follows every training."""

import io
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.core.errors import EquipoiseError, require, require_integer
from equipoise.core.files import write_atomically
from equipoise.core.locks import locked
from equipoise.core.progress import keeping
from equipoise.core.types import Precision, Predictive
from equipoise.data import Dataset, Split
from equipoise.evaluation.corrupted import Corruptions, joined_corruptions, on_corruptions
from equipoise.evaluation.evaluate import Block, Progress, as_suite, check_samples, evaluate_block
from equipoise.evaluation.journal import Journal, joined_points, note_kept, pack_points, save_points
from equipoise.evaluation.requests import comparable, finished
from equipoise.evaluation.samples import samples
from equipoise.evaluation.shards import WHOLE, Shard
from equipoise.evaluation.suites import Suite, suite
from equipoise.evaluation.summaries import by_ball, joined, result_warnings, with_worst_cases
from equipoise.evaluation.verification import fingerprint
from equipoise.geometry import Box
from equipoise.masking.model_checks import check_model
from equipoise.masking.result_checks import check_results
from equipoise.models import as_predictive, global_seed, validate_output
from equipoise.results.provenance import provenance
from equipoise.results.records import Evaluation, Provenance, Run, save
from equipoise.training import load_run

STANDARD = ("fgsm", "pgd")
_LARGE = 1_000_000  # parameters from which a CPU is slow enough to evaluate on fewer samples


def evaluate_dataset(
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
    out: "Path | str | None" = None,
    resume: bool = False,
    overwrite: bool = False,
    images: bool = False,
    shard: Shard = WHOLE,
    reported: float | None = None,
    corruptions: Corruptions | None = None,
) -> Evaluation:
    """`evaluate` on `examples` test samples (0: all of them), as a record that says what was run on what.

    The samples are the start of a fixed stratified order: the same ones for every model, and those of a smaller number
    are among those of a larger. They are worked on in blocks of `batch_size`, each on its own, of which a shard has
    every n-th. With `out`, where the record is written, every finished block is kept beside it, and of the block under
    way every finished attack; `resume` continues with those that are missing, to the same record. A record that is
    there already is returned if it answers the same request, else replaced only with `overwrite`. `images` stores the
    adversarial images beside it too. `reported` is an accuracy to compare with, in [0, 1]. `corruptions` are measured
    on too; published images are of the whole test set, from which the same samples are taken.
    Raises `EquipoiseError` as `evaluate` does, and if another process evaluates to `out`.
    """
    require(
        isinstance(data, Dataset),
        f"assess needs an equipoise.data.Dataset, which has a name and a test set, not {type(data).__name__}: load one "
        "by equipoise.data.load, or call evaluate with inputs and labels.",
    )
    for name, value, least in (("examples", examples, 0), ("batch_size", batch_size, 1)):
        require_integer(name, value, least)
    require(out is None or str(out) not in ("", "."), "out is empty: give the file that the record is written to.")
    attacks = as_suite(attacks)
    require(out is not None or not (images or resume), "give out: images and unfinished blocks lie beside the record.")
    test = data.test.limit(examples) if examples else data.test
    predictive = as_predictive(model)
    weight = next(predictive.module.parameters(), None)
    device = torch.device("cpu") if weight is None else weight.device
    attacks = by_ball(attacks)  # the order of the results, which the stored images share
    x, y = check_samples(predictive, test.x, test.y, attacks)
    with global_seed(0, x.device):
        classes = validate_output(predictive, x).classes
    corruptions = None if corruptions is None else corruptions.of(data, examples)
    came_from = provenance(seed, device, command)
    everything = evaluation_key(
        predictive,
        data,
        attacks,
        came_from,
        target=target,
        examples=examples,
        weights=weights,
        batch_size=batch_size,
        images=images,
        shard=shard,
        corruptions=corruptions,
    )
    blocks = shard.of(torch.arange(len(test)).split(batch_size))
    with nullcontext() if out is None else locked(out):
        journal = None
        if out is not None:
            journal = Journal.of(out, everything)
            request = comparable(everything, attacks, classes)
            before = finished(out, request, overwrite or (resume and journal.is_begun))
            if before is not None:
                return before
            journal.claim(resume, overwrite)
        box = attacks[0][1].geometry.box if attacks else Box()
        doubts = check_model(predictive, x, y, box=box, reported=reported, seed=seed)
        found = _evaluated(predictive, test, attacks, blocks, journal, seed, batch_size, images, corruptions, progress)
        results = with_worst_cases(joined([block.results for block in found]))
        record = Evaluation(
            target=target,
            data=everything["data"] | ({} if shard == WHOLE else {"shard": str(shard)}),
            results=results,
            provenance=came_from,
            weights=weights,
            warnings=result_warnings(results),
            flags=[*doubts, *check_results(results)],
            model=everything["model"],
            index=torch.cat([rows for _, rows in blocks]).tolist(),
            corruptions=joined_corruptions([block.corruptions for block in found]),
        )
        if journal is None or out is None:
            return record
        if images:
            offsets = accumulate((len(rows) for _, rows in blocks), initial=0)
            places = [range(start, start + len(rows)) for start, (_, rows) in zip(offsets, blocks, strict=False)]
            points = joined_points([(block.points, where) for block, where in zip(found, places, strict=True)])
            record = replace(record, images=save_points(out, pack_points(points)))
        save(out, record)
        journal.discard()
    return record


def _evaluated(
    predictive: Predictive,
    test: Split,
    attacks: Suite,
    blocks: Sequence[tuple[int, Tensor]],
    journal: Journal | None,
    seed: int,
    batch_size: int,
    images: bool,
    corruptions: Corruptions | None,
    progress: Progress | None,
) -> list[Block]:
    """All blocks, those in the journal as they are. An interrupt gets a note that says what is kept."""
    kept = {} if journal is None else {number: journal.read(number) for number, _ in blocks}
    # What had been finished counts as done at the start, so that the progress from there on is work.
    done = sum(len(rows) for number, rows in blocks if kept.get(number))
    total = sum(len(rows) for _, rows in blocks)
    found: list[Block] = []
    try:
        for number, rows in blocks:
            block = kept.get(number)
            if block is None:
                x, y = test.x[rows.to(test.x.device)], test.y[rows.to(test.y.device)]
                within = _within(progress, done, len(rows), total)
                parts = None if journal is None else journal.parts(number)
                with nullcontext() if parts is None else keeping(parts):
                    block = evaluate_block(
                        predictive, x, y, attacks, index=rows, seed=seed, images=images, progress=within
                    )
                block = block if parts is None else parts.timed(block)
                if corruptions is not None:
                    on_them = on_corruptions(
                        predictive, x, y, corruptions, seed=seed, index=rows, batch_size=batch_size
                    )
                    block = replace(block, corruptions=on_them)
                if journal is not None:
                    journal.write(number, block)
                done += len(rows)
            found.append(block)
    except KeyboardInterrupt as stop:
        if journal is not None:
            done_blocks, attacks_on_others = journal.finished([number for number, _ in blocks])
            note_kept(stop, done_blocks, len(blocks), attacks_on_others)
        raise
    return found


def evaluation_key(
    model: "nn.Module | Predictive",
    data: Dataset,
    attacks: Suite,
    where: Provenance,
    *,
    target: str,
    examples: int = 1000,
    weights: str = "best",
    batch_size: int = 256,
    images: bool = False,
    shard: Shard = WHOLE,
    corruptions: Corruptions | None = None,
) -> dict[str, Any]:
    """Return everything on which the outcome of `evaluate_dataset` depends, JSON-ready. `where` holds the seed."""
    n = min(examples, len(data.test)) if examples else len(data.test)
    everything = {
        "target": target,
        "weights": weights,
        "data": {"name": data.name, "sha256": data.sha256, "split": "test", "n": n, "n_test": len(data.test)},
        "model": fingerprint(model),
        "attacks": [{"name": name, **attack.settings()} for name, attack in attacks],
        "seed": where.seed,
        "batch_size": batch_size,
        "shard": str(shard),
        "images": images,
        "torch": where.versions["torch"],
        "device": where.device,
        "threads": where.threads,
    }
    return everything | ({} if corruptions is None else {"corruptions": dict(corruptions.sources())})


def _within(progress: Progress | None, done: int, n: int, total: int) -> Progress | None:
    """The progress of one block as that of all."""
    if progress is None:
        return None

    def report(what: str, now: int, of: int) -> None:
        parts = of // n
        progress(what, done * parts + now, total * parts)

    return report


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
        evaluation = evaluate_dataset(
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
            judged = (norm, at[len(at) // 2]) if at else None  # of the usual radii, the one of the validation attacks
            arrays = samples(model, few.x, few.y, judged=judged, seed=run.provenance.seed)
            np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
            write_atomically(path / "samples.npz", buffer.getvalue())
    return evaluations
