"""Accuracy of a model, clean and under attacks, sample by sample."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Int
from scipy.stats import binomtest
from torch import Tensor, nn

from equipoise.errors import require
from equipoise.evaluation.suites import Attack, Suite
from equipoise.evaluation.verify import predict, verify_outcome
from equipoise.geometry import Ball, Box
from equipoise.perturbed import check_input, check_labels
from equipoise.predictive import as_predictive, first_look
from equipoise.records import AttackResult
from equipoise.types import Labels, Points, Predictive

WORST = "worst case"
_SHARE = 0.01  # share of gradients that is worth a warning
_LEVEL = 0.05  # of the paired tests between attacks

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many samples are done, over all attacks."""


def evaluate(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    attacks: Suite,
    *,
    seed: int = 0,
    index: Int[Tensor, " batch"] | None = None,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> list[AttackResult]:
    """Accuracy without an attack, under each attack, and in the worst case over the attacks of each ball.

    Samples that are wrong without an attack are not attacked and count as wrong, at distance 0. Every success is
    checked again by `verify_outcome`; one that fails the check does not count, and `refused` in the settings says how
    many did. Random draws depend on `seed` and each sample's `index` (default 0, 1, ...), not on batches or order.
    Raises `EquipoiseError` for input that no attack could take.
    """
    predictive = as_predictive(model)
    weight = next(predictive.module.parameters(), None)
    require(isinstance(x, Tensor) and isinstance(y, Tensor), "evaluate needs x and y as torch tensors.")
    x, y = (x, y) if weight is None else (x.to(weight.device), y.to(weight.device))
    index = torch.arange(len(x), device=x.device) if index is None else index.to(x.device)
    require(batch_size >= 1, f"batch_size = {batch_size}: expected an integer >= 1.")
    box = attacks[0][1].geometry.box if attacks else Box()
    check_input(x, predictive.module, Ball("linf", 0.0, box))
    check_labels("y", y, len(x), first_look(predictive, x).classes)
    total, done = len(x) * (1 + len(attacks)), 0

    def report(what: str, n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(what, done, total)

    begin = time.perf_counter()
    report("clean", 0)
    clean = torch.cat([predict(predictive, part) for part in x.split(batch_size)])
    right = clean == y
    norm = attacks[0][1].geometry.norm if attacks else "linf"
    results = [
        AttackResult(
            "clean",
            norm,
            0.0,
            right.tolist(),
            prediction=clean.tolist(),
            evaluations=len(x),
            seconds=time.perf_counter() - begin,
        )
    ]
    report("clean", len(x))
    rows = right.nonzero()[:, 0]
    by_ball: dict[Ball, list[AttackResult]] = {}
    for name, attack in attacks:
        ball = attack.geometry
        what = f"{name} {ball.norm} {ball.eps:g}"
        report(what, len(x) - len(rows))
        finished = partial(report, what)
        result = _run(name, attack, predictive, x, y, clean, rows, index, seed, batch_size, finished)
        by_ball.setdefault(ball, []).append(result)
    for together in by_ball.values():
        results += together
        if len(together) > 1:
            results.append(_worst(together))
    return results


def _run(
    name: str,
    attack: Attack,
    model: Predictive,
    x: Points,
    y: Labels,
    clean: Labels,
    rows: Int[Tensor, " rows"],
    index: Int[Tensor, " batch"],
    seed: int,
    batch_size: int,
    finished: Callable[[int], None],
) -> AttackResult:
    """One attack on the samples `rows`; the others are wrong already."""
    begin = time.perf_counter()
    correct, prediction = clean == y, clean.clone()
    distance = torch.where(correct, torch.inf, 0.0).double()
    evaluations = nan = zero = refused = 0
    for part in rows.split(batch_size) if len(rows) else ():
        found = attack(model, x[part], y[part], seed=seed, index=index[part], batch_size=batch_size)
        checked = verify_outcome(model, x[part], found.x, y[part], attack.geometry)
        correct[part] = ~checked.success
        distance[part] = torch.where(checked.success, checked.distance, torch.inf)
        wrong = found.success & ~checked.success
        prediction[part] = torch.where(wrong, clean[part], checked.prediction)
        refused += int(wrong.sum())
        evaluations += int(found.evaluations.sum()) + len(part)
        nan, zero = nan + int(found.nan_gradients.sum()), zero + int(found.zero_gradients.sum())
        finished(len(part))
    return AttackResult(
        attack=name,
        norm=attack.geometry.norm,
        eps=attack.geometry.eps,
        correct=correct.tolist(),
        distance=[d if d < float("inf") else None for d in distance.tolist()],
        prediction=prediction.tolist(),
        settings=attack.settings() | ({"refused": refused} if refused else {}),
        evaluations=evaluations,
        nan_gradients=nan,
        zero_gradients=zero,
        seconds=time.perf_counter() - begin,
    )


def _worst(results: Sequence[AttackResult]) -> AttackResult:
    """Per sample the nearest success of several attacks on one ball."""
    choices = [
        min(enumerate(of_sample), key=lambda choice: float("inf") if choice[1] is None else choice[1])
        for of_sample in zip(*(r.distance for r in results), strict=True)
    ]
    return AttackResult(
        attack=WORST,
        norm=results[0].norm,
        eps=results[0].eps,
        correct=[all(of_sample) for of_sample in zip(*(r.correct for r in results), strict=True)],
        distance=[distance for _, distance in choices],
        prediction=[results[best].prediction[i] for i, (best, _) in enumerate(choices)],
        settings={"attacks": [r.attack for r in results]},
        evaluations=sum(r.evaluations for r in results),
        nan_gradients=sum(r.nan_gradients for r in results),
        zero_gradients=sum(r.zero_gradients for r in results),
        seconds=sum(r.seconds for r in results),
    )


def _does_more_harm(a: AttackResult, b: AttackResult) -> bool:
    """Whether `a` fools significantly more of the samples than `b`: exact paired sign test on those that only one of
    them fools (McNemar 1947), one-sided, at the 5 % level.
    """
    only_a = sum(q and not p for p, q in zip(a.correct, b.correct, strict=True))
    only_b = sum(p and not q for p, q in zip(a.correct, b.correct, strict=True))
    return only_a > only_b and float(binomtest(only_a, only_a + only_b, alternative="greater").pvalue) < _LEVEL


def cautions(results: Sequence[AttackResult]) -> list[str]:
    """What a reader should know before citing these numbers: signs that an attack was weaker than the model is."""
    found = []
    attacks = [r for r in results if r.attack not in ("clean", WORST)]
    for r in attacks:
        where = f"{r.attack}, {r.norm} eps {r.eps:g}"
        if r.eps == 0:
            found.append(f"{where}: a ball of radius 0 allows no attack; this is clean accuracy.")
        if refused := r.settings.get("refused"):
            found.append(f"{where}: {refused} successes that it claimed failed the check and do not count.")
        for count, kind in ((r.nan_gradients, "held a NaN or an infinity"), (r.zero_gradients, "were exactly 0")):
            if count > _SHARE * max(r.evaluations, 1):
                share = count / max(r.evaluations, 1)
                found.append(f"{where}: {share:.0%} of its gradients {kind}, so robustness may be overstated.")
    by_ball: dict[tuple[str, float], dict[str, AttackResult]] = {}
    by_name: dict[tuple[str, str], list[AttackResult]] = {}
    for r in attacks:
        by_ball.setdefault((r.norm, r.eps), {})[r.attack] = r
        by_name.setdefault((r.attack, r.norm), []).append(r)
    for (norm, eps), together in by_ball.items():
        iterated = [r for name, r in together.items() if name.startswith("pgd")]
        one_step = together.get("fgsm")
        if one_step is not None and iterated and all(_does_more_harm(one_step, r) for r in iterated):
            found.append(
                f"{norm} eps {eps:g}: one step (fgsm, {one_step.accuracy:.1%}) does more harm than pgd "
                f"({min(r.accuracy for r in iterated):.1%}), a sign of masked gradients."
            )
    for (name, norm), radii in by_name.items():
        for near, far in pairwise(sorted(radii, key=lambda r: r.eps)):
            if _does_more_harm(near, far):
                found.append(
                    f"{name}, {norm}: accuracy rises from {near.accuracy:.1%} at eps {near.eps:g} to "
                    f"{far.accuracy:.1%} at {far.eps:g}, although the larger ball holds the smaller: there the attack "
                    "is too weak."
                )
    return found
