"""What a model itself suggests about its robustness: `check_model`, before any attack.

warnings = check_model(model, x, y) + check_results(results)

Each `ResultWarning` comes with the figure that raised it; none proves anything. Most of the checks are those of
Athalye, Carlini & Wagner (ICML 2018, Sec. 3.1) and of Carlini et al. (On Evaluating Adversarial Robustness, 2019).
`check_results` is in `equipoise.masking.result_checks`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from equipoise.core.deprecation import renamed_names
from equipoise.core.errors import require
from equipoise.core.types import Labels, Points, Prediction, Predictive, answers_of
from equipoise.geometry import Box
from equipoise.losses.objectives import Objective, cross_entropy, margin
from equipoise.masking.gradient_check import COARSE_STEP, gradient_errors_of
from equipoise.masking.inspected_model import InspectedModel, inspected
from equipoise.models import as_predictive, expected_normalisation
from equipoise.results.records import ResultWarning
from equipoise.results.statistics import mcnemar, wilson

LOST_SHARE = 0.05
"""Share of samples above which gradients of exactly 0, or probabilities of exactly 1, are a warning: the robust
accuracy may be wrong by as much."""

FAINT_GRADIENT = 1e-10
"""Largest entry of an input gradient, times the width of the box, that counts as faint. A step of 1/255 in each of a
thousand pixels then moves the loss by less than 1e-9, far below what float32 resolves next to 1 (6e-8)."""

FAINT_SHARE = 0.5
"""Share of samples above which faint gradients are a warning. Their sign may still be right, and a network that was
merely trained for long has them on up to a fifth of its samples."""

GRADIENT_ERROR = 0.5
"""Relative error above which the gradient and finite differences disagree: half of the change is then not explained."""

LARGE_GAP = 30.0
"""Median gap between the two largest logits above which they are extreme: beyond it the float32 cross-entropy and its
gradient fall below 1e-13, and where the gap exceeds 17 the largest probability already rounds to 1."""

SMALL_RANGE = 1e-3
"""Median range of the upper half of the logits below which they are nearly constant: those classes are then equally
probable to 0.1 %, and the rounding of the loss (1e-7) is no longer far below what a small step changes. The lower half
may hold classes that are absent."""

LARGE_ROUNDING = 0.01
"""Rounding error of the largest logits, relative to the median gap between them, above which they are extreme: a
constant added to all logits then hides what a small step changes."""

PROBABILITY_RANGE = 0.5
"""Range of outputs in [0, 1] from which they are probabilities rather than small logits."""

ACCURACY_GAIN, SIGNIFICANCE_LEVEL = 0.05, 0.05
"""Gain of clean accuracy without a normalising layer, and significance level of the paired test, from which the layer
is one too many."""


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
    """Return a warning for everything about the model itself that suggests its robustness is overstated.

    Inspects `samples` samples, spread evenly over `x`, whose values lie in `box`; accuracies and logits that are not
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
    with inspected(as_predictive(model), x, y, box, samples, seed, reported) as inspected_model:
        checks = CHECKS if answers_of(inspected_model.predictive) == "gradients" else CHECKS_OF_BLACK_BOXES
        warnings = [check(inspected_model) for check in checks]
    return [warning for warning in warnings if warning is not None]


def _not_finite(model: InspectedModel) -> ResultWarning | None:
    count = int((~Prediction(model.all_clean_logits[None]).finite).sum())
    if not count:
        return None
    return ResultWarning(
        "logits that are not finite",
        f"on {count} of {len(model.all_clean_logits)} samples they hold a NaN or +inf, or are all -inf",
        "no class follows from them, so that these samples are neither right nor fooled: look for a division by 0, an "
        "overflow or diverged weights; -inf for single classes is fine",
    )


def _gradient_not_finite(model: InspectedModel) -> ResultWarning | None:
    if model.no_gradient is not None:
        return None
    counts = {}
    for objective in (cross_entropy, margin):
        gradient = model.gradient(objective, model.x)[model.finite].flatten(1)
        counts[objective.name] = int((~gradient.isfinite().all(1)).sum())
    if not any(counts.values()):
        return None
    figure = " and that of the ".join(f"{name} on {count}" for name, count in counts.items())
    return ResultWarning(
        "gradients that are not finite",
        f"the input gradient of the {figure} of {model.n} samples holds a NaN or an infinity, their logits do not",
        "attacks take it as 0 and stand still there: look for a square root, a norm or a logarithm at 0 in the model, "
        "and attack with `square` too",
    )


def _randomised(model: InspectedModel) -> ResultWarning | None:
    if not model.randomised:
        return None
    changed, size = model.changes_between_calls
    return ResultWarning(
        "randomised model",
        f"logits change by up to {size:.2g} between calls, on {int(changed.sum())} of {model.n} samples",
        "attack the average over draws (expectation over transformation, attack `autoattack-rand`) and report the mean "
        "over draws",
    )


def _batch_dependent(model: InspectedModel) -> ResultWarning | None:
    if not model.batch_dependent:
        return None
    changed, size = model.changes(model.single_logits())
    return ResultWarning(
        "batch-dependent model",
        f"logits change by up to {size:.2g} from a small batch to one of {model.n}, on {int(changed.sum())} of "
        f"{len(changed)} samples",
        "accuracies then depend on the batch size and on the order of the data: give batch-norm running statistics, "
        "compute nothing over the first dimension",
    )


def _probabilities(model: InspectedModel) -> ResultWarning | None:
    name = "probabilities instead of logits"
    if getattr(model.predictive, "outputs", "logits") != "probabilities":
        logits = model.clean_logits[model.finite].flatten()
        low, high = (float(end) for end in logits.aminmax()) if len(logits) else (0.0, 0.0)
        if low < 0 or high > 1 or high - low < PROBABILITY_RANGE:
            return None
        return ResultWarning(
            name,
            f"all outputs for {model.n} samples lie in [0, 1] (from {low:.2g} to {high:.2g}), as after a sigmoid",
            "give the model without its last sigmoid or softmax, so that its logits can be attacked",
        )
    count = int((model.clean_logits.amax(1) == 0).sum())  # log 1
    if count <= LOST_SHARE * model.n:
        return None
    return ResultWarning(
        name,
        f"the largest probability is exactly 1 on {count} of {model.n} samples, which hides how sure the model is",
        "give the model without its last softmax, so that its logits can be attacked",
    )


def _vanishing(model: InspectedModel) -> ResultWarning | None:
    if model.no_gradient is not None:
        return None
    zero, faint = _count_lost_gradients(model, cross_entropy)
    if zero <= LOST_SHARE * model.n and zero + faint <= FAINT_SHARE * model.n:
        return None
    name = "vanishing gradients" if zero > LOST_SHARE * model.n else "faint gradients"
    of_margin = sum(_count_lost_gradients(model, margin))
    advice = (
        "attack the margin or the difference of logits ratio (attacks `cw`, `apgd-dlr`), or divide the logits by a "
        "constant first"
        if of_margin <= LOST_SHARE * model.n
        else "the margin's gradient vanishes too: attack with `square`, by transfer, or through a stand-in (BPDA)"
    )
    return ResultWarning(
        name,
        f"the input gradient of the cross-entropy is exactly 0 on {zero} and below {FAINT_GRADIENT:g} per width of the "
        f"box on {faint} of {model.n} samples, that of the margin on {of_margin}",
        advice,
    )


def _count_lost_gradients(model: InspectedModel, objective: Objective) -> tuple[int, int]:
    """On how many samples the gradient is exactly 0, and on how many it is nonzero but faint."""
    gradient = model.gradient(objective, model.x)[model.finite]
    largest = gradient.flatten(1).abs().amax(1) * (model.box.high - model.box.low)
    zero = largest == 0
    return int(zero.sum()), int(((largest < FAINT_GRADIENT) & ~zero).sum())


def _not_differentiable(model: InspectedModel) -> ResultWarning | None:
    name, advice = (
        "non-differentiable model",
        "replace that part by a differentiable stand-in in the backward pass (BPDA), and attack with `square` too",
    )
    if model.no_gradient is not None:
        return ResultWarning(name, f"it gives no gradient ({model.no_gradient})", advice)
    fine, coarse = gradient_errors_of(model)
    if not len(fine):
        return None
    along, around = float(fine.median()), float(coarse.median())
    if max(along, around) <= GRADIENT_ERROR:
        return None
    return ResultWarning(
        name,
        f"the margin's gradient misses finite differences by {along:.0%} along itself in tiny steps and by "
        f"{around:.0%} along random signs in steps of {COARSE_STEP:.2g} per pixel (medians of {len(fine)} samples)",
        advice,
    )


class _CountAutograd(TorchFunctionMode):
    """Counts the calls of autograd's entry points, however they were imported."""

    watched = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in self.watched
        return func(*args, **(kwargs or {}))


def _looping(model: InspectedModel) -> ResultWarning | None:
    with _CountAutograd() as calls:
        model.logits_at(model.x)
    if not calls.count:
        return None
    return ResultWarning(
        "looping model",
        f"one forward pass computes gradients of its own, {calls.count} times",
        "it optimises while it predicts: attack through its loop (an adaptive attack), by transfer from the model "
        "without it, and with `square`",
    )


def _extreme_logits(model: InspectedModel) -> ResultWarning | None:
    logits = model.clean_logits[model.finite]
    if not len(logits):
        return None
    upper = logits.topk(max(2, logits.shape[1] // 2), dim=1).values
    spread = float((upper[:, 0] - upper[:, -1]).median())
    rounding = float(model.rounding_error(logits).median())
    figure = f"the median gap between the two largest logits is {model.gap:.2g}"
    if model.gap <= LARGE_GAP and spread >= SMALL_RANGE:
        if rounding <= LARGE_ROUNDING * model.gap or model.gap == 0:
            return None
        constant = float(upper[:, 0].median())
        figure += f", their rounding error {rounding:.2g}, as they share a constant of about {constant:.2g}"
    elif model.gap <= LARGE_GAP:
        figure += f", the median range of the upper half {spread:.2g}"
    return ResultWarning(
        "extreme logits",
        figure,
        "the cross-entropy loses its gradient to rounding: attack an objective that ignores the scale (`apgd-dlr`), or "
        "rescale the logits first",
    )


def _double_normalisation(model: InspectedModel) -> ResultWarning | None:
    inputs: list[Tensor] = []
    layers: dict[str, nn.Module] = {}

    def record_input(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and args[0].shape == model.x.shape:
                if not any(torch.equal(args[0], seen) for seen in inputs):
                    inputs.append(args[0].detach().clone())
                if isinstance(output, Tensor) and output.shape == args[0].shape:
                    layers[name] = module

        return hook

    normalising = [(name, module) for name, module in model.predictive.module.named_modules() if _normalises(module)]
    if not normalising:
        return None
    with _hooked([(module, record_input(name)) for name, module in normalising]):
        model.logits_at(model.x)
    name, advice = "double normalisation", "normalise once, inside the model, and give it pixels in [0, 1]"
    if len(inputs) > 1:
        return ResultWarning(name, f"{len(inputs)} normalising layers act on the input one after the other", advice)
    low, high = model.box.low, model.box.high
    if inputs and (low < 0 or high > 1):
        return ResultWarning(
            name, f"the model has a normalising layer, and its inputs lie in [{low:g}, {high:g}] already", advice
        )
    if not layers:
        return None
    with_layer = model.correct(model.all_clean_logits)
    with _hooked([(module, lambda _, args, __: args[0]) for module in layers.values()]):
        without = model.correct(model.all_logits())
    gained, lost = int((without & ~with_layer).sum()), int((with_layer & ~without).sum())
    significant = gained > lost and mcnemar(gained, lost) < SIGNIFICANCE_LEVEL
    if not significant or (gained - lost) / len(with_layer) < ACCURACY_GAIN:
        return None
    return ResultWarning(
        name,
        f"clean accuracy is {with_layer.double().mean():.1%} with the normalising layer {', '.join(layers)} and "
        f"{without.double().mean():.1%} without it",
        advice,
    )


def _missing_normalisation(model: InspectedModel) -> ResultWarning | None:
    module = model.predictive.module
    expected = expected_normalisation(module)
    if expected is None or any(_normalises(layer) for layer in module.modules()):
        return None
    mean, std = expected
    return ResultWarning(
        "missing normalisation",
        f"its own configuration expects inputs standardised by mean {mean} and std {std}, and it gets them as they are",
        "make that its first layer: torch.nn.Sequential(equipoise.nets.Normalize(mean, std), model)",
    )


def _normalises(module: nn.Module) -> bool:
    """Whether a layer holds a mean and a standard deviation, or is named so and trains nothing (unlike layer norms)."""
    numbers = [getattr(module, name, None) for name in ("mean", "std")]
    named = "normaliz" in type(module).__name__.lower() and not list(module.parameters(recurse=False))
    return named or not any(v is None or callable(v) for v in numbers)


def _wrong_accuracy(model: InspectedModel) -> ResultWarning | None:
    if model.reported is None:
        return None
    correct = model.correct(model.all_clean_logits)
    low, high = wilson(int(correct.sum()), len(correct))
    if low <= model.reported <= high:
        return None
    return ResultWarning(
        "accuracy differs from the reported one",
        f"{correct.double().mean():.1%} on {len(correct)} samples (95 % interval {low:.1%} to {high:.1%}), "
        f"not {model.reported:.1%}",
        "check weights, preprocessing and class order: this may not be the model, or the data, of the report",
    )


@contextmanager
def _hooked(hooks: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


CHECKS: tuple[Callable[[InspectedModel], ResultWarning | None], ...] = (
    _wrong_accuracy,
    _double_normalisation,
    _missing_normalisation,
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
"""The checks of `check_model`, in the order of its warnings."""

CHECKS_OF_BLACK_BOXES = (_wrong_accuracy, _not_finite, _randomised, _batch_dependent, _probabilities)
"""Those that neither follow gradients nor look into the network, nor at the size of scores that may be of any kind."""

__getattr__ = renamed_names(
    __name__,
    {
        "check_results": "equipoise.masking.result_checks:check_results",
        "gradient_errors": "equipoise.masking.gradient_check:gradient_errors",
        "is_black_box": "equipoise.masking.result_checks:is_black_box",
    },
)
