"""Robustness to common corruptions: those of MNIST-C (F, Table 3), CIFAR-10-C and ImageNet-C."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from equipoise.core.checks import check_index
from equipoise.core.errors import require, require_integer
from equipoise.core.rng import Stream, Streams, fold
from equipoise.core.types import Labels, Points, Predictive
from equipoise.corruptions import CORRUPTIONS, Published, check_images, chosen, corrupt
from equipoise.data import Dataset
from equipoise.data.dataset import stratified_order
from equipoise.evaluation.confirm import predict
from equipoise.evaluation.evaluate import check_samples
from equipoise.models import as_predictive, global_seed
from equipoise.results.records import CorruptionResult


@dataclass(frozen=True, eq=False)
class Corruptions:
    """The corruptions to evaluate on, and the source of their images.

    Raises `EquipoiseError` for an unknown name or none.
    """

    names: Sequence[str] = tuple(CORRUPTIONS)
    """Names of corruptions; `mnist-c`, `cifar-c`, `cifar-c/fog`, ... stand for several."""
    published: Published | None = None
    """The published images, one per sample in the order of the evaluation; if None, they are made from the seed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", chosen(self.names))

    def of(self, data: Dataset, examples: int = 0) -> "Corruptions":
        """Return the same, with the published images of the `examples` test samples of an evaluation only (0: all).

        Raises `EquipoiseError` if they are not of that test set, or if its images cannot be corrupted.
        """
        if self.published is None:
            check_images(data.test.x, self.names)
            return self
        test, own = data.test, self.published
        require(
            torch.equal(own.labels, test.y.cpu()) and data.shape == own.shape,
            f"the published corruptions are not of the test set of {data.name}: they have {len(own.labels)} images "
            f"of shape {own.shape} and their own labels; evaluate on all of MNIST (--data mnist) for MNIST-C, of "
            "CIFAR-10 for CIFAR-10-C, or without them.",
        )
        n = len(test)
        selected = stratified_order(test.y, 0)[:examples].cpu() if 0 < examples < n else torch.arange(n)
        images = {name: own.images[name][selected] for name in self.names}
        return replace(self, published=Published(images, own.labels[selected], own.sha256))

    def sources(self) -> Mapping[str, str]:
        """Return the source of the images of each corruption, as in `CorruptionResult.source`."""
        return {name: "" if self.published is None else self.published.sha256[name] for name in self.names}

    def images(self, name: str, x: Points, seed: int, index: Int[Tensor, " batch"]) -> Points:
        """Return the samples `index` of the evaluation, whose clean images are `x`, under one corruption.

        They are made on the CPU, so that they are the same on every device.
        """
        if self.published is None:
            return corrupt(x.cpu(), name, seed, index).to(x.device)
        return self.published.at(name, index).to(x.device, x.dtype)


@torch.no_grad()
def on_corruptions(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    corruptions: Corruptions = Corruptions(),
    *,
    seed: int = 0,
    index: Int[Tensor, " batch"] | None = None,
    batch_size: int = 256,
) -> list[CorruptionResult]:
    """Return the accuracy of a model on each corruption of the images `x` with labels `y`.

    Random draws depend on `seed` and each sample's `index` (default 0, 1, ...), not on batches or order.

        results = on_corruptions(model, x, y)
        print(MeanResult(results).accuracy, *((r.corruption, r.accuracy, r.interval) for r in results))

    Raises `EquipoiseError` for images that cannot be corrupted (see `equipoise.corruptions.corrupt`) or evaluated.
    """
    require_integer("batch_size", batch_size, 1)
    predictive = as_predictive(model)
    x, y = check_samples(predictive, x, y, [])
    index = torch.arange(len(x)) if index is None else index.cpu()
    check_index(index, len(x))
    streams = Streams.of(seed, index.to(x.device)).fold(Stream.MODEL)
    results = []
    for name, source in corruptions.sources().items():
        labels: list[int] = []
        for start in range(0, len(x), batch_size):
            batch = slice(start, start + batch_size)
            images = corruptions.images(name, x[batch], seed, index[batch])
            with global_seed(fold(seed, Stream.GLOBAL, int(index[start])), x.device):
                labels += predict(predictive, images, streams[batch]).tolist()
        correct = [label == true for label, true in zip(labels, y.tolist(), strict=True)]
        results.append(CorruptionResult(name, correct, labels, source))
    return results
