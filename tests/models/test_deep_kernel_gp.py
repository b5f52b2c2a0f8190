"""The deep-kernel GP against exact Gaussian processes, gpytorch's own strategy, and closed forms."""

import copy
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise import attacks
from equipoise.attacks import udp
from equipoise.attacks.execution import frozen_model, value_and_gradient
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.losses.objectives import cross_entropy, each, entropy
from equipoise.losses.terms import as_method
from equipoise.models import as_predictive, frozen_weights
from equipoise.models.deep_kernel_gp import (
    DeepKernelGP,
    DeepKernelGPModule,
    SparseGP,
    deep_kernel_gp,
    kl_to_prior,
)
from equipoise.nets import Normalize
from equipoise.nets.due import FCResNet, WideResNetFeatures

pgd = partial(attacks.pgd, start="zero", return_point="last")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(classes: int = 3, samples: int = 8, kernel: str = "rbf") -> DeepKernelGP:
    """With parameters in general position."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        extractor = FCResNet((4,), features=6, depth=2)
    x = torch.rand(40, 4, generator=generator())
    model = deep_kernel_gp(extractor, classes, x, inducing=7, kernel=kernel, samples=samples)
    with torch.no_grad():
        for parameter in model.module.gp.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator(parameter.numel()))
    model.module.eval()
    return model


X = torch.rand(6, 4, generator=generator(1))
STREAMS = Streams.of(3, torch.arange(6))


def test_it_is_the_exact_posterior_when_the_inducing_points_are_the_data():
    """Regression with known noise: q(u) = N(K(K+σ²)⁻¹y, K - K(K+σ²)⁻¹K) gives the exact GP's mean and variance."""
    rng = np.random.default_rng(0)
    z, x, noise, scale, lengthscale = rng.uniform(size=(9, 2)), rng.uniform(size=(20, 2)) * 2, 0.1, 1.7, 0.4
    y = np.stack([np.sin(6 * z[:, 0]), z[:, 1] ** 2])

    def kernel(a, b):
        return scale * np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * lengthscale**2))

    k, k_x = kernel(z, z), kernel(z, x)
    inverse = np.linalg.inv(k + noise**2 * np.eye(9))
    mean, covariance = y @ inverse @ k, k - k @ inverse @ k
    whiten = np.linalg.inv(np.linalg.cholesky(k + 1e-9 * np.eye(9)))

    gp = SparseGP(2, 2, 9).double()
    gp.kernel.outputscale, gp.kernel.base_kernel.lengthscale = scale, lengthscale
    with torch.no_grad():
        gp.mean.constant.zero_()
        gp.inducing.copy_(torch.tensor(z))
        gp.variational_mean.copy_(torch.tensor(mean @ whiten.T))
        root = np.linalg.cholesky(whiten @ covariance @ whiten.T + 1e-12 * np.eye(9))
        gp.variational_root.copy_(torch.tensor(root).repeat(2, 1, 1))
        found_mean, found_variance = gp(torch.tensor(x))
    exact_variance = scale - (k_x * (inverse @ k_x)).sum(0)
    assert np.abs(found_mean.numpy() - (y @ inverse @ k_x).T).max() < 1e-4
    assert np.abs(found_variance.numpy() - exact_variance[:, None]).max() < 1e-4


@pytest.mark.parametrize("kernel", ["rbf", "matern12", "matern32", "matern52"])
def test_it_is_gpytorchs_variational_strategy(kernel):
    import gpytorch
    from gpytorch.variational import CholeskyVariationalDistribution, VariationalStrategy

    ours = small(kernel=kernel).module.gp.double()

    class Reference(gpytorch.models.ApproximateGP):
        def __init__(self):
            distribution = CholeskyVariationalDistribution(7, torch.Size([3]))
            strategy = VariationalStrategy(self, ours.inducing.detach(), distribution, jitter_val=1e-6)
            super().__init__(strategy)
            batch = torch.Size([3])
            if kernel == "rbf":
                base = gpytorch.kernels.RBFKernel(batch_shape=batch)
            else:
                base = gpytorch.kernels.MaternKernel({"1": 0.5, "3": 1.5, "5": 2.5}[kernel[6]], batch_shape=batch)
            self.mean = gpytorch.means.ConstantMean(batch_shape=batch)
            self.kernel = gpytorch.kernels.ScaleKernel(base, batch_shape=batch)

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    reference = Reference().double().eval()
    reference.variational_strategy.variational_params_initialized.fill_(1)
    state = reference.state_dict()
    state |= {name: value for name, value in ours.state_dict().items() if name.startswith(("mean.", "kernel."))}
    place = "variational_strategy._variational_distribution."
    state[place + "variational_mean"] = ours.variational_mean.detach()
    state[place + "chol_variational_covar"] = ours.variational_root.detach()
    reference.load_state_dict(state)
    features = torch.randn(11, 6, generator=generator(), dtype=torch.float64) / 2
    with torch.no_grad():
        mean, variance = ours(features)
        expected = reference(features)
    assert torch.allclose(mean.T, expected.mean, atol=1e-5)
    assert torch.allclose(variance.T, expected.variance, atol=1e-5)
    expected_kl = reference.variational_strategy.kl_divergence().detach().sum()
    assert float(ours.kl_to_prior().detach()) == pytest.approx(float(expected_kl), 1e-6)


def test_kl_is_that_of_the_two_gaussians():
    model = small()
    gp, normal = model.module.gp, torch.distributions.MultivariateNormal
    root = gp.variational_root.detach().double().tril()
    root = root * root.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # the same S with a positive diagonal
    q = normal(gp.variational_mean.detach().double(), scale_tril=root)
    p = normal(torch.zeros(7, dtype=torch.float64), torch.eye(7, dtype=torch.float64))
    expected = float(torch.distributions.kl_divergence(q, p).sum())
    assert expected > 1
    for n in (1, 50):
        penalty = kl_to_prior(n)(model.module, X, torch.zeros(6).long())
        assert penalty.requires_grad and float(penalty.detach()) == pytest.approx(expected / n)
    assert float(SparseGP(2, 3, 5).kl_to_prior().detach()) == 0, "q starts as the prior"


def test_it_starts_as_the_prior():
    with torch.no_grad():
        mean, variance = SparseGP(2, 3, 5)(torch.randn(4, 2, generator=generator()))
    assert torch.equal(mean, torch.zeros(4, 3))
    assert torch.allclose(variance, torch.full((4, 3), float(np.log(2))), atol=1e-5), "softplus(0), gpytorch's start"


@pytest.mark.parametrize("samples", [2, 3, 16])
def test_the_members_have_the_gps_mean_and_variance(samples):
    model = small(samples=samples)
    with torch.no_grad():
        mean, variance = model.module(X)
        logits = model.draw(STREAMS)(X).logits
    assert logits.shape == (samples, 6, 3)
    assert torch.allclose(logits.mean(0), mean, atol=1e-5)
    assert torch.allclose(logits.var(0, unbiased=False), variance, atol=1e-5)


def test_one_sample_is_the_mean():
    model = small(samples=1)
    assert torch.equal(model.draw(STREAMS)(X).logits[0], model.module(X)[0])


def test_the_draw_depends_on_the_shared_stream_alone():
    model = small()
    logits = model.draw(STREAMS)(X).logits
    assert torch.equal(model.draw(Streams.of(3, torch.tensor([9, 8])))(X).logits, logits)
    assert torch.equal(model.draw(STREAMS[:2])(X).logits, logits)
    assert not torch.allclose(model.draw(STREAMS.fold(1))(X).logits, logits, atol=1e-2)
    assert torch.equal(model.draw()(X).logits, model.draw()(X).logits)


def test_a_sample_does_not_depend_on_its_batch():
    model = small()
    with torch.no_grad():
        whole = model.draw(STREAMS)(X).logits
        for size in (1, 4):
            parts = torch.cat([model.draw(STREAMS)(part).logits for part in X.split(size)], 1)
            assert torch.allclose(parts, whole, atol=1e-5)


@pytest.mark.parametrize("kernel", ["rbf", "matern32"])
def test_its_input_gradient_by_central_differences(kernel):
    model = small(kernel=kernel)
    model.module.double()
    x = X.double()
    for objective in (entropy, cross_entropy, each(cross_entropy)):
        predict, y = model.draw(STREAMS), torch.arange(6) % 3
        _, gradient, _ = value_and_gradient(objective, predict, x, labels=y)
        direction, step = torch.randn(6, 4, generator=generator(), dtype=torch.float64), 1e-6
        with torch.no_grad():
            up, down = (objective(predict(x + s * direction), None, y) for s in (step, -step))
        assert torch.allclose((gradient * direction).sum(1), (up - down) / (2 * step), atol=1e-6)
        assert float(gradient.abs().max()) > 1e-3


def test_the_gradient_exists_on_an_inducing_point():
    gp = small(kernel="matern12").module.gp
    features = gp.inducing.detach().clone().requires_grad_()
    mean, variance = gp(features)
    (mean.sum() + variance.sqrt().sum()).backward()
    assert bool(features.grad.isfinite().all())


@pytest.mark.parametrize("name", ["inducing", "variational_mean", "variational_root", "kernel", "mean", "extractor"])
def test_predictions_follow_every_parameter(name):
    """Also without a change of mode, on which gpytorch would clear what it remembers."""
    model = small()
    predict = model.draw(STREAMS)
    with torch.no_grad():
        before = predict(X).logits
        changed = [p for n, p in model.module.named_parameters() if n.removeprefix("gp.").startswith(name)]
        for parameter in changed:
            parameter += 0.2 * torch.rand(parameter.shape, generator=generator())
        fresh = DeepKernelGPModule(FCResNet((4,), features=6, depth=2), 3, 7).eval()
        fresh.load_state_dict(model.module.state_dict())
        assert changed and not torch.allclose(predict(X).logits, before, atol=1e-3)
        assert torch.equal(predict(X).logits, DeepKernelGP(fresh, 8).draw(STREAMS)(X).logits)


def test_weights_stand_in_for_the_parameters():
    model, other = small(), small()
    with torch.no_grad():
        other.module.gp.variational_mean.add_(1.0)
        other.module.extractor.first.bias.add_(0.5)
    weights = frozen_weights(other.module, "eval")
    logits = model.draw(STREAMS, weights)(X).logits
    assert torch.equal(logits, other.draw(STREAMS)(X).logits) and not logits.requires_grad
    assert not torch.allclose(logits, model.draw(STREAMS)(X).logits, atol=1e-2)


def test_it_is_a_predictive_with_an_extractor_and_gps():
    model = small()
    assert as_predictive(model) is model
    features = model.module.extractor(X)
    extractor, rest = model.split("extractor")
    assert torch.equal(extractor(X), features)
    assert torch.equal(rest.draw(STREAMS)(features).logits, model.draw(STREAMS)(X).logits)


def test_inducing_points_start_at_the_centres_of_clusters():
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    x = centres.repeat_interleave(50, 0) + 0.1 * torch.randn(150, 2, generator=generator())
    state = torch.get_rng_state()
    model = deep_kernel_gp(nn.Dropout(1e-9), 2, x, inducing=3, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    distance = torch.cdist(model.module.gp.inducing.detach(), x.reshape(3, 50, 2).mean(1))
    assert float(distance.amin(0).max()) < 1e-4
    pairs = [float((a - b).norm()) for i, a in enumerate(x) for b in x[:i]]
    lengthscale = model.module.gp.kernel.base_kernel.lengthscale.detach()
    assert torch.allclose(lengthscale, torch.full((2, 1, 1), float(np.mean(pairs))), atol=1e-3)
    again = deep_kernel_gp(nn.Dropout(1e-9), 2, x, inducing=3, seed=5)
    assert torch.equal(again.module.gp.inducing, model.module.gp.inducing)


def moons(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two half circles in [0.25, 0.75]²."""
    y = torch.arange(count) % 2
    angle = torch.pi * torch.rand(count, generator=generator(seed))
    x = torch.stack([angle.cos() + y - 0.5, angle.sin() * (1 - 2 * y) + 0.5 * y - 0.25], 1)
    return 0.5 + 0.16 * x + 0.01 * torch.randn(count, 2, generator=generator(seed + 1)), y


@pytest.fixture(scope="module")
def trained() -> DeepKernelGP:
    x, y = moons(200, 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        extractor = nn.Sequential(Normalize([0.5], [0.15]), FCResNet((2,), features=32, depth=2))
    model = deep_kernel_gp(extractor, 2, x, inducing=20)
    method = as_method(each(cross_entropy)).with_penalty(1.0, kl_to_prior(len(x)))
    optimizer = torch.optim.Adam(model.module.parameters(), 0.03)
    for step in range(100):
        streams = Streams.of(step, torch.arange(len(x)))
        loss, _ = method.losses(model, x, y, [None], streams)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    model.module.eval()
    return model


def test_training_by_the_evidence_lower_bound(trained):
    x, y = moons(400, 10)
    with torch.no_grad():
        here = trained.draw()(x)
        corners = trained.draw()(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    assert float((here.labels == y).float().mean()) > 0.95
    assert float(entropy(corners).min()) > 2 * float(entropy(here).mean())
    assert float(corners.logits.var(0).sum(1).min()) > 2 * float(here.logits.var(0).sum(1).median())


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_it_can_be_attacked(trained, precision):
    x, y = moons(60, 20)
    clean = float((trained.draw()(x).labels == y).float().mean())
    found = pgd(0.2, 0.02, 20, precision=precision)(trained, x, y)
    assert clean > 0.95 and float(found.success.float().mean()) > 0.7
    moved = udp(0.1, 0.02, 20, precision=precision)(trained, x, y).x
    with torch.no_grad():
        assert float(entropy(trained.draw()(moved)).mean()) > float(entropy(trained.draw()(x)).mean()) + 0.1


def test_a_wide_resnet_can_carry_it():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        extractor = WideResNetFeatures((3, 8, 8), dropout=0.1)
    x, y = torch.rand(30, 3, 8, 8, generator=generator()), torch.arange(30) % 3
    model = deep_kernel_gp(extractor, 3, x, inducing=5, samples=4)
    with torch.no_grad():  # q(v) starts as the prior, which is the same everywhere
        model.module.gp.variational_mean.normal_(generator=generator())
    found = pgd(0.03, 0.01, 3)(model, x, y)
    assert float((found.x - x).abs().max()) <= 0.03 + 1e-6 and not torch.equal(found.x, x)
    copied = copy.deepcopy(model)
    copied.module.eval()
    with frozen_model(model, x) as draw, torch.no_grad():
        assert torch.allclose(draw(STREAMS)(x).logits, copied.draw(STREAMS)(x).logits, atol=1e-4)
    assert model.module.training


def test_importing_needs_no_gpytorch_and_building_refuses_without():
    code = (
        "import sys; sys.modules['gpytorch'] = None\n"
        "from equipoise.models.deep_kernel_gp import SparseGP\n"
        "try: SparseGP(2, 2)\n"
        "except ValueError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "a deep-kernel GP needs gpytorch: pip install 'equipoise[gp]'.\n"


@pytest.mark.unchecked
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SparseGP(2, 0), "at least 1 feature, class and inducing point, got 2, 0 and 20"),
        (lambda: SparseGP(2, 2, kernel="matern"), "unknown kernel 'matern': did you mean"),
        (lambda: DeepKernelGPModule(nn.Linear(2, 2), 2), "how many features a Linear returns is not known"),
        (lambda: DeepKernelGP(nn.Linear(2, 2)), "a Linear holds 0 SparseGP: expected 1"),
        (lambda: DeepKernelGP(small().module, 0), "samples = 0: expected an integer"),
        (lambda: deep_kernel_gp(nn.Identity(), 2, X, inducing=7), "7 inducing points need as many distinct"),
        (lambda: deep_kernel_gp(nn.Unflatten(1, (2, 2)), 2, X), "the extractor returned shape (2, 2, 2)"),
        (lambda: kl_to_prior(0), "n = 0: expected an integer"),
        (lambda: kl_to_prior(5)(nn.Linear(2, 2), X, X), "a Linear holds 0 SparseGP"),
    ],
)
def test_refused(make, message):
    with pytest.raises(EquipoiseError) as refusal:
        make()
    assert message in str(refusal.value)
