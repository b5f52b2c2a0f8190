"""The other players of a training: networks that penalties own, such as a generator of adversarial examples.

After every step of the classifier each takes one, on a batch of another shuffle (F, Alg. 1).
"""

import io
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from equipoise.core.files import write_atomically
from equipoise.core.rng import Streams
from equipoise.core.types import Points, Predictive
from equipoise.losses.terms import AuxiliaryNetwork
from equipoise.models import frozen
from equipoise.training.checkpoint import (
    copy_into,
    optimizer_tensors,
    part,
    plain_state,
    restore_optimizer,
    save_tensors,
)

_SHOWN = 8  # samples in the picture of a player's progress
_ENLARGED = 3  # pixels of the picture for each of theirs


class Seat:
    """One player in one process: its network on the device, its optimiser, and what it has done so far."""

    def __init__(self, player: AuxiliaryNetwork, fabric: Fabric, inputs: Points) -> None:
        """Of the first few `inputs` it takes a picture after every epoch."""
        self.player, self.fabric, self.inputs = player, fabric, inputs[:_SHOWN]
        self.network = player.network().to(fabric.device)
        self.optimizer = player.make_optimizer()
        self.sums: dict[str, Tensor] = {}  # of the running epoch, in float64 on the device
        self.pictures = [_quantised(self.inputs)]  # the inputs, and what was shown after each epoch

    def step(self, predictive: Predictive, x: Points, streams: Streams, total: int) -> None:
        """The player's steps on this process's share `x` of a batch of `total`."""
        for _ in range(self.player.steps):
            self._step(predictive, x, streams, total)

    def _step(self, predictive: Predictive, x: Points, streams: Streams, total: int) -> None:
        """One of them; the classifier stands still, in eval mode."""
        predict = frozen(predictive).draw(streams)
        with self.fabric.autocast():
            losses, shown = self.player.losses(predict, x)
        self.optimizer.zero_grad()
        (losses.sum() / total).backward()
        for weight in self.network.parameters():
            if weight.grad is not None:
                weight.grad = self._over_processes(weight.grad)
        self.optimizer.step()
        for name, values in {"n": torch.ones_like(losses), "loss": losses, **shown}.items():
            self.sums[name] = self.sums.get(name, 0) + values.detach().double().sum()

    def finish_epoch(self) -> dict[str, float]:
        """The means over the epoch, by `NAME_...`; and the next picture is taken."""
        totals = {name: float(total) for name, total in sorted(self._totals().items())}
        n = totals.pop("n")
        self.sums = {}
        self.pictures.append(_quantised(self.player.show(self.inputs)))
        return {f"{self.player.name}_{name}": total / n for name, total in totals.items()}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs. Every process must ask for it: the sums are those of all."""
        return (
            {f"network.{k}": v for k, v in plain_state(self.network).items()}
            | {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
            | {f"sums.{k}": v for k, v in self._totals().items()}
            | {"pictures": torch.stack(self.pictures)}
        )

    def restore(self, tensors: dict[str, Tensor], where: str) -> None:
        """Put back what `tensors` returned."""
        copy_into(self.network, part(tensors, "network."), where)
        restore_optimizer(self.optimizer, part(tensors, "optimizer."))
        self.pictures = list(tensors["pictures"])
        own = float(self.fabric.is_global_zero)  # the sums of all processes go to one of them
        self.sums = {k: own * v.to(self.fabric.device) for k, v in part(tensors, "sums.").items()}

    def write(self, folder: Path) -> str:
        """Its network, and its pictures: as data, and as one image where they are images and matplotlib is there.
        Returns the SHA-256 of the network's file.
        """
        name, pictures = self.player.name, torch.stack(self.pictures)
        sha = save_tensors(folder / f"{name}.safetensors", plain_state(self.network), self.player.config())
        save_tensors(folder / f"{name}_pictures.safetensors", {"pictures": pictures})
        image = _as_png(pictures)
        if image is not None:
            write_atomically(folder / f"{name}.png", image)
        return sha

    def _totals(self) -> dict[str, Tensor]:
        return {name: self._over_processes(value.clone()) for name, value in self.sums.items()}

    def _over_processes(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        total: Any = self.fabric.all_reduce(value, reduce_op="sum")
        return total


def _quantised(x: Points) -> Tensor:
    """Pixels in 256 steps, on the CPU."""
    return (255 * x.detach().float().clamp(0, 1)).round().byte().cpu()


def _as_png(pictures: Tensor) -> bytes | None:
    """A row of pictures for the inputs and one for each epoch; None unless they are images, grey or in colour, and
    matplotlib is installed.
    """
    try:
        from matplotlib.image import imsave
    except ImportError:
        return None
    if pictures.ndim != 5 or pictures.shape[2] not in (1, 3):
        return None
    rows, columns, channels, height, width = pictures.shape
    image = pictures.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels).expand(-1, -1, 3)
    large = image.repeat_interleave(_ENLARGED, 0).repeat_interleave(_ENLARGED, 1)
    buffer = io.BytesIO()
    imsave(buffer, large.numpy(), format="png")
    return buffer.getvalue()
