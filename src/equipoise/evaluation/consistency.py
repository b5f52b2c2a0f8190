"""Whether the claims of a record agree with each other: what its figures, worst cases and warnings follow from."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from equipoise.core.errors import EquipoiseError
from equipoise.evaluation.proofs import check_proofs
from equipoise.evaluation.summaries import WORST, result_warnings, with_worst_cases
from equipoise.geometry import Box
from equipoise.masking.result_checks import check_results
from equipoise.results.differences import with_new_names
from equipoise.results.outcomes import MeanResult, Outcomes
from equipoise.results.records import AttackRecord, Evaluation, digest, figures

COLUMNS = ("distance", "prediction", "winner", "iteration", "queries")
"""What the record of an attack holds for each sample, beside `correct`."""


def label_of(result: AttackRecord) -> str:
    """Return the name of an attack with its ball, as in messages."""
    return f"{result.attack}, {result.norm} eps {result.eps:g}"


def common_box(evaluation: Evaluation, path: Path) -> tuple[Box, list[str]]:
    """Return the box of all attacks, and which attacks have another ball in their settings than in their entry."""
    mismatches: list[str] = []
    boxes: list[Box] = []
    for result in evaluation.results:
        for settings in (result.settings, *_members(result)):
            if "geometry" not in settings:
                continue  # a user's own attack may describe itself otherwise
            ball = settings["geometry"]
            box: Any = ball.get("box", {}) if isinstance(ball, Mapping) else None
            try:
                boxes.append(Box(**{end: float(box[end]) for end in ("low", "high") if end in box}))
            except (TypeError, ValueError, OverflowError) as error:
                raise EquipoiseError(
                    f"{path} is damaged: {label_of(result)} names no ball and box in its settings."
                ) from error
            # The members of `Nearest` may search anywhere.
            anywhere = settings is not result.settings and with_new_names(result.settings).get("attack") == "nearest"
            if (ball.get("norm"), result.eps if anywhere else ball.get("eps")) != (result.norm, result.eps):
                mismatches.append(f"{label_of(result)}: its settings are of {ball.get('norm')} eps {ball.get('eps')}.")
    if len(set(boxes)) > 1:
        mismatches.append(f"the attacks have {len(set(boxes))} different boxes.")
    return (boxes[0] if boxes else Box()), mismatches


def _members(result: AttackRecord) -> list[Mapping[str, Any]]:
    """The settings of the members of a composite attack."""
    members = result.settings.get("parts")
    return [member for member in members if isinstance(member, Mapping)] if isinstance(members, list) else []


def contradictions(evaluation: Evaluation, raw: Mapping[str, Any]) -> list[str]:
    """Return what in a record, whose JSON is `raw`, does not follow from the outcomes of its attacks."""
    actual, results = digest(evaluation), evaluation.results
    mismatches = []
    if raw.get("digest") != actual:
        mismatches.append(f"the record was changed: its digest is {actual}, not {raw.get('digest')}.")
    for result, entry in zip(results, raw["results"], strict=True):
        recorded = (entry.get("n"), entry.get("accuracy"), entry.get("interval"))
        if recorded != (result.n, result.accuracy, list(result.interval)):
            mismatches.append(
                f"{label_of(result)}: n, accuracy and interval are {recorded}, from the outcomes follows "
                f"{result.accuracy}."
            )
    entries = zip(evaluation.corruptions, raw.get("corruptions", ()), strict=True)
    summaries: list[tuple[str, Outcomes | MeanResult, Any]] = [(r.corruption, r, entry) for r, entry in entries]
    proofs = zip(evaluation.certified, raw.get("certified", ()), strict=True)
    summaries += [(proof.attack, proof, entry) for proof, entry in proofs]
    if evaluation.corrupted:
        summaries.append(("mean of the corruptions", evaluation.corrupted, raw.get("corrupted", {})))
    for name, summary, entry in summaries:
        if any(entry.get(key) != figure for key, figure in figures(summary).items()):
            mismatches.append(f"{name}: its n, accuracy and interval do not follow from its outcomes.")
    clean = results[0]
    mismatches += _worst_case_contradictions(results)
    mismatches += _clean_contradictions(clean, results[1].norm if len(results) > 1 else "linf")
    for result in results[1:]:
        if result.attack != WORST:
            mismatches += [*_sample_contradictions(result, clean), *_cost_contradictions(result, clean)]
    if list(evaluation.warnings) != (warnings := result_warnings(results)):
        mismatches.append(f"its warnings are {list(evaluation.warnings)}, from its results follow {warnings}.")
    expected = [*check_results(results), *check_proofs(results, evaluation.certified)]
    missing = [flag for flag in expected if flag not in evaluation.flags]
    return mismatches + [f"the flag {flag.name!r} is missing: {flag.figure}." for flag in missing]


def _worst_case_contradictions(results: Sequence[AttackRecord]) -> list[str]:
    expected = with_worst_cases([r for r in results if r.attack != WORST])
    if [label_of(r) for r in results] != [label_of(r) for r in expected]:
        return [
            f"its results are {'; '.join(map(label_of, results))}, but with the worst case of each ball, and by balls, "
            f"they are {'; '.join(map(label_of, expected))}."
        ]
    differing = [
        (label_of(recorded), [f.name for f in fields(worst) if getattr(recorded, f.name) != getattr(worst, f.name)])
        for recorded, worst in zip(results, expected, strict=True)
    ]
    return [
        f"{label}: it is not the worst of the attacks above it, in its {', '.join(names)}."
        for label, names in differing
        if names and names != ["seconds"]
    ]


def _clean_contradictions(clean: AttackRecord, norm: str) -> list[str]:
    """Impossible entries of the accuracy without an attack."""
    expected = replace(
        clean,
        norm=norm,
        distance=[],
        settings={},
        winner=[None if correct else "clean" for correct in clean.correct],
        iteration=[],
        queries=[],
        evaluations=clean.n,
        nan_gradients=0,
        zero_gradients=0,
    )
    differing = [f.name for f in fields(clean) if getattr(clean, f.name) != getattr(expected, f.name)]
    return [f"clean: its {', '.join(differing)} cannot be, as nothing was attacked."] if differing else []


def _sample_contradictions(result: AttackRecord, clean: AttackRecord) -> list[str]:
    """Contradictions among the outcomes of an attack, or to those without an attack."""
    mismatches = []
    attacks = [member.get("name") for member in _members(result)] or [result.attack]
    columns = (getattr(result, name) for name in COLUMNS)
    outcomes = zip(clean.correct, clean.prediction, result.correct, *columns, strict=True)
    for i, (clean_correct, label, correct, distance, prediction, winner, iteration, queries) in enumerate(outcomes):
        if not clean_correct:
            state = "wrong without an attack"
            possible = (
                not correct,
                distance == 0,
                prediction == label,
                winner == "clean",
                iteration == 0,
                queries == 1,
            )
        elif correct:
            state = "still right"
            possible = (True, distance is None, True, winner is None, iteration is None, queries > 1)
        else:
            state = "fooled"
            has_distance = distance is not None and distance >= 0
            has_iteration = iteration is not None and iteration >= 0
            possible = (True, has_distance, prediction != label, winner in attacks, has_iteration, queries > 1)
        if not all(possible):
            names = [name for name, is_possible in zip(("correct", *COLUMNS), possible, strict=True) if not is_possible]
            mismatches.append(f"{label_of(result)}, sample {i}: its {', '.join(names)} cannot be, as it is {state}.")
    return mismatches


def _cost_contradictions(result: AttackRecord, clean: AttackRecord) -> list[str]:
    """Contradictions among the counts of an attack; one query per sample is the prediction without an attack."""
    total = sum(queries - 1 for queries, attacked in zip(result.queries, clean.correct, strict=True) if attacked)
    refused = result.settings.get("refused", 0)
    possible = {
        "evaluations": result.evaluations == total,
        "nan_gradients": result.nan_gradients >= 0,
        "zero_gradients": result.zero_gradients >= 0,
        "refused": isinstance(refused, int) and 0 <= refused <= sum(result.correct),
    }
    names = [name for name, is_possible in possible.items() if not is_possible]
    return [f"{label_of(result)}: its {', '.join(names)} cannot be, as its samples took {total}."] if names else []
