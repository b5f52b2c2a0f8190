"""What the claims' experiments measure, beside closed forms and plain re-statements."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from equipoise import attacks
from equipoise.data import Dataset, Split
from equipoise.generators import auto_encoder
from equipoise.reproduce.measures_claims import (
    AUROC,
    BEST,
    CERTIFIED,
    CHOSEN,
    ECE,
    FOLLOWS,
    L2,
    LINF,
    NLL,
    SELECTED,
    margins,
    moves,
    rescaled,
    scaled_by,
    scores,
    selected,
    uncertainties,
)
from equipoise.results.findings import Findings

pytestmark = pytest.mark.unchecked


def silent(what: str, share: float) -> None:
    assert what and 0 <= share <= 1


def values(findings: Findings, name: str) -> np.ndarray:
    (number,) = [number for number in findings.numbers if number.name == name]
    return np.array(number.values)


def linear(*weights: float, bias: float = 0.0) -> nn.Module:
    """The logits (w x + b, 0) of two classes."""
    net = nn.Linear(len(weights), 2)
    net.weight.data, net.bias.data = torch.tensor([weights, [0.0] * len(weights)]), torch.tensor([bias, 0.0])
    return net


def dataset(x: torch.Tensor, y: torch.Tensor) -> Dataset:
    return Dataset("points", Split(x, y), Split(x, y), ("a", "b"), "")


def points(count: int = 30) -> tuple[nn.Module, Dataset]:
    """Points in the middle of the box, which holds the nearest of the boundary; two thirds of the labels are right."""
    net, x = (
        linear(1.0, -2.0, 0.5, bias=0.2),
        0.4 + 0.2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(0)),
    )
    return net, dataset(x, torch.where(torch.arange(count) % 3 == 0, 1 - net(x).argmax(1), net(x).argmax(1)))


def test_margins_of_a_linear_network_are_its_distances_to_the_boundary():
    net, data = points()
    findings = margins([net], data, silent, certified=10)
    gap = (net(data.test.x)[:, 0] - net(data.test.x)[:, 1]).abs().detach()
    right = net(data.test.x).argmax(1) == data.test.y
    w = torch.tensor([1.0, -2.0, 0.5])
    for name, dual in ((LINF, w.abs().sum()), (L2, w.norm())):
        assert values(findings, name) == pytest.approx(torch.where(right, gap / dual, 0.0).numpy(), abs=2e-3)
    certified, upper = values(findings, CERTIFIED), values(findings, LINF)[:10]
    assert len(certified) == 10 and (certified <= upper + 1e-6).all() and certified == pytest.approx(upper, abs=2e-3)


def test_a_network_without_a_boundary_has_margins_of_the_whole_box():
    data = dataset(points()[1].test.x, (torch.arange(30) == 29).long())
    findings = margins([linear(0.0, 0.0, 0.0, bias=1.0)], data, silent, certified=2)
    for name, diameter in ((LINF, 1.0), (L2, 3**0.5)):
        assert values(findings, name) == pytest.approx([diameter] * 29 + [0.0])


def test_moves_are_compared_with_the_distance_to_another_class():
    """The entropy of a linear network is highest at its boundary, behind which the other class begins."""
    g = torch.Generator().manual_seed(1)
    x = torch.rand(200, 2, generator=g)
    y = (x[:, 0] > 0.5).long()
    net = linear(-6.0, 0.0, bias=3.0)
    data = dataset(x, y)
    follows = values(moves([net], data, silent, attack=attacks.udp(0.6, 0.05, 20), samples=200), FOLLOWS)
    blind = values(
        moves([net], data, silent, attack=attacks.pgd(0.05, 0.05, 3, return_point="last"), samples=200), FOLLOWS
    )
    assert len(follows) == 10 and follows.mean() > 0.5 > blind.mean()
    gaps = torch.stack([(x[y != label] - point).norm(dim=1).min() for point, label in zip(x, y, strict=True)])
    moved = (attacks.udp(0.6, 0.05, 20)(net, x, y).x - x).norm(dim=1)
    assert follows[0] == pytest.approx(stats.spearmanr(gaps[:20], moved[:20]).statistic, abs=1e-6)


def test_uncertainties_are_those_of_the_definitions():
    net, data = points()
    far = dataset(torch.rand(40, 3, generator=torch.Generator().manual_seed(2)), torch.arange(40) % 2)
    findings = uncertainties([net], data, silent, target=far, eps=0.05, steps=3)
    log_probs = net(data.test.x).log_softmax(1)
    expected = -log_probs.gather(1, data.test.y[:, None])[:, 0].detach().numpy()
    assert values(findings, NLL) == pytest.approx(expected, rel=1e-5)

    def entropy(x: torch.Tensor) -> np.ndarray:
        p = net(x).softmax(1)
        return -(p * p.log()).sum(1).detach().numpy()

    inside, outside = entropy(data.test.x), entropy(far.test.x[:30])
    greater = (outside[:, None] > inside).mean()
    assert values(findings, AUROC)[0] == pytest.approx(greater, abs=1e-6) and 0 <= values(findings, ECE)[0] <= 1
    assert values(findings, f"{NLL}, attacked").mean() > expected.mean()


def test_the_eps_is_selected_by_validation_and_judged_on_test_samples():
    _, data = points()
    weak, strong = linear(0.1, -0.2, 0.0, bias=0.01), linear(1.0, -2.0, 0.5, bias=0.2)
    courses = [[{"valid_pgd": 0.9}, {"valid_pgd": 0.2}], [{"valid_pgd": 0.1}, {"valid_pgd": 0.6}]]
    findings = selected([weak, strong], data, silent, courses=courses, radii=(0.1, 0.3), eps=0.01)
    assert values(findings, CHOSEN) == [0.3]
    x, y = data.test.x, data.test.y
    for name, choose in ((SELECTED, lambda robust: robust[1]), (BEST, lambda robust: max(robust, key=sum))):
        sides = [(net.weight.detach()[0], net.bias.detach()[0]) for net in (weak, strong)]
        sure = [torch.where(y == 0, 1, -1) * (x @ w + b) > 0.01 * w.abs().sum() for w, b in sides]
        assert values(findings, name).tolist() == [float(value) for value in choose([s.tolist() for s in sure])]


def test_logits_are_scaled_and_nothing_else():
    net, data = points()
    findings = rescaled([net], data, silent, eps=0.02, step_size=0.02, steps=5, factors=(0.1, 100.0))
    assert [number.name for number in findings.numbers] == [scaled_by(0.1), scaled_by(100.0)]
    for name in (scaled_by(0.1), scaled_by(100.0)):  # a linear network's gradient has the same sign on any scale
        w = torch.tensor([1.0, -2.0, 0.5])
        margin = torch.where(data.test.y == 0, 1, -1) * (data.test.x @ w + 0.2)
        assert values(findings, name).tolist() == (margin > 0.02 * w.abs().sum()).double().tolist()


def test_scores_are_ordered_as_their_definitions_are():
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    data = dataset(x, torch.arange(12) % 2)
    findings = scores([net], data, silent, manifold=auto_encoder((1, 8, 8)).eval(), box_points=5)
    right = (net(x).argmax(1) == data.test.y).numpy()
    nearest, by_bg, aware = (values(findings, name) for name in ("R2", "R2 by BG alone", "label-aware R2"))
    assert (nearest <= by_bg + 1e-6).all() and aware[right] == pytest.approx(nearest[right], rel=1e-3)
    assert (aware[~right] == 0).all() and len(values(findings, "R1")) == 5
    assert (values(findings, "on-manifold worst case") >= 0).all()
