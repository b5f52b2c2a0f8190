"""Is it robust, or are its gradients masked? A budgeted set of attacks and tests, and the signs they show."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.attacks import Square, adaptive, cw, pgd, random_search, transfer
from equipoise.attacks.ascent import Ascent, ReturnPoint
from equipoise.attacks.attack import AttackLike, unperturbed
from equipoise.attacks.inputs import validated_inputs
from equipoise.attacks.result import AttackResult
from equipoise.attacks.steps import Uniform
from equipoise.core.errors import EquipoiseWarning, NoGradient, require
from equipoise.core.rng import Streams
from equipoise.core.types import Labels, Points, Predict, Prediction, Predictive, Weights
from equipoise.data.dataset import stratified_order
from equipoise.diagnostics.blocks import BATCH_SIZE
from equipoise.diagnostics.curves import Curve, lines
from equipoise.diagnostics.surfaces import surface
from equipoise.geometry import Ball, Box
from equipoise.masking.model_checks import check_model, gradient_errors
from equipoise.masking.sign_tests import (
    FEW,
    HALF,
    LEVEL,
    MANY,
    SOME,
    Broken,
    beaten,
    decided,
    differ,
    gained,
    misleading,
    present,
    rising,
)
from equipoise.models import as_predictive, global_seed
from equipoise.results.findings import Lines, Picture
from equipoise.results.masking import MaskingReport, Sign

Progress = Callable[[str, float], None]
"""Called with what is being done and which share of the whole is over."""

STEPS, RESTARTS, QUERIES, DRAWS, SMOOTHED, SURFACES, SHORT, COMPARED, AVERAGED = 40, 10, 1000, 1000, 20, 32, 10, 64, 10
OTHER_STEPS = (5, 10, 20, 80, 160)
_FORWARD = 0.4  # what a prediction costs, in gradients
_FEWEST, _MOST = 100, 1000
_WORTH = 0.1  # how many more samples, relative to those before, are worth another round
_SHARE_OF_A_ROUND = 0.9  # of what is still to be done, as far as progress can know before a round
_WIDE = {"linf": 150 / 255, "l2": 0.3, "l1": 0.3}  # radius at which nothing is left: of a coordinate, √d, d
_BLACK = "R, Sec. 5.2.1; Athalye et al. 2018"
_ADVICE, _ATHALYE = "Carlini et al. 2019", "Athalye et al. 2018"
_GRADIENT = "non-differentiable model"
_PLAIN, _MARGIN, _ONCE, _OFTEN = f"PGD-{STEPS}", "PGD on the margin", "1 random start", f"{RESTARTS} random starts"
_SQUARE, _DRAWN, _SMOOTH, _MOVED = f"Square-{QUERIES}", f"{DRAWS} random points", "PGD on smoothed labels", "transfer"
_ONE_DRAW, _AVERAGED = "PGD on one draw", f"PGD on the mean over {AVERAGED} draws"
_BRIEF, _BRIEF_MOVED = f"PGD-{SHORT} with steps of eps/{SHORT}", "the same on the proxy"

Plan = dict[str, tuple[float, AttackLike]]
"""Attacks by name, each with about how many gradients it costs per sample."""


@dataclass(frozen=True)
class _Case:
    """Samples, and how they are attacked."""

    predictive: Predictive
    x: Points
    y: Labels
    index: Tensor  # where they stand among all samples, which decides what is drawn for them
    seed: int
    batch_size: int

    def __getitem__(self, rows: "slice | Tensor") -> "_Case":
        return replace(self, x=self.x[rows], y=self.y[rows], index=self.index[rows])

    def attack(self, attack: AttackLike) -> AttackResult:
        return attack(self.predictive, self.x, self.y, seed=self.seed, index=self.index, batch_size=self.batch_size)

    def run(self, plan: Plan, progress: Progress | None) -> dict[str, AttackResult]:
        """What came of every attack."""
        found, done = {}, 0.0
        for name, (cost, attack) in plan.items():
            if progress is not None:
                progress(name, done / _cost(plan))
            found[name] = self.attack(attack)
            done += cost
        return found

    def run_within(
        self, plan: Plan, first: int, until: float, progress: Progress | None
    ) -> "tuple[_Case, dict[str, AttackResult]]":
        """The same for the first samples, and then for as many more as the time until `until` allows, judged by how
        long those before took; with the samples that were attacked. An outcome does not depend on their number.
        """
        rounds: list[dict[str, AttackResult]] = []
        n, size, begin, over = 0, first, time.monotonic(), 0.0
        while size > n * _WORTH:
            share = (1 - over) * (1 if n + size == len(self.x) else _SHARE_OF_A_ROUND)
            rounds.append(self[n : n + size].run(plan, _part_of(progress, over, share)))
            n, over = n + size, over + share
            each = (time.monotonic() - begin) / n
            size = min(int((until - time.monotonic()) / max(each, 1e-9)), len(self.x) - n)
        if len(rounds) == 1:
            return self[:n], rounds[0]
        return self[:n], {name: AttackResult.cat([found[name] for found in rounds]) for name in plan}


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
    minutes: float = 5.0,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    target: str = "model",
    progress: Progress | None = None,
) -> MaskingReport:
    """Look for signs that `model` owes its robustness at `eps` to gradients that mislead attacks (R, Sec. 5.2).

    As many of the samples `x` with labels `y` as `minutes` allow (100 to 1000, in a stratified order) are attacked in
    ways that know more and less; an `EquipoiseWarning` says so if even 100 take longer. `proxy` is another model of the
    same task, for transferred attacks. The verdict names every sign with its figure and its threshold. Every sign is a
    test, so that an honest model is accused with probability 0.05 at most, but for one: that no graph leads from the
    output to the input. Such a model is attacked without gradients. What `check_model` remarks becomes a warning.
    Raises `EquipoiseError` for input that cannot be attacked, no radius, fewer than 20 samples that are right, and one
    class predicted for samples of several; an error of the model itself is raised as it is.
    """
    require(0 < eps < float("inf"), f"eps = {eps}: give the radius at which the model is said to be robust.")
    require(minutes > 0, f"minutes = {minutes}: expected a number > 0.")
    begin, predictive, ball = time.monotonic(), as_predictive(model), Ball(norm, eps, box)
    flags = check_model(predictive, x, y, box=box, seed=seed)
    everyone = _Case(predictive, x, y, torch.arange(len(x), device=x.device), seed, batch_size)
    unharmed = _unharmed(everyone, ball)
    lost = (unharmed.errors + unharmed.not_finite) / unharmed.draws
    clean, random = 1 - float(lost.mean()), bool((unharmed.draws > 1).any())
    right = (lost <= 0.5).nonzero()[:, 0]
    require(
        len(right) >= 20,
        f"only {len(right)} of {len(x)} samples are classified right: give at least 20, or another model.",
    )
    classes, said = len(y.unique()), unharmed.prediction.unique()
    require(
        len(said) > 1 or classes == 1,
        f"the model says class {int(said[0])} of all {len(x)} samples, which are of {classes} classes: nothing can be "
        "learned from attacks on a constant prediction; train it first.",
    )
    case, skipped = everyone[right[stratified_order(y[right], 0).to(x.device)]], []
    plan = _without_gradients(ball)
    if proxy is None:
        skipped.append("transferred attacks: no proxy was given.")
    else:
        case[:2].attack(transfer(proxy, _pgd(ball, 1), proxy_name))  # refused now, if ever
        plan |= {_MOVED: (STEPS, transfer(proxy, _pgd(ball, return_point="best"), proxy_name))}
    refusal = _refusal(case[:2], ball)
    if gradients := not refusal:
        plan |= _with_gradients(ball, x[0].numel(), "last" if random else "first_success")
        if random:
            plan |= _over_draws(predictive, ball)
        if proxy is not None:
            plan |= {_BRIEF: (SHORT, _brief(ball)), _BRIEF_MOVED: (SHORT, transfer(proxy, _brief(ball), proxy_name))}
    else:
        skipped.append("attacks that follow gradients: the model gives none.")
    if not random and (known := [flag for flag in flags if flag.name == "randomised model"]):
        flags = [flag for flag in flags if flag not in known]
        skipped.append("other draws of this random model: every attack knew the one it was judged on.")
    case = case[:_MOST]
    first = _affordable(case, plan, minutes, _pgd(ball, 5, return_point="best") if gradients else Square(ball, 12))

    case, found = case.run_within(plan, first, begin + 60 * minutes, progress)
    broken = {name: outcome.success.cpu().numpy() for name, outcome in found.items()}
    signs, pictures = _seen_without_gradients(broken, len(case.x)), []
    if gradients:
        by_eps = {r: broken[_at(r)] for r in _radii(ball, x[0].numel())} | {eps: broken[_PLAIN]}
        by_steps = {steps: broken[f"PGD-{steps}"] for steps in (STEPS, *OTHER_STEPS)}
        blind = (found[_PLAIN].zero_gradients + found[_PLAIN].nan_gradients > 0).cpu().numpy()
        signs += _seen_with_gradients(broken, by_eps, blind)
        pictures = [_curves(by_eps, by_steps)]
        if random:
            skipped.append("the loss surface and finite differences: they compare calls, of which no two agree.")
        else:
            few = case[:SURFACES]
            ground = surface(predictive, few.x, few.y, reach=eps, points=21, batch_size=batch_size, seed=seed)
            signs.append(_holes(ground.stuck))
            pictures.append(ground.picture())
    within = [found[name] for name, (_, attack) in plan.items() if attack.geometry.eps <= eps]
    return MaskingReport(
        target=target,
        norm=norm,
        eps=eps,
        n=len(case.x),
        clean=clean,
        robust=len(right) / len(x) * _left(within, random),
        signs=decided([*signs, *_of_gradient(everyone, box, refusal)]),
        level=LEVEL,
        settings={
            "steps": STEPS,
            "restarts": RESTARTS,
            "queries": QUERIES,
            "draws": DRAWS,
            "radii": sorted({attack.geometry.eps for _, attack in plan.values()}),
            "slack": [FEW, SOME, MANY, HALF],
            "minutes": minutes,
            "seed": seed,
            "proxy": None if proxy is None else proxy_name,
        },
        skipped=skipped,
        warnings=[str(flag) for flag in flags],
        seconds=time.monotonic() - begin,
        pictures=pictures,
    )


def _pgd(ball: Ball, steps: int = STEPS, **options: Any) -> Ascent:
    """PGD on the cross-entropy from the sample itself, stopped at the first success."""
    size = max(2.5 * ball.eps / steps, ball.eps / 100)
    return pgd(ball.eps, size, steps, ball.norm, ball.box, **{"start": "zero"} | options)


def _brief(ball: Ball) -> Ascent:
    """The short PGD of R, Sec. 5.1, whose steps reach the edge of the ball just once."""
    return pgd(ball.eps, ball.eps / SHORT, SHORT, ball.norm, ball.box, start="zero", return_point="last")


def _without_gradients(ball: Ball) -> Plan:
    """Attacks that ask for no gradient of the model."""
    return {
        _SQUARE: (_FORWARD * QUERIES, Square(ball, QUERIES)),
        _DRAWN: (_FORWARD * DRAWS, random_search(ball.eps, ball.norm, DRAWS, ball.box)),
    }


def _with_gradients(ball: Ball, features: int, keep: ReturnPoint) -> Plan:
    """Attacks that follow it. Of a random model the last point counts: its first success or best is a lucky draw."""
    plan: Plan = {f"PGD-{k}": (k, _pgd(ball, k, return_point=keep)) for k in (STEPS, *OTHER_STEPS)}
    plan[_MARGIN] = STEPS, cw(ball.eps, None, STEPS, ball.norm, ball.box, start="zero", return_point=keep)
    plan[_ONCE] = STEPS, _pgd(ball, start=Uniform(), return_point=keep)
    plan[_OFTEN] = STEPS * RESTARTS, _pgd(ball, start=Uniform(), restarts=RESTARTS, return_point=keep)
    plan[_SMOOTH] = 11 * SMOOTHED, adaptive(ball.eps, ball.norm, SMOOTHED, restarts=1, box=ball.box, return_point=keep)
    for radius in _radii(ball, features):
        steps = 100 if radius > 4 * ball.eps else STEPS
        plan[_at(radius)] = steps, _pgd(replace(ball, eps=radius), steps, return_point=keep)
    return plan


def _over_draws(predictive: Predictive, ball: Ball) -> Plan:
    """Attacks on a random model: on one draw of it, and on the average over fresh draws (Athalye et al. 2018, EOT)."""
    return {
        _ONE_DRAW: (STEPS, transfer(OneDraw(predictive), _pgd(ball, return_point="last"), "one draw")),
        _AVERAGED: (STEPS * AVERAGED, _pgd(ball, return_point="last", eot_samples=AVERAGED, resample=True)),
    }


@dataclass(frozen=True)
class OneDraw:
    """A random model held to one draw: at every call the global generators start from the same state."""

    predictive: Predictive

    @property
    def module(self) -> nn.Module:
        """The module of the model."""
        return self.predictive.module

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        """The prediction function of that draw."""
        predict = self.predictive.draw(streams, weights)

        def again(x: Points) -> Prediction:
            with global_seed(0, x.device):
                return predict(x)

        return again


def _at(radius: float) -> str:
    return f"eps {radius:.3g}"


def _radii(ball: Ball, features: int) -> list[float]:
    """Half the radius, twice the radius, and again, up to one at which no image is left."""
    width = ball.box.high - ball.box.low
    across = width * {"linf": 1, "l2": features**0.5, "l1": features}[ball.norm]
    last = min(max(_WIDE[ball.norm] * across, 4 * ball.eps), across) if np.isfinite(across) else 64 * ball.eps
    inner = [ball.eps * 2**i for i in (-1, *range(1, 12)) if ball.eps * 2**i < 0.75 * last]
    return [*inner, last] if last > ball.eps else inner


def _part_of(progress: Progress | None, start: float, share: float) -> Progress | None:
    """The progress of a part as that of the whole, of which it is that share."""
    return None if progress is None else lambda what, done: progress(what, start + share * done)


def _cost(plan: Plan) -> float:
    return sum(cost for cost, _ in plan.values())


def _seen_without_gradients(broken: Mapping[str, Broken], n: int) -> list[Sign]:
    """The signs that need no gradient; where there is none, following it breaks nothing."""
    nothing = np.zeros(n, dtype=bool)
    plain, margin = broken.get(_PLAIN, nothing), broken.get(_MARGIN, nothing)
    either = (f"{_PLAIN} on loss or margin", plain | margin)
    signs = [
        beaten("black box beats white box", either, (_SQUARE, broken[_SQUARE]), _BLACK),
        present(
            "random search succeeds where gradients fail",
            f"fall to {_DRAWN} but not to {_PLAIN}",
            broken[_DRAWN][~plain],
            "R, App. C.1; Athalye et al. 2018",
        ),
    ]
    if _MOVED in broken:
        signs.append(beaten("transfer beats white box", either, ("the proxy's points", broken[_MOVED]), _BLACK))
    return signs


def _seen_with_gradients(broken: Mapping[str, Broken], by_eps: Mapping[float, Broken], lost: Broken) -> list[Sign]:
    """The signs that following the gradient shows."""

    def outcome(name: str) -> tuple[str, Broken]:
        return name, broken[name]

    curves, largest = "R, Sec. 5.2.2", max(by_eps)
    nowhere = "no gradient, or none that is finite, at some step"
    signs = []
    if _BRIEF_MOVED in broken:
        name = "transfer beats white box when both are short"
        signs.append(beaten(name, outcome(_BRIEF), outcome(_BRIEF_MOVED), "R, Sec. 5.1"))
    if random := _AVERAGED in broken:
        name = "an average over draws breaks more than one draw"
        signs.append(gained(name, outcome(_ONE_DRAW), outcome(_AVERAGED), _ATHALYE, MANY))
    return [
        *signs,
        present("accuracy does not reach 0", f"right at {_at(largest)}", ~by_eps[largest], curves),
        rising("a larger ball breaks fewer", by_eps, curves),
        gained("more steps go on helping", outcome("PGD-80"), outcome("PGD-160"), curves, SOME if random else FEW),
        gained("restarts go on helping", outcome(_ONCE), outcome(_OFTEN), _ADVICE),
        differ("loss and margin disagree", outcome(_PLAIN), outcome(_MARGIN), _ADVICE, MANY),
        gained("an adaptive loss breaks more", outcome(_PLAIN), outcome(_SMOOTH), curves, MANY),
        present("gradients vanish", nowhere, lost, _ATHALYE),
    ]


def _holes(stuck: Broken) -> Sign:
    falls = "the loss falls on the way along the gradient's sign"
    return present("holes in the loss surface", falls, stuck, "R, App. C.2", HALF)


def _of_gradient(everyone: _Case, box: Box, refusal: str) -> list[Sign]:
    """Whether the gradient leads nowhere: the graph does not reach the input, which is a fact, or finite differences
    disagree, which is tested. Nothing where they cannot be compared.
    """
    if refusal:
        return [Sign(_GRADIENT, f"no gradient reaches the input: {refusal}", "seen at all", None, _ATHALYE)]
    along, around = gradient_errors(
        everyone.predictive, everyone.x, everyone.y, box=box, samples=COMPARED, seed=everyone.seed
    )
    if not len(along):
        return []
    return [misleading(_GRADIENT, along.cpu().numpy(), around.cpu().numpy(), _ATHALYE)]


def _unharmed(case: _Case, ball: Ball) -> AttackResult:
    """How the clean samples are classified: the outcome of an attack that leaves them where they are."""
    with validated_inputs(case.predictive, case.x, case.y, ball, seed=case.seed, index=case.index) as inputs:
        return AttackResult.cat([unperturbed(inputs[rows], ball)[0] for rows in inputs.batches(case.batch_size)])


def _left(outcomes: Sequence[AttackResult], random: bool) -> float:
    """The accuracy that is left on the attacked samples. In the worst case for each; of a random model, under the one
    attack that leaves the least, as the worst of many draws is a lucky one.
    """
    rates = torch.stack([outcome.error_rate for outcome in outcomes])
    return 1 - float(rates.mean(1).amax() if random else rates.amax(0).mean())


def _refusal(case: _Case, ball: Ball) -> str:
    """Why no gradient can be followed; empty if one can. Every other error is raised."""
    try:
        case.attack(_pgd(ball, 1))
    except NoGradient as error:
        return str(error)
    return ""


def _affordable(case: _Case, plan: Plan, minutes: float, short: AttackLike) -> int:
    """As many samples as the time allows, by the time of a short attack that costs five gradients."""
    few = case[:64]
    begin = time.monotonic()
    few.attack(short)
    each = _cost(plan) * (time.monotonic() - begin) / 5 / len(few.x) / 60
    fewest = min(_FEWEST, len(case.x))
    if fewest * each > 2 * minutes:
        warnings.warn(
            f"{fewest} samples, the fewest that are looked at, take about {fewest * each:.0f} minutes here instead of "
            f"{minutes:g}.",
            EquipoiseWarning,
            stacklevel=3,
        )
    return int(min(max(minutes / each, _FEWEST), len(case.x)))


def _curves(by_eps: dict[float, Broken], by_steps: dict[int, Broken]) -> Picture:
    """Accuracy against the radius and against the number of steps."""

    def line(broken: Mapping[Any, Broken], x_name: str) -> Lines:
        places = sorted(broken)
        correct = np.stack([~broken[place] for place in places])
        curve = Curve(np.array(places, dtype=float), correct, np.ones(correct.shape[1], dtype=bool), x_name)
        return lines({"PGD": curve}, f"accuracy against {x_name}", log_x=True)

    return Picture(
        "curves",
        "Samples that PGD leaves right, of those that are right without it, against the radius and against the number "
        "of steps, with 95 % intervals: honest curves fall to 0 and level off.",
        [line(by_eps, "eps"), line(by_steps, "steps")],
        columns=2,
    )
