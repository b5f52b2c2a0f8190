"""Models as predictives: outputs, modes, frozen weights."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from equipoise.core.errors import EquipoiseError
from equipoise.core.types import Predictive
from equipoise.losses.objectives import cross_entropy, entropy
from equipoise.models import (
    Single,
    as_predictive,
    called_with,
    check_outputs,
    frozen_weights,
    global_seed,
    is_batch_dependent,
    module_mode,
    reseed,
)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(8, 3))


X = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_a_network_becomes_one_member():
    model = net().eval()
    predictive = as_predictive(model)
    assert isinstance(predictive, Predictive) and predictive == Single(model)
    prediction = predictive.draw()(X)
    assert prediction.logits.shape == (1, 5, 3) and torch.equal(prediction.logits[0], model(X))
    assert torch.equal(prediction.scores, model(X)) and as_predictive(predictive) is predictive


def test_weights_stand_in_for_the_parameters():
    model = net().eval()
    zero = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    assert torch.equal(Single(model).draw(None, zero)(X).logits, torch.zeros(1, 5, 3))
    assert not torch.equal(model(X), torch.zeros(5, 3))


def test_declared_probabilities_are_taken_back_to_logits():
    model = nn.Sequential(net(), nn.Softmax(1)).eval()
    prediction = Single(model, "probabilities").draw()(X)
    plain = Single(model[0]).draw()(X)
    assert torch.allclose(prediction.log_probs, plain.log_probs, atol=1e-5)
    assert torch.allclose(entropy(prediction), entropy(plain), atol=1e-5)
    certain = Single(nn.Identity(), "probabilities").draw()(torch.tensor([[1.0, 0.0]]))
    assert certain.logits.isfinite().all() and cross_entropy(certain, None, torch.tensor([0])).item() == pytest.approx(
        0
    )


def test_half_precision_logits_are_widened():
    assert Single(nn.Linear(2, 3).bfloat16()).draw()(torch.rand(1, 2).bfloat16()).logits.dtype == torch.float32


@given(
    modes=st.lists(st.booleans(), min_size=6, max_size=6), mode=st.sampled_from(["train", "eval"]), fail=st.booleans()
)
def test_module_mode_restores_mixed_modes(modes, mode, fail):
    model = net()
    for module, training in zip(model.modules(), modes, strict=True):
        module.training = training
    try:
        with module_mode(model, mode):
            assert all(m.training == (mode == "train") for m in model.modules())
            model[1].training = not model[1].training
            if fail:
                raise KeyError
    except KeyError:
        assert fail
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize(
    ("module", "train", "evaluation"),
    [
        (nn.Linear(2, 2), False, False),
        (nn.LayerNorm(2), False, False),
        (nn.InstanceNorm2d(2), False, False),
        (nn.BatchNorm1d(2), True, False),
        (nn.SyncBatchNorm(2), True, False),
        (nn.BatchNorm2d(2, track_running_stats=False), True, True),
        (nn.Dropout(), True, False),
        (nn.Dropout2d(), True, False),
    ],
)
def test_what_couples_samples(module, train, evaluation):
    model = nn.Sequential(nn.Linear(2, 2), module)
    assert is_batch_dependent(model.train()) == train and is_batch_dependent(model.eval()) == evaluation


@pytest.mark.parametrize(
    ("precision", "narrow"), [("32", torch.float32), ("bf16", torch.float32), ("bf16", torch.bfloat16)]
)
def test_frozen_weights_are_constants_laid_out_for_speed(precision, narrow, monkeypatch):
    """On a CPU without units that multiply matrices in bf16 the kernels of few filters stay in float32."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: narrow == torch.bfloat16)
    model = net()
    weights = frozen_weights(model, "eval", precision)
    assert set(weights) == {n for n, _ in model.named_parameters()} | {n for n, _ in model.named_buffers()}
    assert not any(w.requires_grad for w in weights.values())
    for name, parameter in model.named_parameters():
        half = parameter.ndim == 2 or (parameter.ndim == 4 and (len(parameter) >= 32 or narrow == torch.bfloat16))
        half &= precision == "bf16"
        assert weights[name].dtype == (torch.bfloat16 if half else torch.float32)
        assert torch.allclose(weights[name].float(), parameter, rtol=1e-2 if half else 0, atol=0)
    for name, buffer in model.named_buffers():
        assert weights[name].data_ptr() != buffer.data_ptr(), "in eval mode nothing of the caller's can be written"
    assert set(frozen_weights(model, "train")) == {n for n, _ in model.named_parameters()}
    if precision == "32":
        assert torch.allclose(functional_call(model.eval(), weights, (X,)), model(X), atol=1e-6)


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    x = torch.rand(3, 2)
    assert torch.allclose(Single(model).draw(None, frozen_weights(model, "eval"))(x).logits[0], model(x))


def test_seeded_puts_the_global_state_back():
    state = torch.get_rng_state()
    draws = []
    for seed in (1, 1, -(2**63)):
        with global_seed(seed, torch.device("cpu")):
            draws.append(torch.rand(3))
    with pytest.raises(KeyError), global_seed(1, torch.device("cpu")):
        raise KeyError
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.unchecked
def test_refuses_what_is_no_model():
    for thing in (lambda x: x, "resnet18", None):
        with pytest.raises(EquipoiseError, match=r"is not a model: expected a torch.nn.Module that returns logits"):
            as_predictive(thing)
    with pytest.raises(EquipoiseError, match=r"unknown outputs 'logit': did you mean 'logits'"):
        Single(nn.Identity(), "logit")


def test_refuses_wrong_outputs():
    def check(values: torch.Tensor, outputs: str = "logits") -> None:
        predictive = Single(nn.Identity(), outputs)
        check_outputs(predictive.draw()(values), predictive)

    with pytest.raises(
        EquipoiseError, match=r"Identity returned a tensor of shape \(2, 3, 4\); expected logits of shape \(2, c"
    ):
        check(torch.zeros(2, 3, 4))
    with pytest.raises(
        EquipoiseError, match=r"Tuple returned a tuple; expected logits of shape \(2, classes\), or an object"
    ):

        class Tuple(nn.Module):
            def forward(self, x):
                return x[:1], x

        Single(Tuple()).draw()(torch.zeros(2, 3))
    with pytest.raises(EquipoiseError, match=r"one number from 0 to 1 per sample: if it is a probability, after a sig"):
        check(torch.rand(2, 1))
    with pytest.raises(EquipoiseError, match=r"logits are not finite on clean input: its weights may have diverged"):
        check(torch.tensor([[0.0, float("nan")]]))
    with pytest.raises(EquipoiseError, match=r"returns probabilities .* remove its last softmax, or wrap it as"):
        check(torch.tensor([[0.5, 0.5], [0.1, 0.9]]))
    with pytest.raises(EquipoiseError, match=r"declared to return probabilities but its rows do not sum to 1"):
        check(torch.tensor([[0.5, 0.7], [0.1, 0.9]]), "probabilities")
    check(torch.tensor([[0.5, 0.5], [0.1, 0.9]]), "probabilities")
    check(torch.tensor([[-0.5, 1.5], [0.1, 0.9]]))
    check(torch.zeros(2, 3))


class _Tied(nn.Module):
    """A weight with two names, a part that is used twice, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.again, self.norm = self.first, nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.again(torch.tanh(self.second(self.first(x)))))


def test_called_with_other_weights_is_a_functional_call():
    """Against torch's own, and the module's weights are back, also after an error."""
    module, x = _Tied().eval(), torch.rand(3, 4)
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    other = {name: torch.rand_like(value) if value.is_floating_point() else value for name, value in own.items()}
    call = called_with(module, other)
    expected = functional_call(deepcopy(module), other, (x,))  # a copy: of parts used twice it loses the weights
    torch.testing.assert_close(call(x), expected)
    with pytest.raises(RuntimeError):
        call(torch.rand(3, 5))
    now = dict(module.named_parameters()) | dict(module.named_buffers())
    assert all(now[name] is value for name, value in own.items())
    assert module.second.weight is module.first.weight


def test_reseeding_is_torchs():
    with torch.random.fork_rng():
        reseed(5, torch.device("cpu"))
        mine = torch.rand(3)
        torch.manual_seed(5)
        assert mine.equal(torch.rand(3))
