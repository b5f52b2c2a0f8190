"""From a model to class probabilities, and a model with its weights held still.

`as_predictive(model)` accepts any `nn.Module` that returns logits of shape (batch, classes), or an object that has
them as `.logits`. `standing(module, mode)` sets a mode and restores every submodule's own on the way out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equipoise.convolution import MANY_FILTERS, faster_in_bf16
from equipoise.errors import EquipoiseError, require, unknown
from equipoise.nets.split import split
from equipoise.rng import Streams
from equipoise.types import Mode, Points, Precision, Predict, Prediction, Predictive, Weights

_BATCH_COUPLING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True)
class Single:
    """One network: `p = softmax(f(x))`."""

    module: nn.Module
    """The network."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """What the network returns; of probabilities the logarithm is taken."""

    def __post_init__(self) -> None:
        if self.outputs not in ("logits", "probabilities"):
            raise unknown("kind of output", self.outputs, ("logits", "probabilities"))

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        """The network as a function to a `Prediction` with one member."""
        network = self.module if weights is None else called_with(self.module, weights)

        def predict(x: Points) -> Prediction:
            output = network(x)
            scores = _scores(output, len(x), type(self.module).__name__)
            scores = scores if scores.dtype == torch.float64 else scores.float()
            if self.outputs == "probabilities":
                scores = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
            return Prediction(scores[None])

        return predict

    def split(self, layer: str) -> "tuple[nn.Module, Single]":
        """The encoder that ends with `layer`, and the classifier that follows it."""
        encoder, classifier = split(self.module, layer)
        return encoder, Single(classifier, self.outputs)


def as_predictive(
    model: "nn.Module | Predictive", outputs: Literal["logits", "probabilities"] = "logits"
) -> Predictive:
    """`model` itself if it is a predictive, else the network as one. Raises `EquipoiseError` for anything else."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module  # its copies on other devices would not see the weights that an ascent holds still
    require(
        not isinstance(model, torch.jit.ScriptModule),
        "a scripted or traced model cannot be attacked, its weights cannot be held still: give the original module.",
    )
    if isinstance(model, nn.Module):
        return Single(model, outputs)
    if isinstance(model, Predictive):
        return model
    raise EquipoiseError(f"a {type(model).__name__} is not a model: expected a torch.nn.Module that returns logits.")


def called_with(module: nn.Module, weights: Weights) -> Callable[[Points], Any]:
    """The module as a function that has these parameters and buffers in place of its own, also under the other names
    of what has several; as `torch.func.functional_call`, with the places looked up once and not at every call.
    """
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    chosen = {id(own): weights[name] for name, own in named if name in weights}
    places = [
        (holder, name, chosen[id(own)])
        for part in module.modules()
        for holder in (part._parameters, part._buffers)
        for name, own in holder.items()
        if id(own) in chosen
    ]

    def call(x: Points) -> Any:
        before = [holder[name] for holder, name, _ in places]
        try:
            for holder, name, weight in places:
                holder[name] = weight  # pyright: ignore[reportArgumentType]
            return module(x)
        finally:
            for (holder, name, _), own in zip(places, before, strict=True):
                holder[name] = own  # pyright: ignore[reportArgumentType]

    return call


def with_module(predictive: Predictive, module: nn.Module) -> Predictive:
    """The same kind of predictive with other weights: those of `module`. Raises `EquipoiseError` if it cannot be."""
    require(
        is_dataclass(predictive) and "module" in {field.name for field in fields(predictive)},
        f"a {type(predictive).__name__} cannot take averaged weights: make it a dataclass with a field `module`, or "
        "train without ema.",
    )
    return replace(predictive, module=module)  # pyright: ignore[reportCallIssue, reportArgumentType, reportReturnType]


def _scores(output: Any, batch: int, name: str) -> Tensor:
    scores: Any = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    require(
        isinstance(scores, Tensor) and scores.ndim == 2 and len(scores) == batch,
        f"{name} returned {_describe(output)}; expected logits of shape ({batch}, classes), or an object with .logits.",
    )
    return scores


def _describe(output: Any) -> str:
    return f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 without the short mantissa that a device may use in matrix products and, by default, in convolutions."""
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    places: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


@torch.no_grad()
def predict(predictive: Predictive, x: Points, streams: Streams | None = None) -> Prediction:
    """The prediction that counts: eval mode, the model's own precision, nothing frozen or rearranged."""
    with standing(predictive.module, "eval"), torch.autocast(x.device.type, enabled=False), full_precision():
        return predictive.draw(streams)(x)


def first_look(predictive: Predictive, x: Points, streams: Streams | None = None) -> Prediction:
    """The prediction at the first two samples, in eval mode, if it is one that an attack or a training can use.

    Raises `EquipoiseError` if the model does not take such inputs, changes them in place, or `check_outputs` objects.
    """
    few = x[:2].clone()
    with standing(predictive.module, "eval"), torch.no_grad():
        try:
            first = predictive.draw(None if streams is None else streams[:2])(few)
        except (RuntimeError, IndexError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise EquipoiseError(
                f"the model does not take inputs of shape {tuple(x.shape[1:])} and {x.dtype}: {reason}."
            ) from error
    require(
        few.equal(x[:2]),
        "the model changes its input in place: make its first operation one that returns a new tensor.",
    )
    check_outputs(first, predictive)
    return first


def check_outputs(prediction: Prediction, predictive: Predictive) -> None:
    """Raise `EquipoiseError` if a prediction has one class, is not finite, or looks like probabilities, not logits."""
    logits = prediction.logits.detach()
    require(prediction.classes >= 2, "the model has one output: expected logits of at least 2 classes.")
    require(
        bool(logits.isfinite().all()),
        "the model's logits are not finite on clean input: its weights may have diverged.",
    )
    is_log = getattr(predictive, "outputs", "logits") == "probabilities"
    values = logits.exp() if is_log else logits
    sums_to_one = bool(((values.sum(-1) - 1).abs() < 1e-3).all() and (values >= 0).all())
    require(
        is_log or not sums_to_one,
        "the model returns probabilities (rows that sum to 1), not logits: remove its last softmax, "
        "or wrap it as equipoise.Single(model, outputs='probabilities').",
    )
    require(
        not is_log or sums_to_one,
        "the model was declared to return probabilities but its rows do not sum to 1: use outputs='logits'.",
    )


@contextmanager
def standing(module: nn.Module, mode: Mode) -> Iterator[None]:
    """Put `module` in `mode`, and on the way out every submodule back in the mode it had."""
    before = [(m, m.training) for m in module.modules()]
    module.train(mode == "train")
    try:
        yield
    finally:
        for m, training in before:
            m.training = training


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators, from which dropout draws, and on the way out put their states back."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
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


def couples_samples(module: nn.Module) -> bool:
    """Whether, in its present mode, a sample's output depends on its batch (batch statistics, dropout masks)."""
    return any(
        isinstance(m, _BATCH_COUPLING) and (m.training or getattr(m, "track_running_stats", True) is False)
        for m in module.modules()
    )


def frozen_weights(module: nn.Module, mode: Mode, precision: Precision = "32") -> Weights:
    """The parameters cut from the graph, laid out for speed, and matrices in bf16 if asked for.

    In eval mode copies of the buffers are among them, so that nothing of the caller's can change. In train mode the
    buffers stay the module's own: batch-norm then updates its running statistics, as in any training forward pass.
    """
    weights = {name: _laid_out(p.detach(), precision) for name, p in module.named_parameters()}
    if mode == "eval":
        weights |= {name: b.detach().clone() for name, b in module.named_buffers()}
    return weights


def _laid_out(weight: Tensor, precision: Precision) -> Tensor:
    many = weight.ndim != 4 or len(weight) >= MANY_FILTERS
    elsewhere = weight.device.type != "cpu"
    if precision == "bf16" and weight.ndim >= 2 and (many or elsewhere or faster_in_bf16(len(weight))):
        weight = weight.bfloat16()
    if weight.ndim != 4:
        return weight
    return weight.contiguous(memory_format=torch.channels_last if many else torch.contiguous_format)
