"""Whether a record is true: every claim inferred again from the stored images, on the CPU in float32."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from equipoise.errors import EquipoiseError, require
from equipoise.evaluation.evaluate import WORST, with_worst_cases
from equipoise.evaluation.journal import read_points
from equipoise.evaluation.verify import verify_outcome
from equipoise.geometry import Ball, Box
from equipoise.predictive import as_predictive, predict
from equipoise.records import AttackResult, Evaluation, digest, load
from equipoise.types import Labels, Points, Predictive

_CLOSE = 1e-9  # relative difference of two float64 distances that the order of a sum explains


def fingerprint(model: "nn.Module | Predictive") -> dict[str, Any]:
    """SHA-256 over the names, shapes and values of all parameters and buffers, and the number of parameters."""
    module = as_predictive(model).module
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        array = np.ascontiguousarray(
            value.detach().cpu().to(torch.float64 if value.is_floating_point() else value.dtype)
        )
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode() + array.tobytes())
    return {"sha256": found.hexdigest(), "parameters": sum(p.numel() for p in module.parameters())}


@dataclass(frozen=True)
class Audit:
    """What came of checking a record."""

    claims: int
    """How many claims were inferred again."""
    unchecked: int
    """How many successes have no stored image to check them by."""
    mismatches: Sequence[str]
    """What is not true, one sentence each."""


def audit(path: "Path | str", model: "nn.Module | Predictive", x: Points, y: Labels, batch_size: int = 256) -> Audit:
    """Infer every claim of the record `path` again from the clean inputs `x`, `y` and the stored images.

    Clean predictions, and for every stored adversarial image its distance in float64, that it lies in the ball and the
    box, and the class predicted there; that every success has its image; and that the worst cases, counts, accuracies
    and intervals follow from the outcomes. On the CPU, in float32 and eval mode.
    Raises `EquipoiseError` if the record or its images cannot be read, or belong to other weights or samples.
    """
    evaluation = load(path)
    if not isinstance(evaluation, Evaluation):
        raise EquipoiseError(f"{path} is the record of a training run: verify what `equipoise evaluate` wrote.")
    predictive = as_predictive(model)
    predictive.module.cpu().float()
    n = len(evaluation.results[0].correct)
    require(len(x) == len(y) == n, f"{path} is about {n} samples, here are {len(x)}: give the same data and shard.")
    now = fingerprint(predictive)["sha256"]
    require(
        evaluation.model.get("sha256") == now,
        f"these are not the weights that {path} is about: their SHA-256 is {now}, recorded is "
        f"{evaluation.model.get('sha256')}.",
    )
    mismatches = _follows(evaluation, json.loads(Path(path).read_bytes()))
    points, missing = _points(evaluation, Path(path))
    mismatches += missing
    clean, *attacked = (r for r in evaluation.results if r.attack != WORST)
    x, y = x.cpu().float(), y.cpu()
    predicted = torch.cat([predict(predictive, part).labels for part in x.split(batch_size)]).tolist()
    claims, unchecked = n, 0
    for row in range(n):
        told = (clean.prediction[row], clean.correct[row])
        if told != (predicted[row], predicted[row] == int(y[row])):
            mismatches.append(
                f"clean, sample {row}: class {predicted[row]} is predicted, recorded is {told[0]} "
                f"({'right' if told[1] else 'wrong'}, the label is {int(y[row])})."
            )
    for number, result in enumerate(attacked):
        stored = points[number] if number < len(points) else None
        seen, wrong, left = _successes(result, clean, stored, predictive, x, y, batch_size)
        claims, unchecked, mismatches = claims + seen, unchecked + left, mismatches + wrong
    return Audit(claims, unchecked, mismatches)


def _points(evaluation: Evaluation, path: Path) -> tuple[list[dict[str, np.ndarray]], list[str]]:
    """The stored images, if there are any, and what is wrong with the file."""
    if not evaluation.images:
        return [], []
    file = path.with_name(evaluation.images["file"])
    require(file.is_file(), f"{path} says that its images are in {file.name}, which is not beside it.")
    now = hashlib.sha256(file.read_bytes()).hexdigest()
    wrong = [] if now == evaluation.images["sha256"] else [f"{file.name} was changed: its SHA-256 is {now}."]
    return read_points(file), wrong


def _successes(
    result: AttackResult,
    clean: AttackResult,
    stored: "Mapping[str, np.ndarray] | None",
    predictive: Predictive,
    x: Points,
    y: Labels,
    batch_size: int,
) -> tuple[int, list[str], int]:
    """How many successes were checked, what is wrong with them, and how many have no image."""
    where = f"{result.attack}, {result.norm} eps {result.eps:g}, sample"
    claimed = [
        row for row, (now, before) in enumerate(zip(result.correct, clean.correct, strict=True)) if before and not now
    ]
    wrong = [
        f"{where} {row}: recorded as right, although it is wrong without an attack."
        for row, (now, before) in enumerate(zip(result.correct, clean.correct, strict=True))
        if now and not before
    ]
    if stored is None:
        return 0, wrong, len(claimed)
    rows = stored["rows"].tolist()
    wrong += [f"{where} {row}: a success without a stored image." for row in sorted(set(claimed) - set(rows))]
    wrong += [
        f"{where} {row}: a stored image of what is recorded as right." for row in sorted(set(rows) - set(claimed))
    ]
    box = result.settings.get("geometry", {}).get("box", {})
    ball = Ball(result.norm, result.eps, Box(**{k: v for k, v in box.items() if k in ("low", "high")}))
    for start in range(0, len(rows), batch_size):
        part = torch.as_tensor(rows[start : start + batch_size])
        inputs = torch.as_tensor(stored["x"][start : start + batch_size])
        found = verify_outcome(predictive, x[part], inputs, y[part], ball)
        for i, row in enumerate(part.tolist()):
            if row not in claimed:
                continue
            told, distance = result.distance[row], float(found.distance[i])
            if not bool(found.success[i]):
                why = (
                    "the model is right there"
                    if int(found.prediction[i]) == int(y[row])
                    else "it is outside the ball or box"
                )
                wrong.append(f"{where} {row}: its image fools nobody, {why} (distance {distance:g}).")
            elif int(found.prediction[i]) != result.prediction[row]:
                wrong.append(f"{where} {row}: class {int(found.prediction[i])}, recorded is {result.prediction[row]}.")
            elif told is None or abs(distance - told) > _CLOSE * max(distance, 1e-12):
                wrong.append(f"{where} {row}: distance {distance!r}, recorded is {told!r}.")
    return len(rows), wrong, 0


def _follows(evaluation: Evaluation, raw: Mapping[str, Any]) -> list[str]:
    """What in the record does not follow from its own outcomes: worst cases, counts, accuracies, intervals."""
    now = digest(evaluation)
    wrong = (
        [] if raw.get("digest") == now else [f"the record was changed: its digest is {now}, not {raw.get('digest')}."]
    )
    of_attacks = [r for r in evaluation.results if r.attack != WORST]
    worst = {(r.norm, r.eps): r for r in with_worst_cases(of_attacks) if r.attack == WORST}
    for result, entry in zip(evaluation.results, raw["results"], strict=True):
        where = f"{result.attack}, {result.norm} eps {result.eps:g}"
        told = (entry.get("n"), entry.get("accuracy"), entry.get("interval"))
        if told != (result.n, result.accuracy, list(result.interval)):
            wrong.append(f"{where}: n, accuracy and interval are {told}, from the outcomes follows {result.accuracy}.")
        if result.attack == WORST and list(result.correct) != list(worst[result.norm, result.eps].correct):
            wrong.append(f"{where}: it is not the worst of the attacks above it.")
    return wrong
