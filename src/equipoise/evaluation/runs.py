"""Evaluations as records: of any model on a dataset, and the standard evaluation after every training."""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.core.caching import caching
from equipoise.core.deprecation import renamed_arguments
from equipoise.core.errors import EquipoiseError, require, require_integer
from equipoise.core.files import write_atomically
from equipoise.core.locks import locked
from equipoise.core.types import Precision, Predictive
from equipoise.data import Dataset, Split
from equipoise.evaluation.corrupted import Corruptions, on_corruptions
from equipoise.evaluation.evaluate import (
    Block,
    Progress,
    as_suite,
    box_of,
    check_samples,
    evaluate_block,
    progress_within,
)
from equipoise.evaluation.journal import Journal, joined_points, note_saved, pack_points, save_points
from equipoise.evaluation.proofs import balls_of, check_certificates, check_proofs, on_balls
from equipoise.evaluation.requests import comparable, finished
from equipoise.evaluation.samples import samples
from equipoise.evaluation.shards import WHOLE, Shard
from equipoise.evaluation.suites import Suite, suite
from equipoise.evaluation.summaries import by_ball, concatenated, joined, result_warnings, with_worst_cases
from equipoise.evaluation.verification import fingerprint
from equipoise.geometry import Box
from equipoise.masking.model_checks import check_model
from equipoise.masking.result_checks import check_results
from equipoise.models import as_predictive, global_seed, validate_output
from equipoise.results.provenance import provenance
from equipoise.results.records import Evaluation, Provenance, ResultWarning, Run, save
from equipoise.training import load_run

STANDARD = ("fgsm", "pgd")
_LARGE = 1_000_000  # parameters above which a CPU evaluates on fewer samples


@renamed_arguments(reported="expected_clean_accuracy")
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
    expected_clean_accuracy: float | None = None,
    corruptions: Corruptions | None = None,
    certified: str | None = None,
) -> Evaluation:
    """Return the record of `evaluate` on `examples` test samples (0: all), the start of a fixed stratified order.

    A shard has every n-th block of `batch_size` samples. With `out`, where the record is written, finished blocks and
    attacks are saved beside it, and `resume` computes the missing ones, to the same record. An existing record is
    returned if it answers the same request, else replaced only with `overwrite`. `images` stores the adversarial images
    beside the record. A clean accuracy far from `expected_clean_accuracy`, in [0, 1], raises a flag. Published images
    of `corruptions` are of the whole test set. With `certified`, a method of `equipoise.certified` such as `crown`, the
    record has certified accuracy in the balls of the attacks too. Raises `EquipoiseError` as `evaluate` does, and if
    another process evaluates to `out`.
    """
    attacks = _checked_arguments(data, attacks, examples, batch_size, out, images or resume)
    predictive, test = as_predictive(model), data.test.limit(examples) if examples else data.test
    x, y = check_samples(predictive, test.x, test.y, attacks)
    with global_seed(0, x.device):
        classes = validate_output(predictive, x).classes
    if certified is not None:
        check_certificates(predictive, x, attacks, certified)
    corruptions = None if corruptions is None else corruptions.of(data, examples)
    origin = provenance(seed, x.device, command)
    options: Any = {"target": target, "examples": examples, "weights": weights, "batch_size": batch_size}
    options |= {"images": images, "shard": shard, "corruptions": corruptions, "certified": certified}
    key = evaluation_key(predictive, data, attacks, origin, **options)
    batches = shard.of(torch.arange(len(test)).split(batch_size))
    job = _Job(predictive, test, attacks, batches, key, origin, corruptions, certified)
    with nullcontext() if out is None else locked(out):
        journal = None if out is None else Journal.of(out, key)
        if out is not None and journal is not None:
            request = comparable(key, attacks, classes)
            if before := finished(out, request, overwrite or (resume and journal.is_begun)):
                return before
            journal.claim(resume, overwrite)
        box = box_of(attacks, Box(*data.box))
        flags = check_model(predictive, x, y, box=box, reported=expected_clean_accuracy, seed=seed)
        return job.run(flags, out, journal, progress)


def _checked_arguments(
    data: Any, attacks: Any, examples: int, batch_size: int, out: "Path | str | None", needs_out: bool
) -> Suite:
    """The attacks in the order of the results, which the stored images share."""
    require(
        isinstance(data, Dataset),
        f"evaluate_dataset needs an equipoise.data.Dataset, which has a name and a test set, not "
        f"{type(data).__name__}: load one by equipoise.data.load, or call evaluate with inputs and labels.",
    )
    require_integer("examples", examples, 0)
    require_integer("batch_size", batch_size, 1)
    require(out is None or str(out) not in ("", "."), "out is empty: give the file that the record is written to.")
    attacks = as_suite(attacks)
    require(out is not None or not needs_out, "give out: images and unfinished blocks lie beside the record.")
    return by_ball(attacks)


@dataclass(frozen=True, eq=False)
class _Job:
    """An evaluation, to be computed block by block."""

    model: Predictive
    test: Split
    attacks: Suite
    batches: Sequence[tuple[int, Tensor]]
    """For each block its number in the whole evaluation and the indices of its samples."""
    key: Mapping[str, Any]
    """Everything on which the outcome depends."""
    origin: Provenance
    corruptions: Corruptions | None
    certified: str | None

    def run(
        self,
        flags: Sequence[ResultWarning],
        out: "Path | str | None",
        journal: Journal | None,
        progress: Progress | None,
    ) -> Evaluation:
        """Return the record, which with a journal is written to `out`."""
        blocks = self._computed(journal, progress)
        results = with_worst_cases(joined([block.results for block in blocks]))
        certified = [concatenated(rs) for rs in zip(*(block.certified for block in blocks), strict=True)]
        shard = {} if self.key["shard"] == str(WHOLE) else {"shard": self.key["shard"]}
        record = Evaluation(
            target=self.key["target"],
            data=self.key["data"] | shard,
            results=results,
            provenance=self.origin,
            weights=self.key["weights"],
            warnings=result_warnings(results),
            flags=[*flags, *check_results(results), *check_proofs(results, certified)],
            model=self.key["model"],
            index=torch.cat([index for _, index in self.batches]).tolist(),
            corruptions=[concatenated(rs) for rs in zip(*(block.corruptions for block in blocks), strict=True)],
            certified=certified,
        )
        if out is None or journal is None:
            return record
        if self.key["images"]:
            ends = list(accumulate(len(index) for _, index in self.batches))
            positions = map(range, [0, *ends], ends)
            points = joined_points([(block.points, rows) for block, rows in zip(blocks, positions, strict=True)])
            record = replace(record, images=save_points(out, pack_points(points)))
        save(out, record)
        journal.discard()
        return record

    def _computed(self, journal: Journal | None, progress: Progress | None) -> list[Block]:
        """All blocks, those that are in the journal as they are. An interrupt gets a note that says what is saved."""
        saved = {} if journal is None else {number: journal.read(number) for number, _ in self.batches}
        # Saved blocks count as done from the start, so that the progress from there on is work.
        done = sum(len(index) for number, index in self.batches if saved.get(number))
        total = sum(len(index) for _, index in self.batches)
        blocks: list[Block] = []
        try:
            for number, index in self.batches:
                block = saved.get(number)
                if block is None:
                    block = self._block(number, index, journal, progress_within(progress, done, len(index), total))
                    done += len(index)
                blocks.append(block)
        except KeyboardInterrupt as stop:
            if journal is not None:
                num_blocks, num_attacks = journal.finished([number for number, _ in self.batches])
                note_saved(stop, num_blocks, len(self.batches), num_attacks)
            raise
        return blocks

    def _block(self, number: int, index: Tensor, journal: Journal | None, progress: Progress | None) -> Block:
        x, y = self.test.x[index.to(self.test.x.device)], self.test.y[index.to(self.test.y.device)]
        seed, images = self.key["seed"], self.key["images"]
        unfinished = None if journal is None else journal.unfinished(number)
        with nullcontext() if unfinished is None else caching(unfinished):
            block = evaluate_block(
                self.model, x, y, self.attacks, index=index, seed=seed, images=images, progress=progress
            )
        if self.corruptions is not None:
            batch_size = self.key["batch_size"]
            corrupted = on_corruptions(
                self.model, x, y, self.corruptions, seed=seed, index=index, batch_size=batch_size
            )
            block = replace(block, corruptions=corrupted)
        if self.certified is not None:
            inputs, labels = check_samples(self.model, x, y, self.attacks, part=True)
            proofs = on_balls(self.model, inputs, labels, balls_of(self.attacks), self.certified)
            block = replace(block, certified=proofs)
        if journal is not None and unfinished is not None:
            block = unfinished.timed(block)
            journal.write(number, block)
        return block


def evaluation_key(
    model: "nn.Module | Predictive",
    data: Dataset,
    attacks: Suite,
    origin: Provenance,
    *,
    target: str,
    examples: int = 1000,
    weights: str = "best",
    batch_size: int = 256,
    images: bool = False,
    shard: Shard = WHOLE,
    corruptions: Corruptions | None = None,
    certified: str | None = None,
) -> dict[str, Any]:
    """Return everything on which the outcome of `evaluate_dataset` depends, JSON-ready; `origin` holds the seed."""
    n = min(examples, len(data.test)) if examples else len(data.test)
    about: dict[str, Any] = {"name": data.name, "sha256": data.sha256, "split": "test", "n": n}
    about["n_test"] = len(data.test)
    if "offset" in data.preprocessing:  # of which the digest knows nothing
        about["preprocessing"] = dict(data.preprocessing)
    key = {
        "target": target,
        "weights": weights,
        "data": about,
        "model": fingerprint(model),
        "attacks": [{"name": name, **attack.settings()} for name, attack in attacks],
        "seed": origin.seed,
        "batch_size": batch_size,
        "shard": str(shard),
        "images": images,
        "torch": origin.versions["torch"],
        "device": origin.device,
        "threads": origin.threads,
    }
    key |= {} if corruptions is None else {"corruptions": dict(corruptions.sources())}
    return key | ({} if certified is None else {"certified": certified})


def radii(run: Run) -> tuple[float, ...]:
    """Return the default radii for evaluating a run: half, once and twice that of its validation attacks."""
    eps = run.recipe.get("valid_eps")
    if not isinstance(eps, int | float) or eps <= 0:
        raise EquipoiseError(
            "the run's record names no radius of its validation attacks: give some eps, such as 8/255."
        )
    return (eps / 2, float(eps), 2 * eps)


def affordable_examples(parameters: int, device: "torch.device | str") -> int:
    """Return the number of test samples for the evaluation after a training: 1000, or 200 for a large net on a CPU."""
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
    """Evaluate a run: its best weights to `evaluation.json`, its last ones to `evaluation-last.json`.

    Clean accuracy and `attacks` at `eps` (by default `radii`) in the norm of the run's validation attacks, on
    `examples` test samples (by default `affordable_examples`). A few images go into `samples.npz`, if the data are
    images. Returns both evaluations, best first. `progress` takes `best` or `last` and returns the callback of
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
        chosen_eps, norm = radii(run) if eps is None else eps, run.recipe.get("valid_norm", "linf")
        evaluation = evaluate_dataset(
            model,
            data,
            suite(attacks, chosen_eps, norm, precision=precision, box=Box(*data.box)),
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
            test, buffer = data.test.limit(1000), io.BytesIO()
            # Of the default radii, the middle one is that of the validation attacks.
            judged = (norm, chosen_eps[len(chosen_eps) // 2]) if chosen_eps else None
            arrays = samples(model, test.x, test.y, judged=judged, seed=run.provenance.seed)
            np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
            write_atomically(path / "samples.npz", buffer.getvalue())
    return evaluations
