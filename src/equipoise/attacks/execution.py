"""How an attack computes with a model: a private copy that stands still, and the gradient at a point."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from equipoise.attacks.inputs import AT_ONCE
from equipoise.attacks.result import at
from equipoise.core.errors import NoGradient
from equipoise.core.rng import Stream, Streams
from equipoise.core.types import (
    Labels,
    Mode,
    PerSample,
    Points,
    Precision,
    Predict,
    Prediction,
    Predictive,
)
from equipoise.kernels.input_gradients import FastInputGradients, mostly_wide
from equipoise.kernels.native import MAX_WEIGHTS, native_forward
from equipoise.kernels.trace import is_tracing
from equipoise.losses.objectives import Objective
from equipoise.models import (
    Frozen,
    cut,
    frozen,
    is_batch_dependent,
    laid_out,
    usable_precision,
)


@contextmanager
def frozen_model(
    predictive: Predictive, x: Points, mode: Mode = "eval", precision: Precision = "32", *, native: bool = True
) -> Iterator[Callable[[Streams], Predict]]:
    """The model as a private copy in its mode, in the asked precision. Yields a function that draws its randomness from
    streams and returns its prediction, with constant weights and fast input gradients. Small convolutional networks
    are computed natively on a CPU (`equipoise.kernels.native`), those of few filters, which are faster in float32, also
    where bf16 is asked for. Without `native` PyTorch computes everything.
    """
    kind = x.device.type
    module = (predictive.original if isinstance(predictive, Frozen) and mode == "train" else predictive).module
    precision = usable_precision(module, x, precision)
    full = frozen(predictive, mode, weights=laid_out(module))
    light = full if precision == "32" else frozen(predictive, mode, weights=laid_out(module, precision))
    weights = dict([*full.module.named_parameters(), *full.module.named_buffers()])
    watched = kind == "cpu" and any(weight.ndim > 2 for weight in weights.values())  # is there a convolution?
    small = kind == "cpu" and sum(weight.numel() for weight in weights.values()) <= MAX_WEIGHTS
    small = small and not (precision == "bf16" and mostly_wide(weights.values()))
    native = native and small and full.answers == "gradients" and not is_batch_dependent(full.module)
    fast = FastInputGradients()

    def draw(streams: Streams) -> Predict:
        predict = _watched(light.draw(streams), fast) if watched else light.draw(streams)
        return native_forward(full.draw(streams), predict, weights) if native else predict

    with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
        yield draw


def averaged(draw: Callable[[Streams], Predict], streams: Streams, count: int) -> Predict:
    """The mean prediction over `count` draws of a random model, the same ones at every call."""
    keys = [streams.fold(Stream.MODEL, *([number] if number else [])) for number in range(count)]
    predicts = [draw(key) for key in keys]
    if len(predicts) == 1:
        return predicts[0]
    return lambda x: Prediction(torch.cat([predict(x).logits for predict in predicts]))


def _watched(predict: Predict, mode: FastInputGradients) -> Predict:
    """Only the model is watched for convolutions: every operation that is watched costs some microseconds. A trace sees
    it without.
    """

    def fast(x: Points) -> Prediction:
        if is_tracing():
            return predict(x)
        with mode:
            return predict(x)

    return fast


def value_and_gradient(
    objective: Objective,
    predict: Predict,
    point: Points,
    clean: Prediction | None = None,
    labels: Labels | None = None,
    target: Labels | None = None,
    *,
    at_once: int | None = None,
) -> tuple[PerSample, Points, Prediction]:
    """The objective at `point`, its gradient with respect to `point` alone, and the prediction there; `at_once` samples
    at a time, by default `AT_ONCE` on a CPU and all of them elsewhere (0: all).

    Raises `NoGradient` if the graph does not reach the point. Every other error of the model is raised as it is: it may
    be a fault of the model or of the machine, and says nothing about gradients.
    """
    if at_once is None:
        at_once = AT_ONCE if point.device.type == "cpu" else 0
    if 0 < at_once < len(point):
        pieces = [slice(i, i + at_once) for i in range(0, len(point), at_once)]
        values, gradients, heres = zip(
            *(
                value_and_gradient(objective, predict, point[p], at(clean, p), at(labels, p), at(target, p))
                for p in pieces
            ),
            strict=True,
        )
        return torch.cat(values), torch.cat(gradients), Prediction(torch.cat([h.logits for h in heres], 1))
    with torch.enable_grad(), _no_gradient_named():
        point = cut(point).requires_grad_()
        here = _live(predict, point)
        value = objective(here, clean, labels, target)
        if not value.requires_grad:
            raise NoGradient(_WITHOUT_GRADIENT)
        try:
            gradient = torch.autograd.grad(value.sum(), point, allow_unused=True)[0]
        except RuntimeError as error:
            if ".grad()" not in str(error) or "heckpoint" not in str(error):
                raise
            # Reentrant checkpointing knows no gradient but that of all leaves. Of these the point is the only one.
            objective(_live(predict, point), clean, labels, target).sum().backward()
            gradient = point.grad
        if gradient is None:
            raise NoGradient(_WITHOUT_GRADIENT)
    return value.detach(), gradient, here.detach()


def _live(predict: Predict, point: Points) -> Prediction:
    """The prediction with its graph, also of a model that begins with an operation in place."""
    try:
        return predict(point)
    except RuntimeError as error:
        if "in-place operation" not in str(error):
            raise
    return predict(point.clone())


_WITHOUT_GRADIENT = (
    "the model's output has no gradient: it detaches its input or computes under no_grad. Attack it without gradients "
    "(square, hop-skip-jump), or give that part a differentiable stand-in in its backward pass (BPDA)."
)


_REFUSALS = (
    "Can't call numpy() on Tensor that requires grad",
    "Can't export tensors that require gradient",
    "don't support automatic differentiation",
    "You must implement either the backward or vjp method",
)
"""What PyTorch says where a computation leaves its graph, instead of leaving it in silence."""


@contextmanager
def _no_gradient_named() -> Iterator[None]:
    """Turn PyTorch's refusals to differentiate into `NoGradient`; let every other error pass."""
    try:
        yield
    except (RuntimeError, BufferError) as error:
        if not any(words in str(error) for words in _REFUSALS):
            raise
        raise NoGradient(f"{_WITHOUT_GRADIENT} PyTorch says: {str(error).splitlines()[0]}") from error
