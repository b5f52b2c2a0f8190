"""Accuracy on corrupted images: those of MNIST-C, made here or as they were published (F, Table 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from equipoise.core.checks import check_index
from equipoise.core.errors import require, require_integer
from equipoise.core.rng import Stream, Streams, fold
from equipoise.core.types import Labels, Points, Predictive
from equipoise.corruptions import CORRUPTIONS, Published, chosen, corrupt
from equipoise.corruptions.mnist_c import check_images
from equipoise.data import Dataset
from equipoise.data.dataset import stratified_order
from equipoise.evaluation.confirm import predict
from equipoise.evaluation.evaluate import check_samples
from equipoise.models import as_predictive, global_seed
from equipoise.results.records import CorruptionResult


@dataclass(frozen=True, eq=False)
class Corruptions:
    """Which corruptions to measure on, and where their images come from.

    Raises `EquipoiseError` for an unknown name or none.
    """

    names: Sequence[str] = tuple(CORRUPTIONS)
    """Which; `mnist-c` is all."""
    published: Published | None = None
    """The published images, one per sample in the order of the evaluation; without, they are made from the seed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", chosen(self.names))

    def of(self, data: Dataset, examples: int = 0) -> "Corruptions":
        """The same, the published images reduced to the `examples` test samples that an evaluation is of (0: all).

        Raises `EquipoiseError` if they are not of that test set, or if its images cannot be corrupted.
        """
        if self.published is None:
            check_images(data.test.x)
            return self
        test, mine = data.test, self.published
        require(
            torch.equal(mine.labels, test.y.cpu()) and data.shape == (1, 28, 28),
            f"the published corruptions are not of the test set of {data.name}: they have {len(mine.labels)} images of "
            f"shape (1, 28, 28) and their own labels; evaluate on all of MNIST (--data mnist), or without them.",
        )
        n = len(test)
        rows = stratified_order(test.y, 0)[:examples].cpu() if 0 < examples < n else torch.arange(n)
        images = {name: mine.images[name][rows] for name in self.names}
        return replace(self, published=Published(images, mine.labels[rows], mine.sha256))

    def sources(self) -> Mapping[str, str]:
        """Where the images of each corruption come from, as in `CorruptionResult.source`."""
        return {name: "" if self.published is None else self.published.sha256[name] for name in self.names}

    def images(self, name: str, x: Points, seed: int, index: Int[Tensor, " batch"]) -> Points:
        """The samples `index` of the evaluation, whose clean images are `x`, under one corruption.

        They are made on the CPU, so that every device gets the same.
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
    """Accuracy of a model on each corruption of the images `x` with labels `y`.

    What is random depends on `seed` and each sample's `index` (default 0, 1, ...), not on batches or order.

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
    found = []
    for name, source in corruptions.sources().items():
        labels: list[int] = []
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            images = corruptions.images(name, x[rows], seed, index[rows])
            with global_seed(fold(seed, Stream.GLOBAL, int(index[start])), x.device):
                labels += predict(predictive, images, streams[rows]).tolist()
        right = [label == true for label, true in zip(labels, y.tolist(), strict=True)]
        found.append(CorruptionResult(name, right, labels, source))
    return found


def joined_corruptions(parts: Sequence[Sequence[CorruptionResult]]) -> list[CorruptionResult]:
    """The results on several batches as those on one, outcomes in order."""
    return [
        replace(
            of_one[0],
            correct=[right for part in of_one for right in part.correct],
            prediction=[label for part in of_one for label in part.prediction],
        )
        for of_one in zip(*parts, strict=True)
    ]
