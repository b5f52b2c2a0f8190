"""Scores against closed forms: linear models, one dimension, constant classifiers; laws against rejection."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import nn

import equipoise as eq
from equipoise import attacks
from equipoise.attacks import bg, minimal_l2
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Stream, Streams
from equipoise.generators import Manifold
from equipoise.geometry import Box
from equipoise.scores import (
    Certified,
    Distances,
    Labelled,
    OnManifold,
    Radii,
    Sampled,
    Score,
    UniformOnBall,
    WorstCase,
    alike,
    certified_r2,
    diameter,
    identity,
    inverse,
    label_aware,
    on_manifold,
    r1,
    r2,
    r4,
    uniform_move,
)

pytestmark = pytest.mark.unchecked

ORDER = {"linf": math.inf, "l2": 2, "l1": 1}


def linear(weight: list[float], bias: float) -> nn.Module:
    """Two classes: 1 where `w x + b > 0`."""
    net = nn.Linear(len(weight), 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0] * len(weight), weight]))
        net.bias.copy_(torch.tensor([0.0, bias]))
    return net.requires_grad_(False)


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0 * x.flatten(1).sum(1, keepdim=True) + torch.tensor([0.0, 2.0, 0.0])


# Laws


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(("centre", "eps"), [([0.5, 0.5, 0.5], 0.3), ([0.0, 0.9, 0.4], 0.5), ([0.05, 1.0, 0.0], 1.3)])
def test_points_are_uniform_on_the_ball_met_with_the_box(norm, centre, eps):
    n, x = 4000, torch.tensor([centre])
    moves = uniform_move(norm, x.expand(n, 3), torch.full((n,), eps), Box(), Streams.of(3, torch.arange(n))).double()
    points = (x + moves).numpy()
    assert (points >= -1e-6).all() and (points <= 1 + 1e-6).all()
    length = np.linalg.norm(moves.numpy(), ORDER[norm], axis=1)
    assert length.max() <= eps * (1 + 1e-6)
    cube = np.random.default_rng(0).uniform(0, 1, (200_000, 3))
    truth = cube[np.linalg.norm(cube - np.array(centre), ORDER[norm], axis=1) <= eps][:8000]
    for i in range(3):
        assert stats.ks_2samp(points[:, i], truth[:, i]).pvalue > 1e-3
    assert stats.ks_2samp(length, np.linalg.norm(truth - np.array(centre), ORDER[norm], axis=1)).pvalue > 1e-3
    assert np.allclose(np.corrcoef(points.T), np.corrcoef(truth.T), atol=0.08)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_in_a_corner_of_many_dimensions_the_radius_has_the_law_of_the_ball(norm):
    """The ball at a corner is a 2^d-th of the whole, so that `(r/eps)^d` is uniform; rejection from the ball would
    never end.
    """
    d, n, eps = 100, 400, 0.9
    moves = uniform_move(norm, torch.zeros(n, d), torch.full((n,), eps), Box(), Streams.of(0, torch.arange(n)))
    radius = np.linalg.norm(moves.double().numpy(), ORDER[norm], axis=1)
    assert stats.kstest((radius / eps) ** d, "uniform").pvalue > 1e-3 and (moves >= 0).all()
    assert moves.mean(0).std() < 0.2 * moves.mean(), "all coordinates alike"


def test_radius_zero_stays_and_radii_are_per_sample():
    x = torch.full((3, 2), 0.5)
    moves = uniform_move("l2", x, torch.tensor([0.0, 0.1, 5.0]), Box(), Streams.of(0, torch.arange(3)))
    assert (moves[0] == 0).all() and 0 < moves[1].norm() <= 0.1 and (x[2] + moves[2]).clamp(0, 1).equal(x[2] + moves[2])


def test_mirrored_pairs_lie_on_a_line_with_the_point():
    x = torch.full((2, 4), 0.5)
    x[1, 0] = 0.05  # here the box cuts the ball, and the second point is another draw
    law = UniformOnBall("l2", samples=3)
    points = [
        p
        for p, _ in law.draws(
            x, torch.zeros(2).long(), torch.full((2, 1), 0.2).double(), Streams.of(0, torch.arange(2))
        )
    ]
    assert len(points) == 3
    assert torch.allclose(points[0][0] + points[1][0], 2 * x[0]) and not torch.allclose(points[2][0], points[0][0])
    assert not torch.allclose(points[0][1] + points[1][1], 2 * x[1], atol=1e-3)


def test_in_linf_pairs_mirror_each_other_about_the_middle_of_ball_and_box():
    """Also where the box cuts the ball; and each of the two is uniform there."""
    x = torch.tensor([[0.05, 0.5, 1.0]]).expand(2000, 3)
    law, streams = UniformOnBall("linf", samples=2), Streams.of(0, torch.arange(2000))
    first, second = (p for p, _ in law.draws(x, None, torch.full((2000, 1), 0.2).double(), streams))
    ends = torch.tensor([[0.0, 0.3, 0.8], [0.25, 0.7, 1.0]])
    assert torch.allclose(first + second, ends.sum(0).expand(2000, 3), atol=1e-6)
    for i in range(3):
        low, high = ends[:, i].tolist()
        assert stats.kstest(second[:, i].numpy(), "uniform", (low, high - low)).pvalue > 1e-3
    net = linear([1.0, 1.0, 1.0], -1.6)
    pairs = torch.stack([net(z).argmax(1) == net(x).argmax(1) for z in (first, second)]).double()
    assert np.corrcoef(pairs.numpy())[0, 1] < -0.2, "what one misses the other sees"


# Sampled scores


def cap(distance: float, eps: float, d: int) -> float:
    """The share of an l2 ball on the near side of a hyperplane (Li 2011)."""
    if eps <= distance:
        return 1.0
    return 1 - 0.5 * float(special.betainc((d + 1) / 2, 0.5, 1 - (distance / eps) ** 2))


@pytest.mark.parametrize("G", [alike, inverse])
def test_estimates_are_within_their_error_of_the_exact_value_in_19_of_20_repeats(G):
    """x is the same everywhere, so that the spread over samples is that of what is drawn."""
    d, distance, low, high, repeats = 5, 0.1, 0.05, 0.4, 80
    net, x = linear([1.0] + [0.0] * (d - 1), -0.5 - distance), torch.full((40, d), 0.5)
    score = Score(Sampled(UniformOnBall("l2", 4)), Radii(high, low, 4), identity, G)

    def exact(eps: float) -> float:
        return cap(distance, eps, d) * float(G(torch.tensor(eps)))

    truth = integrate.quad(exact, low, high, points=[distance])[0]
    found = [score(net, x, seed=seed) for seed in range(repeats)]
    inside = sum(estimate.interval[0] <= truth <= estimate.interval[1] for estimate in found)
    assert stats.binomtest(inside, repeats, 0.95, alternative="less").pvalue > 1e-3
    mean, error = np.mean([e.value for e in found]), np.mean([e.error for e in found])
    assert abs(mean - truth) < 4 * error / math.sqrt(repeats), "unbiased"
    assert np.std([e.value for e in found], ddof=1) == pytest.approx(error, rel=0.4), (
        "the error is the spread of repeats"
    )


def test_a_function_of_the_share():
    d, distance, low, high = 5, 0.1, 0.1, 0.4
    net, x = linear([1.0] + [0.0] * (d - 1), -0.5 - distance), torch.full((30, d), 0.5)
    score = Score(Sampled(UniformOnBall("l2", 200)), Radii(high, low, 4), H=torch.square)
    truth = integrate.quad(lambda eps: cap(distance, eps, d) ** 2, low, high)[0]
    assert score(net, x).value == pytest.approx(truth, rel=0.02)


def test_one_dimension_by_hand():
    """Within `[x - eps, x + eps]` of the line the share left of the boundary at x + 0.1."""
    net, x = linear([1.0], -0.6), torch.full((2000, 1), 0.5)
    for norm in ("linf", "l2", "l1"):
        estimate = Score(Sampled(UniformOnBall(norm, 2)), Radii(0.3, 0.2, 1), H=identity)(net, x)
        truth = integrate.quad(lambda eps: (0.1 + eps) / (2 * eps), 0.2, 0.3)[0]
        assert abs(estimate.value - truth) < 4 * estimate.error < 0.02
        assert estimate.radii.tolist() == [0.25] and abs(estimate.curve[0] - truth / 0.1) < 0.02


def test_results_do_not_depend_on_batches():
    net, x = linear([1.0, -0.5], 0.1), torch.rand(30, 2, generator=torch.Generator().manual_seed(0))
    score = Score(Sampled(UniformOnBall("l1", 3)), Radii(0.5, count=3), H=identity)
    whole, parts, other = score(net, x), score(net, x, batch_size=7), score(net, x, seed=1)
    assert np.array_equal(whole.values, parts.values) and not np.array_equal(whole.values, other.values)


def test_a_law_conditioned_on_the_label():
    """Of the points within 0.2 those left of 0.55 share the label; of these the ones right of 0.45 are predicted so."""
    net, x = linear([1.0], -0.45), torch.full((50, 1), 0.5)
    law = Labelled(UniformOnBall("linf", 200), lambda z: (z[:, 0] > 0.55).long())
    score = Score(Sampled(law), Radii(0.2001, 0.1999, 1, average=True), H=identity)
    estimate = score(net, x, torch.zeros(50).long())
    assert abs(estimate.value - 2 / 5) < 4 * estimate.error < 0.05


def test_without_labels_the_label_of_x_is_the_labellers_and_not_the_prediction():
    """The net calls everything right of 0.45 class 1, the truth is class 0 left of 0.55: x = 0.5 is of class 0."""
    net, x = linear([1.0], -0.45), torch.full((50, 1), 0.5)
    law = Labelled(UniformOnBall("linf", 200), lambda z: (z[:, 0] > 0.55).long())
    score = Score(Sampled(law), Radii(0.2001, 0.1999, 1, average=True), H=identity)
    assert np.array_equal(score(net, x).values, score(net, x, torch.zeros(50).long()).values)
    assert score(net, x, torch.ones(50).long()).value == 1, "right of 0.55 all is of class 1"


# Margins


def test_r2_of_a_linear_model_is_the_mean_distance_to_its_boundary():
    net, x = linear([0.6, -0.8], 0.05), 0.4 + 0.2 * torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    exact = (x @ torch.tensor([0.6, -0.8]) + 0.05).abs().double().numpy()
    for score in (r2((2,)), r2((2,), attack=minimal_l2())):
        estimate = score(net, x)
        assert np.allclose(estimate.values, exact, atol=2e-5)
        assert estimate.error == pytest.approx(exact.std(ddof=1) / math.sqrt(50), rel=1e-3)
        assert np.allclose(estimate.curve, [(exact >= eps - 2e-5).mean() for eps in estimate.radii], atol=0.03)
    assert estimate.found is not None and (net(estimate.found.x).argmax(1) != net(x).argmax(1)).all()
    below = certified_r2((2,))(net, x)
    assert (below.values <= exact).all() and np.allclose(below.values, exact, atol=2e-3)
    linf = r2((2,), "linf")(net, x)
    assert np.allclose(linf.values, exact / 1.4, atol=2e-5)


def test_the_integral_of_a_weight_up_to_the_margin():
    net, x = linear([1.0, 0.0], -0.5), torch.tensor([[0.2, 0.5], [0.9, 0.5]])
    weighted = Score(WorstCase(minimal_l2()), Radii(1.0, 0.1), G=inverse)
    assert np.allclose(weighted(net, x).values, np.log([3.0, 4.0]), atol=1e-3)
    averaged = Score(WorstCase(minimal_l2()), Radii(0.35, 0.1, average=True))
    assert np.allclose(averaged(net, x).values, [0.2 / 0.25, 1.0], atol=1e-3)


def test_the_error_of_the_quadrature_is_in_the_standard_error():
    """All samples are alike, so that their spread is the quadrature's: of 1[eps > 0.25] up to 0.3, with a step that no
    polynomial follows, and of eps², up to the margin that the attack finds.
    """
    net, x = linear([1.0, 0.0], -0.5), torch.full((40, 2), 0.2)
    for G, exact in ((lambda eps: (eps > 0.25).double(), lambda m: m - 0.25), (torch.square, lambda m: m**3 / 3)):
        score = Score(WorstCase(minimal_l2()), Radii(1.0), G=G)
        found = [score(net, x, seed=seed) for seed in range(20)]
        truth = exact(found[0].margins[0])
        inside = sum(e.interval[0] <= truth <= e.interval[1] for e in found)
        assert inside >= 16 and all(0 < e.error < 2e-3 * truth for e in found)
    exact_for_1 = Score(WorstCase(minimal_l2()), Radii(1.0))(net, x)
    assert np.array_equal(exact_for_1.values, exact_for_1.margins) and exact_for_1.error < 1e-15


def test_an_attack_brings_its_own_norm_and_box():
    score = r2((4,), attack=minimal_l2(box=Box(-1, 1)))
    assert score.box == Box(-1, 1) and score.radii.high == 4.0
    assert r2((4,), "linf").radii.high == 1.0 and r1((4,), attack=minimal_l2(box=Box(-1, 1))).box == Box(-1, 1)


def test_intervals_are_students():
    x = torch.tensor([[0.1, 0.0], [0.2, 0.0], [0.4, 0.0]])
    estimate = r2((2,), attack=minimal_l2())(linear([1.0, 0.0], -0.5), x)
    low, high = stats.t.interval(0.95, 2, np.mean([0.4, 0.3, 0.1]), stats.sem([0.4, 0.3, 0.1]))
    assert estimate.interval == pytest.approx((low, high), abs=1e-4)
    low, high = estimate.band
    for share, *ends in zip(estimate.curve, low, high, strict=True):
        expected = stats.binomtest(round(3 * share), 3).proportion_ci(method="wilson")
        assert ends == pytest.approx([expected.low, expected.high])
    sampled = Score(Sampled(UniformOnBall("linf", 2)), Radii(0.5, count=3), H=identity)(linear([1.0, 0.3], -0.5), x)
    for column, share, *ends in zip(sampled.shares.T, sampled.curve, *sampled.band, strict=True):
        assert share == column.mean()
        half = stats.t.ppf(0.975, 2) * stats.sem(column)
        assert ends == pytest.approx([share - half, share + half])


def test_label_aware_margins_are_0_where_the_prediction_is_wrong():
    net, x = linear([1.0, 0.0], -0.5), torch.tensor([[0.2, 0.5], [0.9, 0.5]])
    aware, y = label_aware((2,)), torch.tensor([0, 0])
    assert np.allclose(aware(net, x, y).values, [0.3, 0.0], atol=1e-4)
    assert np.allclose(r2((2,))(net, x, y).values, [0.3, 0.4], atol=1e-4), "the prediction's margin, right or wrong"


def test_one_sample_has_no_interval():
    estimate = r2((2,), attack=minimal_l2())(linear([1.0, 0.0], -0.5), torch.full((1, 2), 0.2))
    assert str(estimate) == "R2 = 0.3, n = 1" and math.isnan(estimate.error)
    low, high = estimate.band
    assert ((low <= estimate.curve) & (estimate.curve <= high)).all()


def test_r1_looks_at_the_whole_box():
    """For a boundary in the middle of the square, the distance of a uniform point is 1/4 on the average."""
    estimate = r1((2,), attack=minimal_l2())(linear([1.0, 0.0], -0.5), torch.zeros(400, 2))
    assert abs(estimate.value - 0.25) < 4 * estimate.error
    assert estimate.x is not None and abs(float(estimate.x.mean()) - 0.5) < 0.05


# On the manifold


def identity_manifold() -> Manifold:
    return Manifold(nn.Identity(), nn.Identity())


def test_shares_on_the_manifold_by_a_plain_loop():
    manifold, net = identity_manifold(), linear([1.0, 0.3], -0.62)
    x = 0.4 + 0.2 * torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    law = OnManifold(manifold, 50, 0.1)
    radii = torch.tensor([[0.01, 0.1, 0.5]]).double().expand(6, 3)
    streams = Streams.of(5, torch.arange(6))
    drawn = list(law.draws(x, torch.zeros(6).long(), radii, streams))
    assert len(drawn) == 50
    moves = torch.stack([points - x for points, _ in drawn])
    assert stats.kstest(moves.flatten().numpy() / 0.1, "norm").pvalue > 1e-3
    for points, inside in drawn:
        for i in range(6):
            assert inside[i].tolist() == [float((points[i] - x[i]).norm()) <= eps for eps in (0.01, 0.1, 0.5)]
    score = Score(Sampled(law), Radii(0.5, 0.1, 4), H=identity)
    estimate = score(net, x, seed=5)
    assert 0 < estimate.value < 0.4 and (np.diff(estimate.curve) <= 0.05).all()


def test_with_the_distances_as_radii_r4_is_a_plain_double_sum():
    """`mean over samples x' of R(‖x' - x‖) / ‖x' - x‖`, R the share of the samples no farther away than x'."""
    manifold, net = identity_manifold(), linear([1.0, 0.3], -0.62)
    x = 0.4 + 0.2 * torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    score = r4(manifold, (2,), samples=30, sigma=0.1, radii="distances")
    estimate = score(net, x, seed=5)
    law = score.robustness.law
    assert isinstance(law, OnManifold) and str(score.radii) == "the distances of the points, averaged"
    streams = Streams.of(5, torch.arange(6)).fold(Stream.NEIGHBOURS)
    seen = [points for points, _ in law.draws(x, None, torch.zeros(6, 1).double(), streams)]
    for i in range(6):
        far = [float((points[i].double() - x[i].double()).norm()) for points in seen]
        same = [bool(net(points[i : i + 1]).argmax(1) == net(x[i : i + 1]).argmax(1)) for points in seen]
        near = [[agree for agree, d in zip(same, far, strict=True) if d <= eps] for eps in far]
        shares = [sum(agree) / len(agree) for agree in near]
        assert estimate.values[i] == pytest.approx(np.mean([r / d for r, d in zip(shares, far, strict=True)]), rel=1e-5)
    assert len(estimate.radii) == 30 and (np.diff(estimate.radii) > 0).all() and len(estimate.curve) == 30
    assert np.array_equal(score(net, x, seed=5, batch_size=4).values, estimate.values)
    constant = score(Constant(), x, seed=5)
    assert constant.value == pytest.approx((1 / estimate.drawn).mean(), rel=1e-6) and (constant.curve == 1).all()
    assert constant.value > estimate.value, "a constant classifier is maximally robust"


def test_where_the_law_has_no_point_the_classifier_is_robust():
    law = OnManifold(identity_manifold(), 5, 1e6)
    estimate = Score(Sampled(law), Radii(0.1, count=3), H=identity)(linear([1.0], -0.5), torch.full((9, 1), 0.5))
    assert np.allclose(estimate.values, 0.1)


def test_a_constant_classifier_is_maximally_robust_under_every_score():
    x, shape = torch.rand(7, 4), (4,)
    manifold, d = identity_manifold(), diameter(shape)
    assert d == 2.0
    for score in (r1(shape), r2(shape), label_aware(shape), on_manifold(manifold, shape, 8)):
        y = torch.ones(7).long() if score.name.startswith("label") else None
        assert np.allclose(score(Constant(), x, y).values, d), score.name
    assert np.allclose(Score(Sampled(UniformOnBall("l2", 4)), Radii(d), H=identity)(Constant(), x).values, d)
    weighed = r4(manifold, shape, 8)(Constant(), x)
    exact = math.log(200) / (d - d / 200)
    assert abs(weighed.value - exact) < 0.02 * exact


def test_r2_on_the_manifold_falls_with_the_margin():
    manifold = identity_manifold()
    near, far = (linear([1.0, 0.0], -0.5 - m) for m in (0.02, 0.2))
    x = torch.full((20, 2), 0.5)
    values = [on_manifold(manifold, (2,), 100, 0.1)(net, x).value for net in (near, far)]
    assert values[0] + 0.05 >= 0.02 and values[0] < values[1]


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Radii(0.1, 0.2), "expected 0 <= low < high < infinity"),
        (lambda: Radii(math.inf), "expected 0 <= low < high < infinity"),
        (lambda: Radii(1.0, count=0), "count = 0"),
        (lambda: UniformOnBall("l7"), "norm"),
        (lambda: UniformOnBall("l2", 0), "samples = 0: expected an integer"),
        (lambda: OnManifold(identity_manifold(), sigma=0.0), "sigma = 0.0 is no noise"),
        (lambda: Score(Certified(), Radii(1.0), H=identity)(linear([1.0], 0.0), torch.rand(2, 1)), "take H = certain"),
        (lambda: label_aware((1,))(linear([1.0], 0.0), torch.rand(2, 1)), "needs the labels"),
        (
            lambda: Score(Certified(), Radii(1.0), G=inverse),
            r"G = inverse is not finite at the smallest radius, 0: give",
        ),
        (
            lambda: Score(Certified(), Radii(1.0), over="boxes"),
            "unknown place to draw x from 'boxes': did you mean 'box'",
        ),
        (lambda: Score(Certified(), Radii(1.0), over="box", box=Box(0, math.inf)), "infinite box cannot be drawn"),
        (
            lambda: r2((1,), attack=bg(0.5))(linear([1.0], -0.5), torch.rand(2, 1)),
            r"looks no farther than eps = 0.5, but the radii reach to 1: give it no eps",
        ),
        (
            lambda: Score(Sampled(UniformOnBall()), Distances(), identity)(linear([1.0], 0.0), torch.rand(2, 1)),
            "take Radii, or a law OnManifold",
        ),
        (lambda: Score(Certified(), Distances())(linear([1.0], 0.0), torch.rand(2, 1)), "give the score Radii"),
        (lambda: r4(identity_manifold(), (2,), radii="distance"), "unknown radii 'distance': did you mean 'distances'"),
        (lambda: r4(identity_manifold(), (2,), low=0.1, radii="distances"), "low is the end of uniform radii"),
    ],
)
def test_what_has_no_meaning_is_refused(make, message):
    with pytest.raises(EquipoiseError, match=message):
        make()


def test_in_one_line_a_score_is_that_of_its_name():
    net, x = eq.nets.build("mlp", (1, 4, 4), classes=3, seed=0), torch.rand(6, 1, 4, 4)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    attack = attacks.nearest("linf")
    expected = label_aware(x.shape[1:], attack=attack)(net, x, y, seed=3)
    found = eq.score(net, x, y, of="label-aware", attack=attack, seed=3)
    own = eq.score(net, x, y, label_aware(x.shape[1:], attack=attack), seed=3)
    assert found.value == own.value == expected.value and found.score.name == "label-aware R2"
    with pytest.raises(EquipoiseError, match="did you mean 'r2'"):
        eq.score(net, x, of="r3")
    with pytest.raises(EquipoiseError, match="unknown option of r2 'samples'"):
        eq.score(net, x, samples=3)
    with pytest.raises(EquipoiseError, match="has its options already: leave norm out"):
        eq.score(net, x, None, r2((1, 4, 4)), norm="l2")
