"""Signs of masked gradients: the tests behind them, and the verdict on planted defences and on honest models."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from equipoise import methods, nets
from equipoise.data import load
from equipoise.diagnostics.masking import beaten, decided, gained, present, rising
from equipoise.diagnostics.verdict import investigate
from equipoise.errors import EquipoiseError
from equipoise.objectives import regularised
from equipoise.report.masking import page
from equipoise.terms import Method
from equipoise.training import Recipe, fit
from equipoise.verdicts import Sign, Verdict

EPS = 0.1


def outcomes(n: int, *broken: int) -> np.ndarray:
    found = np.zeros(n, dtype=bool)
    found[list(broken)] = True
    return found


def test_a_gain_is_tested_against_the_share_that_is_honest():
    """`P(Bin(n, slack) >= gained - lost)`, and nothing where nothing is gained."""
    first, second = outcomes(100, 0, 1, 2), outcomes(100, *range(1, 14))
    sign = gained("more", ("a", first), ("b", second), "R", slack=0.05)
    assert sign.p == pytest.approx(binom.sf(11 - 1 - 1, 100, 0.05))
    assert "b breaks 11 that a does not, and 1 the other way round" in sign.figure and "5%" in sign.threshold
    assert gained("more", ("b", second), ("a", first), "R").p == 1


def test_the_weaker_attack_wins_by_an_exact_sign_test():
    white, black = outcomes(50, 0, 1), outcomes(50, *range(1, 10))
    assert beaten("black", ("w", white), ("b", black), "R").p == pytest.approx(binom.sf(8 - 1, 9, 0.5))
    assert beaten("black", ("w", black), ("b", white), "R").p == 1


def test_what_should_not_be_there_is_counted():
    assert present("zero", "no gradient", outcomes(200, *range(8)), "A").p == pytest.approx(binom.sf(7, 200, 0.01))
    assert present("zero", "no gradient", outcomes(200), "A").p == 1
    assert present("zero", "no gradient", np.zeros(0, dtype=bool), "A").p == 1


def test_a_curve_that_rises_is_found_where_it_rises_most():
    curve = {0.1: outcomes(100, *range(30)), 0.2: outcomes(100, *range(20)), 0.4: outcomes(100, *range(60))}
    sign = rising("rise", curve, "R", slack=0.01)
    assert sign.p == pytest.approx(2 * binom.sf(9, 100, 0.01)) and "eps 0.1" in sign.figure
    falling = {0.1: outcomes(100, 1), 0.2: outcomes(100, 1, 2), 0.4: outcomes(100, 1, 2, 3)}
    assert rising("rise", falling, "R").p == 1


def test_all_signs_share_one_level():
    """Holm: the smallest p against level/m, the next against level/(m-1), until one fails."""
    signs = [Sign(str(p), "", "", p, "") for p in (0.04, 0.012, 0.2, 0.3, 0.001)]
    assert [s.raised for s in decided(signs, 0.05)] == [False, True, False, False, True]
    assert [s.raised for s in decided([Sign("a", "", "", 0.03, ""), Sign("b", "", "", 0.03, "")], 0.05)] == [False] * 2


def test_signs_that_cannot_be_made_are_refused():
    with pytest.raises(EquipoiseError, match=r"outcomes of 3 and of 4 samples cannot be paired"):
        gained("x", ("a", outcomes(3)), ("b", outcomes(4)), "R")
    with pytest.raises(EquipoiseError, match=r"a curve needs at least 2 radii, got 1"):
        rising("x", {0.1: outcomes(3)}, "R")


@pytest.fixture(scope="module")
def digits():
    return load("digits")


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
    "noise on the input": lambda base: Around(base, lambda x: (x + 0.1 * torch.randn_like(x)).clamp(0, 1)),
    "noise on the logits": lambda base: Around(base, after=lambda z: z + torch.randn_like(z)),
    "random shifts": lambda base: Around(base, shifted),
    "gradient of the wrong sign": lambda base: Around(base, lambda x: Backward.apply(x, torch.neg)),
    "gradient of noise": lambda base: Around(base, lambda x: Backward.apply(x, noise_like)),
    "a shattered input": lambda base: Around(base, lambda x: x + 0.05 * torch.sin(400 * x)),
    "logits rounded": lambda base: Around(base, after=lambda z: (2 * z).round() / 2),
    "only the class is told": lambda base: Around(base, after=one_hot),
    "gradient cut off but for a trickle": lambda base: Around(base, after=lambda z: z.detach() + 1e-8 * z),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("name", PLANTED)
def test_masked_defences_are_found(name, base, digits):
    verdict = investigate(PLANTED[name](base), digits.test.x, digits.test.y, EPS, minutes=0.02)
    assert verdict.masked and str(verdict).startswith("masked: "), str(verdict)
    assert verdict.n >= 100 and verdict.robust < 0.97


HONEST: dict[str, tuple[Callable[[], Method], int]] = {
    "standard": (methods.standard, 12),
    "PGD-AT": (lambda: methods.pgd_at(0.15, 0.03, 7), 12),
    "TRADES": (lambda: methods.trades(0.15, 0.03, 7), 12),
    "UDP": (lambda: methods.udp(0.3, 0.03, 10), 12),
    "PAT-EntM": (lambda: methods.pat(0.15, 0.03, 7, loss=regularised(2.0)), 20),
    "linear": (methods.standard, 12),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("name", HONEST)
def test_honest_models_are_not_accused(name, digits):
    make, epochs = HONEST[name]
    model = trained(make(), digits, epochs, **({"widths": ()} if name == "linear" else {}))
    verdict = investigate(model, digits.test.x, digits.test.y, EPS, minutes=0.02)
    assert not verdict.masked and str(verdict).startswith("no sign of masking"), str(verdict)
    assert verdict.skipped == ["transferred attacks: no proxy was given."]
    assert 0 < verdict.robust < verdict.clean


@pytest.mark.unchecked
def test_the_same_seed_gives_the_same_verdict_and_leaves_the_model_alone(base, digits):
    base.zero_grad()
    state, modes = {k: v.clone() for k, v in base.state_dict().items()}, [m.training for m in base.modules()]
    first, again = (
        investigate(base, digits.test.x[:120], digits.test.y[:120], EPS, minutes=0.01, proxy=base) for _ in range(2)
    )
    assert first.signs == again.signs and first.robust == again.robust
    assert any(sign.name == "transfer beats white box" for sign in first.signs) and first.skipped == []
    assert all(torch.equal(v, state[k]) for k, v in base.state_dict().items())
    assert modes == [m.training for m in base.modules()] and all(p.grad is None for p in base.parameters())


@pytest.mark.unchecked
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms(norm, base, digits):
    eps = {"l2": 0.5, "l1": 2.0}[norm]
    verdict = investigate(base, digits.test.x[:150], digits.test.y[:150], eps, norm, minutes=0.01)
    assert not verdict.masked, str(verdict)


def test_what_cannot_be_audited_is_refused(base, digits):
    x, y = digits.test.x, digits.test.y
    with pytest.raises(EquipoiseError, match=r"eps = 0: give the radius at which the model is said to be robust"):
        investigate(base, x, y, 0)
    with pytest.raises(EquipoiseError, match=r"minutes = 0: expected a number > 0"):
        investigate(base, x, y, 0.1, minutes=0)
    with pytest.raises(EquipoiseError, match=r"samples are classified right: give at least 20, or another model"):
        investigate(base, x[:100], (y[:100] + 1) % 10, 0.1)


def test_the_page_says_what_was_found():
    signs = [
        Sign("gradients vanish", "no gradient: 90 of 100 samples", "more than 1%", 1e-9, "Athalye et al. 2018", True),
        Sign("restarts go on helping", "of 100 samples <b>none</b>", "5%", 1.0, "Carlini et al. 2019"),
    ]
    origin = dict.fromkeys(("command", "seed", "commit", "device", "threads", "date"), "x") | {"versions": {}}
    verdict = Verdict("my model", "linf", 8 / 255, 100, 0.9, 0.3, signs, 0.05, provenance=origin)
    html = page(verdict)
    for words in ("Masked gradients", "my model", "8/255", "90 of 100 samples", "&lt; 0.0001", "&lt;b&gt;none", "90.0"):
        assert words in html
    body = verdict.to_json()
    assert body["masked"] and body["verdict"] == "masked: gradients vanish." and math.isclose(body["eps"], 8 / 255)
    honest = page(Verdict("m", "l2", 1.0, 100, 0.9, 0.3, signs[1:], 0.05, provenance=origin))
    assert "No sign of masking" in honest and "That is no proof" in honest
