"""Three sentences about the models of one test set: what was found, what it costs, and what it rests on."""

import shlex
from collections.abc import Callable, Sequence
from typing import Any

from equipoise.report.accuracy import Attacked, Comparison, Row, caveats, significance_marks, strength
from equipoise.report.pages import NORMS, interval, percent, radius, title
from equipoise.results.outcomes import CertifiedResult
from equipoise.results.records import Evaluation
from equipoise.results.seeds import SeedMean

_CHANGES = {
    "linf": "every pixel may change by up to {} of its range (L∞)",
    "l2": "an image may change by up to {} in Euclidean length (L2)",
    "l1": "the changes of all pixels may add up to {} (L1)",
    "l0": "up to {} pixels may change (L0)",
}
"""What an attack may do, by norm."""
_NAMED = 3  # models whose accuracies a sentence holds one by one


def sentences(comparison: Comparison) -> tuple[str, str, str]:
    """Return three sentences for readers who know nothing of attacks: which model is the most robust at the radius of
    `comparison.reference`, and by how much; its accuracy without an attack beside the highest; the attacks and the
    number of samples behind it, and what to do if they are too weak or too few.

    Models whose intervals overlap are not ranked, nor models that were attacked in different ways.
    """
    if comparison.reference is None:
        return _without_attack(comparison)
    ball = comparison.reference
    attacked = [(row, result) for row in comparison.candidates if (result := row.robust(*ball)) is not None]
    where = f"On {data_name(comparison)}, when {_change(*ball)}"
    if comparison.alike:
        best = _leaders(attacked)
        return (
            f"{where}, {_finding(attacked, best)}{_not_attacked(comparison, attacked)}.",
            _price(comparison, [row for row, _ in best]),
            _basis(comparison, best),
        )
    ranked = sorted(attacked, key=lambda pair: pair[1].accuracy)
    (low, least), (high, most) = ranked[0], ranked[-1]
    weapons: dict[str, list[str]] = {}
    for row, _ in attacked:
        weapons.setdefault(_weapons(row.attacks(*ball)), []).append(called(row))
    return (
        f"{where}, accuracy under attack goes from {percent(least.accuracy)} % ({called(low)}) to "
        f"{percent(most.accuracy)} % ({called(high)}), but the models were not attacked alike, so this report does not "
        f"rank them{_not_attacked(comparison, attacked)}.",
        _price(comparison, [row for row, _ in attacked]),
        f"The attacks were {'; '.join(f'{name} on {_listing(rows)}' for name, rows in weapons.items())}: evaluate all "
        "with the same, such as --attacks autoattack.",
    )


def data_name(comparison: Comparison) -> str:
    """Return the name of the test set, with its split and shard."""
    data = comparison.data
    parts = [f"{data['split']} split"] if data.get("split") else []
    parts += [f"shard {data['shard']}"] if data.get("shard") else []
    return str(data.get("name", "unnamed data")) + (f" ({', '.join(parts)})" if parts else "")


def called(row: Row) -> str:
    """Return what the sentences call a row."""
    about = [f"{row.weights} weights"] if row.weights == "last" else []
    about += [row.shown_files] if row.shown_files else []
    return title(row.name) + (f" ({', '.join(about)})" if about else "")


def _change(norm: str, eps: float) -> str:
    return _CHANGES.get(norm, f"images may change within {NORMS.get(norm, norm)} {{}}").format(radius(eps))


def _weapons(attacks: Sequence[Attacked]) -> str:
    return _listing([strength(attack) for attack in attacks]) or "unknown attacks"


def _leaders(results: Sequence[tuple[Row, Any]]) -> list[tuple[Row, Any]]:
    """The best, then the others that do not differ from it significantly."""
    marks = significance_marks([result for _, result in results])
    if len(results) == 1:
        return list(results)
    marked = [(mark, pair) for mark, pair in zip(marks, results, strict=True) if mark]
    return [pair for _, pair in sorted(marked, key=lambda item: (item[0] != "best", -item[1][1].accuracy))]


def _finding(attacked: Sequence[tuple[Row, Attacked]], best: Sequence[tuple[Row, Attacked]]) -> str:
    """Who is the most robust, and by how much."""
    (winner, result), *tied = best
    if max(r.accuracy for _, r in attacked) == 0:
        who = called(winner) if len(attacked) == 1 else f"none of the {len(attacked)} models"
        negation = " not" if len(attacked) == 1 else ""
        return (
            f"{who} is{negation} robust: no attacked image is classified correctly (95 % interval "
            f"{interval(result.interval)})"
        )
    others = [pair for pair in attacked if all(pair[0] is not row for row, _ in best)]
    nearest = max(others, key=lambda pair: pair[1].accuracy, default=None)
    if tied:
        if nearest is None:
            place, rest = f"none of the {len(best)} models is reliably more robust than the others", ""
        else:
            place = f"{_listing([called(row) for row, _ in best])} are the most robust of {len(attacked)} models, too "
            place += "close to tell apart"
            rest = f"; the next, {called(nearest[0])}, gets {percent(nearest[1].accuracy)} %"
        return f"{place}: {_each(best, _with_interval)} of the attacked images right, and the intervals overlap{rest}"
    if nearest is None:
        return f"{called(winner)} gets {_with_interval(result)} of the attacked images right"
    gap = percent(result.accuracy - nearest[1].accuracy)
    return (
        f"{called(winner)} is the most robust of {len(attacked)} models: it gets {_with_interval(result)} of the "
        f"attacked images right, {gap} points more than the next, {called(nearest[0])}"
    )


def _not_attacked(comparison: Comparison, attacked: Sequence[tuple[Row, Attacked]]) -> str:
    names = [called(row) for row in comparison.candidates if all(row is not other for other, _ in attacked)]
    return f"; {_listing(names)} {'was' if len(names) == 1 else 'were'} not attacked there" if names else ""


def _price(comparison: Comparison, rows: Sequence[Row]) -> str:
    """What the models classify correctly without an attack, beside the best of all."""
    own = [(row, row.clean) for row in rows if row.clean is not None]
    if not own:
        return "What this costs without an attack is unknown: accuracy on unchanged images was not measured."
    sentence = f"Of the unchanged images, {_each(own, _share)} right"
    cleans = [(row, row.clean) for row in comparison.candidates if row.clean is not None]
    leader, highest = _leaders(cleans)[0]
    if len(cleans) == 1:
        return f"{sentence}."
    if any(row is leader for row, _ in own):
        return f"{sentence}, and no model here is reliably better at that{f' than {called(leader)}' * (len(own) > 1)}."
    best = f"{called(leader)}, with {_share(highest)}"
    if len(own) > 1:
        return f"{sentence}; the best at that is {best}."
    overlaps = own[0][1].interval[1] >= highest.interval[0]
    gap = "not reliably" if overlaps else f"{percent(highest.accuracy - own[0][1].accuracy)} points"
    return f"{sentence}, {gap} less than the best at that, {best}."


def _basis(comparison: Comparison, best: Sequence[tuple[Row, Attacked]]) -> str:
    """What it rests on, and what to do if that is little."""
    assert comparison.reference is not None
    winner, result = best[0]
    attacks = winner.attacks(*comparison.reference)
    gradients = all("answers" not in evaluation.model for evaluation in _evaluations(winner))
    found = caveats(result, attacks, comparison.data.get("n_test"), gradients)
    sizes = [str(n) for n in sorted({r.n for _, r in best})]
    sentence = f"This rests on {_weapons(attacks)} with n = {_listing(sizes)} images"
    sentence += f" and {result.runs} runs of different seeds" if isinstance(result, SeedMean) else ""
    proofs = [(leader, p) for leader, _ in best for p in _proofs(leader) if (p.norm, p.eps) == comparison.reference]
    if proofs:
        proven = _listing([f"{_share(proof)} of {called(leader)}" for leader, proof in proofs])
        sentence += f" (proven against every attack: {proven})"
    if any(evaluation.flags for leader, _ in best for evaluation in _evaluations(leader)):
        found.append("warnings about these numbers are listed under Audit")
    if found:
        return f"{sentence}, which is not enough for a claim: {'; '.join(found)}."
    return f"{sentence}: strong attacks and enough images, though a stronger attack may still leave less."


def _without_attack(comparison: Comparison) -> tuple[str, str, str]:
    """The sentences where no model was attacked."""
    rows = comparison.candidates
    proofs = [(row, proof) for row in rows for proof in _proofs(row)]
    shown = [f"{_share(p)} of {called(row)} when {_change(p.norm, float(p.eps))}" for row, p in proofs]
    known = f"but proven to be classified correctly are {_listing(shown)}" if shown else "so robustness is unknown"
    n = max(result.n for row in rows for result in row.results.values())
    source = rows[0].source
    target = str(source.path) if source.run else _evaluations(rows[0])[0].target
    return (
        f"On {data_name(comparison)}, no model was attacked, {known}.",
        _price(comparison, [row for row, _ in _leaders([(row, row.clean) for row in rows if row.clean])]),
        f"This rests on n = {n} images without any attack; attack them with "
        f"{shlex.join(['equipoise', 'evaluate', target, '--attacks', 'autoattack'])}.",
    )


def _evaluations(row: Row) -> list[Evaluation]:
    """The evaluations that a row comes from."""
    return [
        evaluation
        for member in row.members or [row]
        for file, evaluation in member.source.evaluations
        if file.name in member.files and evaluation.weights == member.weights
    ]


def _proofs(row: Row) -> list[CertifiedResult]:
    """What is certified of a single run, in each ball the most."""
    if row.members:
        return []
    proofs = [proof for evaluation in _evaluations(row) for proof in evaluation.certified]
    return list({(p.norm, p.eps): p for p in sorted(proofs, key=lambda p: p.accuracy)}.values())


def _each(pairs: Sequence[tuple[Row, Attacked]], share: Callable[[Attacked], str]) -> str:
    """Such as `UDP gets 80 % and TRADES 70 %`; of many others the range alone."""
    (first, result), *others = pairs
    if len(pairs) > _NAMED:
        least, most = (percent(end(r.accuracy for _, r in others)) for end in (min, max))
        return f"{called(first)} gets {share(result)} and the others {least} to {most} %"
    return _listing([f"{called(first)} gets {share(result)}", *(f"{called(row)} {share(r)}" for row, r in others)])


def _share(result: Attacked | CertifiedResult) -> str:
    return f"{percent(result.accuracy)} %"


def _with_interval(result: Attacked) -> str:
    return f"{_share(result)} (95 % interval {interval(result.interval)})"


def _listing(parts: Sequence[str]) -> str:
    *others, last = parts or [""]
    return f"{', '.join(others)} and {last}" if others else last
