"""Ensembles: the mean over several networks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import vmap

from equipoise.core.errors import kind_of, require
from equipoise.core.rng import Streams
from equipoise.core.types import Points, Predict, Prediction, Weights
from equipoise.models.single import Single
from equipoise.nets import MLP, Normalize
from equipoise.nets.split import split

_POINTWISE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Identity)
_VECTORIZED = (nn.Sequential, nn.Flatten, nn.Linear, MLP, Normalize, *_POINTWISE)


@dataclass(frozen=True)
class Ensemble:
    """M networks: `p = (1/M) Σ_m softmax(f_m(x))` (Lakshminarayanan et al. 2017; U, Sec. 2).

    `Ensemble([first, second, ...])`. Members may differ in everything but their number of classes. On an accelerator,
    members of one architecture made of linear layers and pointwise functions are computed together by
    `torch.func.vmap`; all others, and on a CPU where it gains nothing, one after the other.
    """

    module: Any
    """The members; a sequence of networks becomes a `ModuleList`."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """Output of the members."""
    vectorize: bool | None = None
    """Whether to compute the members together; None decides by their layers. While batch statistics are averaged, in
    train mode, members are always computed one after the other."""
    stacked: bool = False
    """Whether every member has its own input: batches of shape (batch, members, ...)."""

    def __post_init__(self) -> None:
        kind = type(self.module)
        single = issubclass(kind, nn.Module) and not issubclass(kind, nn.ModuleList | nn.Sequential)
        require(
            not single and self.outputs in ("logits", "probabilities"),
            "an ensemble takes its members as one list: write Ensemble([first, second]).",
        )
        members = list(self.module)
        require(len(members) >= 1, "an ensemble needs at least one network.")
        for member in members:
            require(
                isinstance(member, nn.Module),
                f"{kind_of(member)} is no member of an ensemble: expected torch.nn.Modules that return logits.",
            )
        if not isinstance(self.module, nn.ModuleList):
            object.__setattr__(self, "module", nn.ModuleList(members))
        require(
            not self.vectorize or _alike(members),
            "vectorize = True needs members of one architecture; leave it out to compute them one after the other.",
        )

    def __len__(self) -> int:
        return len(self.module)

    @property
    def members(self) -> list[Single]:
        """The members as predictives."""
        return [Single(member, self.outputs) for member in self.module]

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        """Return all members as a function to a `Prediction`. `streams` are not used."""
        if len(self) > 1 and self._use_vmap:
            return self._vectorized(weights)
        each = [None] * len(self) if weights is None else self._by_member(weights)
        draws = [member.draw(None, own) for member, own in zip(self.members, each, strict=True)]

        def predict(x: Points) -> Prediction:
            inputs = x.unbind(1) if self.stacked else [x] * len(draws)
            return Prediction(torch.cat([draw(input).logits for draw, input in zip(draws, inputs, strict=True)]))

        return predict

    def split(self, layer: str) -> "tuple[nn.Module, Ensemble]":
        """Return the members' encoders, with codes of shape (batch, members, ...), and an ensemble of classifiers."""
        pairs = [split(member, layer) for member in self.module]
        rest = nn.ModuleList([classifier for _, classifier in pairs])
        encoders = _Encoders([encoder for encoder, _ in pairs], layer)
        return encoders, Ensemble(rest, self.outputs, self.vectorize, stacked=True)

    @property
    def _use_vmap(self) -> bool:
        if any(m.training and getattr(m, "track_running_stats", False) for m in self.module.modules()):
            return False  # vmap cannot update the running statistics of all members
        if self.vectorize is not None:
            return self.vectorize
        on_cpu = all(weight.device.type == "cpu" for weight in self.module.parameters())
        return not on_cpu and _alike(self.module) and all(type(m) in _VECTORIZED for m in self.module[0].modules())

    def _vectorized(self, weights: Weights | None) -> Predict:
        constant = None if weights is None else self._stacked(weights)

        def member_logits(weights: Weights, x: Points) -> Tensor:
            return Single(self.module[0], self.outputs).draw(None, weights)(x).logits[0]

        def predict(x: Points) -> Prediction:
            logits = vmap(member_logits, in_dims=(0, 1 if self.stacked else None), randomness="different")
            return Prediction(logits(self._stacked(dict(_named(self.module))) if constant is None else constant, x))

        return predict

    def _by_member(self, weights: Weights) -> list[Weights]:
        """Each member's weights by its own names. A tensor that members share has one name in `weights`."""
        names = {id(tensor): name for name, tensor in _named(self.module)}
        return [
            {own: weights[names[id(t)]] for own, t in _named(member) if names[id(t)] in weights}
            for member in self.module
        ]

    def _stacked(self, weights: Weights) -> Weights:
        each = self._by_member(weights)
        return {name: torch.stack([own[name] for own in each]) for name in each[0]}


class _Encoders(nn.Module):
    """Several encoders of the same batch, with codes of shape (batch, members, ...)."""

    def __init__(self, encoders: Sequence[nn.Module], layer: str) -> None:
        super().__init__()
        self.encoders, self.layer = nn.ModuleList(encoders), layer

    def forward(self, x: Tensor) -> Tensor:
        codes = [encoder(x) for encoder in self.encoders]
        shapes = dict.fromkeys(tuple(code.shape[1:]) for code in codes)
        require(
            len(shapes) == 1,
            f"the members' codes at {self.layer!r} have different shapes, {' and '.join(map(str, shapes))}: perturb "
            "members of different widths in the input, or at a layer where they agree.",
        )
        return torch.stack(codes, 1)


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _alike(members: Iterable[nn.Module]) -> bool:
    """Whether the networks have the same modules, modes and shapes."""
    architectures = [
        [(name, type(m), m.training) for name, m in member.named_modules()]
        + [(name, t.shape, t.dtype) for name, t in member.state_dict().items()]
        for member in members
    ]
    return all(architecture == architectures[0] for architecture in architectures)
