"""Objectives against finite differences, identities and plain formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from equipoise.core.errors import EquipoiseError
from equipoise.core.types import Prediction
from equipoise.losses.objectives import (
    UNCERTAINTIES,
    Objective,
    boosted_cross_entropy,
    cross_entropy,
    dlr,
    each,
    entropy,
    expected_entropy,
    kl,
    log_diversity,
    margin,
    misclassified_kl,
    mutual_information,
    negated_probability,
    probability_margin,
    regularised,
    rival_probability,
    smoothed_cross_entropy,
    uncertainty_named,
)

F64 = torch.float64
DIVERGENCES = ("clean||here", "here||clean", "soft-cross-entropy")
EVERY: dict[str, Objective] = {
    "cross-entropy": cross_entropy,
    "smoothed": smoothed_cross_entropy(0.3),
    "entropy": entropy,
    "margin": margin,
    "dlr": dlr,
    "negated probability": negated_probability,
    "rival probability": rival_probability,
    "probability margin": probability_margin,
    **{divergence: kl(divergence) for divergence in DIVERGENCES},
    "sum": cross_entropy - 2.0 * entropy + 0.5 * kl(),
    "targetable sum": cross_entropy + 0.1 * margin,
    **{f"uncertainty {name}": objective for name, objective in UNCERTAINTIES.items()},
    "regularised": regularised(2.0, 0.3),
    "boosted": boosted_cross_entropy,
    "misclassified": misclassified_kl(),
    "diversity": log_diversity,
    "each": each(cross_entropy + 0.3 * entropy),
    "each in total": each(smoothed_cross_entropy(0.1), total=True),
}


def logits(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def probabilities(z: Tensor) -> Tensor:
    """Mean over members of softmax, written plainly."""
    e = z.exp()
    return (e / e.sum(-1, keepdim=True)).mean(0)


CLEAN, LABELS, TARGET = logits(1, 4, 5, seed=9), torch.tensor([0, 1, 2, 3]), torch.tensor([4, 0, 1, 2])


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize(
    ("name", "towards"),
    [(name, towards) for name, objective in EVERY.items() for towards in {False, objective.targeted}],
)
def test_gradients_by_finite_differences(name, towards, members):
    objective, target = EVERY[name], TARGET if towards else None

    def value(z: Tensor) -> Tensor:
        return objective(Prediction(z), Prediction(CLEAN), LABELS, target)

    z = logits(members, 4, 5, seed=1).requires_grad_()
    assert value(z).shape == (4,)
    assert torch.autograd.gradcheck(value, z)


@pytest.mark.parametrize("name", [name for name, objective in EVERY.items() if not objective.targeted])
def test_refuses_a_target_where_there_is_none(name):
    with pytest.raises(EquipoiseError, match=r"has no target"):
        EVERY[name](Prediction(logits(1, 4, 5)), Prediction(CLEAN), LABELS, TARGET)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_clean_prediction_carries_a_gradient_too(divergence):
    here = Prediction(logits(1, 4, 5))
    q = CLEAN.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: kl(divergence)(here, Prediction(z)), q)


@pytest.mark.parametrize("members", [1, 3])
def test_plain_formulas(members):
    z, q = logits(members, 4, 5), logits(members, 4, 5, seed=5)
    p, c = probabilities(z), probabilities(q)
    here, clean = Prediction(z), Prediction(q)
    rows = torch.arange(4)
    uniform = torch.full((5,), 1 / 5, dtype=F64)
    smooth = torch.eye(5, dtype=F64)[LABELS] * 0.7 + 0.3 * uniform
    scores = z[0] if members == 1 else p.log()
    others = torch.tensor(
        [[s for j, s in enumerate(row) if j != y] for row, y in zip(scores.tolist(), LABELS, strict=True)]
    )
    expected = {
        "cross-entropy": -p[rows, LABELS].log(),
        "smoothed": -(smooth * p.log()).sum(1),
        "entropy": -(p * p.log()).sum(1),
        "margin": others.max(1).values - scores[rows, LABELS],
        "clean||here": (c * (c / p).log()).sum(1),
        "here||clean": (p * (p / c).log()).sum(1),
        "soft-cross-entropy": -(c * p.log()).sum(1),
    }
    expected["negated probability"] = -p[rows, LABELS]
    expected["rival probability"] = p.scatter(1, LABELS[:, None], 0.0).amax(1)
    expected["probability margin"] = expected["rival probability"] + expected["negated probability"]
    expected["sum"] = expected["cross-entropy"] - 2 * expected["entropy"] + 0.5 * expected["clean||here"]
    for name, value in expected.items():
        assert torch.allclose(EVERY[name](here, clean, LABELS), value.to(F64), rtol=1e-6, atol=1e-12), name
        if name != "margin":
            assert (EVERY[name](here, clean, LABELS) - value).abs().max() < 1e-12, name
    assert (here.log_probs - p.log()).abs().max() < 1e-12
    assert torch.equal(here.labels, p.argmax(1)) and here.classes == 5


def test_targeted_forms():
    z = logits(1, 4, 5)
    here, rows = Prediction(z), torch.arange(4)
    log_p = z[0].log_softmax(1)
    assert torch.allclose(cross_entropy(here, target=TARGET), log_p[rows, TARGET])
    smooth = 0.7 * torch.eye(5, dtype=F64)[TARGET] + 0.3 / 5
    assert torch.allclose(smoothed_cross_entropy(0.3)(here, target=TARGET), (smooth * log_p).sum(1))
    rivals = torch.stack(
        [torch.cat([row[:t], row[t + 1 :]]).max() for row, t in zip(z[0], TARGET.tolist(), strict=True)]
    )
    assert torch.allclose(margin(here, target=TARGET), z[0][rows, TARGET] - rivals)
    p = log_p.exp()
    rivals = p.scatter(1, TARGET[:, None], 0.0).amax(1)
    assert torch.allclose(probability_margin(here, target=TARGET), p[rows, TARGET] - rivals)
    assert torch.allclose(negated_probability(here, target=TARGET), p[rows, TARGET])
    assert torch.allclose(rival_probability(here, target=TARGET), -rivals)


@given(z=st.lists(st.floats(-20, 20), min_size=5, max_size=5, unique=True), y=st.integers(0, 4), t=st.integers(0, 4))
def test_dlr_against_the_published_formula(z, y, t):
    """Eqs. 6 and 7 of Croce & Hein 2020, in plain Python, with their epsilon in the denominator."""
    order = sorted(z, reverse=True)
    rival = order[1] if z[y] == order[0] else order[0]
    here = Prediction(torch.tensor([[z]], dtype=F64))
    expected = -(z[y] - rival) / (order[0] - order[2] + 1e-12)
    assert dlr(here, None, torch.tensor([y])).item() == pytest.approx(expected, rel=1e-9)
    towards = -(z[y] - z[t]) / (order[0] - (order[2] + order[3]) / 2 + 1e-12)
    assert dlr(here, None, torch.tensor([y]), torch.tensor([t])).item() == pytest.approx(towards, rel=1e-9)


def test_dlr_does_not_depend_on_scale_and_shift():
    z = logits(1, 4, 5)
    assert torch.allclose(dlr(Prediction(1e3 * z - 7), None, LABELS), dlr(Prediction(z), None, LABELS))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4, 1e10, 1e30, 1e38])
def test_entropy_is_defined_at_any_logits(scale, members, dtype):
    z = (logits(members, 64, 7, seed=3, scale=1.0) * scale).clamp(-3e38, 3e38).to(dtype).requires_grad_()
    value = entropy(Prediction(z))
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert value.isfinite().all() and gradient.isfinite().all()
    assert (value >= 0).all() and (value <= math.log(7) + 1e-6).all()
    plain = z.softmax(-1).mean(0)
    plain = -(plain * plain.log()).sum(1)
    if scale >= 1e4:
        assert plain.isnan().any(), "the plain formula is what this one repairs"
    if scale == 1.0:
        assert torch.allclose(plain, value, atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_divergences_have_no_nan_at_large_logits(divergence, scale):
    z = (scale * logits(1, 64, 7, seed=3, scale=1.0)).float().requires_grad_()
    value = kl(divergence)(Prediction(z), Prediction(z.detach().flip(2)))
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert not value.isnan().any() and gradient.isfinite().all()


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 20))
def test_identities_of_the_divergences(seed, scale):
    p, q = Prediction(logits(2, 3, 4, seed=seed, scale=scale)), Prediction(logits(2, 3, 4, seed=seed + 1, scale=scale))
    forward, backward, soft = (kl(d)(p, q) for d in DIVERGENCES)
    assert (forward >= -1e-12).all() and (backward >= -1e-12).all()
    assert torch.allclose(forward, kl("here||clean")(q, p)), "the two directions are each other's mirror"
    assert torch.allclose(soft, forward + entropy(q)), "cross-entropy is divergence plus entropy"
    assert torch.allclose(kl(DIVERGENCES[1])(p, p), torch.zeros(3, dtype=F64), atol=1e-12)


@given(seed=st.integers(0, 10_000), smoothing=st.floats(0, 1), weight=st.floats(0, 5))
def test_label_smoothing_and_entropy_maximisation_are_related(seed, smoothing, weight):
    """R, Eqs. 7 and 8: both are cross-entropy with a divergence from the uniform distribution, in either direction."""
    classes = 6
    here = Prediction(logits(1, 3, classes, seed=seed))
    uniform = Prediction(torch.zeros(1, 3, classes, dtype=F64))
    y = torch.tensor([0, 3, 5])
    ce = cross_entropy(here, None, y)
    eq7 = (1 - smoothing) * ce + smoothing * kl("clean||here")(here, uniform) + smoothing * math.log(classes)
    eq8 = ce + weight * kl("here||clean")(here, uniform) - weight * math.log(classes)
    assert torch.allclose(smoothed_cross_entropy(smoothing)(here, None, y), eq7)
    assert torch.allclose((cross_entropy - weight * entropy)(here, None, y), eq8)


def test_sums_flatten_and_name_themselves():
    a = 2.0 * (cross_entropy - entropy) + margin
    assert a.name == "2·cross-entropy - 2·entropy + margin"
    assert len(dict(a.parameters)["parts"]) == 3
    assert (-entropy).name == "- entropy"
    assert a.needs_labels and not a.needs_clean and not a.targeted
    assert (entropy + kl()).needs_clean and not (entropy + kl()).needs_labels
    assert (cross_entropy + dlr).classes == (3, 4) and (cross_entropy + margin).targeted
    assert kl() == kl("clean||here") and hash(kl()) == hash(kl("clean||here")) and kl() != kl("here||clean")


def test_a_slice_and_a_detached_prediction():
    z = logits(2, 4, 5).requires_grad_()
    here = Prediction(z)
    assert torch.equal(here[1:3].logits, z[:, 1:3]) and torch.equal(here[torch.tensor([3, 0])].logits, z[:, [3, 0]])
    assert not here.detach().logits.requires_grad


@pytest.mark.unchecked
def test_refuses_wrong_pairings():
    here = Prediction(logits(1, 4, 5))
    for objective in (cross_entropy, margin, dlr, smoothed_cross_entropy()):
        with pytest.raises(EquipoiseError, match=r"needs the labels y; pass them, or maximise .* entropy"):
            objective(here)
    for objective in (entropy, kl()):
        with pytest.raises(EquipoiseError, match=r"has no target: it does not depend on class labels"):
            objective(here, here, LABELS, TARGET)
    with pytest.raises(EquipoiseError, match=r"targeted dlr compares the target with the true class; pass the labels"):
        dlr(here, target=TARGET)
    with pytest.raises(EquipoiseError, match=r"dlr needs at least 3 classes, the model has 2; maximise cross_entropy"):
        dlr(Prediction(logits(1, 4, 2)), None, LABELS % 2)
    with pytest.raises(EquipoiseError, match=r"targeted dlr needs at least 4 classes, the model has 3"):
        dlr(Prediction(logits(1, 4, 3)), None, LABELS % 3, TARGET % 3)
    with pytest.raises(EquipoiseError, match=r"smoothing = 1.5 is not in"):
        smoothed_cross_entropy(1.5)
    with pytest.raises(EquipoiseError, match=r"unknown divergence 'clean\|here': did you mean 'clean\|\|here'"):
        kl("clean|here")
    with pytest.raises(EquipoiseError, match=r"needs the prediction at the clean input"):
        kl()(here)


@pytest.mark.parametrize("members", [1, 2, 7])
def test_uncertainties_against_plain_formulas(members):
    z = logits(members, 6, 4, seed=3)
    each_p = z.softmax(-1)
    p = each_p.mean(0)
    total = -(p * p.log()).sum(1)
    aleatoric = torch.stack([-(q * q.log()).sum(1) for q in each_p]).mean(0)
    ordered = p.sort(1, descending=True).values
    expected = {
        "entropy": total,
        "expected_entropy": aleatoric,
        "mutual_information": total - aleatoric,
        "variance": ((each_p - p) ** 2).mean(0).sum(1),
        "logit_variance": ((z - z.mean(0)) ** 2).mean(0).sum(1),
        "least_confidence": 1 - ordered[:, 0],
        "margin": ordered[:, 1] - ordered[:, 0],
    }
    assert expected.keys() == UNCERTAINTIES.keys()
    for name, value in expected.items():
        assert torch.allclose(UNCERTAINTIES[name](Prediction(z)), value, rtol=0, atol=1e-12), name


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.01, 30))
def test_mutual_information_is_total_minus_expected_entropy(seed, members, scale):
    """In float32 to 1e-6; never negative beyond rounding, and 0 where there is one member, or all members agree."""
    z = logits(members, 8, 5, seed=seed, scale=scale).float()
    here = Prediction(z)
    gap = entropy(here) - expected_entropy(here)
    assert (mutual_information(here) - gap).abs().max() < 1e-6
    exact = Prediction(z.double())
    assert (mutual_information(here) - (entropy(exact) - expected_entropy(exact))).abs().max() < 3e-6
    assert mutual_information(here).min() > -1e-6
    same = Prediction(z[:1].expand(members, -1, -1))
    assert mutual_information(same).abs().max() < 1e-6
    assert torch.equal(mutual_information(Prediction(z[:1])), torch.zeros(8))


def test_a_sum_over_members_has_the_gradient_of_each_alone():
    z = logits(3, 4, 5).requires_grad_()
    (together,) = torch.autograd.grad(each(cross_entropy, total=True)(Prediction(z), None, LABELS).sum(), z)
    for number, one in enumerate(z.detach()):
        one = one.clone().requires_grad_()
        (alone,) = torch.autograd.grad(cross_entropy(Prediction(one[None]), None, LABELS).sum(), one)
        assert torch.allclose(together[number], alone)


def test_what_a_model_of_one_member_cannot_climb_is_refused():
    for name in ("mutual_information", "variance", "logit_variance"):
        with pytest.raises(EquipoiseError, match=r"compares members, the model has 1: give an ensemble"):
            UNCERTAINTIES[name].check(5, labels=False, target=False, members=1)
        UNCERTAINTIES[name].check(5, labels=False, target=False, members=2)
    with pytest.raises(EquipoiseError, match=r"unknown uncertainty 'variation'"):
        uncertainty_named("variation")
    assert uncertainty_named(margin) is margin


def test_how_uncertainties_are_written_down():
    assert mutual_information.settings() == [
        {"weight": 1.0, "objective": "entropy"},
        {"weight": -1.0, "objective": {"each": "entropy"}},
    ]
    assert each(kl(), total=True).settings() == {"total": {"name": "KL(clean||here)", "divergence": "clean||here"}}


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 5), st.integers(2, 9))
def test_label_smoothing_and_entropy_maximisation_are_divergences_from_uniform(seed, g, lam, classes):
    """R, Eqs. 7 and 8, with both divergences written plainly."""
    z = logits(1, 6, classes, seed=seed)
    here, y = Prediction(z), torch.arange(6) % classes
    p = z[0].softmax(1)
    uniform = torch.full_like(p, 1 / classes)
    ce = -p.log()[torch.arange(6), y]
    from_uniform = (uniform * (uniform / p).log()).sum(1)
    to_uniform = (p * (p / uniform).log()).sum(1)
    smooth = (1 - g) * ce + g * from_uniform + g * math.log(classes)
    assert torch.allclose(regularised(smoothing=g)(here, None, y), smooth, atol=1e-10)
    entm = ce + lam * to_uniform - lam * math.log(classes)
    assert torch.allclose(regularised(entropy_weight=lam)(here, None, y), entm, atol=1e-10)


def test_regularised_losses_are_named_by_what_they_add():
    assert regularised() == cross_entropy and regularised(smoothing=0.3) == smoothed_cross_entropy(0.3)
    assert regularised(2.0, 0.3) == smoothed_cross_entropy(0.3) - 2.0 * entropy
    with pytest.raises(EquipoiseError, match=r"entropy_weight = -1 would punish uncertainty"):
        regularised(-1)


def test_the_volume_that_wrong_classes_span():
    """Against the determinant of the Gram matrix, and in closed form where it is known."""
    z = logits(3, 4, 6, seed=2)
    p = z.softmax(-1)
    for row, y in enumerate(LABELS.tolist()):
        others = torch.stack([torch.cat([q[:y], q[y + 1 :]]) for q in p[:, row]])
        unit = others / others.norm(dim=1, keepdim=True)
        volume = torch.linalg.svdvals(unit).square().prod()
        assert log_diversity(Prediction(z), None, LABELS)[row] == pytest.approx(volume.log().item(), rel=1e-3)
    apart = torch.full((2, 1, 4), -30.0, dtype=F64)
    apart[0, 0, 1] = apart[1, 0, 2] = 30.0  # the members err towards different classes
    assert log_diversity(Prediction(apart), None, torch.tensor([0])).item() == pytest.approx(0, abs=1e-5)
    same = logits(1, 1, 4).expand(2, -1, -1)
    assert log_diversity(Prediction(same), None, torch.tensor([0])).item() == pytest.approx(math.log(2e-6), abs=1e-3)


def test_mart_in_plain_formulas():
    z = logits(1, 4, 5, seed=6)
    p, q, rows = z[0].softmax(1), CLEAN[0].softmax(1), torch.arange(4)
    others = p.scatter(1, LABELS[:, None], 0.0).amax(1)
    boosted = -p[rows, LABELS].log() - (1 - others).log()
    assert torch.allclose(boosted_cross_entropy(Prediction(z), None, LABELS), boosted, atol=1e-5)
    divergence = (q * (q / p).log()).sum(1) * (1 - q[rows, LABELS])
    assert torch.allclose(misclassified_kl()(Prediction(z), Prediction(CLEAN), LABELS), divergence)
