"""Certified accuracy in the balls of the attacks: `certified <= true <= attacked`."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from equipoise.certified import METHODS, certified_margin
from equipoise.core.errors import require, unknown
from equipoise.core.types import Labels, Points, Predictive
from equipoise.evaluation.suites import Suite
from equipoise.evaluation.summaries import WORST
from equipoise.geometry import Ball
from equipoise.results.outcomes import CertifiedResult
from equipoise.results.records import AttackRecord, ResultWarning

_MAX_NAMED = 5


def balls_of(attacks: Suite) -> list[Ball]:
    """Return the different balls of the attacks. Raises `EquipoiseError` if there is none."""
    balls = list(dict.fromkeys(Ball(a.geometry.norm, a.geometry.eps, a.geometry.box) for _, a in attacks))
    require(len(balls) > 0, "certified accuracy is that in the balls of the attacks: give an attack, such as pgd.")
    return balls


def check_certificates(model: "nn.Module | Predictive", x: Points, attacks: Suite, method: str) -> None:
    """Raise `EquipoiseError` unless the model can be certified by this method in the balls of the attacks."""
    if method not in METHODS:
        raise unknown("certified", method, METHODS)
    for ball in balls_of(attacks):
        certified_margin(model, x[:1], None, replace(ball, eps=0.0), "ibp")


def on_balls(
    model: "nn.Module | Predictive", x: Points, y: Labels, balls: Sequence[Ball], method: str = "crown"
) -> list[CertifiedResult]:
    """Return the certified accuracy in each ball, with a lower bound of every sample's margin.

        (result,) = on_balls(model, x, y, [Ball("linf", 0.1)])
        print(result.accuracy, result.interval)

    Raises `EquipoiseError` as `equipoise.certified.certified_margin`.
    """
    results = []
    for ball in balls:
        margin = certified_margin(model, x, y, ball, method)
        results.append(CertifiedResult(method, ball.norm, ball.eps, (margin > 0).tolist(), margin.tolist()))
    return results


def check_proofs(results: Sequence[AttackRecord], certified: Sequence[CertifiedResult]) -> list[ResultWarning]:
    """Return a flag for every attack that fools the model on samples that are proven in its ball: one of the two is
    faulty, and neither number may be cited.
    """
    flags = []
    for proof in certified:
        for result in results:
            in_ball = result.attack == "clean" or (result.norm, result.eps) == (proof.norm, proof.eps)
            if not in_ball or result.attack == WORST:
                continue
            pairs = zip(proof.correct, result.correct, strict=True)
            both = [str(sample) for sample, (proven, correct) in enumerate(pairs) if proven and not correct]
            if both:
                named = ", ".join(both[:_MAX_NAMED]) + (", ..." if len(both) > _MAX_NAMED else "")
                where = f"{proof.attack} at {proof.norm} eps {proof.eps:g}"
                figure = f"{len(both)} of {proof.n} samples are {where} and fooled by {result.attack}: {named}"
                advice = "this cannot be; report it as a fault of equipoise, with the model"
                flags.append(ResultWarning("certified and attacked", figure, advice))
    return flags
