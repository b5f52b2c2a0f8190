"""A model at the samples where it is inspected: what several checks need, each computed once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from equipoise.attacks.execution import value_and_gradient
from equipoise.attacks.inputs import validated_inputs
from equipoise.core.errors import NoGradient
from equipoise.core.rng import Stream, Streams, fold
from equipoise.core.types import Labels, PerSample, Points, Predict, Prediction, Predictive
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import Objective, margin
from equipoise.models import global_seed, is_batch_dependent

ROUNDING = 8.0
"""Rounding error of a logit in units of the machine epsilon times the largest logit."""

SINGLE_SAMPLES = 8
"""Number of samples that are predicted one by one, to see whether a prediction depends on its batch."""

_BATCH_SIZE = 256

Logits = Float[Tensor, "batch classes"]


@dataclass(frozen=True)
class InspectedModel:
    """A model, all samples, and the few of them at which it is inspected."""

    predictive: Predictive
    all_x: Points
    all_y: Labels
    all_streams: Streams
    box: Box
    index: Int[Tensor, " samples"]  # of the inspected samples
    seed: int
    reported: float | None = None  # clean accuracy, in [0, 1]

    @property
    def n(self) -> int:
        """Number of inspected samples."""
        return len(self.index)

    @cached_property
    def x(self) -> Points:
        """The inspected samples."""
        return self.all_x[self.index]

    @cached_property
    def streams(self) -> Streams:
        """Their random streams."""
        return self.all_streams[self.index]

    @contextmanager
    def drawn(self, streams: Streams, call: int) -> Iterator[Predict]:
        """Return the prediction function of one call: the same `call` draws the same random numbers."""
        device = self.all_x.device
        with global_seed(fold(self.seed, Stream.GLOBAL, call), device), torch.autocast(device.type, enabled=False):
            yield self.predictive.draw(streams.fold(Stream.MODEL, call))

    @torch.no_grad()
    def logits_at(self, x: Points, call: int = 0) -> Logits:
        """Return the logits at `x`, one point for each inspected sample."""
        with self.drawn(self.streams, call) as predict:
            return predict(x).scores

    @torch.no_grad()
    def _logits_in_batches(self, x: Points, streams: Streams, batch_size: int) -> Logits:
        logits = []
        for batch in torch.arange(len(x), device=x.device).split(batch_size):
            with self.drawn(streams[batch], 0) as predict:
                logits.append(predict(x[batch]).scores)
        return torch.cat(logits)

    def all_logits(self) -> Logits:
        """Return the logits of all samples, with the model as it is now."""
        return self._logits_in_batches(self.all_x, self.all_streams, _BATCH_SIZE)

    def single_logits(self) -> Logits:
        """Return the logits of the first samples, each predicted alone; together where a layer needs several."""
        x, streams = self.x[:SINGLE_SAMPLES], self.streams[:SINGLE_SAMPLES]
        return self._logits_in_batches(x, streams, len(x) if is_batch_dependent(self.predictive.module) else 1)

    @cached_property
    def clean_logits(self) -> Logits:
        """Logits at the samples themselves."""
        return self.logits_at(self.x)

    @cached_property
    def predicted(self) -> Labels:
        """Classes predicted at the samples, with respect to which margins and gradients are taken."""
        return self.clean_logits.argmax(1)

    @cached_property
    def finite(self) -> Bool[Tensor, " samples"]:
        """Which of the samples have logits from which a class follows."""
        return Prediction(self.clean_logits[None]).finite

    @cached_property
    def gap(self) -> float:
        """Median gap between the two largest logits; 0 where no two are finite."""
        top = self.clean_logits[self.finite].topk(2, dim=1).values
        gaps = (top[:, 0] - top[:, 1])[top[:, 1].isfinite()]
        return float(gaps.median()) if len(gaps) else 0.0

    def rounding_error(self, logits: Logits) -> PerSample:
        """Return the rounding error of the difference of the two largest logits."""
        top = logits.topk(2, dim=1).values
        return ROUNDING * torch.finfo(logits.dtype).eps * top.masked_fill(~top.isfinite(), 0).abs().amax(1)

    def gradient(self, objective: Objective, x: Points) -> Points:
        """Return the objective's gradient with the predicted class as the label, as an attack would see it."""
        with self.drawn(self.streams, 0) as predict:
            return value_and_gradient(objective, predict, x, labels=self.predicted)[1]

    def margins(self, x: Points) -> PerSample:
        """Return the margins of the predicted class, in float64."""
        return margin(Prediction(self.logits_at(x).double()[None]), labels=self.predicted)

    @cached_property
    def no_gradient(self) -> str | None:
        """Why the model gives no gradient; None if it gives one."""
        try:
            self.gradient(margin, self.x)
        except NoGradient as error:
            return str(error).split(". ")[0]
        return None

    @cached_property
    def all_clean_logits(self) -> Logits:
        """Logits of all samples, with the model unchanged."""
        return self.all_logits()

    def correct(self, logits: Logits) -> Bool[Tensor, " all"]:
        """Return which of all samples these logits classify correctly."""
        return Prediction(logits[None]).labels == self.all_y

    @cached_property
    def changes_between_calls(self) -> tuple[Bool[Tensor, " samples"], float]:
        """Which predictions differ in either of two further calls, and the largest change."""
        changed, sizes = zip(*(self.changes(self.logits_at(self.x, call)) for call in (1, 2)), strict=True)
        return torch.stack(changed).any(0), max(sizes)

    @property
    def randomised(self) -> bool:
        """Whether predictions differ between calls."""
        return bool(self.changes_between_calls[0].any())

    @cached_property
    def batch_dependent(self) -> bool:
        """Whether a sample's logits depend on the rest of its batch, as far as a randomised model lets that be seen."""
        if is_batch_dependent(self.predictive.module):
            return True
        return not self.randomised and bool(self.changes(self.single_logits())[0].any())

    def changes(self, logits: Logits) -> tuple[Bool[Tensor, " samples"], float]:
        """Return for which of the first samples other logits are a different prediction, and the largest change there
        of a logit relative to that of the predicted class. Classes whose probability is 0 both times do not count.
        """
        clean, predicted = self.clean_logits[: len(logits)], self.predicted[: len(logits), None]
        before, after = Prediction(clean[None]), Prediction(logits[None])
        changed = before.differs(after)
        sizes = ((logits - logits.gather(1, predicted)) - (clean - clean.gather(1, predicted))).abs()
        possible = before.log_probs.exp() + after.log_probs.exp() > 0
        counted = sizes[changed[:, None] & possible & sizes.isfinite()]
        return changed, float(counted.amax()) if len(counted) else 0.0


@contextmanager
def inspected(
    predictive: Predictive, x: Points, y: Labels, box: Box, samples: int, seed: int, reported: float | None = None
) -> Iterator[InspectedModel]:
    """Validate the input, and inspect a copy of the model at `samples` of the inputs, spread evenly over `x`."""
    with validated_inputs(predictive, x, y, Ball("linf", 0.0, box), seed=seed) as inputs:
        n = min(samples, len(x))
        index = torch.arange(n, device=x.device) * len(x) // n
        yield InspectedModel(inputs.predictive, inputs.x, y, inputs.streams, box, index, seed, reported)
