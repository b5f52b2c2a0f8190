"""Is a model robust, or are its gradients masked? Attacks within a time budget, and tests of what they show."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from equipoise.attacks import Square, random_search, transfer
from equipoise.attacks.attack import unperturbed
from equipoise.attacks.inputs import validated_inputs
from equipoise.attacks.result import AttackResult
from equipoise.core.checks import checked_call
from equipoise.core.errors import NoGradient, require
from equipoise.core.types import Labels, PerSample, Points, Predictive, answers_of
from equipoise.data.dataset import stratified_order
from equipoise.diagnostics.blocks import BATCH_SIZE
from equipoise.diagnostics.curves import Curve, lines
from equipoise.diagnostics.surfaces import surface
from equipoise.geometry import Ball, Box
from equipoise.masking import plan as plans
from equipoise.masking.exact_tests import FALSE_POSITIVE_RATE, FEW, HALF, MANY, SOME, Success, holm_corrected
from equipoise.masking.indicators import (
    LEFT_OUT,
    gradient_tests,
    longer_attacks_test,
    loss_surface_test,
    tests_of_black_box,
    tests_with_gradients,
    tests_without_gradients,
)
from equipoise.masking.model_checks import check_model
from equipoise.masking.plan import Plan
from equipoise.masking.time_budget import MAX_SAMPLES, AttackedSamples, ReportProgress, affordable, within_time
from equipoise.models import as_predictive
from equipoise.results.findings import Lines, Picture
from equipoise.results.masking import MaskingReport, MaskingTest

_SURFACES = 32  # samples around which the loss surface is computed


@checked_call()
def investigate(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    eps: float,
    norm: str = "linf",
    *,
    box: Box = Box(),
    proxy: "nn.Module | Predictive | None" = None,
    proxy_name: str = "the proxy",
    minutes: float | None = 5.0,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    target: str = "model",
    progress: ReportProgress | None = None,
) -> MaskingReport:
    """Test whether `model` owes its robustness at `eps` to gradients that mislead attacks (R, Sec. 5.2).

    As many of the samples `x` with labels `y` as `minutes` allow (100 to 1000, in a stratified order) are attacked with
    and without gradients; an `EquipoiseWarning` is given if even 100 take longer. What time is left then goes to longer
    attacks on the samples that are still classified correctly, again and again from other random starts. `minutes=None`
    attacks up to 1000 samples however long it takes and goes no further, which has the same outcome on every machine.
    `proxy` is another model of the same task, for transferred attacks. The report has every indicator with its figure
    and its threshold. All are tests, with a family-wise false-positive rate of at most 0.05, except for a missing graph
    from the output to the input, which is observed; such a model is attacked without gradients. The report of a
    `BlackBox` says which indicators are left out. The warnings of `check_model` are there too.
    Raises `EquipoiseError` for input that cannot be attacked, no radius, fewer than 20 samples that are classified
    correctly, and one class predicted for samples of several; an error of the model itself is raised as it is.
    """
    require(0 < eps < float("inf"), f"eps = {eps}: give the radius at which the model is said to be robust.")
    require(minutes is None or minutes > 0, f"minutes = {minutes}: expected a number > 0.")
    start, ball = time.monotonic(), Ball(norm, eps, box)
    deadline = float("inf") if minutes is None else start + 60 * minutes
    progress = within_time(progress, start, deadline)
    samples = AttackedSamples(as_predictive(model), x, y, torch.arange(len(x), device=x.device), seed, batch_size)
    warnings = check_model(samples.predictive, x, y, box=box, seed=seed)
    clean = _classify(samples, ball)
    draws_known = not clean.random and any(warning.name == "randomised model" for warning in warnings)
    found = _attack(samples, ball, clean, minutes, deadline, (proxy, proxy_name), progress)
    plan, no_gradient, attacked, results, _, longer = found
    tests, pictures = _test_outcomes(attacked, results, longer, ball, clean.random, no_gradient)
    asked = answers_of(samples.predictive) != "gradients"
    tests += [] if asked else _further_tests(samples, box, found, clean.random)
    numbers = {"slack": [FEW, SOME, MANY, HALF], "minutes": minutes, "seed": seed, "longer_rounds": longer.rounds}
    shown = [warning for warning in warnings if not (draws_known and warning.name == "randomised model")]
    return MaskingReport(
        target=target,
        norm=norm,
        eps=eps,
        n=len(attacked.x),
        clean=clean.accuracy,
        robust=len(clean.correct) / len(x) * (1 - float(longer.rates.mean())),
        tests=holm_corrected(tests),
        false_positive_rate=FALSE_POSITIVE_RATE,
        settings=plans.settings(plan) | numbers | {"proxy": None if proxy is None else proxy_name},
        skipped=_skipped(proxy is not None, no_gradient, clean.random, draws_known, asked),
        warnings=[str(warning) for warning in shown],
        seconds=time.monotonic() - start,
        pictures=pictures,
    )


class _Longer(NamedTuple):
    """What longer attacks found, in rounds of fresh random starts."""

    success: dict[str, Success]  # by the attack's name, in any round
    rates: PerSample  # worst share of wrong draws, over these and all other attacks
    rounds: int


class _Clean(NamedTuple):
    """How samples are classified without an attack."""

    accuracy: float
    random: bool  # whether fresh draws of the model are judged
    correct: Tensor  # which samples at most half of the draws get wrong


class _Attacked(NamedTuple):
    """What the attacks of a plan found, and longer ones after them."""

    plan: Any
    no_gradient: str  # why none of them follows gradients; empty if some do
    samples: AttackedSamples
    results: Any  # by the attack's name
    rates: PerSample  # worst share of wrong draws within the ball
    longer: _Longer


def _attack(
    samples: AttackedSamples,
    ball: Ball,
    clean: _Clean,
    minutes: float | None,
    deadline: float,
    proxied: tuple[Any, str],
    progress: ReportProgress | None,
) -> _Attacked:
    """Attack as many samples as the time allows, and with what is left those that withstood, for longer."""
    candidates = samples[clean.correct[stratified_order(samples.y[clean.correct], 0).to(samples.x.device)]][
        :MAX_SAMPLES
    ]
    plan, no_gradient = _plan(candidates[:2], ball, clean.random, *proxied)
    answers = answers_of(samples.predictive)
    trial = plans.pgd_from_sample(ball, 5, return_point="best")
    if no_gradient:
        trial = random_search(ball.eps, ball.norm, 12, ball.box) if answers == "labels" else Square(ball, 12)
    first = len(candidates.x) if minutes is None else affordable(candidates, plan, minutes, trial)
    began = time.monotonic()
    attacked, results = candidates.run_until(deadline, plan, first, progress)
    seconds = (time.monotonic() - began) / plans.cost(plan) / len(attacked.x)
    within = [results[name] for name, planned in plan.items() if planned.attack.geometry.eps <= ball.eps]
    rates = _worst_rates(torch.stack([result.error_rate for result in within]), clean.random)
    longer = _Longer({}, rates, 0)
    if minutes is not None:
        further = plans.longer(ball, no_gradient, clean.random)
        if answers != "gradients":
            further = plans.longer_of_black_box(ball, answers)
        again = attacked.repeat_until(deadline, further, rates <= 0.5, seconds, progress)
        longer = _repeated(again, rates, clean.random)
    return _Attacked(plan, no_gradient, attacked, results, rates, longer)


def _classify(samples: AttackedSamples, ball: Ball) -> _Clean:
    """Classify the clean samples as an attack would; refuse too few correct ones, and a constant prediction."""
    x, y = samples.x, samples.y
    with validated_inputs(samples.predictive, x, y, ball, seed=samples.seed, index=samples.index) as inputs:
        clean = AttackResult.cat([unperturbed(inputs[batch], ball)[0] for batch in inputs.batches(samples.batch_size)])
    error_rate = (clean.errors + clean.not_finite) / clean.draws
    correct = (error_rate <= 0.5).nonzero()[:, 0]
    require(
        len(correct) >= 20,
        f"only {len(correct)} of {len(x)} samples are classified right: give at least 20, or another model.",
    )
    classes, predicted = len(y.unique()), clean.prediction.unique()
    require(
        len(predicted) > 1 or classes == 1,
        f"the model says class {int(predicted[0])} of all {len(x)} samples, which are of {classes} classes: nothing "
        "can be learned from attacks on a constant prediction; train it first.",
    )
    return _Clean(1 - float(error_rate.mean()), bool((clean.draws > 1).any()), correct)


def _plan(
    samples: AttackedSamples, ball: Ball, random: bool, proxy: "nn.Module | Predictive | None", proxy_name: str
) -> tuple[Plan, str]:
    """The attacks, and why none of them follows gradients; empty if some do. A few `samples` tell."""
    answers = answers_of(samples.predictive)
    plan = plans.without_gradients(ball)
    if answers != "gradients":
        plan = plans.of_black_box(ball, samples.x[0].numel(), answers)
    if proxy is not None:
        samples.attack(transfer(proxy, plans.pgd_from_sample(ball, 1), proxy_name))  # refused now, if ever
        plan |= plans.transferred(ball, proxy, proxy_name)
    if answers != "gradients":
        return plan, f"it gives {answers} alone."
    try:
        samples.attack(plans.pgd_from_sample(ball, 1))
    except NoGradient as error:
        return plan, str(error)
    plan |= plans.with_gradients(ball, samples.x[0].numel(), "last" if random else "first_success")
    if random:
        plan |= plans.over_draws(samples.predictive, ball)
    if proxy is not None:
        plan |= plans.short_attacks(ball, proxy, proxy_name)
    return plan, ""


def _test_outcomes(
    samples: AttackedSamples,
    results: Mapping[str, AttackResult],
    longer: _Longer,
    ball: Ball,
    random: bool,
    no_gradient: str,
) -> tuple[list[MaskingTest], list[Picture]]:
    """The tests of what the attacks fooled, with their curves, and of the loss surface."""
    success = {name: result.success.cpu().numpy() for name, result in results.items()} | longer.success
    radii = plans.other_radii(ball, samples.x[0].numel())
    if answers_of(samples.predictive) != "gradients":
        strongest = plans.SQUARE if plans.SQUARE in success else plans.HOP_SKIP_JUMP
        by_radius = {radius: success[plans.radius_name(radius)] for radius in radii} | {ball.eps: success[strongest]}
        return tests_of_black_box(success, by_radius), []
    tests = tests_without_gradients(success, len(samples.x))
    if no_gradient:
        return tests, []
    pgd = results[plans.PGD]
    by_eps = {radius: success[plans.radius_name(radius)] for radius in radii} | {ball.eps: success[plans.PGD]}
    by_steps = {steps: success[f"PGD-{steps}"] for steps in (plans.STEPS, *plans.OTHER_STEPS)}
    lost = (pgd.zero_gradients + pgd.nan_gradients > 0).cpu().numpy()
    tests += tests_with_gradients(success, by_eps, lost)
    pictures = [_curves(by_eps, by_steps)]
    if not random:
        few = samples[:_SURFACES]
        loss_surface = surface(
            few.predictive, few.x, few.y, reach=ball.eps, points=21, batch_size=few.batch_size, seed=few.seed
        )
        tests.append(loss_surface_test(loss_surface.stuck))
        pictures.append(loss_surface.picture())
    return tests, pictures


def _further_tests(samples: AttackedSamples, box: Box, found: _Attacked, random: bool) -> list[MaskingTest]:
    """The tests of longer attacks, if there was time for any, and of gradients, of which a black box gives none."""
    planned = (found.rates > 0.5).cpu().numpy()
    longer = [longer_attacks_test(planned, found.longer.success)] if found.longer.rounds and not random else []
    return [*longer, *gradient_tests(samples, box, found.no_gradient)]


def _repeated(rounds: Iterable[tuple[Tensor, dict[str, AttackResult]]], rates: PerSample, random: bool) -> _Longer:
    """What the rounds of longer attacks add to the worst `rates` before."""
    success: dict[str, Tensor] = {}
    worst, count = rates, 0
    for index, results in rounds:
        count += 1
        for name, result in results.items():
            fooled = torch.zeros_like(rates, dtype=torch.bool).index_copy(0, index, result.success)
            success[name] = success.get(name, fooled) | fooled
            worst = _worst_rates(torch.stack([worst, rates.index_copy(0, index, result.error_rate)]), random)
    return _Longer({name: fooled.cpu().numpy() for name, fooled in success.items()}, worst, count)


def _worst_rates(rates: Float[Tensor, "attacks samples"], random: bool) -> PerSample:
    """The share of wrong draws of each sample in the worst case; of a random model, under the single attack that is
    most effective, as the worst of many draws is a lucky one.
    """
    return rates[rates.mean(1).argmax()] if random else rates.amax(0)


def _skipped(has_proxy: bool, no_gradient: str, random: bool, draws_known: bool, asked: bool) -> list[str]:
    left_out = f"{'; '.join(LEFT_OUT)}: they compare attacks with those that follow gradients, and {no_gradient}"
    reasons = (
        (not has_proxy, "transferred attacks: no proxy was given."),
        (asked, left_out),
        (bool(no_gradient) and not asked, "attacks that follow gradients: the model gives none."),
        (draws_known, "other draws of this random model: every attack knew the one it was judged on."),
        (
            random and not no_gradient,
            "the loss surface and finite differences: they compare calls, of which no two agree.",
        ),
    )
    return [reason for applies, reason in reasons if applies]


def _curves(by_eps: Mapping[float, Success], by_steps: Mapping[int, Success]) -> Picture:
    """Accuracy against the radius and against the number of steps."""

    def panel(success: Mapping[Any, Success], x_name: str) -> Lines:
        x = sorted(success)
        correct = np.stack([~success[value] for value in x])
        curve = Curve(np.array(x, dtype=float), correct, np.ones(correct.shape[1], dtype=bool), x_name)
        return lines({"PGD": curve}, f"accuracy against {x_name}", log_x=True)

    return Picture(
        "curves",
        "Samples that PGD leaves right, of those that are right without it, against the radius and against the number "
        "of steps, with 95 % intervals: honest curves fall to 0 and level off.",
        [panel(by_eps, "eps"), panel(by_steps, "steps")],
        columns=2,
    )
