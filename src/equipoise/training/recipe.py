"""The recipe of a training: optimiser, schedule, number of epochs, precision, validation."""

import os
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch
from torch import nn

from equipoise.core.errors import EquipoiseError, require, unknown


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run besides method, network and data. Raises `EquipoiseError` for unusable values."""

    epochs: int = 20
    """Passes over the training data."""
    batch_size: int = 256
    """Samples per step, summed over all devices."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or stochastic gradient descent with momentum."""
    lr: float = 1e-3
    """Learning rate; the peak of a schedule."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's momentum for SGD."""
    weight_decay: float = 0.0
    """L2 penalty on the weights, as the optimiser applies it."""
    schedule: Literal["constant", "multistep", "triangular", "cyclic"] = "constant"
    """Learning rate over time. multistep: multiplied by `decay` at each milestone; triangular and cyclic (the name of
    Andriushchenko & Flammarion 2020): linear from 0 to the peak, reached after the share `lr_peak` of the training,
    and back to 0."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Milestones of multistep, as shares of the training."""
    decay: float = 0.1
    """Factor of the learning rate at each milestone of multistep."""
    lr_peak: float = 0.4
    """Share of the training after which the triangular learning rate peaks."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is validated and saved in their place; 0 is off."""
    awp: float = 0.0
    """Adversarial weight perturbation: take the gradient at weights moved along the loss gradient by this share of
    their norm, such as 0.005; 0 is off. Doubles the cost of the training pass, not of the perturbations."""
    awp_warmup: int = 0
    """Epochs without adversarial weight perturbation at the beginning."""
    precision: Literal["32", "bf16"] = "32"
    """bf16: compute perturbations and the training step in bfloat16 where that is safe; weights stay float32."""
    channels_last: bool | None = None
    """Train in channels-last memory format; by default if most convolutions have 32 filters or more, where it is
    faster. Perturbations choose the format layer by layer."""
    augment: Literal["none", "crop-flip"] = "none"
    """Augmentation: random crops after padding by 4, and horizontal flips."""
    validation: float | None = None
    """Share of the training data held out for validation; default 0.1, for SVHN 6,257 of 73,257 samples."""
    valid_examples: int = 1000
    """Maximum number of validation samples, attacked after each epoch."""
    valid_eps: float | None = None
    """Radius of the validation attacks; default 8/255 for colour images, else 0.1, or the method's if smaller."""
    valid_steps: int = 10
    """Steps of the validation PGD."""
    patience: int = 0
    """Stop early once the highest robust validation accuracy is this many epochs old; 0 never stops early."""
    seed: int = 0
    """Seed of all random numbers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto uses a GPU if there is one."""
    devices: int = 1
    """Number of processes or GPUs."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints within an epoch, besides the one after every epoch; 0 for none."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard."""

    def __post_init__(self) -> None:
        for f in fields(self):
            _require_type(f.name, getattr(self, f.name), f.type)
        for name, low, high in _RANGES:
            value = getattr(self, name)
            require(
                value is None or low <= value <= high,
                f"{name} = {value} is out of range: expected {low:g} <= {name}"
                + (f" <= {high:g}." if high < 1e9 else "."),
            )
        require(0 <= self.ema < 1, f"ema = {self.ema} is not a decay: expected 0 <= ema < 1, such as 0.999.")
        require(0 < self.lr <= 1e30, f"lr = {self.lr} trains nothing: expected a number > 0, such as 1e-3.")
        require(
            not (self.optimizer == "sgd" and self.nesterov and self.momentum == 0),
            "nesterov needs momentum > 0: give some, or turn nesterov off.",
        )
        require(
            all(0 < m < 1 for m in self.milestones),
            f"milestones = {self.milestones} are shares of the training, each in (0, 1).",
        )
        require(0 < self.lr_peak < 1, f"lr_peak = {self.lr_peak} is a share of the training in (0, 1), such as 0.4.")
        require(0 < self.decay <= 1, f"decay = {self.decay}: expected a factor in (0, 1], such as 0.1.")

    def learning_rate(self, done: float) -> float:
        """The learning rate after the share `done` in [0, 1] of all steps."""
        match self.schedule:
            case "constant":
                return self.lr
            case "multistep":
                return self.lr * self.decay ** sum(done >= m for m in self.milestones)
            case "triangular" | "cyclic":
                return float(np.interp(done, [0, self.lr_peak, 1], [0, self.lr, 0]))

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of the module's parameters."""
        weights = [p for p in module.parameters() if p.requires_grad]
        require(len(weights) > 0, "the network has no parameters to train.")
        if self.optimizer == "adam":
            return torch.optim.Adam(weights, self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(weights, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov)

    def pick_device(self) -> torch.device:
        """The device to train on. Raises `EquipoiseError` if a GPU was asked for and there is none."""
        gpu = torch.cuda.is_available()
        if self.device == "cuda" and not gpu:
            raise EquipoiseError("device cuda was asked for, but torch sees no GPU: use --device cpu or auto.")
        return torch.device("cuda" if gpu and self.device != "cpu" else "cpu")

    @property
    def depends_on_epochs(self) -> bool:
        """Whether the learning rate of an epoch depends on the number of epochs."""
        return self.schedule != "constant"


_TYPES = {int: "an integer", float: "a number", bool: "True or False"}


def _require_type(name: str, value: object, hint: Any) -> None:
    """Raise `EquipoiseError` for a value that a field's annotation excludes; an integer is a number, a bool neither."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise unknown(name, value, get_args(hint))
        return
    types = get_args(hint) or (hint,)
    kind = next((kind for kind in types if kind in _TYPES), None)
    if kind is None or get_origin(hint) is tuple or (value is None and type(None) in types):
        return
    valid = isinstance(value, kind) or (kind is float and isinstance(value, int))
    require(
        valid and (kind is bool or not isinstance(value, bool)), f"{name} = {value!r:.80}: expected {_TYPES[kind]}."
    )


def require_devices(devices: int, kind: str) -> None:
    """Raise `EquipoiseError` if the machine has fewer GPUs (`kind` cuda), or processors (`kind` cpu)."""
    count, noun = (torch.cuda.device_count(), "GPU") if kind == "cuda" else (os.cpu_count() or 1, "processor")
    require(
        devices <= count,
        f"devices = {devices}: this machine has {count} {noun}{'' if count == 1 else 's'}; expected at most that.",
    )


_RANGES = (
    ("epochs", 1, 1e9),
    ("batch_size", 1, 1e9),
    ("momentum", 0, 1),
    ("weight_decay", 0, 1e9),
    ("awp", 0, 1),
    ("awp_warmup", 0, 1e9),
    ("validation", 0.0001, 0.9),
    ("valid_examples", 1, 1e9),
    ("valid_eps", 1e-9, 1e9),
    ("valid_steps", 1, 1e9),
    ("patience", 0, 1e9),
    ("devices", 1, 1e9),
    ("checkpoint_minutes", 0, 1e9),
    ("seed", -(2**63), 2**63 - 1),
)
MAY_CHANGE = ("device", "devices", "checkpoint_minutes", "tensorboard", "epochs", "patience")
"""Fields that may have other values when a run is resumed."""
