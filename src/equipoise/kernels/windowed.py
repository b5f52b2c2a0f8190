"""Predictions at images that differ from earlier ones in a small window, without recomputing the rest.

Networks often begin with local layers: convolutions, poolings, pointwise functions, sums of their outputs. A change in
a window of the image changes only a window of each of their outputs (`_receptive_fields`). The network runs as it is,
on images of which only the window exists (`_partial_images`); what a layer needs around it comes from stored
activations. From the first other operation on, and from a convolution of whose output even a small change reaches most,
the network computes as always.

    windowed = WindowedForward.of(predict, x)
    stages = windowed.stages(x)                                         # the images and the stored activations
    prediction, changes = windowed.predict(stages, samples, patch, window)
    windowed.write(stages, samples, changes)                            # to accept the change
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from equipoise.core.deprecation import renamed_names
from equipoise.core.types import Points, Predict, Prediction
from equipoise.kernels._partial_images import FeatureMaps, NotStoredError, PartialPass, Structure, pasted
from equipoise.kernels._receptive_fields import Span, Window, covered_share

__all__ = ["Change", "FeatureMaps", "Span", "Window", "WindowedForward"]
__getattr__ = renamed_names(__name__, {"LocalForward": "WindowedForward"})

Change = tuple[Tensor, Window]
"""New values of a window of a stage."""

MOST_MEMORY = 2**22
"""Bytes of activations that may be stored per sample."""
_BATCH_SIZE = 256  # whole images per pass; of windows as many more as have the same number of pixels


@dataclass(frozen=True)
class WindowedForward:
    """A prediction that recomputes only what a change in a window reaches. The weights must not change meanwhile."""

    predict_whole: Predict
    """The prediction at whole images."""
    stored: tuple[int, ...] = ()
    """The network's operations whose outputs are stored; none if everything is recomputed."""
    _structure: Structure = field(default_factory=Structure)

    @classmethod
    @torch.no_grad()
    def of(cls, predict: Predict, x: Points) -> "WindowedForward":
        """Return the windowed prediction of one network on a CPU, if it agrees with `predict` at the first samples of
        `x`; else one that recomputes everything.
        """
        plain = cls(predict)
        if x.ndim != 4 or x.device.type != "cpu":
            return plain
        few = x[:2]
        window, structure = _small_window(few), Structure()
        try:
            for explores in (True, False):
                structure.stored.clear()
                current = PartialPass(structure, explores=explores)
                predict(current.input(few, window, few.shape[2:]))
            stored = tuple(sorted(structure.stored - {0}))
            memory = sum(current.activations[index].values[0].nbytes for index in stored)
            windowed = cls(predict, stored, structure)
            if not stored or memory > MOST_MEMORY or not windowed._agrees(few, window):
                return plain
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
            return plain  # not every network accepts a tensor subclass
        return windowed

    def _agrees(self, few: FeatureMaps, window: Window) -> bool:
        """Whether the prediction with other values in the window is that at the whole images."""
        rows, columns = (slice(*span) for span in window)
        new = few.clone()
        patch = torch.linspace(0, 1, new[:, :, rows, columns].numel()).to(new).reshape(new[:, :, rows, columns].shape)
        new[:, :, rows, columns] = patch
        prediction, _ = self._predict(self.stages(few), torch.arange(len(few)), patch, window)
        tolerance = 0.05 if torch.is_autocast_enabled("cpu") else 1e-4
        return not bool(prediction.differs(self.predict_whole(new), tolerance).any())

    def stages(self, x: FeatureMaps) -> list[FeatureMaps]:
        """Return copies of the images and of the stored activations, which `write` changes."""
        batches = [self._stages(batch) for batch in x.split(_batch_size(x, 1.0))]
        return [torch.cat(stage) for stage in zip(*batches, strict=True)]

    def _stages(self, x: FeatureMaps) -> list[FeatureMaps]:
        if not self.stored:
            return [x]
        current = PartialPass(self._structure)
        self.predict_whole(current.input(x, _small_window(x), x.shape[2:]))
        return [current.activations[index].image for index in (0, *self.stored)]

    def predict(
        self, stages: Sequence[FeatureMaps], samples: Int[Tensor, " _samples"], patch: FeatureMaps, window: Window
    ) -> tuple[Prediction, list[Change]]:
        """Return the prediction for the indexed samples with `patch` in the window, and the change of every stage."""
        size = _batch_size(stages[0], covered_share(window, stages[0].shape[2:]) if self.stored else 1.0)
        if size >= len(samples):
            return self._predict(stages, samples, patch, window)
        batches = zip(samples.split(size), patch.split(size), strict=True)
        results = [self._predict(stages, index, values, window) for index, values in batches]
        logits = torch.cat([prediction.logits for prediction, _ in results], 1)
        changes = [
            (torch.cat([values for values, _ in stage]), stage[0][1])
            for stage in zip(*(changes for _, changes in results), strict=True)
        ]
        return Prediction(logits), changes

    def _predict(
        self, stages: Sequence[FeatureMaps], samples: Int[Tensor, " _samples"], patch: FeatureMaps, window: Window
    ) -> tuple[Prediction, list[Change]]:
        size = stages[0].shape[2:]
        everything = ((0, size[0]), (0, size[1]))
        if not self.stored:
            return self.predict_whole(pasted(stages[0], samples, patch, window, everything)), [(patch, window)]
        operations = (0, *self.stored)
        current = PartialPass(self._structure, dict(zip(operations, stages, strict=True)), samples)
        try:
            prediction = self.predict_whole(current.input(patch, window, size))
        except NotStoredError:  # a layer needs more around this window than is stored: recompute whole images
            images = pasted(stages[0], samples, patch, window, everything)
            return self._predict(stages, samples, images, everything)
        activations = [current.activations[index] for index in operations]
        return prediction, [(activation.image, activation.window) for activation in activations]

    def write(
        self, stages: Sequence[FeatureMaps], samples: Int[Tensor, " _samples"], changes: Sequence[Change]
    ) -> None:
        """Write the changes of the indexed samples into every stage."""
        for stage, (patch, (rows, columns)) in zip(stages, changes, strict=True):
            stage[:, :, slice(*rows), slice(*columns)].index_copy_(0, samples, patch)


def _small_window(images: FeatureMaps) -> Window:
    """An eighth of either side, a quarter from the edge: neither at the edge nor in the middle."""
    rows, columns = ((n // 4, n // 4 + max(n // 8, 1)) for n in images.shape[2:])
    return rows, columns


def _batch_size(x: Tensor, share: float) -> int:
    return int(_BATCH_SIZE / max(share, 1e-6)) if x.device.type == "cpu" else max(len(x), 1)
