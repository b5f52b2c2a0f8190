"""What an attack refuses, by its message. (Without annotation checks, as users run it: see conftest.py.)"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from equipoise import attacks
from equipoise.attacks import cw, pgd, targeted, udp, uta
from equipoise.attacks.execution import value_and_gradient
from equipoise.core.errors import EquipoiseError, EquipoiseWarning, NoGradient, require, unknown
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import cross_entropy, dlr
from equipoise.models import Single

ATTACK = pgd(0.1, 0.02, 2)
X, Y = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])


def net(classes: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, classes)


def at(index: int, value: float) -> torch.Tensor:
    x = X.clone()
    x[index, 1] = value
    return x


INPUTS = {
    "nan": (at(1, math.nan), r"x holds NaN or infinite values: clean the data first"),
    "infinite": (at(1, math.inf), r"x holds NaN or infinite values"),
    "above": (
        at(1, 1.5),
        r"1 of 4 inputs lie outside \[0, 1\] \(they span \[.*, 1.5\]\): .* make normalisation a layer",
    ),
    "below": (at(1, -0.5), r"1 of 4 inputs lie outside \[0, 1\] \(they span \[-0.5, "),
    "pixels in 255": (255 * X, r"4 of 4 inputs lie outside \[0, 1\]"),
    "uint8": (
        (255 * X).to(torch.uint8),
        r"x has dtype torch.uint8: expected float32 in \[0, 1\], such as x.float\(\) / 255",
    ),
    "int64": (torch.ones(4, 3, dtype=torch.int64), r"x has dtype torch.int64"),
    "one dimension": (
        X[:, 0],
        r"x has shape \(4,\): expected \(batch, features\) or \(batch, channels, height, width\)",
    ),
    "a scalar": (torch.tensor(0.5), r"x has shape \(\): expected \(batch, features\)"),
    "empty": (X[:0], r"x is empty \(shape \(0, 3\)\): expected at least one sample"),
    "no features": (X[:, :0], r"x is empty \(shape \(4, 0\)\)"),
    "double": (X.double(), r"x is torch.float64 but the model is torch.float32: convert one of them"),
    "another device": (X.to("meta"), r"x is on meta but the model is on cpu: move one of them"),
    "numpy": (X.numpy(), r"x is a ndarray: expected a torch tensor of shape \(batch, ...\)"),
    "a list": (X.tolist(), r"x is a list: expected a torch tensor"),
    "none": (None, r"x is a NoneType: expected a torch tensor"),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("case", INPUTS)
def test_refuses_input(case):
    x, message = INPUTS[case]
    with pytest.raises(EquipoiseError, match=message):
        ATTACK(net(), x, Y)


LABELS = {
    "too large": (torch.tensor([0, 1, 2, 3]), r"y holds class 3, but the model has 3 classes, 0 to 2"),
    "negative": (torch.tensor([0, 1, 2, -1]), r"y holds class -1, but the model has 3 classes, 0 to 2"),
    "float": (Y.float(), r"y has dtype torch.float32: expected int64 class indices"),
    "int32": (Y.int(), r"y has dtype torch.int32: expected int64"),
    "one-hot": (torch.eye(3, dtype=torch.int64)[Y], r"y has shape \(4, 3\): expected \(4,\), one class per sample"),
    "too few": (Y[:3], r"y has shape \(3,\): expected \(4,\)"),
    "numpy": (Y.numpy(), r"y is a ndarray: expected a torch tensor of class indices"),
    "a list": ([0, 1, 2, 0], r"y is a list: expected a torch tensor of class indices"),
    "another device": (Y.to("meta"), r"y is on meta but x is on cpu: move one of them"),
    "missing": (None, r"cross-entropy needs the labels y; pass them, or maximise an objective without labels"),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("case", LABELS)
def test_refuses_labels(case):
    y, message = LABELS[case]
    with pytest.raises(EquipoiseError, match=message):
        ATTACK(net(), X, y)
    if y is not None:
        with pytest.raises(EquipoiseError, match=message.replace("y ", "target ", 1)):
            ATTACK(net(), X, Y, target=y)


class Returns(nn.Module):
    """A model whose output is made by a function from that of a linear layer."""

    def __init__(self, make):
        super().__init__()
        self.net, self.make = net(), make

    def forward(self, x):
        return self.make(self.net(x))


MODELS = {
    "a tuple": (
        Returns(lambda z: (z[:1], z)),
        r"Returns returned a tuple; expected logits of shape \(2, classes\), or an object",
    ),
    "a dict": (Returns(lambda z: {"a": z, "b": z}), r"Returns returned a dict with a, b; expected logits"),
    "a map": (Returns(lambda z: z[:, :, None]), r"returned a tensor of shape \(2, 3, 1\); expected logits of shape"),
    "another batch": (
        Returns(lambda z: z[:1]),
        r"returned a tensor of shape \(1, 3\); expected logits of shape \(2, classes\)",
    ),
    "one sigmoid": (nn.Sequential(net(1), nn.Sigmoid()), r"one number from 0 to 1 per sample: .* remove its last sigm"),
    "softmax": (nn.Sequential(net(), nn.Softmax(1)), r"the model returns probabilities .* remove its last softmax"),
    "nan": (Returns(lambda z: z * math.nan), r"the model's logits are not finite on clean input"),
    "no gradient": (Returns(lambda z: z.detach()), r"the model's output has no gradient"),
    "a function": (lambda x: x, r"a function is not a model: expected a torch.nn.Module that returns logits"),
    "a string": ("resnet", r"a str is not a model"),
    "not probabilities": (
        Single(net(), "probabilities"),
        r"declared to return probabilities but its rows do not sum to 1",
    ),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("case", MODELS)
def test_refuses_models(case):
    model, message = MODELS[case]
    with pytest.raises(EquipoiseError, match=message):
        ATTACK(model, X, torch.zeros_like(Y))


def test_refuses_a_model_whose_gradient_is_off():
    class NoGrad(nn.Module):
        @torch.no_grad()
        def forward(self, x):
            return x[:, :2] * 3

    with pytest.raises(EquipoiseError, match=r"has no gradient: it detaches its input or computes under no_grad"):
        ATTACK(NoGrad(), X, Y % 2)


class OwnOperation(torch.autograd.Function):
    """Twice its input, without a derivative."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x


WITHOUT_GRAPH = {
    "detached": lambda z: z.detach(),
    "through numpy": lambda z: torch.from_numpy(z.numpy().copy()),
    "through a list": lambda z: torch.tensor(z.tolist()),
    "through dlpack": lambda z: torch.from_dlpack(z).clone(),
    "an output argument": lambda z: torch.add(z, 1, out=torch.empty_like(z, requires_grad=False)),
    "an operation without a derivative": OwnOperation.apply,
    "a class": lambda z: 5.0 * torch.nn.functional.one_hot(z.argmax(1), 3),
}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", WITHOUT_GRAPH)
def test_a_missing_graph_is_named(name, trained):
    """Also where parameters behind it still have one."""
    layers = [Returns(WITHOUT_GRAPH[name]), nn.Linear(3, 3)] if trained else [Returns(WITHOUT_GRAPH[name])]
    with pytest.raises(NoGradient, match=r"output has no gradient: .* \(square, hop-skip-jump\)"):
        ATTACK(nn.Sequential(*layers), X, Y)
    predict = Single(nn.Sequential(*layers)).draw()
    with pytest.raises(NoGradient, match=r"output has no gradient"):
        value_and_gradient(cross_entropy, predict, X, labels=Y)


class Crash(torch.autograd.Function):
    """The identity, whose derivative cannot be computed just now."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        raise RuntimeError("cudnn RNN backward can only be called in training mode")


def with_a_bug(x):
    return x @ torch.ones(7, 3) if x.requires_grad else x


def out_of_memory(x):
    if x.requires_grad:
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 20.00 GiB.")
    return x


CRASHES = {
    "a backward that refuses eval mode": (Crash.apply, r"cudnn RNN backward can only be called in training mode"),
    "a bug": (with_a_bug, r"mat1 and mat2 shapes cannot be multiplied"),
    "no memory": (out_of_memory, r"Tried to allocate"),
}


@pytest.mark.parametrize("name", CRASHES)
def test_a_crash_is_raised_as_it_is(name):
    function, message = CRASHES[name]
    with pytest.raises(RuntimeError, match=message):
        ATTACK(Returns(function), X, Y)


def test_a_first_layer_may_work_in_place():
    """And images may be made under inference mode: both give the same as their copies."""
    model, by_copy = (nn.Sequential(nn.ReLU(inplace=yes), net()) for yes in (True, False))
    expected = ATTACK(by_copy, X, Y)
    with torch.inference_mode():
        inferred = X.clone()
    for found in (ATTACK(model, X, Y), ATTACK(model, inferred, Y)):
        assert torch.equal(found.x, expected.x) and torch.equal(found.success, expected.success)


@pytest.mark.unchecked
def test_refuses_pairings():
    climb_dlr = replace(ATTACK, objective=dlr)
    for attack, arguments, message in (
        (uta(0.1), {"target": Y}, r"entropy has no target: it does not depend on class labels; maximise cross_entropy"),
        (targeted(udp(0.1)), {}, r"entropy has no target"),
        (cw(0.1), {}, r"margin needs the labels y"),
        (climb_dlr, {"target": Y}, r"targeted dlr compares the target with the true class; pass the labels y too"),
        (climb_dlr, {"y": Y, "target": (Y + 1) % 3}, r"targeted dlr needs at least 4 classes, the model has 3"),
        (
            targeted(ATTACK),
            {"y": Y, "target": (Y + 1) % 3},
            r"both target='least_likely' and target classes were given: choose one",
        ),
        (ATTACK, {"y": Y, "index": torch.arange(3)}, r"index must be a tensor of 4 integers, one per sample"),
        (ATTACK, {"y": Y, "index": torch.rand(4)}, r"index must be a tensor of 4 integers"),
        (ATTACK, {"y": Y, "index": [0, 1, 2, 3]}, r"index must be a tensor of 4 integers"),
        (ATTACK, {"y": Y, "seed": 2.5}, r"seed = 2.5: expected an integer from -9223372036854775808 to"),
        (ATTACK, {"y": Y, "seed": 2**64}, r"seed = 18446744073709551616: expected an integer from"),
        (ATTACK, {"y": Y, "batch_size": 2**64}, r"batch_size = 18446744073709551616: expected an integer >= 1"),
        (ATTACK, {"y": Y, "seed": np.int64(3)}, r"seed = .*3.*: expected an integer .*, as int\(3\)"),
        (ATTACK, {"y": Y, "batch_size": 2.5}, r"batch_size = 2.5: expected an integer >= 1"),
        (ATTACK, {"y": Y, "batch_size": 0}, r"batch_size = 0: expected an integer"),
    ):
        with pytest.raises(EquipoiseError, match=message):
            attack(net(), X, **arguments)
    with pytest.raises(EquipoiseError, match=r"dlr needs at least 3 classes, the model has 2"):
        climb_dlr(net(2), X, Y % 2)


def test_works_inside_inference_mode_and_on_what_was_made_there():
    model = net()
    expected = ATTACK(model, X, Y)
    with torch.inference_mode():
        found, made_there = ATTACK(model, X, Y), X.clone()
    assert torch.equal(found.x, expected.x) and not found.x.is_inference()
    assert torch.equal(ATTACK(model, made_there, Y).x, expected.x)
    with torch.no_grad():
        assert torch.equal(ATTACK(model, X, Y).x, expected.x)


def test_refuses_an_infinite_default_step():
    with pytest.raises(EquipoiseError, match=r"step_size = inf: expected a finite number"):
        pgd(math.inf)
    assert pgd(math.inf, 0.1, 3, start="zero")(net(), X, Y).x.isfinite().all()


def test_another_box_admits_other_inputs():
    wide = replace(ATTACK, geometry=Ball("linf", 0.1, Box(0.0, 255.0)))
    assert wide(net(), 255 * X, Y).distance.max() <= 0.1 + 1e-4


def test_a_large_eps_is_questioned():
    with pytest.warns(
        EquipoiseWarning, match=r"eps = 8 is larger than the box: pixels live in \[0, 1\]; did you mean 8/255\?"
    ):
        pgd(8.0)


def test_after_a_refusal_the_model_is_as_it_was():
    model = Returns(lambda z: (z[:1], z)).train()
    model.net.eval()
    with pytest.raises(EquipoiseError):
        ATTACK(model, X, Y)
    assert model.training and not model.net.training


def test_words_of_errors():
    require(True, "never said")
    with pytest.raises(EquipoiseError, match=r"^said$"):
        require(False, "said")
    assert str(unknown("net", "lenett", ["lenet", "mlp"])) == (
        "unknown net 'lenett': did you mean 'lenet'? Choose one of lenet, mlp."
    )
    assert (
        str(unknown("net", "zzz", np.array(["lenet", "mlp"]).tolist()))
        == "unknown net 'zzz': choose one of lenet, mlp."
    )


def test_refuses_a_half_precision_model_whose_rounding_exceeds_the_tolerance():
    with pytest.raises(EquipoiseError, match="keep the model in float32 and give the attack precision='bf16'"):
        attacks.pgd(0.1)(nn.Linear(4, 3).bfloat16(), torch.rand(2, 4).bfloat16(), torch.tensor([0, 1]))


def test_refuses_a_model_that_changes_its_input_in_place():
    class Shifts(nn.Linear):
        def forward(self, x):
            return super().forward(x.sub_(0.5))

    x = torch.rand(3, 4)
    before = x.clone()
    with pytest.raises(EquipoiseError, match="changes its input in place"):
        attacks.pgd(0.1)(Shifts(4, 3), x, torch.tensor([0, 1, 2]))
    assert x.equal(before)


def test_refuses_inputs_the_model_does_not_take():
    with pytest.raises(EquipoiseError, match=r"does not take inputs of shape \(5,\)"):
        attacks.pgd(0.1)(nn.Linear(4, 3), torch.rand(2, 5), torch.tensor([0, 1]))


# It is deprecated, and still around.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_refuses_a_scripted_model():
    with pytest.raises(EquipoiseError, match="scripted or traced model"):
        attacks.pgd(0.1)(torch.jit.trace(nn.Linear(4, 3), torch.rand(1, 4)), torch.rand(2, 4), torch.tensor([0, 1]))


@pytest.mark.unchecked
def test_refuses_eps_in_words():
    with pytest.raises(EquipoiseError, match="eps = '8/255' is a str"):
        attacks.pgd("8/255", step_size=0.1)


def test_data_parallel_is_taken_off():
    model, x, y = nn.Linear(4, 3), torch.rand(2, 4), torch.tensor([0, 1])
    assert attacks.pgd(0.1)(nn.DataParallel(model), x, y).x.equal(attacks.pgd(0.1)(model, x, y).x)
