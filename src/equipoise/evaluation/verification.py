"""Verification of records: every claim is recomputed from the stored images, on the CPU, or from other claims."""

import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.core.deprecation import renamed_names
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import read_json
from equipoise.core.rng import Stream, Streams
from equipoise.core.types import Labels, Points, Predictive, answers_of
from equipoise.evaluation.confirm import verify_outcome
from equipoise.evaluation.consistency import COLUMNS, common_box, contradictions, label_of
from equipoise.evaluation.corrupted import Corruptions, on_corruptions
from equipoise.evaluation.journal import read_points
from equipoise.evaluation.proofs import on_balls
from equipoise.evaluation.summaries import WORST
from equipoise.geometry import Box, ball_of
from equipoise.models import as_predictive, global_seed, predict
from equipoise.results.records import AttackRecord, Evaluation, load

_NUM_REPEATED = 8  # samples on which a model is tested for randomness
_TOLERANCE = 1e-9  # relative difference of two float64 distances that the order of a sum explains


def fingerprint(model: "nn.Module | Predictive") -> dict[str, Any]:
    """Return the SHA-256 over names, shapes and values of all parameters and buffers, and the number of parameters; of
    a `BlackBox` also what it gives.
    """
    predictive = as_predictive(model)
    module, answers = predictive.module, answers_of(predictive)
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        array = np.ascontiguousarray(
            value.detach().cpu().to(torch.float64 if value.is_floating_point() else value.dtype)
        )
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode() + array.tobytes())
    gives = {} if answers == "gradients" else {"answers": answers}
    return {"sha256": digest.hexdigest(), "parameters": sum(p.numel() for p in module.parameters())} | gives


@dataclass(frozen=True)
class Verification:
    """The result of verifying a record."""

    claims: int = 0
    """Number of claims that were checked by recomputation."""
    unchecked: int = 0
    """Number of successes without a stored image to check them by."""
    mismatches: Sequence[str] = ()
    """The errors of the record, one sentence each."""

    def __add__(self, other: "Verification") -> "Verification":
        return Verification(
            self.claims + other.claims, self.unchecked + other.unchecked, [*self.mismatches, *other.mismatches]
        )


def read(path: "Path | str") -> Evaluation:
    """Return the evaluation in `path`. Raises `EquipoiseError` if it lacks something that verification needs."""
    evaluation = load(path)
    if not isinstance(evaluation, Evaluation):
        raise EquipoiseError(f"{path} is the record of a training: verify what `equipoise evaluate` wrote.")
    data, images, index = evaluation.data, evaluation.images, list(evaluation.index)
    clean, *others = evaluation.results
    require(
        clean.attack == "clean" and clean.eps == 0 and all(r.attack != "clean" for r in others),
        f"{path} is damaged: its first result, and no other, must be accuracy without an attack.",
    )
    for number, result in enumerate(evaluation.results, 1):
        columns = COLUMNS if number > 1 else ("prediction", "winner")
        lacking = [name for name in columns if len(getattr(result, name)) != clean.n]
        require(
            not lacking and result.n == clean.n,
            f"{path} is damaged: result {number} ({result.attack}) lacks {', '.join(lacking) or 'samples'}.",
        )
    n: Any = data.get("n")
    is_shard = "shard" in data
    require(
        isinstance(n, int) and clean.n <= n and (is_shard or clean.n == n) and isinstance(data.get("sha256"), str),
        f"{path} is damaged: data.n is not the number of samples ({clean.n}), or data.sha256 is no text.",
    )
    require(
        (not index and not is_shard)
        or (len(index) == clean.n and index[0] >= 0 and index[-1] < n and all(a < b for a, b in pairwise(index))),
        f"{path} is damaged: its index is not one increasing place from 0 to {n - 1} for each of {clean.n} samples.",
    )
    file = images.get("file")
    require(
        not images or (isinstance(file, str) and file == Path(file).name != "" and type(images.get("sha256")) is str),
        f"{path} is damaged: its images need the name of a file beside it, without a folder, and its SHA-256.",
    )
    return evaluation


def verify_record(
    path: "Path | str",
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    batch_size: int = 256,
    corruptions: Corruptions | None = None,
) -> Verification:
    """Recompute every claim of the record `path` from the clean inputs `x`, labels `y` and the stored images.

    Checked are the clean predictions; for every stored adversarial image its distance in float64, that it lies in the
    ball and the box, and its predicted class; that every success has its image; and everything else in the record that
    follows from the outcomes. On the CPU, in the model's own precision and eval mode; the model is left untouched. A
    model that draws its randomness from the streams, such as Monte Carlo dropout, is drawn from the record's seed.
    Certified margins are computed again, and corrupted images made again; published ones come with `corruptions`, in
    the order of the evaluation. That a sample withstands an attack can be checked only by attacking it again.
    Raises `EquipoiseError` if the record or its images cannot be read, or belong to other weights or samples, and for a
    consistent record of a randomised model, whose claims cannot be recomputed.
    """
    evaluation, path, predictive = read(path), Path(path), as_predictive(model)
    n = evaluation.results[0].n
    require(len(x) == len(y) == n, f"{path} is about {n} samples, here are {len(x)}: give the same data and shard.")
    points, box, mismatches = _consistency(evaluation, path, predictive, x)
    predictive = _on_cpu(predictive)
    weight = next((p for p in predictive.module.parameters() if p.is_floating_point()), None)
    x, y = x.cpu().to(torch.float32 if weight is None else weight.dtype), y.cpu()
    index = torch.as_tensor(list(evaluation.index) or range(n))
    streams = Streams.of(evaluation.provenance.seed, index).fold(Stream.MODEL)
    if not repeats(predictive, x[:_NUM_REPEATED], streams[:_NUM_REPEATED]):
        require(
            len(mismatches) > 0,
            f"{path} is consistent, but it is about a randomised model, which predicts something else at every call, "
            "so that its claims cannot be recomputed: evaluate again to see how its accuracies vary.",
        )
        return Verification(mismatches=mismatches)
    samples = _Samples(predictive, x, y, streams, batch_size)
    clean, *attacked = (r for r in evaluation.results if r.attack != WORST)
    verification = Verification(mismatches=mismatches) + samples.verify_clean(clean)
    verification += _verify_corruptions(evaluation, path, samples, index, corruptions)
    verification += _verify_certificates(evaluation, samples, box)
    for result, stored in zip(attacked, points or [None] * len(attacked), strict=True):
        verification += samples.verify_successes(result, clean, stored, box)
    return verification


def _consistency(
    evaluation: Evaluation, path: Path, predictive: Predictive, x: Points
) -> tuple[list[dict[str, np.ndarray]], Box, list[str]]:
    """The stored images, the box of all attacks, and what in the record contradicts them, the weights or itself."""
    actual, recorded = fingerprint(predictive), evaluation.model
    require(
        recorded.get("sha256") == actual["sha256"],
        f"these are not the weights that {path} is about: their SHA-256 is {actual['sha256']}, recorded is "
        f"{recorded.get('sha256')}.",
    )
    mismatches = contradictions(evaluation, read_json(path))
    if recorded.get("parameters") != actual["parameters"]:
        mismatches.append(f"the model has {actual['parameters']} parameters, not {recorded.get('parameters')}.")
    points, changes = _points(evaluation, path, x)
    box, others = common_box(evaluation, path)
    return points, box, [*mismatches, *changes, *others]


def repeats(predictive: Predictive, x: Points, streams: Streams) -> bool:
    """Whether the same streams give the same prediction, whatever the state of the global generators."""
    scores = []
    for seed in (0, 1):
        with global_seed(seed, x.device):
            scores.append(predict(predictive, x, streams).scores)
    return torch.equal(*scores)


def _on_cpu(predictive: Predictive) -> Predictive:
    """The model on the CPU, copied if it is elsewhere."""
    module = predictive.module
    if all(value.device.type == "cpu" for value in (*module.parameters(), *module.buffers())):
        return predictive
    copied = deepcopy(predictive)
    copied.module.cpu()
    return copied


def _points(evaluation: Evaluation, path: Path, x: Points) -> tuple[list[dict[str, np.ndarray]], list[str]]:
    """The stored images, if any, and the errors of their file."""
    if not evaluation.images:
        return [], []
    file = path.with_name(evaluation.images["file"])
    require(file.is_file(), f"{path} says that its images are in {file.name}, which is not beside it.")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    mismatches = [] if sha256 == evaluation.images["sha256"] else [f"{file.name} was changed: its SHA-256 is {sha256}."]
    points = read_points(file)
    for arrays in points:
        require(
            arrays["x"].shape[1:] == tuple(x.shape[1:]) and not (arrays["rows"] >= len(x)).any(),
            f"{file} holds images of shape {arrays['x'].shape[1:]} or of samples that are not among the {len(x)} of "
            f"shape {tuple(x.shape[1:])} that {path} is about.",
        )
    num_attacks = sum(r.attack not in ("clean", WORST) for r in evaluation.results)
    if len(points) != num_attacks:
        return [], [
            *mismatches,
            f"{file.name} holds the images of {len(points)} attacks, the record has {num_attacks}.",
        ]
    return points, mismatches


@dataclass(frozen=True, eq=False)
class _Samples:
    """The model and the samples of a record, by which its claims are recomputed."""

    predictive: Predictive
    x: Points
    y: Labels
    streams: Streams
    batch_size: int

    def verify_clean(self, clean: AttackRecord) -> Verification:
        batches = torch.arange(len(self.x)).split(self.batch_size)
        labels = [predict(self.predictive, self.x[batch], self.streams[batch]).labels for batch in batches]
        mismatches = [
            f"clean, sample {sample}: class {predicted} is predicted, recorded is {label} "
            f"({'right' if correct else 'wrong'}, the label is {y})."
            for sample, (predicted, y, label, correct) in enumerate(
                zip(torch.cat(labels).tolist(), self.y.tolist(), clean.prediction, clean.correct, strict=True)
            )
            if (label, correct) != (predicted, predicted == y)
        ]
        return Verification(len(self.x), mismatches=mismatches)

    def verify_successes(
        self, result: AttackRecord, clean: AttackRecord, stored: "Mapping[str, np.ndarray] | None", box: Box
    ) -> Verification:
        """Check the successes of an attack by the stored images, None if there are none."""
        claimed = {
            sample
            for sample, (correct, before) in enumerate(zip(result.correct, clean.correct, strict=True))
            if before and not correct
        }
        if stored is None:
            return Verification(unchecked=len(claimed))
        label, rows = f"{label_of(result)}, sample", stored["rows"].tolist()
        mismatches = [f"{label} {i}: a success without a stored image." for i in sorted(claimed - set(rows))]
        mismatches += [
            f"{label} {i}: an image is stored although the record says the model is correct."
            for i in sorted(set(rows) - claimed)
        ]
        ball = ball_of(result.norm, result.eps, box)
        for start in range(0, len(rows), self.batch_size):
            batch = torch.as_tensor(rows[start : start + self.batch_size])
            images = torch.as_tensor(stored["x"][start : start + self.batch_size]).to(self.x.dtype)
            verified = verify_outcome(self.predictive, self.x[batch], images, self.y[batch], ball, self.streams[batch])
            outcomes = zip(
                batch.tolist(),
                verified.success.tolist(),
                verified.prediction.tolist(),
                verified.distance.tolist(),
                strict=True,
            )
            mismatches += [
                f"{label} {sample}: {mismatch}"
                for sample, *outcome in outcomes
                if sample in claimed and (mismatch := self._mismatch(result, sample, *outcome))
            ]
        return Verification(len(rows), mismatches=mismatches)

    def _mismatch(self, result: AttackRecord, sample: int, success: bool, prediction: int, distance: float) -> str:
        """How the outcome of an image differs from the record; empty if it does not."""
        recorded = result.distance[sample]
        if not success:
            is_correct = prediction == int(self.y[sample])
            why = "the model is right there" if is_correct else "it is outside the ball or box"
            return f"its image does not fool the model, {why} (distance {distance:g})."
        if prediction != result.prediction[sample]:
            return f"class {prediction}, recorded is {result.prediction[sample]}."
        if recorded is None or abs(distance - recorded) > _TOLERANCE * max(distance, 1e-12):
            return f"distance {distance!r}, recorded is {recorded!r}."
        return ""


def _verify_corruptions(
    evaluation: Evaluation, path: Path, samples: _Samples, index: Tensor, given: Corruptions | None
) -> Verification:
    """Check the predictions on corrupted images."""
    recorded = evaluation.corruptions
    if not recorded:
        return Verification()
    corruptions = given or Corruptions([result.corruption for result in recorded])
    names = [result.corruption for result in recorded]
    if names != list(corruptions.names):
        return Verification(mismatches=[f"its corruptions are {', '.join(names)}: not each once, or not those given."])
    for result in recorded:
        require(
            not result.source or corruptions.published is not None,
            f"{path} is about published images of {result.corruption}, which were not made here: give their folder "
            "with --corruptions-root.",
        )
        require(
            result.source == corruptions.sources()[result.corruption],
            f"{path} is about other images of {result.corruption} (SHA-256 {result.source or 'none, made here'}).",
        )
    seed = evaluation.provenance.seed
    recomputed = on_corruptions(samples.predictive, samples.x, samples.y, corruptions, seed=seed, index=index)
    mismatches = [
        f"{result.corruption}, sample {sample}: class {again.prediction[sample]} is predicted, recorded is {label} "
        f"({'right' if correct else 'wrong'}, the label is {int(samples.y[sample])})."
        for result, again in zip(recorded, recomputed, strict=True)
        for sample, (label, correct) in enumerate(zip(result.prediction, result.correct, strict=True))
        if (label, correct) != (again.prediction[sample], again.correct[sample])
    ]
    return Verification(len(recorded) * len(samples.x), mismatches=mismatches)


def _verify_certificates(evaluation: Evaluation, samples: _Samples, box: Box) -> Verification:
    """Prove again what is certified; margins depend on the order of summation in their last digits."""
    mismatches = []
    for proof in evaluation.certified:
        ball = ball_of(proof.norm, proof.eps, box)
        (again,) = on_balls(samples.predictive, samples.x, samples.y, [ball], proof.method)
        mismatches += [
            f"{proof.attack} at {proof.norm} eps {proof.eps:g}, sample {sample}: the margin is at least {margin:g}, "
            f"recorded is {recorded:g} ({'certified' if correct else 'not certified'})."
            for sample, (recorded, correct, margin) in enumerate(
                zip(proof.margin, proof.correct, again.margin, strict=True)
            )
            if abs(recorded - margin) > _TOLERANCE * max(1.0, abs(margin)) or correct != (recorded > 0)
        ]
    return Verification(len(evaluation.certified) * len(samples.x), mismatches=mismatches)


__getattr__ = renamed_names(__name__, {"Audit": "Verification", "audit": "verify_record"})
