"""Flags: planted defences that mask gradients raise theirs, honest models raise none."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.core.types import Points, Predict, Prediction, Weights
from equipoise.evaluation.suites import PUBLISHED
from equipoise.geometry import Box
from equipoise.masking import model_checks
from equipoise.masking.model_checks import check_model
from equipoise.masking.result_checks import check_results
from equipoise.models import Single
from equipoise.nets import MLP, LeNet, Normalize, PreActResNet18
from equipoise.results.records import AttackRecord, ResultWarning

DIGITS = load_digits()
X = torch.tensor(DIGITS.images, dtype=torch.float32)[:, None] / 16
Y = torch.tensor(DIGITS.target).long()
LARGE = F.interpolate(X, size=(16, 16), mode="bilinear")
DOUBLED = X.repeat_interleave(2, 2).repeat_interleave(2, 3)
TEST = slice(-500, None)


def trained(make, x: Tensor = X, epochs: int = 8, seed: int = 0) -> nn.Module:
    """The net that `make` returns, in eval mode, trained on the digits but the last 500."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(x) - 500).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), Y[rows]).backward()
                optimizer.step()
    model.zero_grad()
    return model.eval()


def names(flags: Sequence[ResultWarning]) -> set[str]:
    assert all(flag.figure and flag.advice for flag in flags)
    return {flag.name for flag in flags}


@pytest.fixture(scope="module")
def mlp() -> nn.Module:
    return trained(lambda: MLP((1, 8, 8)))


@pytest.fixture(scope="module")
def lenet() -> nn.Module:
    return trained(lambda: LeNet((1, 16, 16)), LARGE)


def conv_net() -> nn.Module:
    features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(features, nn.Dropout(0.3), nn.Flatten(), nn.Linear(128, 10))


def smooth_net() -> nn.Module:
    first = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Dropout(0.2))
    return nn.Sequential(first, nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 10))


HONEST = {
    "mlp": (lambda: MLP((1, 8, 8)), X, 8),
    "mlp of rows": (lambda: MLP((64,), widths=(64, 64)), X.flatten(1), 8),
    "linear": (lambda: MLP((64,), widths=()), X.flatten(1), 8),
    "lenet": (lambda: LeNet((1, 16, 16)), LARGE, 4),
    "batch-norm, max-pool, dropout": (conv_net, X, 8),
    "layer-norm, gelu, softplus, dropout": (smooth_net, X.flatten(1), 8),
    "normalised": (lambda: nn.Sequential(Normalize([0.3], [0.4]), MLP((1, 8, 8))), X, 8),
    "tanh": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)), X, 8),
    "max-pool of equal pixels": (lambda: nn.Sequential(nn.MaxPool2d(2), MLP((1, 8, 8))), DOUBLED, 8),
    "untrained lenet": (lambda: LeNet((1, 16, 16)), LARGE, 0),
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("seed", [0, 1])
def test_an_honest_model_raises_no_flag(name, seed):
    make, x, epochs = HONEST[name]
    model = trained(make, x, epochs, seed)
    with torch.no_grad():
        accuracy = float((model(x[TEST]).argmax(1) == Y[TEST]).float().mean())
    assert check_model(model, x[TEST], Y[TEST], reported=accuracy, seed=seed) == []
    assert check_model(model.double(), x[TEST].double(), Y[TEST], reported=accuracy, seed=seed) == []


def test_an_honest_residual_network_raises_no_flag():
    model = trained(lambda: PreActResNet18((1, 16, 16)), LARGE[-628:], 1)
    assert check_model(model, LARGE[-16:], Y[-16:]) == []


class Quantised(nn.Module):
    def __init__(self, levels: int = 16, straight_through: bool = False) -> None:
        super().__init__()
        self.levels, self.straight_through = levels, straight_through

    def forward(self, x: Tensor) -> Tensor:
        levels = (x * self.levels).floor() / self.levels
        return x + (levels - x).detach() if self.straight_through else levels


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Loop(nn.Module):
    """Moves its input away from the decision boundary before it predicts."""

    def __init__(self, net: nn.Module, way: str) -> None:
        super().__init__()
        self.net, self.way = net, way

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            moved = x.detach().clone().requires_grad_()
            confidence = self.net(moved).amax(1).sum()
            if self.way == "grad":
                (gradient,) = torch.autograd.grad(confidence, moved)
            else:
                confidence.backward() if self.way == "method" else torch.autograd.backward(confidence)
                gradient = moved.grad
        return self.net(x + 0.01 * gradient.sign())


PREPROCESSED = {
    "quantised": Quantised(),
    "quantised, straight through": Quantised(straight_through=True),
    "8 bits, straight through": Quantised(255, straight_through=True),
    "two levels": Quantised(2),
    "rounded": Function(lambda x: (16 * x).round() / 16),
    "high-frequency sine": Function(lambda x: x + 0.005 * torch.sin(10_000 * x)),
    "sine of a visible wavelength": Function(lambda x: x + 0.02 * torch.sin(300 * x)),
    "sawtooth, straight through": Function(lambda x: x + (0.05 * (100 * x % 1)).detach()),
    "detached": Function(lambda x: x.detach()),
    "outside torch": Function(lambda x: torch.from_numpy(x.numpy().copy())),
    "half of it hidden from the gradient": Function(lambda x: x + (2 * x).detach()),
}


@pytest.mark.parametrize("name", PREPROCESSED)
@pytest.mark.parametrize("net", ["mlp", "lenet"])
def test_a_preprocessing_that_shatters_gradients_is_flagged(name, net, request):
    model = nn.Sequential(PREPROCESSED[name], request.getfixturevalue(net))
    x = X if net == "mlp" else LARGE
    assert "non-differentiable model" in names(check_model(model, x[TEST], Y[TEST]))


def test_rounding_inside_the_network_is_flagged(mlp):
    flatten, first, relu, last = mlp.layers
    model = nn.Sequential(flatten, first, relu, Function(lambda h: (4 * h).round() / 4), last)
    assert names(check_model(model, X[TEST], Y[TEST])) == {"vanishing gradients", "non-differentiable model"}
    winner_takes_all = nn.Sequential(mlp, Function(lambda z: 5.0 * F.one_hot(z.argmax(1), 10) + 0 * z))
    assert "non-differentiable model" in names(check_model(winner_takes_all, X[TEST], Y[TEST]))
    without_graph = nn.Sequential(mlp, Function(lambda z: 5.0 * F.one_hot(z.argmax(1), 10)))
    (flag,) = check_model(without_graph, X[TEST], Y[TEST])
    assert flag.name == "non-differentiable model" and "gives no gradient" in flag.figure


def test_saturated_logits_are_flagged_with_what_to_attack_instead(mlp):
    flags = {f.name: f for f in check_model(nn.Sequential(mlp, Function(lambda z: 100 * z)), X[TEST], Y[TEST])}
    assert set(flags) == {"extreme logits", "vanishing gradients"}
    assert "margin" in flags["vanishing gradients"].advice and "on 0" in flags["vanishing gradients"].figure
    dead = nn.Sequential(Quantised(), mlp)
    (flag,) = [f for f in check_model(dead, X[TEST], Y[TEST]) if f.name == "vanishing gradients"]
    assert "exactly 0 on 64" in flag.figure and "square" in flag.advice


def test_an_overconfident_model_is_not_flagged(mlp):
    assert check_model(nn.Sequential(mlp, Function(lambda z: 5 * z)), X[TEST], Y[TEST]) == []


def test_nearly_constant_logits_are_flagged(mlp):
    flags = check_model(nn.Sequential(mlp, Function(lambda z: 1e-5 * z)), X[TEST], Y[TEST])
    assert "extreme logits" in names(flags)


def test_random_noise_is_flagged_and_nothing_else(mlp):
    model = nn.Sequential(Function(lambda x: x + 0.1 * torch.randn_like(x)), mlp)
    (flag,) = check_model(model, X[TEST], Y[TEST])
    assert flag.name == "randomised model" and "64 of 64" in flag.figure
    (attack,) = re.findall(r"attack `(.+?)`", flag.advice)
    assert attack in PUBLISHED
    own = torch.Generator().manual_seed(0)
    model = nn.Sequential(Function(lambda x: x + 0.1 * torch.rand(x.shape, generator=own)), mlp)
    assert names(check_model(model, X[TEST], Y[TEST])) == {"randomised model"}


@dataclass(frozen=True)
class Shifted:
    """A predictive whose randomness comes from its streams alone."""

    module: nn.Module

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        def predict(x: Points) -> Prediction:
            noise = 0.0 if streams is None else streams.uniform(*x.shape[1:]) * 0.1
            return Prediction(self.module(x + noise)[None])

        return predict


def test_a_random_predictive_is_flagged(mlp):
    assert names(check_model(Shifted(mlp), X[TEST], Y[TEST])) == {"randomised model"}


def test_probabilities_that_round_to_one_are_flagged(mlp):
    def softmax(scale: float) -> Single:
        return Single(nn.Sequential(mlp, Function(lambda z: scale * z), nn.Softmax(1)), "probabilities")

    assert "probabilities instead of logits" in names(check_model(softmax(100), X[TEST], Y[TEST]))
    assert check_model(softmax(0.5), X[TEST], Y[TEST]) == []


@pytest.mark.parametrize("way", ["grad", "method", "backward"])
def test_a_looping_model_is_flagged(mlp, way):
    (flag,) = [f for f in check_model(Loop(mlp, way), X[TEST], Y[TEST]) if f.name == "looping model"]
    assert "1 times" in flag.figure
    assert all(p.grad is None for p in mlp.parameters())


class NormalizedModel(nn.Module):
    """The usual wrapper: standardises its input and calls the net."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.mean, self.std = net, 0.3, 0.4

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def test_two_normalising_layers_are_flagged(mlp):
    once = Normalize([0.3], [0.4])
    for model in (nn.Sequential(once, Normalize([0.3], [0.4]), mlp), NormalizedModel(nn.Sequential(once, mlp))):
        (flag,) = [f for f in check_model(model, X[TEST], Y[TEST]) if f.name == "double normalisation"]
        assert flag.figure.startswith("2 ")
    twice = nn.Sequential(once, once, mlp)
    assert "double normalisation" in names(check_model(twice, X[TEST], Y[TEST]))


def test_members_that_each_normalise_the_input_are_not_flagged():
    net = trained(lambda: nn.Sequential(Normalize([0.3], [0.4]), MLP((1, 8, 8))))
    other = copy.deepcopy(net)
    assert check_model(Function(lambda x: net(x) + other(x)), X[TEST], Y[TEST]) == []
    ensemble = nn.ModuleList([net, other])
    ensemble.forward = lambda x: net(x) + other(x)
    assert check_model(ensemble, X[TEST], Y[TEST]) == []


def test_a_normalising_layer_on_normalised_data_is_flagged():
    model = trained(lambda: nn.Sequential(Normalize([0.0], [1.0]), MLP((1, 8, 8))), 4 * X - 1)
    (flag,) = check_model(model, 4 * X[TEST] - 1, Y[TEST], box=Box(-1, 3))
    assert flag.name == "double normalisation" and "[-1, 3]" in flag.figure


def test_a_normalising_layer_that_costs_accuracy_is_flagged(mlp):
    model = nn.Sequential(Normalize([0.5], [0.1]), mlp)  # the net has never seen normalised inputs
    with torch.no_grad():
        accuracies = [f"{float((net(X[TEST]).argmax(1) == Y[TEST]).double().mean()):.1%}" for net in (model, mlp)]
    (flag,) = [f for f in check_model(model, X[TEST], Y[TEST]) if f.name == "double normalisation"]
    assert all(accuracy in flag.figure for accuracy in accuracies)


def test_a_wrong_reported_accuracy_is_flagged(mlp):
    with torch.no_grad():
        accuracy = float((mlp(X[TEST]).argmax(1) == Y[TEST]).float().mean())
    (flag,) = check_model(mlp, X[TEST], Y[TEST], reported=accuracy - 0.1)
    assert flag.name == "accuracy differs from the reported one"
    assert f"{accuracy:.1%}" in flag.figure and f"{accuracy - 0.1:.1%}" in flag.figure
    assert check_model(mlp, X[TEST], Y[TEST], reported=accuracy - 0.01) == []


class Counting(nn.Module):
    """Counts its calls in one buffer and replaces another."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.last + 1
        return self.net(x + 0.01 * torch.randn_like(x))


def test_the_model_stays_as_it_was():
    model = Counting(Loop(trained(conv_net), "method")).train()
    model.net.net[0].eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    last, before = model.last, torch.get_rng_state()
    hooks = [len(m._forward_hooks) for m in model.modules()]
    torch.set_float32_matmul_precision("high")
    try:
        first = check_model(model, X[TEST], Y[TEST])
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and model.last is last
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert check_model(model, X[TEST], Y[TEST]) == first, "the same seed gives the same figures"


def test_only_some_samples_are_looked_at_closely(mlp):
    """All samples are predicted once, to count logits that are not finite; gradients are taken at a few."""
    plain, with_gradient = [], []

    def note(x: Tensor) -> Tensor:
        (with_gradient if x.requires_grad else plain).append(len(x))
        return x

    check_model(nn.Sequential(Function(note), mlp), X[TEST], Y[TEST], samples=16)
    assert max(with_gradient) == 16 and max(plain) <= 256 and plain.count(244) == 1


def test_the_samples_come_from_all_of_the_data(mlp):
    """Of data in the order of their classes, not the first class alone."""
    order = Y[TEST].argsort(stable=True)
    dead = Function(lambda z: torch.where(z.argmax(1, keepdim=True) == 0, z.detach(), z))
    for rows in (order, order.flip(0)):
        (flag,) = check_model(nn.Sequential(mlp, dead), X[TEST][rows], Y[TEST][rows])
        zero = int(re.findall(r"exactly 0 on (\d+)", flag.figure)[0])
        assert flag.name == "vanishing gradients" and 3 <= zero <= 10


ABSENT = {
    "-1e9 for a class": lambda z: torch.cat([z, torch.full_like(z[:, :1], -1e9)], 1),
    "-1e9 for most classes": lambda z: torch.cat([z, torch.full_like(z, -1e9), torch.full_like(z, -1e9)], 1),
    "-inf for a class": lambda z: torch.cat([z, torch.full_like(z[:, :1], -torch.inf)], 1),
    "-inf for most classes": lambda z: torch.cat([z, torch.full_like(z, -torch.inf), torch.full_like(z, -1e9)], 1),
    "a constant": lambda z: z + 1000,
    "a negative constant": lambda z: z - 1000,
    "other constants": lambda z: z + 100 * z.detach().amax(1, keepdim=True).sign() - 50,
    "a hundredth": lambda z: z / 100,
}


@pytest.mark.parametrize("name", ABSENT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_absent_class_or_a_constant_changes_no_answer(mlp, name, dtype):
    """An honest model raises no flag, one with a little noise the flag of random models alone."""
    x, net = X[TEST].to(dtype), copy.deepcopy(mlp).to(dtype)
    assert check_model(nn.Sequential(net, Function(ABSENT[name])), x, Y[TEST]) == []
    noise = Function(lambda x: x + 0.01 * torch.randn_like(x))
    (flag,) = check_model(nn.Sequential(noise, net, Function(ABSENT[name])), x, Y[TEST])
    assert flag.name == "randomised model"
    number, expected = float(re.findall(r"up to (\S+)", flag.figure)[0]), 1.0 if "hundredth" not in name else 0.01
    assert 0.1 * expected < number < 10 * expected


def test_a_constant_that_hides_what_small_steps_change_is_flagged(mlp):
    (flag,) = check_model(nn.Sequential(mlp, Function(lambda z: z + 1e6)), X[TEST], Y[TEST])
    assert flag.name == "extreme logits" and "share a constant of about 1e+06" in flag.figure
    double = nn.Sequential(copy.deepcopy(mlp).double(), Function(lambda z: z + 1e6))
    assert check_model(double, X[TEST].double(), Y[TEST]) == []


def test_an_honest_model_with_large_logits_has_faint_gradients_at_most(mlp):
    for scale in (4, 8):
        found = names(check_model(nn.Sequential(mlp, Function(lambda z, k=scale: k * z)), X[TEST], Y[TEST]))
        assert found <= {"faint gradients", "extreme logits"}, (scale, found)


@pytest.mark.parametrize("width", [1, 255])
def test_faint_is_measured_in_widths_of_the_box(mlp, width):
    """With pixels in [0, 255] the same model has gradients 255 times smaller."""
    model = nn.Sequential(Function(lambda x: x / width), mlp, Function(lambda z: 3 * z))
    assert check_model(model, X[TEST] * width, Y[TEST], box=Box(0, width)) == []


def nowhere(value: float) -> nn.Module:
    """Logits that are this value on the samples with a bright corner, and else those of the net."""
    return Function(lambda x: torch.where(x[:, 0, 3, 4][:, None] > 0.95, value, 10 * x.flatten(1)[:, 20:30]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_counted_in_any_order(value):
    x, y = X[:500], Y[:500]
    bad = x[:, 0, 3, 4] > 0.95
    for order in (bad.long().argsort(stable=True), (~bad).long().argsort(stable=True)):
        flags = {flag.name: flag for flag in check_model(nowhere(value), x[order], y[order])}
        flag = flags["logits that are not finite"]
        assert flag.figure.startswith(f"on {int(bad.sum())} of 500 samples") and int(bad.sum()) > 20
        assert set(flags) == {flag.name}


def test_nan_gradients_have_a_flag_of_their_own(mlp):
    model = nn.Sequential(Function(lambda x: x + (0 * x).sqrt()), mlp)
    flags = {flag.name: flag for flag in check_model(model, X[TEST], Y[TEST])}
    assert set(flags) == {"gradients that are not finite"}
    assert "cross-entropy on 64 and that of the margin on 64 of 64" in flags["gradients that are not finite"].figure
    some = nn.Sequential(Function(lambda x: torch.where(x[:, :, :1, :1] == 0, x + (0 * x).sqrt(), x)), mlp)
    assert "gradients that are not finite" in names(check_model(some, X[TEST], Y[TEST]))


COUPLED = {
    "the mean of the batch": lambda z: z + 0.5 * z.mean(0, keepdim=True),
    "the largest of the batch": lambda z: z - 0.01 * z.amax(0),
    "sorted by the batch": lambda z: z + 0.1 * z[:, 0].argsort().argsort().to(z)[:, None] * z.sign(),
    "batch-norm": nn.BatchNorm1d(10, track_running_stats=False),
}


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_a_batch_that_reaches_into_predictions_is_flagged(mlp, name, scale):
    """By a formula or by a layer; also at another scale of the logits."""
    last = COUPLED[name] if name == "batch-norm" else Function(COUPLED[name])
    found = names(check_model(nn.Sequential(mlp, last, Function(lambda z: scale * z)), X[TEST], Y[TEST]))
    assert "batch-dependent model" in found and "randomised model" not in found


def test_outputs_of_a_sigmoid_are_flagged(mlp):
    (flag,) = [f for f in check_model(nn.Sequential(mlp, nn.Sigmoid()), X[TEST], Y[TEST]) if "prob" in f.name]
    assert flag.name == "probabilities instead of logits" and "in [0, 1]" in flag.figure


class Refuses(torch.autograd.Function):
    """The identity, whose derivative cannot be computed just now."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        raise RuntimeError("cudnn RNN backward can only be called in training mode")


def test_a_crash_is_no_property_of_the_model(mlp):
    with pytest.raises(RuntimeError, match=r"only be called in training mode"):
        check_model(nn.Sequential(Function(Refuses.apply), mlp), X[TEST], Y[TEST])
    with pytest.raises(RuntimeError, match=r"cannot be multiplied"):
        bug = Function(lambda x: x @ torch.ones(7, 8) if x.requires_grad else x)
        check_model(nn.Sequential(bug, mlp), X[TEST], Y[TEST])
    assert check_model(nn.Sequential(nn.ReLU(inplace=True), mlp), X[TEST], Y[TEST]) == []
    with torch.inference_mode():
        inferred = X[TEST].clone()
    assert check_model(mlp, inferred, Y[TEST]) == []


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "samples = 0"),
        ({"reported": 93.2}, "a share in"),
        ({"y": None}, "needs the labels"),
        ({"x": 255 * X}, "lie outside"),
        ({"model": nn.Sequential(MLP((1, 8, 8)), nn.Softmax(1))}, "returns probabilities"),
        ({"model": "net"}, "not a model"),
    ],
)
def test_refuses_what_cannot_be_probed(mlp, arguments, message):
    arguments = {"model": mlp, "x": X, "y": Y} | arguments
    with pytest.raises(EquipoiseError, match=message):
        check_model(arguments.pop("model"), arguments.pop("x"), arguments.pop("y"), **arguments)


def result(attack: str, fooled: int, n: int = 200, eps: float = 0.1, winner=()) -> AttackRecord:
    return AttackRecord(attack, "linf", eps, [i >= fooled for i in range(n)], winner=winner)


def winners(n: int = 200, **count: int) -> list[str | None]:
    """So many samples won by each name, one after the other."""
    names = [name.replace("_", "-") for name, k in count.items() for _ in range(k)]
    return [*names, *[None] * (n - len(names))]


def test_square_that_beats_the_gradients_is_flagged():
    clean = AttackRecord("clean", "linf", 0.0, [True] * 200)
    (flag,) = check_results([clean, result("pgd", 50), result("square", 60), result("worst case", 60)])
    assert flag.name == "black box beats white box" and flag.figure.startswith("10 of 200")
    assert check_results([clean, result("pgd", 50), result("square5000", 52), result("worst case", 52)]) == []
    assert len(check_results([result("pgd", 50), result("square5000", 60)])) == 1


def test_square_within_a_composite_attack_is_judged_by_its_winners():
    composite = result("autoattack", 60, winner=winners(clean=10, apgd_ce=40, square=10))
    (flag,) = check_results([composite])
    assert flag.figure.startswith("10 of 200")
    assert check_results([composite, result("pgd", 60)]) == [], "another white-box attack fools them too"
    assert check_results([result("autoattack", 52, winner=winners(apgd_ce=50, square=2))]) == []
    worst = result("worst case", 60, winner=winners(pgd=30, square=30))
    assert check_results([result("pgd", 60), result("square", 60), worst]) == [], "nearest, not alone"


def test_what_cannot_be_compared_is_not_judged():
    assert check_results([]) == []
    assert check_results([result("square", 60)]) == [], "no gradient attack ran"
    assert check_results([result("pgd", 50), result("square", 60, eps=0.2)]) == [], "another radius"
    assert check_results([result("pgd", 50, n=20_000), result("square", 60, n=20_000)]) == [], "a small share"
    assert check_results([result("pgd", 1, n=10), result("square", 3, n=10)]) == [], "too few samples"


@pytest.mark.parametrize("name", ["check_results", "is_black_box", "gradient_errors"])
def test_names_that_were_in_this_module_are_still_found_there(name):
    with pytest.warns(DeprecationWarning, match=rf"model_checks\.{name} has been renamed: write equipoise\.masking\."):
        assert callable(getattr(model_checks, name))
