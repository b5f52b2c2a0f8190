"""Reasons to doubt a robust accuracy: what about a model, or about finished attacks, suggests that it is overstated.

flags = probe(model, x, y) + judge(results)

`probe` looks at the model before any attack, `judge` at what the attacks did. Both return a `Flag` per suspicion, with
the figure that raised it; neither proves anything. Most of the suspicions are those of Athalye, Carlini & Wagner
(ICML 2018, Sec. 3.1) and of Carlini et al. (On Evaluating Adversarial Robustness, 2019).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from equipoise.errors import EquipoiseError, require
from equipoise.geometry import Ball, Box
from equipoise.objectives import Objective, cross_entropy, margin
from equipoise.perturbed import GLOBAL_STREAM, MODEL_STREAM, admit, value_and_gradient
from equipoise.predictive import as_predictive, couples_samples, full_precision, seeded, standing
from equipoise.proportions import mcnemar, wilson
from equipoise.records import AttackResult, Flag
from equipoise.rng import Streams, fold
from equipoise.types import Labels, PerSample, Points, Predict, Prediction, Predictive

SHARE = 0.05
"""Share of samples from which gradients that are exactly 0, or probabilities exactly 1, are a flag: the robust accuracy
may be wrong by as much."""

CHANGE = 1e-4
"""Change of a logit between two calls, relative to the sample's largest, that is no longer rounding: a forward pass in
float32 repeats itself to about 1e-6 whatever the order of its sums."""

TINY = 1e-10
"""Largest entry of an input gradient that counts as vanished. A step of 1/255 in each of a thousand pixels then moves
the loss by less than 1e-9, far below what float32 resolves next to 1 (6e-8)."""

FAINT = 0.5
"""Share of samples from which gradients that vanished without being 0 are a flag. Their sign may still be right, and a
network that was merely trained for long has them on up to a fifth of its samples."""

ERROR = 0.5
"""Relative error from which the gradient and finite differences disagree: half of the change is then not explained."""

SIGNALS = (10.0, 30.0, 100.0)
"""Changes of the margin, in units of its rounding error, that the fine steps are meant to cause. Ten are enough to
tell an error of 50 %, and a hundred are still far too few for a step to average over quantisation levels."""

ROUNDING = 8.0
"""Rounding error of a logit in units of the machine epsilon times the largest logit."""

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
"""Median range of the logits below which they are nearly constant: all classes are then equally probable to 0.1 %, and
the rounding of the loss (1e-7) is no longer far below what a small step changes."""

POINTS, LEVEL = 0.05, 0.05
"""Gain of clean accuracy without a normalising layer, and level of the paired test, from which it is one too many."""

SQUARE_SHARE, SQUARE_SAMPLES = 0.01, 3
"""Share and number of samples that only the black-box attack fooled: one or two are chance, a percent is what the
difference between defences is reported in."""

BLACK_BOX = ("square", "random-search")
"""Attacks that use no gradient."""

_SUMMARIES = ("clean", "worst case")  # results that are no attack of their own
_AT_ONCE = 256
_JITTER_STREAM, _SIGN_STREAM = 11, 12


def probe(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    *,
    box: Box = Box(),
    reported: float | None = None,
    samples: int = 64,
    seed: int = 0,
) -> list[Flag]:
    """What about the model itself suggests that its robustness is overstated; an empty list if nothing does.

    Looks at the first `samples` samples; only accuracies are taken over all of `x`, whose values lie in `box`. With
    `reported`, a clean accuracy in [0, 1], checks it too. The model stays as it was: modes, buffers, gradients of its
    parameters and torch's generators. Raises `EquipoiseError` for input or a model that no attack could take.
    """
    require(samples >= 1, f"samples = {samples}: expected at least one.")
    require(
        reported is None or 0 <= reported <= 1,
        f"reported = {reported} is not an accuracy: expected a share in [0, 1], such as 0.93.",
    )
    require(isinstance(y, Tensor), "probe needs the labels y, a torch tensor of class indices.")
    predictive = as_predictive(model)
    with _untouched(predictive.module):
        streams = admit(predictive, x, y, Ball("linf", 0.0, box), seed=seed).streams
        case = _Case(predictive, x, y, streams, box, reported, min(samples, len(x)), seed)
        found = [ask(case) for ask in PROBES]
    return [flag for flag in found if flag is not None]


def judge(results: Sequence[AttackResult]) -> list[Flag]:
    """What finished attacks on the same samples suggest: flags where a black-box attack beats the white-box ones.

    Attacks are compared within each ball, the parts of a composite attack through its winners.
    """
    by_ball: dict[tuple[str, float], list[AttackResult]] = {}
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
    n: int
    seed: int

    @property
    def x(self) -> Points:
        return self.all_x[: self.n]

    @contextmanager
    def drawn(self, streams: Streams, call: int) -> Iterator[Predict]:
        """The prediction function of one call: the same `call` draws the same random numbers."""
        device = self.all_x.device
        with seeded(fold(self.seed, GLOBAL_STREAM, call), device), torch.autocast(device.type, enabled=False):
            yield self.predictive.draw(streams.fold(MODEL_STREAM, call))

    @torch.no_grad()
    def scores(self, x: Points, call: int = 0) -> Float[Tensor, "batch classes"]:
        """Logits at points that belong to the first samples."""
        with self.drawn(self.all_streams[: self.n], call) as predict:
            return predict(x).scores

    @cached_property
    def clean(self) -> Float[Tensor, "batch classes"]:
        return self.scores(self.x)

    def gradient(self, objective: Objective, point: Points) -> Points:
        """Its gradient with the class predicted at the clean input as the label, as an attack would see it."""
        with self.drawn(self.all_streams[: self.n], 0) as predict:
            return value_and_gradient(objective, predict, point, labels=self.clean.argmax(1))[1]

    def margins(self, x: Points) -> PerSample:
        """Margins of the class predicted at the clean input, in float64."""
        return margin(Prediction(self.scores(x).double()[None]), labels=self.clean.argmax(1))

    @cached_property
    def refusal(self) -> str | None:
        """What the model says when it is asked for a gradient; None if it gives one."""
        try:
            self.gradient(margin, self.x)
        except torch.OutOfMemoryError:
            raise
        except (EquipoiseError, RuntimeError) as error:
            return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        return None

    @cached_property
    def right(self) -> Bool[Tensor, " all"]:
        """Which of all the samples are classified correctly."""
        return self.classified_right()

    @torch.no_grad()
    def classified_right(self) -> Bool[Tensor, " all"]:
        """The same, with the model as it is now."""
        right = []
        for rows in torch.arange(len(self.all_x), device=self.all_x.device).split(_AT_ONCE):
            with self.drawn(self.all_streams[rows], 0) as predict:
                right.append(predict(self.all_x[rows]).labels == self.all_y[rows])
        return torch.cat(right)

    def moved(self, other: Float[Tensor, "batch classes"]) -> Bool[Tensor, " batch"]:
        """On which samples other logits differ from the clean ones by more than rounding."""
        return (other - self.clean).abs().amax(1) > CHANGE * self.clean.abs().amax(1)


def _randomised(case: _Case) -> Flag | None:
    again = [case.scores(case.x, call) for call in (1, 2)]
    moved = int(torch.stack([case.moved(other) for other in again]).any(0).sum())
    if not moved:
        return None
    largest = max(float((other - case.clean).abs().max()) for other in again)
    return Flag(
        "randomised model",
        f"logits change by up to {largest:.2g} between calls, on {moved} of {case.n} samples",
        "attack the average over draws (expectation over transformation, attack `autoattack-rand`) and report the mean "
        "over draws",
    )


def _saturated_probabilities(case: _Case) -> Flag | None:
    if getattr(case.predictive, "outputs", "logits") != "probabilities":
        return None
    lost = int((case.clean.amax(1) == 0).sum())  # log 1
    if lost <= SHARE * case.n:
        return None
    return Flag(
        "probabilities instead of logits",
        f"the largest probability is exactly 1 on {lost} of {case.n} samples, which hides how sure the model is",
        "give the model without its last softmax, so that its logits can be attacked",
    )


def _vanishing(case: _Case) -> Flag | None:
    if case.refusal is not None:
        return None
    zero, tiny = _lost(case.gradient(cross_entropy, case.x))
    if zero <= SHARE * case.n and zero + tiny <= FAINT * case.n:
        return None
    others = sum(_lost(case.gradient(margin, case.x)))
    advice = (
        "attack the margin or the difference of logits ratio (attacks `cw`, `apgd-dlr`), or divide the logits by a "
        "constant first"
        if others <= SHARE * case.n
        else "the margin's gradient vanishes too: attack with `square`, by transfer, or through a stand-in (BPDA)"
    )
    return Flag(
        "vanishing gradients",
        f"the input gradient of the cross-entropy is exactly 0 on {zero} and below {TINY:g} on {tiny} of {case.n} "
        f"samples, that of the margin on {others}",
        advice,
    )


def _lost(gradient: Points) -> tuple[int, int]:
    """On how many samples a gradient is exactly 0, and nonzero but tiny."""
    largest = gradient.flatten(1).abs().amax(1)
    zero = largest == 0
    return int(zero.sum()), int(((largest < TINY) & ~zero).sum())


def _not_differentiable(case: _Case) -> Flag | None:
    name, advice = (
        "non-differentiable model",
        "replace that part by a differentiable stand-in in the backward pass (BPDA), and attack with `square` too",
    )
    if case.refusal is not None:
        return Flag(name, f"it gives no gradient ({case.refusal})", advice)
    if couples_samples(case.predictive.module) or bool(case.moved(case.scores(case.x)).any()):
        return None  # a margin that depends on more than its sample's input has nothing to be compared with
    with full_precision():
        fine, coarse = _gradient_errors(case)
    along, around = float(fine.median()), float(coarse.median())
    if max(along, around) <= ERROR:
        return None
    return Flag(
        name,
        f"the margin's gradient misses finite differences by {along:.0%} along itself in tiny steps and by "
        f"{around:.0%} along random signs in steps of {COARSE:.2g} per pixel (medians of {case.n} samples)",
        advice,
    )


def _gradient_errors(case: _Case) -> tuple[PerSample, PerSample]:
    """Relative errors per sample of the margin's change as its gradient predicts it, over central differences.

    First along the gradient, in the best of the fine steps; then along random signs, together, in the coarse step.
    """
    x, streams = case.x, case.all_streams[: case.n]
    width = case.box.high - case.box.low
    noise = streams.fold(_JITTER_STREAM).uniform(*x.shape[1:], dtype=x.dtype)
    point = torch.lerp(x, case.box.low + width * noise, JITTER)
    gradient = case.gradient(margin, point)
    length = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    rounding = ROUNDING * torch.finfo(x.dtype).eps * case.scores(point).abs().amax(1)
    steps = [(k * rounding / (2 * length)).clamp(1e-5 * width, COARSE * width * x[0].numel() ** 0.5) for k in SIGNALS]
    one_each = (-1,) + (1,) * (x.ndim - 1)
    moves = [gradient * (step / length).reshape(one_each) for step in steps]
    fine = torch.stack([_relative(*_changes(case, point, gradient, [move])) for move in moves]).amin(0)
    signs = [
        2 * streams.fold(_SIGN_STREAM, k).uniform(*x.shape[1:], dtype=x.dtype).round() - 1 for k in range(DIRECTIONS)
    ]
    return fine, _relative(*_changes(case, point, gradient, [COARSE * width * sign for sign in signs]))


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


def _looping(case: _Case) -> Flag | None:
    with _Calls() as calls:
        case.scores(case.x)
    if not calls.count:
        return None
    return Flag(
        "looping model",
        f"one forward pass computes gradients of its own, {calls.count} times",
        "it optimises while it predicts: attack through its loop (an adaptive attack), by transfer from the model "
        "without it, and with `square`",
    )


def _extreme_logits(case: _Case) -> Flag | None:
    top = case.clean.topk(2, dim=1).values
    gap = float((top[:, 0] - top[:, 1]).median())
    spread = float((case.clean.amax(1) - case.clean.amin(1)).median())
    if gap <= GAP and spread >= FLAT:
        return None
    figure = f"the median gap between the two largest logits is {gap:.2g}"
    return Flag(
        "extreme logits",
        figure if gap > GAP else f"{figure}, their median range {spread:.2g}",
        "the cross-entropy loses its gradient to rounding: attack an objective that ignores the scale (`apgd-dlr`), or "
        "rescale the logits first",
    )


def _double_normalisation(case: _Case) -> Flag | None:
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
        return Flag(name, f"{len(inputs)} normalising layers act on the input one after the other", advice)
    low, high = case.box.low, case.box.high
    if inputs and (low < 0 or high > 1):
        return Flag(
            name, f"the model has a normalising layer, and its inputs lie in [{low:g}, {high:g}] already", advice
        )
    if not layers:
        return None
    with_it = case.right
    with _hooked([(module, lambda _, args, __: args[0]) for module in layers.values()]):
        without = case.classified_right()
    gained, lost = int((without & ~with_it).sum()), int((with_it & ~without).sum())
    clear = gained > lost and mcnemar(gained, lost) < LEVEL
    if not clear or (gained - lost) / len(with_it) < POINTS:
        return None
    return Flag(
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


def _wrong_accuracy(case: _Case) -> Flag | None:
    if case.reported is None:
        return None
    right = case.right
    low, high = wilson(int(right.sum()), len(right))
    if low <= case.reported <= high:
        return None
    return Flag(
        "accuracy differs from the reported one",
        f"{_mean(right):.1%} on {len(right)} samples (95 % interval {low:.1%} to {high:.1%}), not {case.reported:.1%}",
        "check weights, preprocessing and class order: this may not be the model, or the data, of the report",
    )


PROBES: tuple[Callable[[_Case], Flag | None], ...] = (
    _wrong_accuracy,
    _double_normalisation,
    _randomised,
    _looping,
    _saturated_probabilities,
    _extreme_logits,
    _vanishing,
    _not_differentiable,
)
"""The questions `probe` asks, in the order of its answers."""


def _black_box_wins(norm: str, eps: float, results: Sequence[AttackResult]) -> Flag | None:
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
    return Flag(
        "black box beats white box",
        f"{alone} of {n} samples fell only to an attack without gradients ({norm}, eps {eps:g})",
        "gradients mislead the other attacks: look for what masks them (see the other flags) and attack through it",
    )


def is_black_box(attack: str) -> bool:
    """Whether the attack of that name looks at no gradient of the model it is judged on."""
    return " from " in attack or attack.rstrip("0123456789") in BLACK_BOX


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Eval mode, and on the way out everything as it was: modes, buffers and the parameters' gradients."""
    buffers = [(m, name, b, b.clone()) for m in module.modules() for name, b in m.named_buffers(recurse=False)]
    gradients = [(p, p.grad) for p in module.parameters()]
    for p, _ in gradients:
        p.grad = None
    try:
        with standing(module, "eval"):
            yield
    finally:
        for p, gradient in gradients:
            p.grad = gradient
        for m, name, buffer, content in buffers:
            setattr(m, name, buffer)
            if not torch.equal(buffer, content):
                buffer.copy_(content)


@contextmanager
def _hooked(hooks: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Forward hooks for a while."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
