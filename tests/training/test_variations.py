"""Perturbations and methods made of others, against plain statements of the same algorithms."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.nn.functional import kl_div

from equipoise import EquipoiseError, Recipe, attacks, losses, methods, nets, train
from equipoise.core.rng import Streams
from equipoise.core.schedules import ramp
from equipoise.data import Dataset, Split
from equipoise.geometry import EVERYWHERE
from equipoise.losses import cross_entropy, entropy, kl
from equipoise.losses.memory import SampleMemory
from equipoise.models import as_predictive
from equipoise.training.perturbations import Adaptive, Alternating, AtBoundary, Remembered, WorstOf

pytestmark = pytest.mark.unchecked
N = 12
LINF = attacks.pgd(0.1, 0.04, 3, start="zero", return_point="last")
L2 = attacks.pgd(0.34, 0.17, 3, norm="l2", start="zero", return_point="last")


UNCERTAIN = attacks.uta(0.1, 0.04, 3)


@pytest.fixture
def net() -> nn.Module:
    return nets.build("mlp", (1, 4, 4), classes=3, seed=0, widths=(8,)).double()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(N, 1, 4, 4, generator=generator, dtype=torch.float64), torch.arange(N) % 3


def streams(number: int = 0) -> Streams:
    return Streams.of(0, torch.arange(N), batch=number)


def test_alternating_takes_one_part_a_batch(net, batch) -> None:
    x, y = batch
    taking_turns = Alternating((LINF, None, L2))
    for number, expected in enumerate((LINF, None, L2, LINF)):
        point = taking_turns.perturb(as_predictive(net), x, y, streams(number))
        assert point.equal(x if expected is None else expected.perturb(as_predictive(net), x, y, streams()))


def test_the_worst_of_several_points_has_the_highest_loss(net, batch) -> None:
    x, y = batch
    worst = WorstOf((LINF, L2)).perturb(as_predictive(net), x, y, streams())
    points = [at.perturb(as_predictive(net), x, y, streams()) for at in (LINF, L2)]
    values = [torch_cross_entropy(net(point), y, reduction="none") for point in points]
    assert torch_cross_entropy(net(worst), y, reduction="none").equal(torch.maximum(*values))
    assert 0 < int((values[0] > values[1]).sum()) < N  # both occur


def _gradient(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    torch_cross_entropy(net(x), y, reduction="sum").backward()
    assert x.grad is not None
    return x.grad


def test_a_remembered_step_starts_where_it_ended(net, batch) -> None:
    """Jia et al. 2022, FGSM-EP, from the clean point the first time: δ ← clip(δ + α sign ∇L(x + δ))."""
    x, y = batch
    at, memory, delta = Remembered(attacks.fgsm(0.1, step_size=0.06)), SampleMemory(), torch.zeros_like(x)
    for _ in range(3):
        order = torch.randperm(N)
        point = torch.empty_like(x)
        point[order] = at.perturb(as_predictive(net), x[order], y[order], streams(), memory.of(order))
        assert at.prior.perturb(as_predictive(net), x, y, streams(), memory.of(torch.arange(N))).allclose(x + delta)
        moved = (delta + 0.06 * _gradient(net, x + delta, y).sign()).clamp(-0.1, 0.1)
        delta = (x + moved).clamp(0, 1) - x
        assert torch.allclose(point, x + delta)


def test_fgsm_pgi_ties_the_logits_after_the_step_to_those_before(net, batch) -> None:
    x, y = batch
    memory, index = SampleMemory(), torch.arange(N)
    method = methods.fgsm_pgi(0.1, step_size=0.06, weight=3.0)
    for step in range(2):
        before = memory.of(index).part(0).recall("move", torch.zeros_like(x))
        loss = method.loss(net, x, y, step=step, index=index, memory=memory)
        start = memory.of(index).part(0).recall("start", torch.zeros_like(x))
        end = memory.of(index).part(0).recall("move", torch.zeros_like(x))
        assert step == 0 or start.allclose(before)
        tie = (net(x + end) - net(x + start)).square().mean(1)
        assert loss.item() == pytest.approx((torch_cross_entropy(net(x + end), y) + 3 * tie.mean()).item())


def test_radii_adapt_to_samples(net, batch) -> None:
    """Balaji et al. 2019, sample by sample."""
    x, y = batch
    at, memory = Adaptive(LINF, increment=0.08, smoothing=0.5, largest=0.16), SampleMemory()
    own = [0.1] * N
    for _ in range(4):
        point = at.perturb(as_predictive(net), x, y, streams(), memory.of(torch.arange(N)))
        for i in range(N):

            def attacked(eps: float, i: int = i) -> torch.Tensor:
                ascent = attacks.pgd(eps, 0.4 * eps, 3, start="zero", return_point="last") if eps else LINF
                return (
                    x[i : i + 1]
                    if eps == 0
                    else ascent.perturb(as_predictive(net), x[i : i + 1], y[i : i + 1], streams()[:1])
                )

            def withstands(eps: float, i: int = i) -> bool:
                return int(net(attacked(max(eps, 0.0))).argmax()) == int(y[i])

            wanted = own[i] + 0.08 if withstands(own[i] + 0.08) else own[i] if withstands(own[i]) else own[i] - 0.08
            own[i] = min(max(0.5 * own[i] + 0.5 * wanted, 0.0), 0.16)
            assert torch.allclose(point[i], attacked(own[i])[0])
    assert len({round(radius, 6) for radius in own}) > 1


def test_margins_of_a_linear_model_are_found() -> None:
    """The nearest point of the hyperplane is x - (w·x + b) w / ‖w‖²."""
    linear = nn.Linear(5, 2).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 5, generator=generator, dtype=torch.float64)
    y = linear(x).argmax(1)
    y[0] = 1 - y[0]
    weight, bias = linear.weight[0] - linear.weight[1], linear.bias[0] - linear.bias[1]
    signed = (x @ weight + bias) / weight.norm()
    ascent = attacks.pgd(50.0, 20.0, 3, norm="l2", box=EVERYWHERE, start="zero", return_point="last")
    point = AtBoundary(ascent, halvings=40).perturb(
        as_predictive(linear), x, y, streams(), SampleMemory().of(torch.arange(N))
    )
    nearest = x - signed[:, None] * weight / weight.norm()
    assert point[0].equal(x[0])  # misclassified
    assert torch.allclose(point[1:], nearest[1:].detach(), atol=1e-6)


def test_a_teacher_is_followed_at_the_perturbed_point(net, batch) -> None:
    x, y = batch
    teacher = nets.build("mlp", (1, 4, 4), classes=3, seed=1, widths=(8,)).double()
    method = methods.distilled(cross_entropy @ LINF, teacher, weight=0.7, temperature=2.0)
    loss = method.loss(net, x, y, step=0)
    point = LINF.perturb(as_predictive(net), x, y, streams())
    student, taught = (net(point) / 2).log_softmax(1), (teacher(x) / 2).softmax(1)
    distance = 4 * kl_div(student, taught, reduction="none").sum(1).mean()
    assert loss.item() == pytest.approx((torch_cross_entropy(net(point), y) + 0.7 * distance).item())
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_unlabelled_samples_add_their_own_mean(net, batch) -> None:
    x, y = batch
    further = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    at = attacks.uta(0.1, 0.04, 3)
    method = cross_entropy + 0.5 * (kl() @ at).on_unlabelled()
    loss = method.loss(net, x, y, step=0, unlabelled=further)
    points = at.perturb(as_predictive(net), further, torch.zeros(5, dtype=torch.long), streams()[:5])
    p, q = net(points).log_softmax(1), net(further).log_softmax(1)
    expected = torch_cross_entropy(net(x), y) + 0.5 * (q.exp() * (q - p)).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item())


def _data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = 0.3 * torch.rand(60, 1, 4, 4, generator=generator) + 0.3 * y[:, None, None, None]
    return Dataset("made-up", Split(x, y), Split(x[:12], y[:12]), ("a", "b", "c"), "0")


UNLABELLED = torch.rand(37, 1, 4, 4, generator=torch.Generator().manual_seed(5))
ZEROS = torch.zeros(37, dtype=torch.long)
TEACHER = nets.build("mlp", (1, 4, 4), classes=3, seed=9, widths=(8,))
VARIED = {
    "alternating": methods.alternating(methods.pgd_at(0.1, steps=2), methods.pgd_at(0.5, steps=2, norm="l2")),
    "worst of": methods.worst_of(methods.pgd_at(0.1, steps=2), methods.pgd_at(0.5, steps=2, norm="l2")),
    "average of": methods.average_of(methods.pgd_at(0.1, steps=2), methods.pgd_at(0.5, steps=2, norm="l2")),
    "every third": methods.every(3, methods.udpr(0.1, steps=2)),
    "remembering": methods.remembering(methods.trades(0.1, steps=2)),
    "adaptive": methods.adaptive_eps(methods.udp(0.1, steps=2)),
    "fgsm-pgi": methods.fgsm_pgi(0.1),
    "mma": methods.mma(0.3, steps=2),
    "distilled": methods.distilled(methods.udp(0.1, steps=2), TEACHER),
    "unlabelled": cross_entropy + (kl() @ attacks.udp(0.1, steps=2)).on_unlabelled(),
    "scheduled": methods.remembering(methods.pgd_at(ramp(0, 0.1), steps=2)),
}


@pytest.mark.filterwarnings("ignore:the network predicts one class", "ignore:the method follows a schedule")
@pytest.mark.parametrize("name", VARIED)
def test_a_resumed_training_ends_at_the_same_weights(name: str, tmp_path: Path) -> None:
    method = VARIED[name]
    unlabelled = UNLABELLED if name == "unlabelled" else None

    def trained(out: Path, epochs: int, resume: bool = False) -> dict[str, torch.Tensor]:
        net = nets.build("mlp", (1, 4, 4), classes=3, seed=0, widths=(8,))
        recipe = Recipe(epochs=epochs, batch_size=16, valid_steps=1)
        train(method, net, _data(), recipe, out=out, resume=resume, unlabelled=unlabelled)
        return dict(net.state_dict())

    whole = trained(tmp_path / "whole", 2)
    if name == "scheduled":  # its first half depends on the number of epochs: see whether it runs
        return
    trained(tmp_path / "halves", 1)
    halves = trained(tmp_path / "halves", 2, resume=True)
    assert all(value.equal(halves[key]) for key, value in whole.items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: (cross_entropy @ LINF).on_unlabelled(),
            "cross-entropy needs labels, and unlabelled",
        ),
        (lambda: (kl() @ LINF).on_unlabelled(), "cross-entropy needs labels"),
        (lambda: (kl() @ Remembered(LINF)).on_unlabelled(), "cross-entropy needs labels"),
        (lambda: (kl() @ Alternating((UNCERTAIN, LINF))).on_unlabelled(), "cross-entropy needs labels"),
        (lambda: (kl() @ Adaptive(UNCERTAIN)).on_unlabelled(), "adaptive radii.* needs labels"),
        (lambda: (kl() @ AtBoundary(UNCERTAIN)).on_unlabelled(), "at the boundary.* needs labels"),
        (lambda: (entropy @ losses.ibp(0.1)).on_unlabelled(), "bounds.* needs labels"),
        (lambda: methods.remembering(methods.standard()), "perturbs nothing that could be varied"),
        (lambda: methods.mma(ramp(0, 0.1)), "a finite eps > 0"),
        (lambda: methods.adaptive_eps(methods.pgd_at(0.0)), "a finite eps > 0"),
        (lambda: (entropy @ LINF).against(TEACHER), "entropy compares with nothing"),
        (
            lambda: methods.alternating(methods.pgd_at(0.1), methods.trades(0.1)),
            "differ in more than their",
        ),
        (
            lambda: methods.alternating(
                methods.distilled(methods.pgd_at(0.1), TEACHER), methods.distilled(methods.pgd_at(0.2), nn.Flatten())
            ),
            "differ in more than their",
        ),
        (
            lambda: methods.alternating(methods.gradalign_at(0.1), methods.gradalign_at(0.2)),
            "differ in more than their",
        ),
        (lambda: methods.every(2, methods.fgsm_pgi(0.1)), "it compares with points of that perturbation"),
        (lambda: methods.alternating(methods.fgsm_pgi(0.1), methods.fgsm_pgi(0.2)), "it compares with points of"),
        (lambda: methods.every(2, methods.ibp(0.1)), "it is evaluated at bounds, not at perturbed points"),
        (lambda: methods.alternating(methods.mtl_ibp(0.1), methods.mtl_ibp(0.2)), "it is evaluated at bounds"),
        (lambda: methods.worst_of(*[methods.mma(0.1)] * 2), "needs ascents, such as"),
        (lambda: methods.every(0, methods.pgd_at(0.1)), "batches = 0"),
        (lambda: methods.remembering(methods.ls_pgd(0.1, "fc1")), "needs perturbations of the input"),
        (lambda: methods.distilled(methods.standard(), TEACHER, temperature=0), "temperature = 0"),
        (
            lambda: methods.fgsm_pgi(0.1).loss(TEACHER, UNLABELLED, ZEROS, step=0),
            "memory=SampleMemory",
        ),
        (
            lambda: VARIED["unlabelled"].loss(TEACHER, UNLABELLED, ZEROS, step=0),
            "give loss unlabelled=x",
        ),
        (lambda: train(VARIED["unlabelled"], TEACHER, _data()), "give unlabelled=x"),
        (
            lambda: train(methods.standard(), TEACHER, _data(), unlabelled=UNLABELLED),
            "no term of the method is on_",
        ),
        (
            lambda: train(VARIED["unlabelled"], TEACHER, _data(), unlabelled=UNLABELLED[:, 0]),
            "expected inputs",
        ),
        (lambda: train(VARIED["fgsm-pgi"], TEACHER, _data(), Recipe(augment="crop-flip")), "train without augment"),
        (lambda: train((kl() @ LINF) * losses.entropy, TEACHER, _data()), "a weight is a number"),
    ],
)
def test_what_cannot_be_is_refused(call, message: str) -> None:
    with pytest.raises(EquipoiseError, match=message):
        call()


def test_a_memory_follows_the_index_to_its_device() -> None:
    """As when a run is resumed on an accelerator, from a checkpoint that was read into main memory."""
    memory = SampleMemory()
    memory.of(torch.arange(3)).keep("value", torch.ones(3))
    index = torch.arange(3, device="meta")
    assert memory.of(index).recall("value", torch.zeros(3, device="meta")).device.type == "meta"
    assert {tensor.device.type for tensor in memory.tensors().values()} == {"meta"}


def test_a_margin_never_exceeds_the_largest_radius(net, batch) -> None:
    x, y = batch
    memory = SampleMemory().of(torch.arange(N))
    for eps in (0.5, 0.01):
        ascent = attacks.pgd(eps, 2 * eps, 1, start="zero", return_point="last")
        point = AtBoundary(ascent).perturb(as_predictive(net), x, y, streams(), memory)
        assert float((point - x).abs().max()) <= eps * (1 + 1e-9)


def test_a_teacher_is_followed_at_points_not_at_bounds() -> None:
    assert [term.at for term in methods.distilled(methods.ibp(0.1), TEACHER).terms][2] is None
    attack = methods.mtl_ibp(0.1).terms[0].at
    assert methods.distilled(methods.mtl_ibp(0.1), TEACHER).terms[2].at == attack


def test_a_memory_of_another_training_is_refused() -> None:
    memory = SampleMemory()
    memory.of(torch.arange(3)).keep("move", torch.zeros(3, 2))
    with pytest.raises(EquipoiseError, match="it belongs to another training"):
        memory.of(torch.arange(3)).recall("move", torch.zeros(3, 4))


def test_a_memory_knows_what_was_kept() -> None:
    memory = SampleMemory()
    memory.of(torch.tensor([4, 1])).keep("value", torch.tensor([40.0, 10.0]))
    again = SampleMemory()
    again.restore(memory.tensors())
    default = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    assert again.of(torch.tensor([1, 2, 4, 99])).recall("value", default).tolist() == [10, -2, 40, -4]


@pytest.mark.filterwarnings("ignore:the network predicts one class")
def test_parts_take_turns_also_where_an_epoch_is_one_batch() -> None:
    seen: list[int] = []

    class Noted(Alternating):
        """Notes which part is taken."""

        def perturb(self, predictive, x, y, streams, memory=None):
            seen.append(streams.batch % len(self.parts))
            return super().perturb(predictive, x, y, streams, memory)

    net = nets.build("mlp", (1, 4, 4), classes=3, seed=0, widths=(8,))
    train(cross_entropy @ Noted((LINF, None)), net, _data(), Recipe(epochs=4, batch_size=64, valid_steps=1))
    assert seen == [0, 1, 0, 1]
