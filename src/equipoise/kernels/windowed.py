"""Predictions at images that differ from earlier ones in a small window, without recomputing the rest.

Networks often begin with local layers: convolutions, poolings, pointwise functions, sums of their outputs. A change in
a window of the image changes only a window of each of their outputs (`_receptive_fields`). The layers of the network's
trace (`trace`) are computed there (`_window_program`); what a layer needs around the window comes from stored outputs.
A network of which not every layer is known is computed whole.

    windowed = WindowedForward.of(predict, x)
    stages = windowed.stages(x)                                         # the images and the stored activations
    prediction, changes = windowed.predict(stages, samples, patch, window)
    windowed.write(stages, samples, changes)                            # to accept the change
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from equipoise.core.deprecation import renamed_names
from equipoise.core.types import Points, Predict, Prediction
from equipoise.kernels._receptive_fields import Span, Window, covered_share
from equipoise.kernels._window_program import Changed, FeatureMaps, Program, pasted
from equipoise.kernels.input_gradients import FastInputGradients
from equipoise.kernels.trace import trace_of

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
    program: Program | None = None
    """How it is computed from changed windows; None if it is computed whole."""

    @property
    def stored(self) -> Sequence[int]:
        """The layers whose outputs are stored, the images not included."""
        return () if self.program is None else self.program.stored[1:]

    @classmethod
    @torch.no_grad()
    def of(cls, predict: Predict, x: Points) -> "WindowedForward":
        """Return the windowed prediction of one network on a CPU, if all its layers are known and it agrees with
        `predict` at the first samples of `x`; else one that recomputes everything.
        """
        plain = cls(predict)
        if x.ndim != 4 or x.device.type != "cpu":
            return plain
        few = x[:3]  # one more than a trace watches: what a network computes may depend on the size of the batch
        window = _small_window(few)
        try:
            trace = trace_of(lambda images: predict(images).logits, few)
        except Exception:  # is raised again by the prediction itself, unless it was only upset by being watched
            return plain
        windowed = cls(predict, Program.of(trace, window))
        if not windowed.stored:
            return plain
        memory = sum(stage[0].nbytes for stage in windowed.stages(few)[1:])
        return windowed if memory <= MOST_MEMORY and windowed._agrees(few, window) else plain

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
        if self.program is None:
            return [x]
        with FastInputGradients():  # as in an attack's prediction, narrow convolutions stay in float32 in bf16
            return list(self.program.whole(x).values())

    def predict(
        self, stages: Sequence[FeatureMaps], samples: Int[Tensor, " _samples"], patch: FeatureMaps, window: Window
    ) -> tuple[Prediction, list[Change]]:
        """Return the prediction for the indexed samples with `patch` in the window, and the change of every stage."""
        size = _batch_size(stages[0], covered_share(window, stages[0].shape[2:]) if self.program else 1.0)
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
        if self.program is None:
            height, width = stages[0].shape[2:]
            images = pasted(stages[0], samples, patch, window, ((0, height), (0, width)))
            return self.predict_whole(images), [(patch, window)]
        changed = Changed(dict(zip(self.program.stored, stages, strict=True)), samples, patch, window)
        with FastInputGradients():
            scores = self.program.changed(changed)
        return Prediction(scores[None]), [(changed.outputs[i], changed.windows[i]) for i in self.program.stored]

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
