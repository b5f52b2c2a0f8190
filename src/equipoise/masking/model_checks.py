"""Reasons to doubt a robust accuracy: what about a model, or about finished attacks, suggests that it is overstated.

flags = check_model(model, x, y) + check_results(results)

`check_model` looks at the model before any attack, `check_results` at what the attacks did. Both return a
`ResultWarning` per suspicion, with the figure that raised it; neither proves anything. Most of the
suspicions are those of Athalye, Carlini & Wagner (ICML 2018, Sec. 3.1) and of Carlini et al. (On Evaluating Adversarial
Robustness, 2019).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from equipoise.attacks.execution import value_and_gradient
from equipoise.attacks.inputs import validated_inputs
from equipoise.attacks.result import like
from equipoise.core.errors import NoGradient, require
from equipoise.core.rng import Stream, Streams, fold
from equipoise.core.types import Labels, PerSample, Points, Predict, Prediction, Predictive
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import Objective, cross_entropy, margin
from equipoise.models import as_predictive, full_precision, global_seed, is_batch_dependent
from equipoise.results.records import AttackRecord, ResultWarning
from equipoise.results.statistics import mcnemar, wilson

SHARE = 0.05
"""Share of samples from which gradients that are exactly 0, or probabilities exactly 1, are a flag: the robust accuracy
may be wrong by as much."""

CHANGE = 1e-4
"""Relative change of the difference of two logits between two calls above which the model counts as random: a forward
pass in float32 repeats itself to about 1e-6 whatever the order of its sums."""

TINY = 1e-10
"""Largest entry of an input gradient, times the width of the box, that counts as faint. A step of 1/255 in each of a
thousand pixels then moves the loss by less than 1e-9, far below what float32 resolves next to 1 (6e-8)."""

FAINT = 0.5
"""Share of samples from which faint gradients are a flag. Their sign may still be right, and a network that was merely
trained for long has them on up to a fifth of its samples."""

ERROR = 0.5
"""Relative error from which the gradient and finite differences disagree: half of the change is then not explained."""

SIGNALS = (10.0, 30.0, 100.0)
"""Changes of the margin, in units of its rounding error, that the fine steps are meant to cause. Ten are enough to
tell an error of 50 %, and a hundred are still far too few for a step to average over quantisation levels."""

ROUNDING = 8.0
"""Rounding error of a logit in units of the machine epsilon times the largest logit."""

ALONE = 8
"""Samples that are predicted by themselves, to see whether a prediction depends on its batch."""

COARSE = 1 / 128
"""Step per pixel of the coarse comparison, as a share of the box: smaller than the usual radii, and along random signs,
to which a network responds nearly linearly. A gradient that says nothing about such a step is no guide to an attack."""

DIRECTIONS = 4
"""Random directions of the coarse comparison: along one of them alone a gradient may predict no change by chance."""

JITTER = 0.05
"""How far towards uniform noise the inputs are moved before the comparison. Flat areas put many units exactly on a kink
(equal values under a max-pooling), where a derivative has two sides and central differences average them."""

GAP = 30.0
"""Median gap between the two largest logits from which they are extreme: beyond it the float32 cross-entropy and its
gradient fall below 1e-13, and where the gap exceeds 17 the largest probability already rounds to 1."""

FLAT = 1e-3
"""Median range of the upper half of the logits below which they are nearly constant: those classes are then equally
probable to 0.1 %, and the rounding of the loss (1e-7) is no longer far below what a small step changes. The lower half
may hold classes that are absent."""

BLURRED = 0.01
"""Rounding error of the largest logits, relative to the median gap between them, from which they are extreme: a
constant added to all logits then hides what a small step changes."""

SQUASHED = 0.5
"""Range of the outputs, all of them in [0, 1], from which they are probabilities rather than small logits."""

POINTS, LEVEL = 0.05, 0.05
"""Gain of clean accuracy without a normalising layer, and level of the paired test, from which it is one too many."""

SQUARE_SHARE, SQUARE_SAMPLES = 0.01, 3
"""Share and number of samples that only the black-box attack fooled: one or two are chance, a percent is what the
difference between defences is reported in."""

BLACK_BOX = ("square", "random-search")
"""Attacks that use no gradient."""

Scores = Float[Tensor, "batch classes"]

_SUMMARIES = ("clean", "worst case")  # results that are no attack of their own
_AT_ONCE = 256


def check_model(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    *,
    box: Box = Box(),
    reported: float | None = None,
    samples: int = 64,
    seed: int = 0,
) -> list[ResultWarning]:
    """What about the model itself suggests that its robustness is overstated; an empty list if nothing does.

    Looks at `samples` samples, spread evenly over `x`, whose values lie in `box`; accuracies and logits that are not
    finite are counted over all of `x`. With `reported`, a clean accuracy in [0, 1], checks it too. The model stays as
    it was: modes, buffers, gradients of its parameters and torch's generators. Raises `EquipoiseError` for input or a
    model that no attack could take; an error that the model raises when its gradient is computed is raised as it is.
    """
    require(samples >= 1, f"samples = {samples}: expected at least one.")
    require(
        reported is None or 0 <= reported <= 1,
        f"reported = {reported} is not an accuracy: expected a share in [0, 1], such as 0.93.",
    )
    require(isinstance(y, Tensor), "check_model needs the labels y, a torch tensor of class indices.")
    predictive = as_predictive(model)
    with _looked_at(predictive, x, y, box, reported, samples, seed) as case:
        found = [ask(case) for ask in PROBES]
    return [flag for flag in found if flag is not None]


def gradient_errors(
    model: "nn.Module | Predictive", x: Points, y: Labels, *, box: Box = Box(), samples: int = 64, seed: int = 0
) -> tuple[PerSample, PerSample]:
    """Relative errors of the margin's input gradient against central differences, per sample: `‖seen - predicted‖ /
    max(‖seen‖, ‖predicted‖)` of the margin's changes, from 0 to 2.

    First along the gradient, in the best of three fine steps; then along four random signs, in steps of 1/128 of the
    box. Looks at `samples` samples, spread evenly over `x`, without those whose logits are not finite or so large that
    rounding hides the change; none are left of a random model or one whose samples depend on each other. Raises
    `NoGradient` if the model gives no gradient, and `EquipoiseError` for input that no attack could take.
    """
    with _looked_at(as_predictive(model), x, y, box, None, samples, seed) as case:
        case.gradient(margin, case.x)
        return _gradient_errors(case)


@contextmanager
def _looked_at(
    predictive: Predictive, x: Points, y: Labels, box: Box, reported: float | None, samples: int, seed: int
) -> Iterator["_Case"]:
    """The samples that are looked at, once the input has passed every check; the model stays as it was."""
    with validated_inputs(predictive, x, y, Ball("linf", 0.0, box), seed=seed) as admission:
        n = min(samples, len(x))
        rows = torch.arange(n, device=x.device) * len(x) // n
        yield _Case(admission.predictive, admission.x, y, admission.streams, box, reported, rows, seed)


def check_results(results: Sequence[AttackRecord]) -> list[ResultWarning]:
    """What finished attacks on the same samples suggest: flags where a black-box attack beats the white-box ones.

    Attacks are compared within each ball, the parts of a composite attack through its winners.
    """
    by_ball: dict[tuple[str, float], list[AttackRecord]] = {}
    for result in results:
        if result.eps > 0:
            by_ball.setdefault((result.norm, result.eps), []).append(result)
    found = [_black_box_wins(norm, eps, together) for (norm, eps), together in by_ball.items()]
    return [flag for flag in found if flag is not None]


@dataclass(frozen=True)
class _Case:
    """What the questions are asked about."""

    predictive: Predictive
    all_x: Points
    all_y: Labels
    all_streams: Streams
    box: Box
    reported: float | None
    rows: Int[Tensor, " rows"]
    seed: int

    @property
    def n(self) -> int:
        return len(self.rows)

    @cached_property
    def x(self) -> Points:
        return self.all_x[self.rows]

    @cached_property
    def streams(self) -> Streams:
        return self.all_streams[self.rows]

    @contextmanager
    def drawn(self, streams: Streams, call: int) -> Iterator[Predict]:
        """The prediction function of one call: the same `call` draws the same random numbers."""
        device = self.all_x.device
        with global_seed(fold(self.seed, Stream.GLOBAL, call), device), torch.autocast(device.type, enabled=False):
            yield self.predictive.draw(streams.fold(Stream.MODEL, call))

    @torch.no_grad()
    def scores(self, x: Points, call: int = 0) -> Scores:
        """Logits at points that belong to the samples that are looked at."""
        with self.drawn(self.streams, call) as predict:
            return predict(x).scores

    @cached_property
    def clean(self) -> Scores:
        return self.scores(self.x)

    @cached_property
    def labels(self) -> Labels:
        """The classes predicted at the clean inputs, with respect to which margins and gradients are taken."""
        return self.clean.argmax(1)

    @cached_property
    def finite(self) -> Bool[Tensor, " rows"]:
        """Which of the samples have logits from which a class follows."""
        return Prediction(self.clean[None]).finite

    @cached_property
    def gap(self) -> float:
        """Median gap between the two largest logits; 0 where no two are finite."""
        top = self.clean[self.finite].topk(2, dim=1).values
        gaps = (top[:, 0] - top[:, 1])[top[:, 1].isfinite()]
        return float(gaps.median()) if len(gaps) else 0.0

    def rounding(self, scores: Scores) -> PerSample:
        """Rounding error of the difference of the two largest logits."""
        top = scores.topk(2, dim=1).values
        return ROUNDING * torch.finfo(scores.dtype).eps * top.masked_fill(~top.isfinite(), 0).abs().amax(1)

    def gradient(self, objective: Objective, point: Points) -> Points:
        """Its gradient with the class predicted at the clean input as the label, as an attack would see it."""
        with self.drawn(self.streams, 0) as predict:
            return value_and_gradient(objective, predict, point, labels=self.labels)[1]

    def margins(self, x: Points) -> PerSample:
        """Margins of the class predicted at the clean input, in float64."""
        return margin(Prediction(self.scores(x).double()[None]), labels=self.labels)

    @cached_property
    def refusal(self) -> str | None:
        """Why the model gives no gradient; None if it gives one."""
        try:
            self.gradient(margin, self.x)
        except NoGradient as error:
            return str(error).split(". ")[0]
        return None

    @cached_property
    def everywhere(self) -> Scores:
        """The logits of all the samples."""
        return self.all_scores()

    @cached_property
    def right(self) -> Bool[Tensor, " all"]:
        """Which of all the samples are classified correctly."""
        return self.correct(self.everywhere)

    def correct(self, scores: Scores) -> Bool[Tensor, " all"]:
        """Which of all the samples these logits classify correctly."""
        return Prediction(scores[None]).labels == self.all_y

    @torch.no_grad()
    def all_scores(self) -> Scores:
        """The logits of all the samples, with the model as it is now."""
        found = []
        for rows in torch.arange(len(self.all_x), device=self.all_x.device).split(_AT_ONCE):
            with self.drawn(self.all_streams[rows], 0) as predict:
                found.append(predict(self.all_x[rows]).scores)
        return torch.cat(found)

    @cached_property
    def random(self) -> bool:
        """Whether two calls differ on any of the samples."""
        return any(bool(self.changes(self.scores(self.x, call))[0].any()) for call in (1, 2))

    @torch.no_grad()
    def alone(self) -> Scores:
        """The logits of the first of the samples, each by itself; together where a layer needs several."""
        few = torch.arange(min(ALONE, self.n), device=self.x.device)
        found = []
        for rows in few.split(len(few) if is_batch_dependent(self.predictive.module) else 1):
            with self.drawn(self.streams[rows], 0) as predict:
                found.append(predict(self.x[rows]).scores)
        return torch.cat(found)

    @cached_property
    def coupled(self) -> bool:
        """Whether the logits of a sample depend on what else is in its batch; that is not known of a random model."""
        if is_batch_dependent(self.predictive.module):
            return True
        return not self.random and bool(self.changes(self.alone())[0].any())

    def changes(self, other: Scores) -> tuple[Bool[Tensor, " rows"], float]:
        """On which of the first samples other logits differ from the clean ones by more than rounding, and the largest
        change.

        Compared are differences to the logit of the class that is predicted, each at its own size but at least at that
        of the median gap: then neither a class that is absent (-1e9 or -inf) nor a constant added to all logits hides
        a change of the others.
        """
        clean, top = self.clean[: len(other)], self.labels[: len(other), None]
        mine, others = clean - clean.gather(1, top), other - other.gather(1, top)
        change, size = (others - mine).abs(), torch.maximum(mine.abs(), others.abs()).clamp_min(self.gap)
        largest = torch.maximum(clean.abs(), clean.gather(1, top).abs())
        rounding = ROUNDING * torch.finfo(other.dtype).eps * largest
        appeared = mine.isfinite() != others.isfinite()
        moved = (change > CHANGE * size + rounding) | appeared
        return moved.any(1), float(change[moved & change.isfinite()].amax()) if (moved & ~appeared).any() else 0.0


def _not_finite(case: _Case) -> ResultWarning | None:
    lost = int((~Prediction(case.everywhere[None]).finite).sum())
    if not lost:
        return None
    return ResultWarning(
        "logits that are not finite",
        f"on {lost} of {len(case.everywhere)} samples they hold a NaN or +inf, or are all -inf",
        "no class follows from them, so that these samples are neither right nor fooled: look for a division by 0, an "
        "overflow or diverged weights; -inf for single classes is fine",
    )


def _gradient_not_finite(case: _Case) -> ResultWarning | None:
    if case.refusal is not None:
        return None
    lost = {objective.name: _holds_nan(case, objective) for objective in (cross_entropy, margin)}
    if not any(lost.values()):
        return None
    seen = " and that of the ".join(f"{name.replace('_', '-')} on {count}" for name, count in lost.items())
    return ResultWarning(
        "gradients that are not finite",
        f"the input gradient of the {seen} of {case.n} samples holds a NaN or an infinity, their logits do not",
        "attacks take it as 0 and stand still there: look for a square root, a norm or a logarithm at 0 in the model, "
        "and attack with `square` too",
    )


def _holds_nan(case: _Case, objective: Objective) -> int:
    gradient = case.gradient(objective, case.x)[case.finite]
    return int((~gradient.flatten(1).isfinite().all(1)).sum())


def _randomised(case: _Case) -> ResultWarning | None:
    moved, sizes = zip(*(case.changes(case.scores(case.x, call)) for call in (1, 2)), strict=True)
    n = int(torch.stack(moved).any(0).sum())
    if not n:
        return None
    return ResultWarning(
        "randomised model",
        f"logits change by up to {max(sizes):.2g} between calls, on {n} of {case.n} samples",
        "attack the average over draws (expectation over transformation, attack `autoattack-rand`) and report the mean "
        "over draws",
    )


def _batch_dependent(case: _Case) -> ResultWarning | None:
    if not case.coupled:
        return None
    moved, size = case.changes(case.alone())
    return ResultWarning(
        "batch-dependent model",
        f"logits change by up to {size:.2g} from a small batch to one of {case.n}, on {int(moved.sum())} of "
        f"{len(moved)} samples",
        "accuracies then depend on the batch size and on the order of the data: give batch-norm running statistics, "
        "compute nothing over the first dimension",
    )


def _probabilities(case: _Case) -> ResultWarning | None:
    name = "probabilities instead of logits"
    if getattr(case.predictive, "outputs", "logits") != "probabilities":
        low, high = (float(end) for end in case.clean[case.finite].flatten().aminmax()) if case.finite.any() else (0, 0)
        if low < 0 or high > 1 or high - low < SQUASHED:
            return None
        return ResultWarning(
            name,
            f"all outputs for {case.n} samples lie in [0, 1] (from {low:.2g} to {high:.2g}), as after a sigmoid",
            "give the model without its last sigmoid or softmax, so that its logits can be attacked",
        )
    lost = int((case.clean.amax(1) == 0).sum())  # log 1
    if lost <= SHARE * case.n:
        return None
    return ResultWarning(
        name,
        f"the largest probability is exactly 1 on {lost} of {case.n} samples, which hides how sure the model is",
        "give the model without its last softmax, so that its logits can be attacked",
    )


def _vanishing(case: _Case) -> ResultWarning | None:
    if case.refusal is not None:
        return None
    zero, faint = _lost(case, cross_entropy)
    if zero <= SHARE * case.n and zero + faint <= FAINT * case.n:
        return None
    name = "vanishing gradients" if zero > SHARE * case.n else "faint gradients"
    others = sum(_lost(case, margin))
    advice = (
        "attack the margin or the difference of logits ratio (attacks `cw`, `apgd-dlr`), or divide the logits by a "
        "constant first"
        if others <= SHARE * case.n
        else "the margin's gradient vanishes too: attack with `square`, by transfer, or through a stand-in (BPDA)"
    )
    return ResultWarning(
        name,
        f"the input gradient of the cross-entropy is exactly 0 on {zero} and below {TINY:g} per width of the box on "
        f"{faint} of {case.n} samples, that of the margin on {others}",
        advice,
    )


def _lost(case: _Case, objective: Objective) -> tuple[int, int]:
    """On how many samples a gradient is exactly 0, and nonzero but faint."""
    largest = case.gradient(objective, case.x)[case.finite].flatten(1).abs().amax(1) * (case.box.high - case.box.low)
    zero = largest == 0
    return int(zero.sum()), int(((largest < TINY) & ~zero).sum())


def _not_differentiable(case: _Case) -> ResultWarning | None:
    name, advice = (
        "non-differentiable model",
        "replace that part by a differentiable stand-in in the backward pass (BPDA), and attack with `square` too",
    )
    if case.refusal is not None:
        return ResultWarning(name, f"it gives no gradient ({case.refusal})", advice)
    fine, coarse = _gradient_errors(case)
    if not len(fine):
        return None
    along, around = float(fine.median()), float(coarse.median())
    if max(along, around) <= ERROR:
        return None
    return ResultWarning(
        name,
        f"the margin's gradient misses finite differences by {along:.0%} along itself in tiny steps and by "
        f"{around:.0%} along random signs in steps of {COARSE:.2g} per pixel (medians of {len(fine)} samples)",
        advice,
    )


def _gradient_errors(case: _Case) -> tuple[PerSample, PerSample]:
    """The errors of `gradient_errors`."""
    x = case.x
    if case.coupled or case.random:
        return x.new_zeros(0), x.new_zeros(0)  # such a margin depends on more than its sample's input
    width = case.box.high - case.box.low
    noise = case.streams.fold(Stream.JITTER).uniform(*x.shape[1:], dtype=x.dtype)
    point = torch.lerp(x, case.box.low + width * noise, JITTER)
    with full_precision():
        gradient, here = case.gradient(margin, point), case.scores(point)
        rounding = case.rounding(here)
        length = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
        farthest = COARSE * width * x[0].numel() ** 0.5
        steps = [(k * rounding / (2 * length)).clamp(1e-5 * width, farthest) for k in SIGNALS]
        moves = [gradient * like(step / length, x) for step in steps]
        fine = [_changes(case, point, gradient, [move]) for move in moves]
        signs = [
            2 * case.streams.fold(Stream.SIGNS, k).uniform(*x.shape[1:], dtype=x.dtype).round() - 1
            for k in range(DIRECTIONS)
        ]
        coarse = _changes(case, point, gradient, [COARSE * width * sign for sign in signs])
    # With a gradient that is not 0, but no change beyond rounding seen or expected, there is nothing to compare.
    largest = torch.cat([torch.cat(change).abs() for change in (*fine, coarse)]).amax(0)
    hidden = (gradient.flatten(1) != 0).any(1) & (largest < SIGNALS[0] * rounding)
    known = ~hidden & case.finite & Prediction(here[None]).finite & gradient.flatten(1).isfinite().all(1)
    along = torch.stack([_relative(*change) for change in fine]).amin(0)
    return along[known], _relative(*coarse)[known]


def _changes(
    case: _Case, point: Points, gradient: Points, moves: Sequence[Points]
) -> tuple[Float[Tensor, "moves batch"], Float[Tensor, "moves batch"]]:
    """The margin's changes from `point - move` to `point + move`, and those that the gradient predicts.

    Both ends stay in the box, and the prediction uses the distance between them as it was rounded.
    """
    seen, expected = [], []
    for move in moves:
        behind, ahead = case.box.clamp(point - move), case.box.clamp(point + move)
        seen.append(case.margins(ahead) - case.margins(behind))
        expected.append((gradient.double() * (ahead.double() - behind.double())).flatten(1).sum(1))
    return torch.stack(seen), torch.stack(expected)


def _relative(seen: Float[Tensor, "moves batch"], expected: Float[Tensor, "moves batch"]) -> PerSample:
    """`‖seen - expected‖ / max(‖seen‖, ‖expected‖)` over the moves; 1 where both are 0, as nothing is known."""
    longest = torch.maximum(seen.norm(dim=0), expected.norm(dim=0))
    return torch.where(longest > 0, (seen - expected).norm(dim=0) / longest, 1.0)


class _Calls(TorchFunctionMode):
    """Counts the calls of autograd's entry points, however they were imported."""

    watched = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in self.watched
        return func(*args, **(kwargs or {}))


def _looping(case: _Case) -> ResultWarning | None:
    with _Calls() as calls:
        case.scores(case.x)
    if not calls.count:
        return None
    return ResultWarning(
        "looping model",
        f"one forward pass computes gradients of its own, {calls.count} times",
        "it optimises while it predicts: attack through its loop (an adaptive attack), by transfer from the model "
        "without it, and with `square`",
    )


def _extreme_logits(case: _Case) -> ResultWarning | None:
    logits = case.clean[case.finite]
    if not len(logits):
        return None
    upper = logits.topk(max(2, logits.shape[1] // 2), dim=1).values
    spread = float((upper[:, 0] - upper[:, -1]).median())
    blur = float(case.rounding(logits).median())
    figure = f"the median gap between the two largest logits is {case.gap:.2g}"
    if case.gap <= GAP and spread >= FLAT:
        if blur <= BLURRED * case.gap or case.gap == 0:
            return None
        figure += (
            f", their rounding error {blur:.2g}, as they share a constant of about {float(upper[:, 0].median()):.2g}"
        )
    elif case.gap <= GAP:
        figure += f", the median range of the upper half {spread:.2g}"
    return ResultWarning(
        "extreme logits",
        figure,
        "the cross-entropy loses its gradient to rounding: attack an objective that ignores the scale (`apgd-dlr`), or "
        "rescale the logits first",
    )


def _double_normalisation(case: _Case) -> ResultWarning | None:
    inputs: list[Tensor] = []
    layers: dict[str, nn.Module] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and args[0].shape == case.x.shape:
                if not any(torch.equal(args[0], seen) for seen in inputs):
                    inputs.append(args[0].detach().clone())
                if isinstance(output, Tensor) and output.shape == args[0].shape:
                    layers[name] = module

        return hook

    named = [(name, module) for name, module in case.predictive.module.named_modules() if _normalises(module)]
    if not named:
        return None
    with _hooked([(module, look(name)) for name, module in named]):
        case.scores(case.x)
    name, advice = "double normalisation", "normalise once, inside the model, and give it pixels in [0, 1]"
    if len(inputs) > 1:
        return ResultWarning(name, f"{len(inputs)} normalising layers act on the input one after the other", advice)
    low, high = case.box.low, case.box.high
    if inputs and (low < 0 or high > 1):
        return ResultWarning(
            name, f"the model has a normalising layer, and its inputs lie in [{low:g}, {high:g}] already", advice
        )
    if not layers:
        return None
    with_it = case.right
    with _hooked([(module, lambda _, args, __: args[0]) for module in layers.values()]):
        without = case.correct(case.all_scores())
    gained, lost = int((without & ~with_it).sum()), int((with_it & ~without).sum())
    clear = gained > lost and mcnemar(gained, lost) < LEVEL
    if not clear or (gained - lost) / len(with_it) < POINTS:
        return None
    return ResultWarning(
        name,
        f"clean accuracy is {_mean(with_it):.1%} with the normalising layer {', '.join(layers)} and "
        f"{_mean(without):.1%} without it",
        advice,
    )


def _normalises(module: nn.Module) -> bool:
    """By what it holds, a mean and a standard deviation, or by its name if it trains nothing, as layer norms do."""
    numbers = [getattr(module, name, None) for name in ("mean", "std")]
    named = "normaliz" in type(module).__name__.lower() and not list(module.parameters(recurse=False))
    return named or not any(v is None or callable(v) for v in numbers)


def _wrong_accuracy(case: _Case) -> ResultWarning | None:
    if case.reported is None:
        return None
    right = case.right
    low, high = wilson(int(right.sum()), len(right))
    if low <= case.reported <= high:
        return None
    return ResultWarning(
        "accuracy differs from the reported one",
        f"{_mean(right):.1%} on {len(right)} samples (95 % interval {low:.1%} to {high:.1%}), not {case.reported:.1%}",
        "check weights, preprocessing and class order: this may not be the model, or the data, of the report",
    )


PROBES: tuple[Callable[[_Case], ResultWarning | None], ...] = (
    _wrong_accuracy,
    _double_normalisation,
    _not_finite,
    _randomised,
    _batch_dependent,
    _looping,
    _probabilities,
    _extreme_logits,
    _gradient_not_finite,
    _vanishing,
    _not_differentiable,
)
"""The questions `check_model` asks, in the order of its answers."""


def _black_box_wins(norm: str, eps: float, results: Sequence[AttackRecord]) -> ResultWarning | None:
    """Compare who fooled each sample, among attacks on one ball."""
    fooled: dict[bool, set[int]] = {True: set(), False: set()}  # samples, by whether gradients were of no use
    for r in results:
        winners = r.winner or [r.attack] * r.n
        for i, (correct, winner) in enumerate(zip(r.correct, winners, strict=True)):
            if not correct and winner != "worst case":
                fooled[is_black_box(winner or r.attack)].add(i)
    white = any(r.attack not in _SUMMARIES and not is_black_box(r.attack) for r in results)
    alone, n = len(fooled[True] - fooled[False]), results[0].n
    if not white or alone < SQUARE_SAMPLES or alone <= SQUARE_SHARE * n:
        return None
    return ResultWarning(
        "black box beats white box",
        f"{alone} of {n} samples fell only to an attack without gradients ({norm}, eps {eps:g})",
        "gradients mislead the other attacks: look for what masks them (see the other flags) and attack through it",
    )


def is_black_box(attack: str) -> bool:
    """Whether the attack of that name looks at no gradient of the model it is judged on."""
    return " from " in attack or attack.rstrip("0123456789") in BLACK_BOX


@contextmanager
def _hooked(hooks: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Forward hooks for a while."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
