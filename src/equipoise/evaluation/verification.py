"""Whether a record is true: every claim inferred again from the stored images, on the CPU, or from other claims."""

import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import plain_json
from equipoise.core.rng import Stream, Streams
from equipoise.core.types import Labels, Points, Predictive
from equipoise.evaluation.confirm import verify_outcome
from equipoise.evaluation.corrupted import Corruptions, on_corruptions
from equipoise.evaluation.journal import read_points
from equipoise.evaluation.summaries import WORST, result_warnings, with_worst_cases
from equipoise.geometry import Ball, Box
from equipoise.masking.result_checks import check_results
from equipoise.models import as_predictive, global_seed, predict
from equipoise.results.records import AttackRecord, Evaluation, digest, figures, load

_LISTS = ("distance", "prediction", "winner", "iteration", "queries")  # beside `correct`, of every attack
_FEW = 8  # samples on which it is seen whether a model repeats itself
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


def read(path: "Path | str") -> Evaluation:
    """The evaluation in `path`, with all that can be audited. Raises `EquipoiseError` naming what it lacks."""
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
        needed = _LISTS if number > 1 else ("prediction", "winner")
        lacking = [name for name in needed if len(getattr(result, name)) != clean.n]
        require(
            not lacking and result.n == clean.n,
            f"{path} is damaged: result {number} ({result.attack}) lacks {', '.join(lacking) or 'samples'}.",
        )
    n: Any = data.get("n")
    part = "shard" in data
    require(
        isinstance(n, int) and clean.n <= n and (part or clean.n == n) and isinstance(data.get("sha256"), str),
        f"{path} is damaged: data.n is not the number of samples ({clean.n}), or data.sha256 is no text.",
    )
    require(
        (not index and not part)
        or (len(index) == clean.n and index[0] >= 0 and index[-1] < n and all(a < b for a, b in pairwise(index))),
        f"{path} is damaged: its index is not one increasing place from 0 to {n - 1} for each of {clean.n} samples.",
    )
    file = images.get("file")
    require(
        not images or (isinstance(file, str) and file == Path(file).name != "" and type(images.get("sha256")) is str),
        f"{path} is damaged: its images need the name of a file beside it, without a folder, and its SHA-256.",
    )
    return evaluation


def audit(
    path: "Path | str",
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    batch_size: int = 256,
    corruptions: Corruptions | None = None,
) -> Audit:
    """Infer every claim of the record `path` again from the clean inputs `x`, `y` and the stored images.

    Clean predictions, and for every stored adversarial image its distance in float64, that it lies in the ball and the
    box, and the class predicted there; that every success has its image; and that everything else in the record that
    follows from the outcomes does. On the CPU, in the model's own precision and eval mode; the model stays as it is.
    A model that draws its randomness from the streams, as Monte Carlo dropout does, is drawn from the record's seed.
    Corrupted images are made again; those that were published come with `corruptions`, in the order of the evaluation.
    That a sample withstands an attack cannot be seen from images, only by attacking it again.
    Raises `EquipoiseError` if the record or its images cannot be read, or belong to other weights or samples, and for a
    consistent record of a randomised model, whose claims cannot be inferred again.
    """
    evaluation = read(path)
    predictive = as_predictive(model)
    n = evaluation.results[0].n
    require(len(x) == len(y) == n, f"{path} is about {n} samples, here are {len(x)}: give the same data and shard.")
    now = fingerprint(predictive)
    require(
        evaluation.model.get("sha256") == now["sha256"],
        f"these are not the weights that {path} is about: their SHA-256 is {now['sha256']}, recorded is "
        f"{evaluation.model.get('sha256')}.",
    )
    mismatches = _follows(evaluation, plain_json(path))
    if evaluation.model.get("parameters") != now["parameters"]:
        mismatches.append(f"the model has {now['parameters']} parameters, not {evaluation.model.get('parameters')}.")
    points, wrong = _points(evaluation, Path(path), x)
    box, elsewhere = _box(evaluation, Path(path))
    mismatches += [*wrong, *elsewhere]
    predictive = _on_cpu(predictive)
    weight = next((p for p in predictive.module.parameters() if p.is_floating_point()), None)
    x, y = x.cpu().to(torch.float32 if weight is None else weight.dtype), y.cpu()
    index = torch.as_tensor(list(evaluation.index) or range(n))
    streams = Streams.of(evaluation.provenance.seed, index).fold(Stream.MODEL)
    if not repeats(predictive, x[:_FEW], streams[:_FEW]):
        require(
            len(mismatches) > 0,
            f"{path} is consistent, but it is about a randomised model, which predicts something else at every call, "
            "so that its claims cannot be inferred again: evaluate again to see how its accuracies vary.",
        )
        return Audit(0, 0, mismatches)
    clean, *attacked = (r for r in evaluation.results if r.attack != WORST)
    rows = torch.arange(n).split(batch_size)
    predicted = torch.cat([predict(predictive, x[part], streams[part]).labels for part in rows]).tolist()
    claims, unchecked = n, 0
    for row in range(n):
        told = (clean.prediction[row], clean.correct[row])
        if told != (predicted[row], predicted[row] == int(y[row])):
            mismatches.append(
                f"clean, sample {row}: class {predicted[row]} is predicted, recorded is {told[0]} "
                f"({'right' if told[1] else 'wrong'}, the label is {int(y[row])})."
            )
    seen, wrong = _corrupted(evaluation, path, predictive, x, y, index, corruptions)
    claims, mismatches = claims + seen, mismatches + wrong
    for result, stored in zip(attacked, points or [None] * len(attacked), strict=True):
        seen, wrong, left = _successes(result, clean, stored, predictive, x, y, streams, box, batch_size)
        claims, unchecked, mismatches = claims + seen, unchecked + left, mismatches + wrong
    return Audit(claims, unchecked, mismatches)


def repeats(predictive: Predictive, x: Points, streams: Streams) -> bool:
    """Whether the same streams give the same prediction, whatever the global generators do."""
    seen = []
    for seed in (0, 1):
        with global_seed(seed, x.device):
            seen.append(predict(predictive, x, streams).scores)
    return torch.equal(*seen)


def _on_cpu(predictive: Predictive) -> Predictive:
    """The model on the CPU; the one that was given stays where it is."""
    module = predictive.module
    if all(value.device.type == "cpu" for value in (*module.parameters(), *module.buffers())):
        return predictive
    copied = deepcopy(predictive)
    copied.module.cpu()
    return copied


def _points(evaluation: Evaluation, path: Path, x: Points) -> tuple[list[dict[str, np.ndarray]], list[str]]:
    """The stored images, if there are any, and what is wrong with the file."""
    if not evaluation.images:
        return [], []
    file = path.with_name(evaluation.images["file"])
    require(file.is_file(), f"{path} says that its images are in {file.name}, which is not beside it.")
    now = hashlib.sha256(file.read_bytes()).hexdigest()
    wrong = [] if now == evaluation.images["sha256"] else [f"{file.name} was changed: its SHA-256 is {now}."]
    points = read_points(file)
    for kept in points:
        require(
            kept["x"].shape[1:] == tuple(x.shape[1:]) and not (kept["rows"] >= len(x)).any(),
            f"{file} holds images of shape {kept['x'].shape[1:]} or of samples that are not among the {len(x)} of "
            f"shape {tuple(x.shape[1:])} that {path} is about.",
        )
    attacks = sum(r.attack not in ("clean", WORST) for r in evaluation.results)
    if len(points) != attacks:
        return [], [*wrong, f"{file.name} holds the images of {len(points)} attacks, the record has {attacks}."]
    return points, wrong


def _successes(
    result: AttackRecord,
    clean: AttackRecord,
    stored: "Mapping[str, np.ndarray] | None",
    predictive: Predictive,
    x: Points,
    y: Labels,
    streams: Streams,
    box: Box,
    batch_size: int,
) -> tuple[int, list[str], int]:
    """How many successes were checked, what is wrong with them, and how many have no image."""
    where = f"{_where(result)}, sample"
    claimed = {
        row for row, (now, before) in enumerate(zip(result.correct, clean.correct, strict=True)) if before and not now
    }
    if stored is None:
        return 0, [], len(claimed)
    rows = stored["rows"].tolist()
    wrong = [f"{where} {row}: a success without a stored image." for row in sorted(claimed - set(rows))]
    wrong += [f"{where} {row}: a stored image of what is recorded as right." for row in sorted(set(rows) - claimed)]
    ball = Ball(result.norm, result.eps, box)
    for start in range(0, len(rows), batch_size):
        part = torch.as_tensor(rows[start : start + batch_size])
        inputs = torch.as_tensor(stored["x"][start : start + batch_size]).to(x.dtype)
        found = verify_outcome(predictive, x[part], inputs, y[part], ball, streams[part])
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


def _corrupted(
    evaluation: Evaluation,
    path: "Path | str",
    predictive: Predictive,
    x: Points,
    y: Labels,
    index: Tensor,
    given: Corruptions | None,
) -> tuple[int, list[str]]:
    """How many predictions on corrupted images were checked, and what is wrong with them."""
    told = evaluation.corruptions
    if not told:
        return 0, []
    corruptions = given or Corruptions([result.corruption for result in told])
    if [result.corruption for result in told] != list(corruptions.names):
        return 0, [f"its corruptions are {', '.join(r.corruption for r in told)}: not each once, or not those given."]
    for result in told:
        require(
            not result.source or corruptions.published is not None,
            f"{path} is about published images of {result.corruption}, which were not made here: give their folder "
            "with --corruptions-root.",
        )
        require(
            result.source == corruptions.sources()[result.corruption],
            f"{path} is about other images of {result.corruption} (SHA-256 {result.source or 'none, made here'}).",
        )
    now = on_corruptions(predictive, x, y, corruptions, seed=evaluation.provenance.seed, index=index)
    wrong = [
        f"{result.corruption}, sample {row}: class {again.prediction[row]} is predicted, recorded is {label} "
        f"({'right' if right else 'wrong'}, the label is {int(y[row])})."
        for result, again in zip(told, now, strict=True)
        for row, (label, right) in enumerate(zip(result.prediction, result.correct, strict=True))
        if (label, right) != (again.prediction[row], again.correct[row])
    ]
    return len(told) * len(x), wrong


def _where(result: AttackRecord) -> str:
    return f"{result.attack}, {result.norm} eps {result.eps:g}"


def _box(evaluation: Evaluation, path: Path) -> tuple[Box, list[str]]:
    """The one box of all attacks, and which of their settings name another ball than their entry, or another box."""
    wrong: list[str] = []
    boxes: list[Box] = []
    for result in evaluation.results:
        for settings in (result.settings, *_parts(result)):
            if "geometry" not in settings:
                continue  # an attack of the user's own may describe itself otherwise
            ball = settings["geometry"]
            box: Any = ball.get("box", {}) if isinstance(ball, Mapping) else None
            try:
                boxes.append(Box(**{end: float(box[end]) for end in ("low", "high") if end in box}))
            except (TypeError, ValueError, OverflowError) as error:
                raise EquipoiseError(
                    f"{path} is damaged: {_where(result)} names no ball and box in its settings."
                ) from error
            # The nearest of several points may have been looked for anywhere.
            anywhere = settings is not result.settings and result.settings.get("kind") == "Nearest"
            if (ball.get("norm"), result.eps if anywhere else ball.get("eps")) != (result.norm, result.eps):
                wrong.append(f"{_where(result)}: its settings are of {ball.get('norm')} eps {ball.get('eps')}.")
    if len(set(boxes)) > 1:
        wrong.append(f"the attacks have {len(set(boxes))} different boxes.")
    return (boxes[0] if boxes else Box()), wrong


def _parts(result: AttackRecord) -> list[Mapping[str, Any]]:
    """The settings of the parts of a composite attack."""
    parts = result.settings.get("parts")
    return [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []


def _follows(evaluation: Evaluation, raw: Mapping[str, Any]) -> list[str]:
    """What in the record does not follow from the outcomes of its attacks."""
    now, results = digest(evaluation), evaluation.results
    wrong = (
        [] if raw.get("digest") == now else [f"the record was changed: its digest is {now}, not {raw.get('digest')}."]
    )
    for result, entry in zip(results, raw["results"], strict=True):
        told = (entry.get("n"), entry.get("accuracy"), entry.get("interval"))
        if told != (result.n, result.accuracy, list(result.interval)):
            wrong.append(
                f"{_where(result)}: n, accuracy and interval are {told}, from the outcomes follows {result.accuracy}."
            )
    for name, result, entry in [
        *((r.corruption, r, e) for r, e in zip(evaluation.corruptions, raw.get("corruptions", ()), strict=True)),
        *(
            [("mean of the corruptions", evaluation.corrupted, raw.get("corrupted", {}))]
            if evaluation.corrupted
            else []
        ),
    ]:
        if any(entry.get(key) != figure for key, figure in figures(result).items()):
            wrong.append(f"{name}: its n, accuracy and interval do not follow from its outcomes.")
    expected = with_worst_cases([r for r in results if r.attack != WORST])
    if [_where(r) for r in results] != [_where(r) for r in expected]:
        wrong.append(
            f"its results are {'; '.join(map(_where, results))}, but with the worst case of each ball, and by balls, "
            f"they are {'; '.join(map(_where, expected))}."
        )
    else:
        for told, worst in zip(results, expected, strict=True):
            differ = [f.name for f in fields(worst) if getattr(told, f.name) != getattr(worst, f.name)]
            if differ and differ != ["seconds"]:
                wrong.append(
                    f"{_where(told)}: it is not the worst of the attacks above it, in its {', '.join(differ)}."
                )
    clean = results[0]
    wrong += _of_clean(clean, results[1].norm if len(results) > 1 else "linf")
    for result in results[1:]:
        if result.attack != WORST:
            wrong += [*_of_samples(result, clean), *_of_costs(result, clean)]
    if list(evaluation.warnings) != (now := result_warnings(results)):
        wrong.append(f"its warnings are {list(evaluation.warnings)}, from its results follow {now}.")
    wrong += [
        f"the flag {f.name!r} is missing: {f.figure}." for f in check_results(results) if f not in evaluation.flags
    ]
    return wrong


def _of_clean(clean: AttackRecord, norm: str) -> list[str]:
    """What cannot be said of accuracy without an attack."""
    expected = replace(
        clean,
        norm=norm,
        distance=[],
        settings={},
        winner=[None if right else "clean" for right in clean.correct],
        iteration=[],
        queries=[],
        evaluations=clean.n,
        nan_gradients=0,
        zero_gradients=0,
    )
    differ = [f.name for f in fields(clean) if getattr(clean, f.name) != getattr(expected, f.name)]
    return [f"clean: its {', '.join(differ)} cannot be, as nothing was attacked."] if differ else []


def _of_samples(result: AttackRecord, clean: AttackRecord) -> list[str]:
    """What the outcomes of an attack contradict each other in, or those without an attack."""
    wrong = []
    winners = [part.get("name") for part in _parts(result)] or [result.attack]
    columns = (getattr(result, name) for name in _LISTS)
    rows = zip(clean.correct, clean.prediction, result.correct, *columns, strict=True)
    for row, (before, at_clean, correct, distance, prediction, winner, iteration, queries) in enumerate(rows):
        if not before:
            state = "wrong without an attack"
            fits = (not correct, distance == 0, prediction == at_clean, winner == "clean", iteration == 0, queries == 1)
        elif correct:
            state = "still right"
            fits = (True, distance is None, True, winner is None, iteration is None, queries > 1)
        else:
            far, late = -1 if distance is None else distance, -1 if iteration is None else iteration
            state = "fooled"
            fits = (True, far >= 0, prediction != at_clean, winner in winners, late >= 0, queries > 1)
        if not all(fits):
            names = [name for name, fit in zip(("correct", *_LISTS), fits, strict=True) if not fit]
            wrong.append(f"{_where(result)}, sample {row}: its {', '.join(names)} cannot be, as it is {state}.")
    return wrong


def _of_costs(result: AttackRecord, clean: AttackRecord) -> list[str]:
    """What the counts of an attack contradict: one query more than the attack spent on each sample is the check."""
    spent = sum(q - 1 for q, attacked in zip(result.queries, clean.correct, strict=True) if attacked)
    refused = result.settings.get("refused", 0)
    fits = {
        "evaluations": result.evaluations == spent,
        "nan_gradients": result.nan_gradients >= 0,
        "zero_gradients": result.zero_gradients >= 0,
        "refused": isinstance(refused, int) and 0 <= refused <= sum(result.correct),
    }
    names = [name for name, fit in fits.items() if not fit]
    return [f"{_where(result)}: its {', '.join(names)} cannot be, as its samples took {spent}."] if names else []
