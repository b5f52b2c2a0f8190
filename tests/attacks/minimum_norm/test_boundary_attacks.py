"""BG, DeepFool and FMN: closed forms and generic solvers on linear models, other libraries on a small net, refusals."""

import copy
import json
import math
import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from equipoise.attacks import BG, FMN, Attack, Bisected, DeepFool, bg, ddn, deepfool, fmn, pdpgd, sigma_zero
from equipoise.attacks.result import AttackResult
from equipoise.core.errors import EquipoiseError
from equipoise.geometry import EVERYWHERE, Ball, Box

pytestmark = pytest.mark.unchecked

ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
ATTACKS = {
    "bg": bg,
    "deepfool": deepfool,
    "fmn": fmn,
    "ddn": ddn,
    "pdpgd": partial(pdpgd, steps=200),
    "sigma-zero": partial(sigma_zero, steps=60),
}
NORMS = {"ddn": ["l2"], "sigma-zero": ["l0"], "pdpgd": [*ORDER, "l0"]}
EVERY = [(name, norm) for name in ATTACKS for norm in NORMS.get(name, ORDER)]
F64 = torch.float64


def linear(features: int, classes: int, seed: int = 0) -> nn.Linear:
    """A linear classifier whose planes all go through the middle of the box."""
    g = torch.Generator().manual_seed(seed)
    net = nn.Linear(features, classes).double().requires_grad_(False).eval()
    net.weight.copy_(torch.randn(classes, features, generator=g, dtype=F64))
    net.bias.copy_(-net.weight.sum(1) / 2)
    return net


def corners(n: int, features: int) -> Tensor:
    """Samples near the corners of the box, where it binds."""
    return torch.randint(2, (n, features), generator=torch.Generator().manual_seed(2)).double() * 0.96 + 0.02


def shortest(w: np.ndarray, gap: float, x: np.ndarray, norm: str) -> float:
    """The least ‖d‖ with w·d >= gap and x + d in the unit box, by a generic solver; infinite if there is none."""
    n, eye, bounds = len(x), np.eye(len(x)), [(-v, 1 - v) for v in x]
    if norm == "l2":
        if gap > np.maximum(w * -x, w * (1 - x)).sum():
            return math.inf
        answer = minimize(
            lambda d: d @ d,
            np.where(w > 0, 1 - x, -x),
            jac=lambda d: 2 * d,
            method="SLSQP",
            bounds=bounds,
            constraints={"type": "ineq", "fun": lambda d: w @ d - gap, "jac": lambda d: w},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert answer.success, answer.message
        return math.sqrt(answer.fun)
    spread = np.ones((n, 1)) if norm == "linf" else eye
    extra = spread.shape[1]
    upper = np.block([[eye, -spread], [-eye, -spread], [-w[None], np.zeros((1, extra))]])
    cost, right = np.r_[np.zeros(n), np.ones(extra)], np.r_[np.zeros(2 * n), -gap]
    answer = linprog(cost, upper, right, bounds=[*bounds, *[(0, None)] * extra])
    return answer.fun if answer.status == 0 else math.inf


def exact(net: nn.Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The distance to the nearest half-space of another class, within the box."""
    z, weight = net(x).numpy(), net.weight.numpy()
    return torch.tensor(
        [
            min(
                shortest(weight[t] - weight[c], z[i, c] - z[i, t], x[i].numpy(), norm)
                for t in set(range(len(weight))) - {c}
            )
            for i, c in enumerate(y.tolist())
        ],
        dtype=F64,
    )


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("norm", ORDER)
def test_the_distance_of_a_linear_model_where_the_box_binds(norm, classes):
    net, x = linear(8, classes, seed=4), corners(14, 8)
    y = net(x).argmax(1)
    best = exact(net, x, y, norm)
    assert (best < math.inf).sum() > 10
    clipped = 0
    # DeepFool's last move goes beyond the plane, and where the box bends it, its chord misses the nearest point.
    short = partial(deepfool, overshoot=0.001)
    follower = [(ddn, 5e-2)] if norm == "l2" and classes == 2 else []
    for make, more in ((bg, 2e-6), (deepfool, 1e-2), (short, 5e-4), (fmn, 2e-2), (pdpgd, 3e-2), *follower):
        found = Bisected(make(norm=norm))(net, x, y)
        assert torch.equal(found.success, best < math.inf)
        there = found.success
        assert (found.distance[there] >= best[there] * (1 - 1e-6)).all()
        exact_ones = (found.distance[there] <= best[there] * (1 + more)).double().mean()
        # FMN and PDPGD follow the class of the highest score, which need not be the nearest.
        leading = make in (fmn, pdpgd) and classes > 2
        assert exact_ones == 1 or (leading and exact_ones > 0.8), (make, found.distance / best)
        clipped += int(((found.x < 1e-3) | (found.x > 1 - 1e-3)).any(1).sum())
    assert clipped > 8


@pytest.mark.parametrize("norm", ORDER)
def test_the_distance_of_a_linear_model_without_a_box(norm):
    """gap / ‖w_t - w_y‖ in the dual norm."""
    net, x = linear(12, 5), torch.rand(30, 12, generator=torch.Generator().manual_seed(1), dtype=F64)
    z = net(x)
    y = z.argmax(1)
    slope = net.weight[None] - net.weight[y][:, None]
    dual = {"linf": 1.0, "l2": 2.0, "l1": math.inf}[norm]
    far = (z.gather(1, y[:, None]) - z) / slope.norm(dual, dim=2)
    best = far.scatter(1, y[:, None], math.inf).amin(1)
    for make, more in ((bg, 2e-6), (deepfool, 1e-6), (fmn, 2e-2)):
        near = Bisected(make(norm=norm, box=EVERYWHERE), 30)(net, x, y)
        assert near.success.all() and (near.distance >= best * (1 - 1e-9)).all()
        share = (near.distance <= best * (1 + more)).double().mean()
        assert share == 1 or (make is fmn and share > 0.6)  # it follows the likeliest class, not always the nearest
    raw = deepfool(norm=norm, box=EVERYWHERE)(net, x, y)
    assert torch.allclose(raw.distance, 1.02 * best, rtol=1e-6) and raw.iteration.eq(1).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_step_of_bg_solves_its_quadratic_program(seed):
    """On a linear model the scale of the step is 1: the point found is the step's."""
    net, x = linear(6, 2, seed), corners(10, 6)
    y = net(x).argmax(1)
    found = bg()(net, x, y)
    w, gap = (net.weight[1 - y] - net.weight[y]).numpy(), (net(x).amax(1) - net(x).amin(1)).numpy()
    for i in found.success.nonzero()[:, 0].tolist():
        best = shortest(w[i], gap[i], x[i].numpy(), "l2")
        move = (found.x - x)[i].numpy()
        assert np.linalg.norm(move) == pytest.approx(best, rel=2e-6) and w[i] @ move == pytest.approx(gap[i], rel=2e-6)
        # The optimality conditions: proportional to w wherever the box does not bind.
        free = (found.x[i].numpy() > 1e-9) & (found.x[i].numpy() < 1 - 1e-9)
        ratio = move[free] / w[i][free]
        assert (
            np.ptp(ratio) < 1e-6 * abs(ratio).max()
            and (abs(move[~free]) <= abs(ratio.max() * w[i][~free]) + 1e-9).all()
        )
    assert found.success.sum() >= 5


class Root(nn.Module):
    """Two classes by `s·(sum x - 1)` bent so that the linearisation at small x aims too short, or too far."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        rise = (x.sum(1) / 2).clamp_min(1e-6) ** self.power - 0.5**self.power
        return torch.stack([-rise, rise], 1)


@pytest.mark.parametrize("power", [0.4, 3.0])
def test_bg_scales_the_step_until_the_class_changes(power):
    """Along the diagonal the boundary is where the sum is 1, whatever the linearisation says."""
    x = torch.tensor([[0.1, 0.1], [0.3, 0.1], [0.4, 0.4]], dtype=F64)
    found = bg()(Root(power), x, torch.zeros(3, dtype=torch.int64))
    assert found.success.all()
    assert torch.allclose(found.distance, (1 - x.sum(1)) / math.sqrt(2), rtol=1e-5)


@pytest.fixture(scope="module")
def case(separated) -> tuple[nn.Module, Tensor, Tensor]:
    return separated(220, 180)


@pytest.mark.parametrize(
    ("name", "norm", "make", "factor"),
    [
        ("L2DeepFoolAttack", "l2", deepfool, 1.01),
        ("LinfDeepFoolAttack", "linf", deepfool, 1.01),
        ("DDNAttack", "l2", fmn, 1.03),
        ("LInfFMNAttack", "linf", fmn, 1.03),
        ("L1FMNAttack", "l1", fmn, 1.03),
    ],
)
def test_no_farther_than_foolbox_finds(name, norm, make, factor, case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foolbox = pytest.importorskip("foolbox")
    net, x, y = case
    right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    _, theirs, fooled = getattr(foolbox.attacks, name)()(model, x, y, epsilons=None)
    length = (theirs - x).flatten(1).norm(ORDER[norm], dim=1)[fooled]
    found = Bisected(make(norm=norm))(net, x, y)
    assert found.success.all() and len(length) > 20
    assert found.distance[fooled].mean() <= factor * length.mean()


@pytest.mark.parametrize(("name", "norm"), EVERY)
def test_what_it_returns(name, norm, case):
    net, x, y = case
    attack: Attack = ATTACKS[name](norm=norm)
    found = attack(net, x, y)
    wrong = net(x).argmax(1) != y
    assert isinstance(found, AttackResult) and found.success.all() and wrong.any()
    assert torch.equal(found.prediction, net(found.x).argmax(1)) and (found.prediction != y).all()
    assert torch.equal(found.x[wrong], x[wrong]) and not found.distance[wrong].any()
    assert found.evaluations[wrong].eq(1).all() and (found.iteration > 0).eq(~wrong).all()
    assert found.x.min() >= 0 and found.x.max() <= 1
    length = (found.x - x).double().flatten(1).norm(ORDER.get(norm, 0.0), dim=1)
    assert torch.allclose(found.distance.double(), length, rtol=1e-5)
    json.dumps(attack.settings())
    assert attack.settings()["attack"] == name and name in str(attack)


@pytest.mark.parametrize("name", ATTACKS)
def test_within_a_radius_only_what_is_near_counts(name, case):
    net, x, y = case
    far = ATTACKS[name]()(net, x, y)
    eps = float(far.distance.median())
    near = ATTACKS[name](eps)(net, x, y)
    assert torch.equal(near.success, far.distance <= eps * (1 + 1e-6))
    assert torch.equal(near.x[near.success], far.x[near.success]) and torch.equal(
        near.x[~near.success], x[~near.success]
    )


@pytest.mark.parametrize(("name", "norm"), EVERY)
def test_neither_batch_size_nor_order_matters(name, norm, case):
    net, x, y = case
    net, x = copy.deepcopy(net).double(), x.double()
    attack = ATTACKS[name](norm=norm)
    whole, order = attack(net, x, y), torch.arange(len(x)).flip(0)
    parts = attack(net, x.flip(0), y.flip(0), index=order, batch_size=13)[order]
    assert torch.equal(whole.success, parts.success) and torch.allclose(whole.x, parts.x, atol=1e-9)
    assert torch.equal(whole.evaluations, parts.evaluations) and torch.equal(whole.iteration, parts.iteration)


@pytest.mark.parametrize("name", ATTACKS)
def test_without_labels_it_leaves_the_predicted_class(name, case):
    net, x, _ = case
    own = net(x).argmax(1)
    free, given = ATTACKS[name]()(net, x), ATTACKS[name]()(net, x, own)
    assert torch.equal(free.x, given.x) and (free.prediction != own).all() and (free.distance > 0).all()


class Counting(nn.Module):
    """A net that counts the inputs it is given."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.tally = net, SimpleNamespace(looks=[])  # an object, which copies share

    def forward(self, x: Tensor) -> Tensor:
        self.tally.looks.append(len(x))
        return self.net(x)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_evaluation_is_counted(name, case, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_NATIVE", "0")  # the kernels do not ask the module
    net = Counting(case[0])
    found = ATTACKS[name]()(net, *case[1:])
    assert int(found.evaluations.sum()) + 2 + 2 + 1 + 3 == sum(net.tally.looks)  # first it is examined


class Flat(nn.Module):
    """Logits whose gradient is 0, or NaN where a coordinate is 0."""

    def forward(self, x: Tensor) -> Tensor:
        slope = x.sqrt().sum(1) * 0
        return torch.stack([slope + 1, slope, slope - 1], 1)


@pytest.mark.parametrize(
    ("name", "steps"), [("bg", 2), ("deepfool", 6), ("fmn", 3), ("ddn", 3), ("pdpgd", 3), ("sigma-zero", 3)]
)
def test_gradients_that_show_no_way_are_counted(name, steps):
    x, y = torch.tensor([[0.0, 0.5], [0.3, 0.4]]), torch.zeros(2, dtype=torch.int64)
    found = ATTACKS[name](steps=3)(Flat(), x, y)
    assert found.nan_gradients.tolist() == [steps, 0] and found.zero_gradients.tolist() == [0, steps]
    assert not found.success.any() and torch.equal(found.x, x)


@pytest.mark.parametrize("name", ATTACKS)
def test_another_box_is_kept_to(name):
    net, x = linear(6, 3), 2 * torch.rand(8, 6, generator=torch.Generator().manual_seed(0), dtype=F64) - 1
    net.bias.zero_()
    found = ATTACKS[name](box=Box(-1, 1))(net, x, net(x).argmax(1))
    assert found.success.all() and found.x.min() >= -1 and found.x.max() <= 1 and found.x.min() < 0


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (BG, {"targets": 0}, "targets = 0: expected an integer >= 1"),
        (BG, {"growth": 1.0}, "growth = 1.0 does not grow"),
        (BG, {"steps": 0}, "steps = 0: expected"),
        (DeepFool, {"steps": 0}, "steps = 0: expected"),
        (DeepFool, {"targets": 0}, "targets = 0"),
        (DeepFool, {"overshoot": -0.1}, "overshoot = -0.1 stops before the boundary"),
        (FMN, {"steps": 0}, "steps = 0"),
        (FMN, {"step_size": 0.0}, "step_size = 0.0, last_step_size = 0.01: expected 0 < last <= first"),
        (FMN, {"last_gamma": 0.2}, "gamma = 0.05, last_gamma = 0.2"),
        (FMN, {"gamma": 1.0}, "gamma = 1.0 leaves no ball"),
    ],
)
def test_refuses_options_that_make_no_sense(make, options, message):
    with pytest.raises(EquipoiseError, match=message):
        make(Ball("l2", math.inf), **options)


@pytest.mark.parametrize("name", ATTACKS)
def test_refuses_input_it_cannot_use(name):
    net, x, y = nn.Linear(6, 3), torch.full((4, 6), 0.5), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(EquipoiseError, match=r"unknown norm|norm = .l3.: a sparse ball"):
        ATTACKS[name](norm="l3")
    with pytest.raises(EquipoiseError, match="holds class 3, but the model has 3 classes"):
        ATTACKS[name]()(net, x, y + 3)
    with pytest.raises(EquipoiseError, match="lie outside"):
        ATTACKS[name]()(net, x + 1, y)
    batch = nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), net)
    with pytest.raises(
        EquipoiseError, match=f"{name} moves every sample by itself, but in this model a prediction depends"
    ):
        ATTACKS[name]()(batch, x, y)
