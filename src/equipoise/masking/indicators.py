"""Which indicators of gradient masking the outcomes of attacks are tested for."""

from collections.abc import Mapping

import numpy as np

from equipoise.geometry import Box
from equipoise.masking import plan
from equipoise.masking.exact_tests import (
    FEW,
    HALF,
    MANY,
    SOME,
    Success,
    difference_test,
    gain_test,
    gradient_test,
    monotonicity_test,
    share_test,
    weaker_attack_test,
)
from equipoise.masking.gradient_check import gradient_errors
from equipoise.masking.time_budget import AttackedSamples
from equipoise.results.masking import MaskingTest

_COMPARED = 64  # samples whose gradients are compared with finite differences
_ATHALYE, _CARLINI, _CURVES = "Athalye et al. 2018", "Carlini et al. 2019", "R, Sec. 5.2.2"
_BLACK_BOX = "R, Sec. 5.2.1; Athalye et al. 2018"
_NOT_DIFFERENTIABLE = "non-differentiable model"


def tests_without_gradients(success: Mapping[str, Success], n: int) -> list[MaskingTest]:
    """Return the tests of attacks that need no gradient; where the model gives none, following it fools no sample.

    `success` says by the attack's name which of the `n` samples it fooled.
    """
    none = np.zeros(n, dtype=bool)
    on_loss, on_margin = success.get(plan.PGD, none), success.get(plan.PGD_ON_MARGIN, none)
    white_box = (f"{plan.PGD} on loss or margin", on_loss | on_margin)
    longest = _with_longer(*white_box, success, plan.LONGER_PGD, plan.LONGER_PGD_ON_MARGIN)
    square = _with_longer(plan.SQUARE, success[plan.SQUARE], success, plan.LONGER_SQUARE)
    tests = [
        weaker_attack_test("black box beats white box", longest, square, _BLACK_BOX),
        share_test(
            "random search succeeds where gradients fail",
            f"fall to {plan.RANDOM_POINTS} but not to {plan.PGD}",
            success[plan.RANDOM_POINTS][~on_loss],
            "R, App. C.1; Athalye et al. 2018",
        ),
    ]
    if plan.TRANSFER in success:
        transferred = ("the proxy's points", success[plan.TRANSFER])
        tests.append(weaker_attack_test("transfer beats white box", white_box, transferred, _BLACK_BOX))
    return tests


def tests_with_gradients(
    success: Mapping[str, Success], by_eps: Mapping[float, Success], lost: Success
) -> list[MaskingTest]:
    """Return the tests of attacks that follow gradients: `by_eps` is the success of PGD by radius, `lost` says where a
    gradient vanished.
    """

    def outcome(name: str) -> tuple[str, Success]:
        return name, success[name]

    largest, random = max(by_eps), plan.PGD_ON_MEAN in success
    still_correct, vanished = (
        f"right at {plan.radius_name(largest)}",
        "no gradient, or none that is finite, at some step",
    )
    pgd, on_margin, on_smoothed = map(outcome, (plan.PGD, plan.PGD_ON_MARGIN, plan.PGD_ON_SMOOTHED))
    tests = []
    if plan.SHORT_TRANSFER in success:
        name, short = "transfer beats white box when both are short", outcome(plan.SHORT_PGD)
        tests.append(weaker_attack_test(name, short, outcome(plan.SHORT_TRANSFER), "R, Sec. 5.1"))
    if random:
        name, one_draw = "an average over draws breaks more than one draw", outcome(plan.PGD_ON_ONE_DRAW)
        tests.append(gain_test(name, one_draw, outcome(plan.PGD_ON_MEAN), _ATHALYE, MANY))
    return [
        *tests,
        share_test("accuracy does not reach 0", still_correct, ~by_eps[largest], _CURVES),
        monotonicity_test("a larger ball breaks fewer", by_eps, _CURVES),
        gain_test("more steps go on helping", outcome("PGD-80"), outcome("PGD-160"), _CURVES, SOME if random else FEW),
        gain_test("restarts go on helping", outcome(plan.ONE_START), outcome(plan.MANY_STARTS), _CARLINI),
        difference_test("loss and margin disagree", pgd, on_margin, _CARLINI, MANY),
        gain_test("an adaptive loss breaks more", pgd, on_smoothed, _CURVES, MANY),
        share_test("gradients vanish", vanished, lost, _ATHALYE),
    ]


def tests_of_black_box(success: Mapping[str, Success], by_eps: Mapping[float, Success]) -> list[MaskingTest]:
    """Return the tests of attacks on a model that is only asked: whether one that knows less fools more than one that
    knows more, and whether `by_eps`, the success of the strongest one by radius, is that of an honest model.
    """
    labels = (plan.HOP_SKIP_JUMP, success[plan.HOP_SKIP_JUMP]) if plan.HOP_SKIP_JUMP in success else None
    strongest = labels
    tests = []
    if plan.SQUARE in success:
        strongest = _with_longer(plan.SQUARE, success[plan.SQUARE], success, plan.LONGER_SQUARE)
        if labels is not None:
            tests.append(weaker_attack_test(LABELS_BEAT_SCORES, strongest, labels, _CARLINI))
    assert strongest is not None
    name, fooled = strongest
    largest = max(by_eps)
    return [
        *tests,
        share_test(
            "random search succeeds where a guided one fails",
            f"fall to {plan.RANDOM_POINTS} but not to {name}",
            success[plan.RANDOM_POINTS][~fooled],
            _CARLINI,
        ),
        share_test("accuracy does not reach 0", f"right at {plan.radius_name(largest)}", ~by_eps[largest], _CURVES),
        monotonicity_test("a larger ball breaks fewer", by_eps, _CURVES),
    ]


LABELS_BEAT_SCORES = "labels alone beat scores"
LEFT_OUT = (
    "black box beats white box",
    "transfer beats white box",
    "more steps go on helping",
    "restarts go on helping",
    "loss and margin disagree",
    "an adaptive loss breaks more",
    "gradients vanish",
    "holes in the loss surface",
    _NOT_DIFFERENTIABLE,
    "longer attacks go on helping",
)
"""The indicators that cannot be tested on a model which is only asked."""


def longer_attacks_test(planned: Success, success: Mapping[str, Success]) -> MaskingTest:
    """Return whether repeated longer attacks break what none of the `planned` ones does."""
    names = (plan.LONGER_PGD, plan.LONGER_PGD_ON_MARGIN, plan.LONGER_SQUARE)
    name, either = _with_longer("all attacks before", planned, success, *names)
    return gain_test("longer attacks go on helping", ("all attacks before", planned), (name, either), _CARLINI)


def _with_longer(name: str, before: Success, success: Mapping[str, Success], *longer: str) -> tuple[str, Success]:
    """An attack, together with longer ones where they ran."""
    ran = [success[other] for other in longer if other in success]
    return (f"{name} and longer ones", np.any([before, *ran], axis=0)) if ran else (name, before)


def loss_surface_test(stuck: Success) -> MaskingTest:
    """Return the test of the samples whose loss falls somewhere along the gradient's sign."""
    falls = "the loss falls on the way along the gradient's sign"
    return share_test("holes in the loss surface", falls, stuck, "R, App. C.2", HALF)


def gradient_tests(samples: AttackedSamples, box: Box, no_gradient: str) -> list[MaskingTest]:
    """Return whether the gradient leads nowhere: no graph reaches the input, which is observed (`no_gradient` says
    why), or finite differences disagree, which is tested. None where they cannot be compared.
    """
    if no_gradient:
        figure = f"no gradient reaches the input: {no_gradient}"
        return [MaskingTest(_NOT_DIFFERENTIABLE, figure, "seen at all", None, _ATHALYE)]
    along, around = gradient_errors(
        samples.predictive, samples.x, samples.y, box=box, samples=_COMPARED, seed=samples.seed
    )
    if not len(along):
        return []
    return [gradient_test(_NOT_DIFFERENTIABLE, along.cpu().numpy(), around.cpu().numpy(), _ATHALYE)]
