"""Indicators of masked gradients: the tests behind them, and the conclusion on planted defences and honest models."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import binom, binomtest
from torch import Tensor, nn

from equipoise import methods, nets
from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.losses.objectives import regularised
from equipoise.losses.terms import Method
from equipoise.masking.exact_tests import (
    difference_test,
    gain_test,
    gradient_test,
    holm_corrected,
    monotonicity_test,
    share_test,
    weaker_attack_test,
)
from equipoise.masking.indicators import longer_attacks_test
from equipoise.masking.investigate import investigate
from equipoise.masking.time_budget import AttackedSamples
from equipoise.models import MonteCarloDropout
from equipoise.report.masking import p_value, page
from equipoise.reproduce.studies.images import images
from equipoise.results.masking import MaskingReport, MaskingTest
from equipoise.training import Recipe, fit

pytestmark = pytest.mark.unchecked

EPS = 0.1


def outcomes(n: int, *broken: int) -> np.ndarray:
    found = np.zeros(n, dtype=bool)
    found[list(broken)] = True
    return found


def test_a_gain_is_tested_against_the_share_that_is_honest_and_against_the_other_direction():
    """11 of 100 fall only to b and 1 only to a: the larger of `P(Bin(100, slack) >= 11)` and `P(Bin(12, ½) >= 11)`."""
    first, second = outcomes(100, 0, 1, 2), outcomes(100, *range(1, 14))
    wide, narrow = (gain_test("more", ("a", first), ("b", second), "R", slack) for slack in (0.05, 0.01))
    assert wide.p == pytest.approx(binom.sf(10, 100, 0.05)) and narrow.p == pytest.approx(binom.sf(10, 12, 0.5))
    assert wide.p > binom.sf(10, 12, 0.5) and narrow.p > binom.sf(10, 100, 0.01), "each binds in one of the cases"
    assert wide.figure == "of 100 samples 11 fall only to b, 1 only to a" and "5%" in wide.threshold
    found = binomtest(11, 100).proportion_ci(method="wilson")
    assert wide.interval == pytest.approx((found.low, found.high))
    assert gain_test("more", ("b", second), ("a", first), "R").p == pytest.approx(binom.sf(0, 12, 0.5))
    assert gain_test("more", ("a", first), ("a", first), "R").p == 1


@pytest.mark.parametrize(("more", "less", "slack"), [(0.15, 0.15, 0.01), (0.01, 0.0, 0.01), (0.05, 0.02, 0.05)])
def test_attacks_that_gain_nothing_are_accused_no_more_often_than_the_test_says(more, less, slack):
    """The level holds where both find some samples alone, as random ones do: the difference then varies by more than
    one share alone does (by chance alone 8 of 200 more fall to the second one time in six at 15 % each).
    """
    rng, level, accused = np.random.default_rng(0), 0.05, 0
    for _ in range(500):
        drawn = rng.random(200)
        second, first = drawn < more, (drawn >= more) & (drawn < more + less)
        p = gain_test("more", ("a", first), ("b", second), "R", slack).p
        assert p is not None
        accused += p <= level
    assert accused / 500 <= level + 3 * (level * (1 - level) / 500) ** 0.5


def test_either_of_two_losses_may_be_ahead():
    first, second = outcomes(100, *range(40)), outcomes(100, *range(30, 35))
    ahead = gain_test("x", ("b", second), ("a", first), "R", 0.2)
    for pair in ((("a", first), ("b", second)), (("b", second), ("a", first))):
        test = difference_test("x", *pair, "R", 0.2)
        assert ahead.p is not None and test.p == pytest.approx(2 * ahead.p) and test.figure == ahead.figure
    assert difference_test("x", ("a", first), ("b", first), "R").p == 1


def test_the_weaker_attack_wins_by_an_exact_sign_test():
    white, black = outcomes(50, 0, 1), outcomes(50, *range(1, 10))
    test = weaker_attack_test("black", ("w", white), ("b", black), "R")
    assert test.p == pytest.approx(binom.sf(8 - 1, 9, 0.5)) and test.interval is not None
    assert test.interval[0] < 8 / 9 < test.interval[1]
    assert weaker_attack_test("black", ("w", black), ("b", white), "R").p == 1
    assert weaker_attack_test("black", ("w", white), ("b", white), "R").interval is None


@pytest.mark.parametrize(
    ("model", "clean", "white", "transferred", "masked"),
    [
        ("Normal", 94.78, 3.27, 27.5, False),
        ("EntM", 94.71, 58.45, 35.84, True),
        ("LS", 95.15, 66.07, 32.24, True),
        ("ADP", 95.72, 42.8, 31.79, True),
        ("PAT", 86.47, 68.33, 76.88, False),
        ("PAT-EntM", 87.87, 71.26, 79.32, False),
    ],
)
def test_short_attacks_judge_the_papers_counts_as_the_paper_does(model, clean, white, transferred, masked):
    """R Table 1, PGD10-4: of 1000 test samples those that are right, paired as unfavourably as the counts allow."""
    n, own, moved = (round(10 * share) for share in (clean, clean - white, clean - transferred))
    first, second = outcomes(n, *range(own)), outcomes(n, *range(n - moved, n))
    assert (weaker_attack_test("short", ("own", first), ("moved", second), "R").p < 1e-3) == masked


def test_what_should_not_be_there_is_counted():
    assert share_test("zero", "no gradient", outcomes(200, *range(8)), "A").p == pytest.approx(binom.sf(7, 200, 0.01))
    assert share_test("zero", "no gradient", outcomes(200), "A").p == 1
    none = share_test("zero", "no gradient", np.zeros(0, dtype=bool), "A")
    assert none.p == 1 and none.interval is None


def test_a_curve_that_rises_is_found_where_it_rises_most():
    curve = {0.1: outcomes(100, *range(30)), 0.2: outcomes(100, *range(20)), 0.4: outcomes(100, *range(60))}
    test = monotonicity_test("rise", curve, "R", tolerance=0.01)
    assert test.p == pytest.approx(2 * binom.sf(9, 10, 0.5)) and "10 fall only to eps 0.1, 0 only to" in test.figure
    falling = {0.1: outcomes(100, 1), 0.2: outcomes(100, 1, 2), 0.4: outcomes(100, 1, 2, 3)}
    assert monotonicity_test("rise", falling, "R").p == 1


def test_a_gradient_misleads_if_it_misses_on_more_than_half_of_the_samples():
    along, around = np.linspace(0, 1, 64), np.r_[np.zeros(20), np.ones(44)]
    test = gradient_test("m", along, around, "A")
    assert (
        test.p == pytest.approx(2 * binom.sf(43, 64, 0.5))
        and "along random signs by more than 50%: 44 of 64" in test.figure
    )
    assert gradient_test("m", along, np.zeros(64), "A").p == 1


@pytest.mark.parametrize(
    ("n", "said"), [(32, "too few samples to tell"), (72, "too few"), (73, "no indicator of gradient masking")]
)
def test_no_indicator_on_few_samples_says_nothing(n, said):
    """Of 32 samples of which none show it, the 95 % interval of the share reaches 10.7 %, of 73 it ends at 5 %."""
    quiet = MaskingTest("restarts go on helping", "", "5%", 1.0, "", False)
    verdict = MaskingReport("m", "linf", 0.1, n, 0.9, 0.3, [quiet], 0.05)
    assert said in str(verdict) and verdict.undecided == (n < 73) and not verdict.masked
    assert verdict.to_json()["undecided"] == (n < 73)
    high = binomtest(0, n).proportion_ci(method="wilson").high
    assert (high >= 0.05) == (n < 73) and (n != 32 or f"{high:.1%}" in str(verdict))
    raised = replace(verdict, tests=[replace(quiet, raised=True)])
    assert raised.masked and not raised.undecided
    assert "30.0% that these attacks leave at eps 0.1 is no robust accuracy" in raised.caution and not verdict.caution


def test_all_tests_share_one_false_positive_rate():
    """Holm: the smallest p against level/m, the next against level/(m-1), until one fails."""
    tests = [MaskingTest(str(p), "", "", p, "") for p in (0.04, 0.012, 0.2, 0.3, 0.001)]
    assert [s.raised for s in holm_corrected(tests, 0.05)] == [False, True, False, False, True]
    assert [
        s.raised for s in holm_corrected([MaskingTest("a", "", "", 0.03, ""), MaskingTest("b", "", "", 0.03, "")], 0.05)
    ] == [False] * 2


def test_what_is_seen_counts_and_uses_up_no_level():
    tests = [
        MaskingTest("a", "", "", 0.04, ""),
        MaskingTest("seen", "", "", None, ""),
        MaskingTest("b", "", "", 0.03, ""),
    ]
    assert [s.raised for s in holm_corrected(tests, 0.1)] == [True, True, True]
    assert [s.raised for s in holm_corrected(tests, 0.05)] == [False, True, False]
    assert [s.raised for s in holm_corrected([tests[1], tests[2]], 0.05)] == [True, True]


def test_tests_that_cannot_be_made_are_refused():
    with pytest.raises(EquipoiseError, match=r"outcomes of 3 and of 4 samples cannot be paired"):
        gain_test("x", ("a", outcomes(3)), ("b", outcomes(4)), "R")
    with pytest.raises(EquipoiseError, match=r"a curve needs at least 2 radii, got 1"):
        monotonicity_test("x", {0.1: outcomes(3)}, "R")


def few(digits, n: int = 100) -> tuple[Tensor, Tensor]:
    """Samples enough for a verdict."""
    return digits.test.x[:n], digits.test.y[:n]


def trained(method: Method, digits, epochs: int = 12, **options) -> nn.Module:
    net = nets.build("mlp", digits.shape, 10, seed=0, **options)
    fit(method, net, digits, Recipe(epochs=epochs, batch_size=64, lr=2e-3, valid_examples=20, valid_steps=1))
    return net.eval()


@pytest.fixture(scope="module")
def base(digits) -> nn.Module:
    return trained(methods.standard(), digits)


class Around(nn.Module):
    """A defence around a network: what it does to the input, and to the logits."""

    def __init__(self, base: nn.Module, before: Callable = lambda x: x, after: Callable = lambda z: z) -> None:
        super().__init__()
        self.base, self.before, self.after = base, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.base(self.before(x)))


class Backward(torch.autograd.Function):
    """The identity, whose gradient is something else."""

    @staticmethod
    def forward(ctx, x: Tensor, change: Callable) -> Tensor:
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        return ctx.change(gradients[0]), None


def noise_like(g: Tensor) -> Tensor:
    return torch.randn(g.shape, generator=torch.Generator().manual_seed(1)) * g.abs().mean()


def shifted(x: Tensor) -> Tensor:
    down, right = (int(torch.randint(-1, 2, ())) for _ in range(2))
    return torch.roll(x, (down, right), (-2, -1))


def one_hot(z: Tensor) -> Tensor:
    return 10 * nn.functional.one_hot(z.argmax(1), z.shape[1]).to(z) + 0 * z


PLANTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "logits so large that the loss saturates": lambda base: Around(base, after=lambda z: 1e4 * z),
    "input rounded": lambda base: Around(base, lambda x: (8 * x).round() / 8),
    "input in black and white": lambda base: Around(base, lambda x: (x > 0.5).to(x) + 0 * x),
    "random shifts": lambda base: Around(base, shifted),
    "gradient of the wrong sign": lambda base: Around(base, lambda x: Backward.apply(x, torch.neg)),
    "gradient of noise": lambda base: Around(base, lambda x: Backward.apply(x, noise_like)),
    "a shattered input": lambda base: Around(base, lambda x: x + 0.05 * torch.sin(400 * x)),
    "logits rounded": lambda base: Around(base, after=lambda z: (2 * z).round() / 2),
    "only the class is told": lambda base: Around(base, after=one_hot),
    "gradient cut off but for a trickle": lambda base: Around(base, after=lambda z: z.detach() + 1e-8 * z),
    "gradient cut off": lambda base: Around(base, after=Tensor.detach),
    "no gradient through a threshold": lambda base: Around(base, lambda x: (x > 0.5).to(x)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_masked_defences_are_found(name, base, digits):
    n = 180 if name == "random shifts" else 125  # it errs on many of the clean samples
    verdict = investigate(PLANTED[name](base), *few(digits, n), EPS, minutes=None)
    assert verdict.masked and str(verdict).startswith("masked: "), str(verdict)
    assert verdict.n >= 50 and verdict.robust < 0.97
    assert f"{verdict.robust:.1%} that these attacks leave" in verdict.caution


HONEST: dict[str, tuple[Callable[[], Method], int]] = {
    "standard": (methods.standard, 6),
    "PGD-AT": (lambda: methods.pgd_at(0.15, 0.03, 7), 6),
    "TRADES": (lambda: methods.trades(0.15, 0.03, 7), 6),
    "UDP": (lambda: methods.udp(0.3, 0.03, 10), 6),
    "PAT-EntM": (lambda: methods.pat(0.15, 0.03, 7, loss=regularised(2.0)), 10),
    "linear": (methods.standard, 6),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_models_are_not_accused(name, digits):
    make, epochs = HONEST[name]
    model = trained(make(), digits, epochs, **({"widths": ()} if name == "linear" else {}))
    verdict = investigate(model, *few(digits), EPS, minutes=None)
    assert not verdict.masked and str(verdict).startswith("no indicator of gradient masking"), str(verdict)
    assert verdict.skipped == ["transferred attacks: no proxy was given."]
    assert 0 < verdict.robust < verdict.clean


RESCALED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "8 times the logits": lambda base: Around(base, after=lambda z: 8 * z),
    "a hundredth of the logits": lambda base: Around(base, after=lambda z: z / 100),
    "a constant on all logits": lambda base: Around(base, after=lambda z: z + 1000),
    "an absent class": lambda base: Around(base, after=lambda z: torch.cat([z, torch.full_like(z[:, :1], -1e9)], 1)),
    "float64": lambda base: copy.deepcopy(base).double(),
    "a first layer in place": lambda base: nn.Sequential(nn.ReLU(inplace=True), base),
    "gradients of its own, not used": lambda base: Around(base, before=looked_at),
}


def looked_at(x: Tensor) -> Tensor:
    with torch.enable_grad():
        copied = x.detach().clone().requires_grad_()
        torch.autograd.grad(copied.square().sum(), copied)
    return x


@pytest.mark.parametrize("name", RESCALED)
def test_an_honest_model_in_another_form_is_not_accused(name, base, digits, brief):
    """What is remarked of it, such as faint gradients, are warnings."""
    x, y = few(digits)
    verdict = investigate(RESCALED[name](base), x.double() if name == "float64" else x, y, EPS, minutes=None)
    assert not verdict.masked and str(verdict).startswith("no indicator of gradient masking"), str(verdict)
    expected = {"8 times the logits": "extreme logits", "gradients of its own, not used": "looping model"}
    assert [w.split(":")[0] for w in verdict.warnings if "faint" not in w] == [
        expected[key] for key in expected if key == name
    ]


def test_a_crash_is_not_taken_for_a_missing_gradient(base, digits):
    def crash(g: Tensor) -> Tensor:
        raise RuntimeError("cudnn RNN backward can only be called in training mode")

    with pytest.raises(RuntimeError, match=r"can only be called in training mode"):
        investigate(Around(base, lambda x: Backward.apply(x, crash)), *few(digits), EPS, minutes=None)


def test_what_time_is_left_goes_to_more_samples(base, digits, brief, monkeypatch):
    """And each sample has the same outcome as if all had been attacked at once."""
    whole = investigate(base, *few(digits, 125), EPS, minutes=None)
    monkeypatch.setattr("equipoise.masking.investigate.affordable", lambda *_: 20)
    monkeypatch.setattr(AttackedSamples, "repeat_until", lambda *_: iter(()))
    shares = []
    rounds = investigate(base, *few(digits, 125), EPS, minutes=60, progress=lambda what, share: shares.append(share))
    assert rounds.n == whole.n > 100 and rounds.tests == whole.tests and rounds.robust == whole.robust
    assert shares == sorted(shares) and 0 <= shares[-1] < 1
    assert investigate(base, *few(digits), EPS, minutes=1e-6).n == 20


def test_the_whole_time_is_spent_on_what_is_left(base, digits, brief, monkeypatch):
    """Longer attacks from other random starts, which can only fool more; the share that is done is that of the time."""
    whole = investigate(base, *few(digits), EPS, minutes=None)
    assert whole.settings["longer_rounds"] == 0
    monkeypatch.setattr("equipoise.masking.investigate.affordable", lambda *_: 100)
    shares = []
    longer = investigate(base, *few(digits), EPS, minutes=0.1, progress=lambda what, share: shares.append(share))
    assert 5 < longer.seconds < 30 and longer.settings["longer_rounds"] >= 1
    assert longer.robust <= whole.robust and not longer.masked, str(longer)
    names = {test.name for test in longer.tests} - {test.name for test in whole.tests}
    assert names == {"longer attacks go on helping"} and shares == sorted(shares) and 0 < shares[-1] <= 1


def test_what_only_longer_attacks_break_is_an_indicator():
    """20 of 100 samples withstood all planned attacks; of these a longer one breaks 12."""
    planned, longer = outcomes(100, *range(80)), outcomes(100, *range(80, 92))
    test = longer_attacks_test(planned, {"longer PGD": longer})
    assert (
        test.p == pytest.approx(binom.sf(11, 100, 0.05))
        and "12 fall only to all attacks before and longer" in test.figure
    )
    assert longer_attacks_test(planned, {"longer Square": outcomes(100, 3)}).p == 1


def test_a_model_without_gradients_is_attacked_without(base, digits):
    rounded = PLANTED["no gradient through a threshold"](base)
    verdict = investigate(rounded, *few(digits), EPS, minutes=None, proxy=base, proxy_name="the bare network")
    assert "attacks that follow gradients: the model gives none." in verdict.skipped and verdict.pictures == []
    names = {test.name for test in verdict.tests if test.raised}
    assert {"non-differentiable model", "black box beats white box", "transfer beats white box"} <= names
    assert verdict.robust < verdict.clean and verdict.settings["proxy"] == "the bare network"


def test_short_attacks_are_compared_if_there_is_a_proxy(base, digits, brief):
    """The paper's finding: the proxy's short attack breaks what the model's own, misled, does not."""
    name = "transfer beats white box when both are short"
    misled = investigate(PLANTED["gradient of the wrong sign"](base), *few(digits), EPS, minutes=None, proxy=base)
    assert name in {test.name for test in misled.tests if test.raised}
    honest = investigate(base, *few(digits), EPS, minutes=None, proxy=trained(methods.standard(), digits))
    assert name in {test.name for test in honest.tests} and not honest.masked, str(honest)


def test_entropy_alone_is_found_masked_as_the_paper_found(digits, brief):
    """EntM without adversarial training, of lambda 5 (R Fig. 3), trained to the end: its own short PGD stops where that
    of a standard network goes on (R, Sec. 5.1). It falls to a longer one, as R's does to PGD40.

    The networks are kept, since a training ends elsewhere on another processor: LeNets of seed 0 on digits of 28 x 28,
    60 epochs of `Recipe(batch_size=64, lr=2e-3)` each, in half precision.
    """
    data = images(digits)
    standard, entm = (nets.build("lenet", data.shape, 10).eval() for _ in range(2))
    for name, net in (("standard", standard), ("entm", entm)):
        net.load_state_dict(load_file(Path(__file__).parent / "networks" / f"{name}.safetensors"))
    x, y = torch.cat([data.test.x, data.train.x])[:1000], torch.cat([data.test.y, data.train.y])[:1000]
    verdict = investigate(entm, x, y, 0.4, minutes=None, proxy=standard, proxy_name="standard training")
    raised = {test.name for test in verdict.tests if test.raised}
    assert "transfer beats white box when both are short" in raised, str(verdict)
    assert verdict.masked and verdict.clean > 0.95 and verdict.robust < 0.05 and verdict.n > 900


def test_dropout_that_attacks_know_is_no_indicator(digits, brief):
    """The same masks hold while climbing and in the judgement; noise that is drawn anew at each call is one."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
    fit(methods.standard(), net, digits, Recipe(epochs=12, batch_size=64, lr=2e-3, valid_examples=20, valid_steps=1))
    verdict = investigate(MonteCarloDropout(net.eval(), 3), *few(digits, 50), EPS, minutes=None)
    assert not verdict.masked, str(verdict)
    assert any("every attack knew the one it was judged on" in words for words in verdict.skipped)


NOISY: dict[str, Callable[[nn.Module], nn.Module]] = {
    "input": lambda base: Around(base, lambda x: (x + 0.1 * torch.randn_like(x)).clamp(0, 1)),
    "logits": lambda base: Around(base, after=lambda z: z + torch.randn_like(z)),
    "units": lambda base: Around(base, lambda x: nn.functional.dropout(x, 0.1, True)),
}


@pytest.mark.parametrize("name", NOISY)
def test_noise_that_hides_no_gradient_is_a_warning(name, base, digits, brief):
    """Attacks on one draw, judged by others, break nearly what attacks on the average break: nothing is masked."""
    verdict = investigate(NOISY[name](base), *few(digits), EPS, minutes=None)
    assert not verdict.masked and not verdict.undecided, str(verdict)
    assert [warning.split(":")[0] for warning in verdict.warnings] == ["randomised model"]
    assert any(test.name == "an average over draws breaks more than one draw" for test in verdict.tests)


def test_errors_by_chance_are_not_charged_to_attacks(brief):
    """A model that errs in 30 % of its answers, whatever the input is, keeps 70 % under every attack."""

    def coin(x: Tensor) -> Tensor:
        z = torch.zeros(len(x), 10)
        z[:, 0] = 5
        flip = torch.rand(len(x), 1, generator=generator) < 0.3
        return torch.where(flip, z.roll(1, 1), z) + 1e-3 * x.flatten(1)[:, :10]

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(150, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    verdict = investigate(Around(nn.Identity(), after=coin), x, torch.zeros(150, dtype=torch.long), EPS, minutes=None)
    assert verdict.clean == pytest.approx(0.7, abs=0.03) and verdict.robust == pytest.approx(0.7, abs=0.05)


def test_a_random_model_is_judged_alike_again_and_the_generators_stay(base, digits, brief):
    """Which samples are right is drawn as attacks draw it: from the seed, and from where a sample stands."""
    noisy = NOISY["input"](base)
    state = torch.get_rng_state()
    first, again = (investigate(noisy, *few(digits, 50), EPS, minutes=None) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.tests == again.tests and first.clean == again.clean and first.n == again.n


def test_the_worst_case_is_over_all_that_was_tried_within_the_radius(base, digits, monkeypatch):
    """Also over the shorter climbs, and over the smaller ball: here attacks break one sample each."""
    tried = []

    def one_each(self, attack):
        tried.append(attack.geometry.eps)
        success = torch.zeros(len(self.x), dtype=torch.bool)
        success[len(tried) % 100] = attack.geometry.eps <= EPS
        none = torch.zeros(len(self.x), dtype=torch.long)
        return SimpleNamespace(success=success, error_rate=success.float(), zero_gradients=none, nan_gradients=none)

    monkeypatch.setattr(AttackedSamples, "attack", one_each)
    verdict = investigate(base, *few(digits), EPS, minutes=None)
    looked = 1  # whether there is a gradient
    within = sum(eps <= EPS for eps in tried[looked:])
    assert within == 13 and verdict.robust == pytest.approx(verdict.clean * (1 - within / verdict.n))


def test_samples_sorted_by_class_are_taken_from_all_classes(base, digits, monkeypatch):
    seen = []
    monkeypatch.setattr("equipoise.masking.time_budget.MIN_SAMPLES", 30)
    run = AttackedSamples.run
    monkeypatch.setattr(AttackedSamples, "run", lambda self, *rest: (seen.append(self.y), run(self, *rest))[1])
    order = digits.test.y.argsort(stable=True)
    with pytest.warns(EquipoiseWarning, match=r"30 samples, the fewest that are looked at, take about \d+ minutes"):
        investigate(base, digits.test.x[order], digits.test.y[order], EPS, minutes=1e-6)
    assert len(seen[0]) == 30 and set(seen[0].tolist()) == set(range(10))


def test_large_balls_end_where_the_box_does(base, digits, brief):
    verdict = investigate(base, *few(digits, 30), 0.9, minutes=None)  # and no warning of a ball larger than the box
    assert verdict.settings["radii"] == [0.45, 0.9, 1.0]


def test_the_share_that_is_over_grows_from_0_to_less_than_1(base, digits):
    shares = []
    investigate(base, *few(digits, 30), 1e-3, minutes=None, progress=lambda what, share: shares.append(share))
    assert shares[0] == 0 and shares == sorted(shares) and 0.7 < shares[-1] < 1


def test_the_batch_size_does_not_matter(base, digits, brief):
    one, other = (investigate(base, *few(digits, 40), EPS, minutes=None, batch_size=size) for size in (7, 256))
    assert one.tests == other.tests and (one.clean, one.robust) == (other.clean, other.robust)


def test_the_same_seed_gives_the_same_verdict_and_leaves_the_model_alone(base, digits, brief):
    base.zero_grad()
    state, modes = {k: v.clone() for k, v in base.state_dict().items()}, [m.training for m in base.modules()]
    first, again = (investigate(base, *few(digits, 50), EPS, minutes=None, proxy=base) for _ in range(2))
    assert first.tests == again.tests and first.robust == again.robust
    assert any(test.name == "transfer beats white box" for test in first.tests) and first.skipped == []
    assert all(torch.equal(v, state[k]) for k, v in base.state_dict().items())
    assert modes == [m.training for m in base.modules()] and all(p.grad is None for p in base.parameters())


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms(norm, base, digits, brief):
    eps = {"l2": 0.5, "l1": 2.0}[norm]
    verdict = investigate(base, *few(digits), eps, norm, minutes=None)
    assert not verdict.masked, str(verdict)


def test_what_cannot_be_audited_is_refused(base, digits):
    x, y = digits.test.x, digits.test.y
    with pytest.raises(EquipoiseError, match=r"eps = 0: give the radius at which the model is said to be robust"):
        investigate(base, x, y, 0)
    with pytest.raises(EquipoiseError, match=r"minutes = 0: expected a number > 0"):
        investigate(base, x, y, 0.1, minutes=0)
    with pytest.raises(EquipoiseError, match=r"samples are classified right: give at least 20, or another model"):
        investigate(base, x[:100], (y[:100] + 1) % 10, 0.1)
    for constant in (lambda z: 0 * z, lambda z: 0 * z + torch.randn(10)):  # the second one errs by chance
        model = Around(base, after=lambda z, f=constant: f(z) + 1.5 * nn.functional.one_hot(torch.tensor(2), 10))
        with pytest.raises(EquipoiseError, match=r"the model says class 2 of all \d+ samples, which are of 10 classes"):
            investigate(model, x, y, 0.1)
    said = []
    with pytest.raises(EquipoiseError, match=r"the proxy 'b': it has 3 classes, the model under test has 10"):
        other = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        investigate(base, x[y < 3], y[y < 3], 0.1, proxy=other, proxy_name="b", progress=lambda *now: said.append(now))
    assert said == [], "before anything long is done"


def test_the_page_says_what_was_found():
    tests = [
        MaskingTest(
            "gradients vanish", "no gradient: 90 of 100 samples", "more than 1%", 1e-9, "Athalye et al. 2018", True
        ),
        MaskingTest(
            "restarts go on helping", "of 100 samples <b>none</b>", "5%", 1.0, "Carlini et al. 2019", False, (0, 0.04)
        ),
        MaskingTest("looping model", "12 times", "seen at all", None, "probe", True),
    ]
    origin = dict.fromkeys(("command", "seed", "commit", "device", "threads", "date"), "x") | {"versions": {}}
    verdict = MaskingReport("my model", "linf", 8 / 255, 100, 0.9, 0.3, tests, 0.05, provenance=origin)
    html = page(verdict)
    for words in ("Masked gradients", "my model", "8/255", "90 of 100 samples", "&lt; 0.0001", "&lt;b&gt;none", "90.0"):
        assert words in html
    assert "0.0–4.0" in html and html.count("a fact") == 1
    assert p_value(share_test("zero", "", outcomes(200, *range(200)), "").p) == "< 0.0001"
    body = verdict.to_json()
    assert body["masked"] and math.isclose(body["eps"], 8 / 255)
    assert body["verdict"] == "masked: gradients vanish, looping model."
    honest = page(MaskingReport("m", "l2", 1.0, 100, 0.9, 0.3, tests[1:2], 0.05, provenance=origin))
    assert "No indicator of gradient masking" in honest and "That is no proof" in honest
