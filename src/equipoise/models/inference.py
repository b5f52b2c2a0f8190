"""How a model is asked: its mode and precision, the random numbers it draws, and a first look at what it says."""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.rng import Streams
from equipoise.core.types import Mode, Points, Precision, Prediction, Predictive, Weights
from equipoise.kernels.input_gradients import MANY_FILTERS, faster_in_bf16
from equipoise.models.frozen import Frozen, cut, frozen

_BATCH_COUPLING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def with_module(predictive: Predictive, module: nn.Module) -> Predictive:
    """The same kind of predictive with other weights: those of `module`. Raises `EquipoiseError` if it cannot be."""
    require(
        is_dataclass(predictive) and "module" in {field.name for field in fields(predictive)},
        f"a {type(predictive).__name__} cannot take averaged weights: make it a dataclass with a field `module`, or "
        "train without ema.",
    )
    return replace(predictive, module=module)  # pyright: ignore[reportCallIssue, reportArgumentType, reportReturnType]


class _Ieee:
    """How many contexts ask for full precision, in all threads, and the settings to go back to after the last."""

    lock = threading.Lock()
    count = 0
    before: list[str] = []  # noqa: RUF012

    @staticmethod
    def places() -> list[Any]:
        cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
        return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 without the short mantissa that a device may use in matrix products and, by default, in convolutions."""
    with _Ieee.lock:
        if _Ieee.count == 0:
            _Ieee.before = [place.fp32_precision for place in _Ieee.places()]
            for place in _Ieee.places():
                place.fp32_precision = "ieee"
        _Ieee.count += 1
    try:
        yield
    finally:
        with _Ieee.lock:
            _Ieee.count -= 1
            if _Ieee.count == 0:
                for place, precision in zip(_Ieee.places(), _Ieee.before, strict=True):
                    place.fp32_precision = precision


@contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """What the caller's thread has set up does not reach what is computed here: no autocast, no inference mode, and no
    graph unless it is asked for.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@torch.no_grad()
def predict(predictive: Predictive, x: Points, streams: Streams | None = None) -> Prediction:
    """The prediction that counts: eval mode, the model's own precision, nothing rearranged."""
    still = predictive if isinstance(predictive, Frozen) else frozen(predictive)
    with isolated(x.device), full_precision():
        return still.draw(streams)(x)


NOT_FINITE = "the model's logits are not finite on clean input: its weights may have diverged."


@dataclass(frozen=True)
class Examined:
    """What a few predictions tell of a model in eval mode."""

    still: Frozen
    """The model as a private copy."""
    first: Prediction
    """The prediction at the first two samples."""
    random: bool
    """Whether it draws random numbers, or two calls differ by more than rounding."""
    coupled: bool
    """Whether a sample's prediction depends on what else is in its batch."""
    shape: torch.Size
    """The shape of the inputs."""


def examine(predictive: Predictive, x: Points, streams: Streams | None = None, box: Any = None) -> Examined:
    """Look at a model before it is used: at the first two samples twice, at the first one alone and at both ends of a
    batch of three.

    Raises `EquipoiseError` if the model does not take such inputs, changes them in place, or `check_outputs` objects.
    """
    with _GENERATORS:  # a model that draws random numbers draws those of the process
        still = frozen(predictive)
        streams = Streams.of(0, torch.arange(min(len(x), 2), device=x.device)) if streams is None else streams[:2]
        few, one = cut(x[:2]).clone(), cut(x[:1]).clone()
        version = few._version
        state = _random_state(x.device)
        with torch.enable_grad(), _Draws() as draws:
            first = _taken(still, few, streams)
        _check_reach(first.logits, still)
        require(
            few.equal(x[:2]),
            "the model changes its input in place: make its first operation one that returns a new tensor.",
        )
        if few._version != version:  # by nothing this time, as a ReLU in place does where all pixels are positive
            still.module.register_forward_pre_hook(_copies_its_input)
        first = first.detach()
        with torch.no_grad():
            random = draws.seen or bool(first.differs(predict(still, few, streams)).any())
            coupled = is_batch_dependent(still.module)
            if not coupled:
                alone = _taken(still, one, streams[:1])
                three = torch.cat([one, _another(one, box), one])
                among = predict(still, three, Streams(streams.keys[[0, 0, 0]], streams.common))
                coupled = not random and any(bool(alone.differs(among[i : i + 1]).any()) for i in (0, 2))
        if draws.seen:
            _restore(state, x.device)
        check_outputs(first, still, lambda: predict(still, x, None))
        return Examined(replace(still, random=random), first, random, coupled, x.shape[1:])


def validate_output(predictive: Predictive, x: Points, streams: Streams | None = None) -> Prediction:
    """The prediction at the first two samples, in eval mode, if it is one that an attack or a training can use.

    Raises `EquipoiseError` as `examine`, and if neither is finite.
    """
    with isolated(x.device):
        first = examine(predictive, x, streams).first
    require(bool(first.finite.any()), NOT_FINITE)
    return first


def _taken(still: Frozen, x: Points, streams: Streams) -> Prediction:
    """The prediction, where the model takes such a batch."""
    try:
        with torch.autocast(x.device.type, enabled=False), full_precision():
            return still.draw(streams)(x)
    except torch.OutOfMemoryError:
        raise
    except (EquipoiseError, RuntimeError, IndexError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if len(x) == 1:
            raise EquipoiseError(
                f"the model does not take one sample alone (a batch of 1): {reason.rstrip('.')}. Attacks pass on the "
                "samples that are left, down to the last: keep the first dimension, such as by flatten(1) in place of "
                "squeeze()."
            ) from error
        if isinstance(error, EquipoiseError):
            raise
        raise EquipoiseError(
            f"the model does not take inputs of shape {tuple(x.shape[1:])} and {x.dtype}: {reason.rstrip('.')}."
        ) from error


def _another(x: Points, box: Any) -> Points:
    """Another input of the same kind: the first one mirrored in the box."""
    low, high = (0.0, 1.0) if box is None else (box.low, box.high)
    return low + high - x if math.isfinite(low + high) else -x


def _copies_its_input(module: nn.Module, args: Any) -> Any:
    return (args[0].clone(), *args[1:])


class _Draws(TorchDispatchMode):
    """Watches whether an operation draws random numbers."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _random_state(device: torch.device) -> list[Tensor]:
    """The states of the global generators, from which dropout draws."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _restore(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def _check_reach(logits: Tensor, still: Frozen) -> None:
    """Raise `EquipoiseError` if the copy still computes with parameters of the original: then it is none."""
    own, seen = {id(p) for p in still.original.module.parameters()}, set()
    left = [logits.grad_fn] if logits.grad_fn is not None else []
    while left:
        node = left.pop()
        if node in seen or node is None:
            continue
        seen.add(node)
        require(
            id(getattr(node, "variable", None)) not in own,
            f"{type(still.original.module).__name__} computes with a layer of its own that it reaches in a way that "
            "cannot be followed, so that it cannot be attacked without being touched: reach it as self.layer.",
        )
        left += [parent for parent, _ in node.next_functions]


def check_outputs(
    prediction: Prediction, predictive: Predictive, every: Callable[[], Prediction] | None = None
) -> None:
    """Raise `EquipoiseError` if a prediction has one class, is not finite for any sample, or looks like probabilities,
    not logits. Where the few samples of `prediction` are suspicious, `every` sample decides: the answer must not depend
    on which samples come first.
    """
    require(
        prediction.classes >= 2,
        "the model has one output: expected logits of at least 2 classes. Of a single logit z return "
        "torch.cat([-z, z], 1) / 2, which has the same probabilities.",
    )
    is_log = getattr(predictive, "outputs", "logits") == "probabilities"
    if every is not None and not (bool(prediction.finite.all()) and _sum_to_one(prediction, is_log) == is_log):
        prediction = every()
    finite = prediction.finite
    if every is not None and not bool(finite.any()):
        return  # nothing to see; whoever knows all samples says so
    require(bool(finite.any()), NOT_FINITE)
    prediction = prediction[finite.nonzero()[:, 0]]
    sums_to_one = _sum_to_one(prediction, is_log)
    first = prediction.logits[:, :1]
    varies = len(prediction.labels) == 1 or not bool((prediction.logits == first).all())  # else a constant classifier
    require(
        is_log or not sums_to_one or not varies,
        "the model returns probabilities (rows that sum to 1), not logits: remove its last softmax, "
        "or wrap it as equipoise.Single(model, outputs='probabilities').",
    )
    require(
        not is_log or sums_to_one,
        "the model was declared to return probabilities but its rows do not sum to 1: use outputs='logits'.",
    )


def _sum_to_one(prediction: Prediction, is_log: bool) -> bool:
    """Whether every output is a distribution."""
    values = prediction.logits.detach().exp() if is_log else prediction.logits.detach()
    return bool(((values.sum(-1) - 1).abs() < 1e-3).all() and (values >= 0).all())


@contextmanager
def module_mode(module: nn.Module, mode: Mode) -> Iterator[None]:
    """Put `module` in `mode`, and on the way out every submodule back in the mode it had."""
    before = [(m, m.training) for m in module.modules()]
    module.train(mode == "train")
    try:
        yield
    finally:
        for m, training in before:
            m.training = training


_GENERATORS = threading.RLock()
"""Held by whoever has lent the global generators to a model: there is one of them for all threads."""


@contextmanager
def global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators, from which dropout draws, and on the way out put their states back. One thread at a
    time: the generators belong to the process.
    """
    with _GENERATORS, torch.random.fork_rng([device] if device.type == "cuda" else []):
        reseed(seed, device)
        yield


def reseed(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of `device`; as `torch.manual_seed`, which seeds every kind of device
    and takes a third of a millisecond, but in microseconds.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def is_batch_dependent(module: nn.Module, mode: Mode | None = None) -> bool:
    """Whether, in `mode` or its present one, the layers of a module couple the samples of a batch (batch statistics,
    dropout masks).
    """
    return any(
        isinstance(m, _BATCH_COUPLING)
        and ((m.training if mode is None else mode == "train") or getattr(m, "track_running_stats", True) is False)
        for m in module.modules()
    )


def frozen_weights(module: nn.Module, mode: Mode, precision: Precision = "32") -> Weights:
    """The parameters as constants, laid out for speed, for a `draw` with `weights`. In eval mode copies of the buffers
    are among them, so that nothing of the caller's can change; in train mode the buffers stay the module's own.
    """
    weights = {name: _laid_out(cut(p), precision) for name, p in module.named_parameters()}
    if mode == "eval":
        weights |= {name: cut(b).clone() for name, b in module.named_buffers()}
    return weights


def laid_out(module: nn.Module, precision: Precision = "32") -> Callable[[Tensor], Tensor]:
    """How a frozen copy's parameters are laid out for speed, and the matrices of its convolutions and linear layers in
    bf16 if asked for; autocast takes care of the others.
    """
    layers = (m for m in module.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd))
    own = {id(m._parameters.get("weight")) for m in layers}
    return lambda weight: _laid_out(cut(weight), precision if id(weight) in own else "32")


def usable_precision(module: nn.Module, x: Tensor, precision: Precision) -> Precision:
    """`precision`, or 32 where autocast to bf16 does not apply: in float64, for weights that are half as long already,
    and for recurrent layers on a CPU.
    """
    halves = any(p.dtype in (torch.bfloat16, torch.float16) for p in module.parameters())
    recurrent = x.device.type == "cpu" and any(isinstance(m, nn.RNNBase) for m in module.modules())
    return "32" if x.dtype == torch.float64 or halves or recurrent else precision


def _laid_out(weight: Tensor, precision: Precision) -> Tensor:
    many = weight.ndim != 4 or len(weight) >= MANY_FILTERS
    elsewhere = weight.device.type != "cpu"
    if precision == "bf16" and weight.ndim >= 2 and (many or elsewhere or faster_in_bf16(len(weight))):
        weight = weight.bfloat16()
    if weight.ndim != 4:
        return weight
    return weight.contiguous(memory_format=torch.channels_last if many else torch.contiguous_format)
