"""Training of auxiliary networks: networks that penalties own, such as a generator of adversarial examples.

After every step of the classifier each takes steps of its own, on a batch of another shuffle (F, Alg. 1).
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
    plain_state,
    restore_optimizer,
    save_tensors,
    with_prefix,
)

_PICTURED = 8  # samples in the pictures of the training's progress
_SCALE = 3  # pixels of the picture for each pixel of a sample


class AuxiliaryTraining:
    """The training of one auxiliary network in one process: the network, its optimiser, metrics and pictures."""

    def __init__(self, auxiliary: AuxiliaryNetwork, fabric: Fabric, inputs: Points) -> None:
        """`inputs` are held-out samples, the first few of which are pictured after every epoch."""
        self.auxiliary, self.fabric, self.inputs = auxiliary, fabric, inputs[:_PICTURED]
        self.name = auxiliary.name
        self.network = auxiliary.network().to(fabric.device)
        self.optimizer = auxiliary.make_optimizer()
        self.totals: dict[str, Tensor] = {}  # of the running epoch, in float64 on the device
        self.pictures = [_quantised(self.inputs)]  # the inputs, then one entry for each epoch

    def step(self, predictive: Predictive, x: Points, streams: Streams, batch_size: int) -> None:
        """Take the network's steps on this process's share `x` of a batch, against the frozen classifier in eval mode.

        `batch_size` counts the samples of all processes.
        """
        for _ in range(self.auxiliary.steps):
            predict = frozen(predictive).draw(streams)
            with self.fabric.autocast():
                losses, reported = self.auxiliary.losses(predict, x)
            self.optimizer.zero_grad()
            (losses.sum() / batch_size).backward()
            for weight in self.network.parameters():
                if weight.grad is not None:
                    weight.grad = self._over_processes(weight.grad)
            self.optimizer.step()
            for name, values in {"n": torch.ones_like(losses), "loss": losses, **reported}.items():
                self.totals[name] = self.totals.get(name, 0) + values.detach().double().sum()

    def finish_epoch(self) -> dict[str, float]:
        """Take the next picture, and return the means over the epoch, named `NAME_...`."""
        totals = {name: float(total) for name, total in sorted(self._reduced_totals().items())}
        n = totals.pop("n")
        self.totals = {}
        self.pictures.append(_quantised(self.auxiliary.show(self.inputs)))
        return {f"{self.name}_{name}": total / n for name, total in totals.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors for a checkpoint. Every process must call it, because totals are summed over them."""
        return (
            {f"network.{k}": v for k, v in plain_state(self.network).items()}
            | {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
            | {f"sums.{k}": v for k, v in self._reduced_totals().items()}
            | {"pictures": torch.stack(self.pictures)}
        )

    def restore(self, tensors: dict[str, Tensor], path: str) -> None:
        """Restore what `tensors` returned."""
        copy_into(self.network, with_prefix(tensors, "network."), path)
        restore_optimizer(self.optimizer, with_prefix(tensors, "optimizer."))
        self.pictures = list(tensors["pictures"])
        share = float(self.fabric.is_global_zero)  # one process takes the totals of all
        self.totals = {k: share * v.to(self.fabric.device) for k, v in with_prefix(tensors, "sums.").items()}

    def write(self, folder: Path) -> str:
        """Write the network and its pictures, as data and, for images and with matplotlib installed, as a PNG file.
        Return the SHA-256 of the network's file.
        """
        name, pictures = self.name, torch.stack(self.pictures)
        sha = save_tensors(folder / f"{name}.safetensors", plain_state(self.network), self.auxiliary.config())
        save_tensors(folder / f"{name}_pictures.safetensors", {"pictures": pictures})
        image = _as_png(pictures)
        if image is not None:
            write_atomically(folder / f"{name}.png", image)
        return sha

    def _reduced_totals(self) -> dict[str, Tensor]:
        return {name: self._over_processes(value.clone()) for name, value in self.totals.items()}

    def _over_processes(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        total: Any = self.fabric.all_reduce(value, reduce_op="sum")
        return total


def _quantised(x: Points) -> Tensor:
    """Pixels as bytes, on the CPU."""
    return (255 * x.detach().float().clamp(0, 1)).round().byte().cpu()


def _as_png(pictures: Tensor) -> bytes | None:
    """A row of pictures for the inputs and for each epoch, or None unless they are grey or colour images and
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
    buffer = io.BytesIO()
    imsave(buffer, image.repeat_interleave(_SCALE, 0).repeat_interleave(_SCALE, 1).numpy(), format="png")
    return buffer.getvalue()
