"""Evaluation of models: mode, precision and random numbers, and the checks before a model is used."""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from equipoise.core.errors import EquipoiseError, kind_of, require
from equipoise.core.rng import Streams
from equipoise.core.types import Mode, Points, Precision, Prediction, Predictive, Weights
from equipoise.kernels.input_gradients import MANY_FILTERS, faster_in_bf16
from equipoise.models.frozen import Frozen, cut, frozen

_BATCH_COUPLING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def with_module(predictive: Predictive, module: nn.Module) -> Predictive:
    """Return a predictive of the same class with another module. Raises `EquipoiseError` if that is not possible."""
    require(
        is_dataclass(predictive) and "module" in {field.name for field in fields(predictive)},
        f"{kind_of(predictive)} cannot take averaged weights: make it a dataclass with a field `module`, or "
        "train without ema.",
    )
    return replace(predictive, module=module)  # pyright: ignore[reportCallIssue, reportArgumentType, reportReturnType]


class _FullPrecision:
    """Number of contexts in all threads that need full precision, and the settings to restore after the last."""

    lock = threading.Lock()
    count = 0
    before: list[str] = []  # noqa: RUF012

    @staticmethod
    def backends() -> list[Any]:
        cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
        return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]

    @classmethod
    def set(cls, precisions: list[str]) -> None:
        for backend, precision in zip(cls.backends(), precisions, strict=True):
            backend.fp32_precision = precision


@contextmanager
def full_precision() -> Iterator[None]:
    """Context manager: float32 without the shorter mantissa (TF32) of matrix products and convolutions."""
    with _FullPrecision.lock:
        if _FullPrecision.count == 0:
            _FullPrecision.before = [backend.fp32_precision for backend in _FullPrecision.backends()]
            _FullPrecision.set(["ieee"] * len(_FullPrecision.before))
        _FullPrecision.count += 1
    try:
        yield
    finally:
        with _FullPrecision.lock:
            _FullPrecision.count -= 1
            if _FullPrecision.count == 0:
                _FullPrecision.set(_FullPrecision.before)


@contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Context manager: without the autocast and inference mode of the caller's thread, and without a graph."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@torch.no_grad()
def predict(predictive: Predictive, x: Points, streams: Streams | None = None) -> Prediction:
    """Return the reference prediction: in eval mode, in the model's own precision, without rewritten layers."""
    model = predictive if isinstance(predictive, Frozen) else frozen(predictive)
    with isolated(x.device), full_precision():
        return model.draw(streams)(x)


NOT_FINITE = "the model's logits are not finite on clean input: its weights may have diverged."


@dataclass(frozen=True)
class Examined:
    """Properties of a model in eval mode, from a few predictions."""

    still: Frozen
    """The model as a private copy."""
    first: Prediction
    """The prediction at the first two samples."""
    random: bool
    """Whether the model draws random numbers, or two calls differ by more than rounding."""
    coupled: bool
    """Whether a sample's prediction depends on the other samples of its batch."""
    shape: torch.Size
    """The shape of the inputs."""


def examine(predictive: Predictive, x: Points, streams: Streams | None = None, box: Any = None) -> Examined:
    """Examine a model before it is used, at the first two samples twice, at the first sample alone, and at both ends of
    a batch of three.

    Raises `EquipoiseError` if the model does not take such inputs or changes them in place, or as `check_outputs`.
    """
    with _GENERATORS:  # the model may draw from the process's generators
        model = frozen(predictive)
        streams = Streams.of(0, torch.arange(min(len(x), 2), device=x.device)) if streams is None else streams[:2]
        pair, single = cut(x[:2]).clone(), cut(x[:1]).clone()
        version = pair._version
        state = _random_state(x.device)
        with torch.enable_grad(), _RandomOperations() as operations:
            first = checked_prediction(model, pair, streams)
        _check_copy(first.logits, model)
        require(
            pair.equal(x[:2]),
            "the model changes its input in place: make its first operation one that returns a new tensor.",
        )
        if pair._version != version:  # in place without an effect, as a ReLU of positive pixels
            model.module.register_forward_pre_hook(_copy_input)
        first = first.detach()
        with torch.no_grad():
            random = operations.seen or bool(first.differs(predict(model, pair, streams)).any())
            coupled = is_batch_dependent(model.module)
            if not coupled:
                alone = checked_prediction(model, single, streams[:1])
                three = torch.cat([single, _mirrored(single, box), single])
                among = predict(model, three, Streams(streams.keys[[0, 0, 0]], streams.common))
                coupled = not random and bool(alone.differs(among[::2]).any())
        if operations.seen:
            _restore_random_state(state, x.device)
        check_outputs(first, model, lambda: predict(model, x, None))
        return Examined(replace(model, random=random), first, random, coupled, x.shape[1:])


def validate_output(predictive: Predictive, x: Points, streams: Streams | None = None) -> Prediction:
    """Return the prediction at the first two samples, in eval mode, once it is checked as `examine` does.

    Raises `EquipoiseError` as `examine`, and if neither is finite.
    """
    with isolated(x.device):
        first = examine(predictive, x, streams).first
    require(bool(first.finite.any()), NOT_FINITE)
    return first


def checked_prediction(model: Frozen, x: Points, streams: Streams | None) -> Prediction:
    """Return the prediction. Raise `EquipoiseError` if the model does not take such a batch."""
    try:
        with torch.autocast(x.device.type, enabled=False), full_precision():
            return model.draw(streams)(x)
    except torch.OutOfMemoryError:
        raise
    except (EquipoiseError, RuntimeError, IndexError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if len(x) == 1:
            raise EquipoiseError(
                f"the model does not take one sample alone (a batch of 1): {reason.rstrip('.')}. Attacks shrink "
                "batches to the samples not yet fooled: keep the first dimension, such as by flatten(1), not squeeze()."
            ) from error
        if isinstance(error, EquipoiseError):
            raise
        raise EquipoiseError(
            f"the model does not take inputs of shape {tuple(x.shape[1:])} and {x.dtype}: {reason.rstrip('.')}."
        ) from error


def _mirrored(x: Points, box: Any) -> Points:
    """The input mirrored in the box: another valid input."""
    low, high = (0.0, 1.0) if box is None else (box.low, box.high)
    return low + high - x if math.isfinite(low + high) else -x


def _copy_input(module: nn.Module, args: Any) -> Any:
    return (args[0].clone(), *args[1:])


class _RandomOperations(TorchDispatchMode):
    """Observes whether an operation draws random numbers."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _random_state(device: torch.device) -> list[Tensor]:
    """The states of the global generators."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _restore_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def _check_copy(logits: Tensor, model: Frozen) -> None:
    """Raise `EquipoiseError` if the copy computes with parameters of the original."""
    originals, seen = {id(p) for p in model.original.module.parameters()}, set()
    remaining = [logits.grad_fn]
    while remaining:
        node = remaining.pop()
        if node in seen or node is None:
            continue
        seen.add(node)
        require(
            id(getattr(node, "variable", None)) not in originals,
            f"{type(model.original.module).__name__} computes with a layer of its own that it reaches in a way that "
            "cannot be followed, so that it cannot be attacked without being touched: reach it as self.layer.",
        )
        remaining += [parent for parent, _ in node.next_functions]


def check_outputs(
    prediction: Prediction, predictive: Predictive, every: Callable[[], Prediction] | None = None
) -> None:
    """Raise `EquipoiseError` if a prediction has one class, is not finite for any sample, or looks like probabilities
    instead of logits, also if it is a single one. If the few samples of `prediction` look suspicious, those of `every`
    decide, so that the result does not depend on which samples come first.
    """
    require(
        prediction.classes >= 2,
        "the model has one output: expected logits of at least 2 classes. Of a single logit z return "
        "torch.cat([-z, z], 1) / 2, which has the same probabilities.",
    )
    declared = getattr(predictive, "outputs", "logits") == "probabilities"
    usual = sums_to_one(prediction, declared) == declared and not is_single_share(prediction)
    if every is not None and not (bool(prediction.finite.all()) and usual):
        prediction = every()
    finite = prediction.finite
    if every is not None and not bool(finite.any()):
        return  # the caller, who knows all samples, reports it
    require(bool(finite.any()), NOT_FINITE)
    prediction = prediction[finite.nonzero()[:, 0]]
    is_distribution = sums_to_one(prediction, declared)
    first = prediction.logits[:, :1]
    varies = len(prediction.labels) == 1 or not bool((prediction.logits == first).all())  # else a constant classifier
    require(
        declared or not is_distribution or not varies,
        "the model returns probabilities (rows that sum to 1), not logits: remove its last softmax, "
        "or wrap it as equipoise.Single(model, outputs='probabilities').",
    )
    require(
        declared or len(prediction.labels) == 1 or not varies or not is_single_share(prediction),
        "the model returns one number from 0 to 1 per sample: if it is a probability, after a sigmoid, remove its last "
        "sigmoid, or wrap it as equipoise.Single(model, outputs='probabilities').",
    )
    require(
        not declared or is_distribution,
        "the model was declared to return probabilities but its rows do not sum to 1: use outputs='logits'.",
    )


def sums_to_one(prediction: Prediction, is_log: bool) -> bool:
    """Return whether every output, or its exponential if `is_log`, is a distribution."""
    values = prediction.logits.detach().exp() if is_log else prediction.logits.detach()
    return bool(((values.sum(-1) - 1).abs() < 1e-3).all() and (values >= 0).all())


def is_single_share(prediction: Prediction) -> bool:
    """Return whether every output is that of a single logit z, as (-z/2, z/2), with z from 0 to 1."""
    values = prediction.logits.detach()
    if values.shape[::2] != (1, 2):
        return False
    first, second = values[0].unbind(1)
    return bool((first == -second).all() and (second >= 0).all() and (second <= 0.5).all())


@contextmanager
def module_mode(module: nn.Module, mode: Mode) -> Iterator[None]:
    """Context manager: `module` in `mode`; at the end every submodule is back in its own mode."""
    before = [(m, m.training) for m in module.modules()]
    module.train(mode == "train")
    try:
        yield
    finally:
        for m, training in before:
            m.training = training


_GENERATORS = threading.RLock()  # held while a model may use the global generators, which all threads share


@contextmanager
def global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Context manager: the global generators, which dropout uses, seeded; at the end their states are restored. One
    thread at a time, because the generators belong to the process.
    """
    with _GENERATORS, torch.random.fork_rng([device] if device.type == "cuda" else []):
        reseed(seed, device)
        yield


def reseed(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of `device`, in microseconds; `torch.manual_seed`, which seeds every
    kind of device, takes a third of a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def is_batch_dependent(module: nn.Module, mode: Mode | None = None) -> bool:
    """Whether layers of a module make samples of a batch depend on each other (batch statistics, dropout masks), in
    `mode` or in its present one.
    """
    return any(
        isinstance(m, _BATCH_COUPLING)
        and ((m.training if mode is None else mode == "train") or getattr(m, "track_running_stats", True) is False)
        for m in module.modules()
    )


def frozen_weights(module: nn.Module, mode: Mode, precision: Precision = "32") -> Weights:
    """Return the parameters as constants in fast memory formats, for the `weights` of `draw`. In eval mode copies of
    the buffers are included, so that the module's stay unchanged; in train mode it uses its own.
    """
    weights = {name: _laid_out(cut(p), precision) for name, p in module.named_parameters()}
    if mode == "eval":
        weights |= {name: cut(b).clone() for name, b in module.named_buffers()}
    return weights


def laid_out(module: nn.Module, precision: Precision = "32") -> Callable[[Tensor], Tensor]:
    """Return a function that detaches a parameter and converts it to a fast memory format, and with `precision` bf16
    the weights of convolutions and linear layers to bf16; autocast converts the others.
    """
    layers = (m for m in module.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd))
    matrices = {id(m._parameters.get("weight")) for m in layers}
    return lambda weight: _laid_out(cut(weight), precision if id(weight) in matrices else "32")


def usable_precision(module: nn.Module, x: Tensor, precision: Precision) -> Precision:
    """Return `precision`, or 32 where autocast to bf16 does not apply: in float64, for half-precision weights, and for
    recurrent layers on a CPU.
    """
    halves = any(p.dtype in (torch.bfloat16, torch.float16) for p in module.parameters())
    recurrent = x.device.type == "cpu" and any(isinstance(m, nn.RNNBase) for m in module.modules())
    return "32" if x.dtype == torch.float64 or halves or recurrent else precision


def _laid_out(weight: Tensor, precision: Precision) -> Tensor:
    many = weight.ndim != 4 or len(weight) >= MANY_FILTERS
    on_cpu = weight.device.type == "cpu"
    if precision == "bf16" and weight.ndim >= 2 and (many or not on_cpu or faster_in_bf16(len(weight))):
        weight = weight.bfloat16()
    if weight.ndim != 4:
        return weight
    return weight.contiguous(memory_format=torch.channels_last if many else torch.contiguous_format)
