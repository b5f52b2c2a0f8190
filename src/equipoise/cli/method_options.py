"""The training methods as they can be typed: a dataclass for each function of `equipoise.training.methods`, made from
its signature, so that another method is another `equipoise train NAME`.

A parameter that is a number, a text or a choice is a field of its name; its help is `Annotated[kind, "help"]` in the
signature, or that of its name in `_HELP`. A parameter that is an object, such as the loss, is made from the fields of
`_SPELLED_OUT`. Of the options that a method hands on to its attack, those of `_HANDED_ON` can be typed.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields, make_dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from torch import nn

from equipoise.attacks.gradient import usual_step_size
from equipoise.attacks.steps import StepSize, Triangular
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.schedules import Schedule, schedulable
from equipoise.core.types import Mode
from equipoise.generators import Manifold
from equipoise.geometry import Box, NormName
from equipoise.losses.objectives import UNCERTAINTIES, cross_entropy, regularised
from equipoise.losses.terms import Method
from equipoise.training import load_generator, methods
from equipoise.training.methods import variations

_REGULARISERS = {"entm": ("--entropy-weight", "2"), "ls": ("--smoothing", "0.74")}
"""What may be written behind the name of a method, and by itself for the standard one."""
_REGULARISED = (methods.entm, methods.label_smoothing)
"""The standard method with one of them."""


def _name(function: Callable[..., Method]) -> str:
    return function.__name__.removesuffix("_at").replace("_", "-")


METHODS: dict[str, Callable[..., Method]] = {
    _name(function): function
    for function in (getattr(methods, name) for name in methods.__all__)
    if function.__module__ != variations.__name__ and function not in _REGULARISED
}
"""The methods, by the names that are typed."""

_HELP = {
    "eps": "Radius in pixels of [0, 1], such as 0.1 or 8/255. 0..0.1@0.3 grows over the first 0.3 of the training.",
    "norm": "Norm of the ball.",
    "mode": "Mode of the network while perturbing. eval is faster; train uses batch statistics, as the papers' runs "
    "do.",
    "steps": "Steps of the perturbation. The methods of udp draw a number up to it for each sample.",
    "step_size": "Step size; by default 2.5 eps / steps. For a single step: eps, for r-fgsm 1.25 eps.",
    "step_schedule": "Step size over the steps. triangular: from the step size up to eps/2 (pgd, trades, uta: eps/5) "
    "at half of the steps, and back.",
    "uncertainty": "Uncertainty to maximise, of the mean prediction or of the disagreement of an ensemble.",
    "latent": "Layer whose output is perturbed, such as fc1. The ball is in units of that output.",
    "noise": "Radius of the uniform noise, in multiples of eps.",
    "tau": "Steps beyond the first point where the prediction is wrong.",
    "weight": "Weight of the method's second term.",
    "beta": "Weight of the divergence.",
    "kappa": "Weight of the clean loss after the warm-up; before it 1.",
    "alpha": "Weight of the loss of the bounds; the rest is that of the attack.",
    "linear": "Share of the linear bounds after the warm-up, the rest being intervals; before it 1.",
    "warmup": "Beginning and end of the warm-up, as shares of the training, over which eps grows from 0.",
    "divergence": "Divergence of the perturbed output from the clean one. KL(clean || perturbed), the reverse, or soft "
    "cross-entropy.",
    "clean_share": "Share of the clean loss, in [0, 1].",
    "entropy_weight": "Weight of the entropy, which the loss rewards. METHOD-entm sets it to 2.",
    "smoothing": "Label smoothing in [0, 1]. METHOD-ls sets it to 0.74.",
    "diversity_weight": "Weight of the log determinant of the members' wrong classes, which the loss rewards.",
    "corruptions": "Corruptions to train on, one of them drawn for each image and step. Do not test on the same ones.",
    "directions": "Random directions by which the penalty is estimated, at less cost; 0 computes it exactly.",
    "samples": "Samples near each input, and radii at which they are compared.",
    "sigma": "Standard deviation of the noise on the code of an input.",
    "radii": "Radii. The distances of the samples, or uniform up to the diameter of the pixel cube.",
    "manifold": "Manifold trained before. Its manifold.safetensors, or the run that holds it.",
    "manifold_epochs": "Epochs of training the auto-encoder.",
    "codes": "Dimension of the codes of the manifold.",
    "generator": "Run of r2, or a generator.safetensors, whose generator to start from.",
    "softness": "Constant added to the cross-entropy by which the distance is divided; 0 as published.",
    "halvings": "Bisection steps that move a generated example back to the boundary; 0 leaves it where it is.",
    "crossing": "Weight of a changed prediction in the generator's loss; 1 as published.",
    "scores": "Outputs whose change the generator seeks; probabilities as published.",
    "clean": "Gradient of the prediction at the clean point. held: it is a constant; live: it is not, as published.",
    "generator_lr": "Learning rate of the generator.",
    "generator_steps": "Steps of the generator for each step of the classifier.",
}
"""The help of options whose name says the same in every method."""
_LOSS = {"entropy_weight": (float, 0.0), "smoothing": (float, 0.0)}
_SPELLED_OUT: dict[str, dict[str, tuple[Any, Any]]] = {
    "loss": _LOSS,
    "layer": {"latent": (str, MISSING)},
    "manifold": {"manifold": (str | None, None), "manifold_epochs": (int, 10), "codes": (int, 16)},
    "generator": {"generator": (str | None, None)},
    "box": {},  # that of the data
}
"""The fields, with kind and default, from which a parameter is made that cannot be typed."""
_HANDED_ON: dict[str, tuple[Any, Any]] = {
    "norm": (NormName, "linf"),
    "mode": (Mode, "eval"),
    "uncertainty": (Literal[tuple(UNCERTAINTIES)], "entropy"),  # pyright: ignore[reportInvalidTypeForm]
}
_SCHEDULED = {"eps", "steps", "step_size", "weight", "beta", "clean_share", "entropy_weight", "smoothing", "noise"}
"""Options that may change over the training, as in `--eps 0..0.1@0.3`."""
_ANYWHERE = ("adp", "hein", "standard")
"""Methods that perturb no inputs, so that these may have any range."""
_NEW = {("on-manifold", "clean_share"): 0.0}
"""Options of a value that runs of the version before did not record: left out of the record, so that those resume."""


@cache
def choice_of(name: str) -> type:
    """The dataclass of the options of a method, with its `name`."""
    function = METHODS[name]
    made = [
        (field_name, kind, field(default=default, metadata=_metadata(field_name, text), kw_only=True))
        for field_name, kind, default, text in _fields_of(function)
    ]
    made.sort(key=lambda entry: entry[2].default is not MISSING)
    class_name = "".join(word.capitalize() for word in name.split("-"))
    namespace = {"name": name, "__doc__": function.__doc__, "__module__": __name__}
    return make_dataclass(class_name, made, frozen=True, namespace=namespace)


def _metadata(name: str, text: str) -> dict[str, str]:
    """The help of a field, and whether it may change over the training."""
    return {"help": text, "scheduled": "yes"} if name in _SCHEDULED else {"help": text}


def _fields_of(function: Callable[..., Method]) -> list[tuple[str, Any, Any, str]]:
    """Name, kind, default and help of what can be typed of a method."""
    entries: dict[str, tuple[Any, Any, str]] = {}
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, default, text = hints[name], parameter.default, _HELP.get(name, "")
        default = MISSING if default is parameter.empty else default
        if get_origin(kind) is Annotated:
            kind, text = get_args(kind)
        if parameter.kind is parameter.VAR_KEYWORD:
            entries |= {key: (*_HANDED_ON[key], _HELP[key]) for key in _HANDED_ON if _takes(function, key)}
            if "loss" not in hints and _takes(function, "loss"):
                entries |= {key: (*value, _HELP[key]) for key, value in _LOSS.items()}
        elif name in _SPELLED_OUT:
            entries |= {key: (*value, _HELP[key]) for key, value in _SPELLED_OUT[name].items()}
        elif StepSize in get_args(kind):
            entries |= {"step_size": (float | None, None, text)}
            entries |= {"step_schedule": (Literal["constant", "triangular"], "constant", _HELP["step_schedule"])}
        elif get_origin(kind) is Sequence:
            entries[name] = (tuple[*get_args(kind), ...], default, text)
        else:
            kind, default = _HANDED_ON.get(name) or (kind, default)
            entries[name] = (kind, default, text)
    return [(name, *entry) for name, entry in entries.items()]


def _takes(function: Callable[..., Method], option: str) -> bool:
    """Whether a method hands this option on to an attack that has it, which is seen by trying."""
    samples = {"eps": 0.1, "layer": "fc1", "manifold": Manifold(nn.Identity(), nn.Identity())}
    needed = [
        name for name, p in inspect.signature(function).parameters.items() if name in samples and p.default is p.empty
    ]
    value = {"loss": cross_entropy, "box": Box()}.get(option) or _HANDED_ON[option][1]
    try:
        function(**{name: samples[name] for name in needed}, **{option: value})
    except (EquipoiseError, TypeError):
        return False
    return True


def summary(name: str) -> str:
    """The first sentence of the documentation of a method, without its sources."""
    text = " ".join((METHODS[name].__doc__ or "").split("\n\n")[0].replace("`", "").split())
    return re.sub(_SOURCE, "", text).partition(". ")[0].rstrip(".")


_SOURCE = r" \([^()]*(?:\b\d{4}\b|\b[FRTU], )[^()]*\)"


def spelled_out(words: Sequence[str]) -> list[str]:
    """`train pat-entm ...` as `train pat --entropy-weight 2 ...`, with the weight that was typed, if one was."""
    if len(words) < 2 or words[0] != "train" or words[1] in METHODS:
        return list(words)
    method, _, suffix = ("standard", "", "entm") if words[1] == "maxe" else words[1].rpartition("-")
    if suffix not in _REGULARISERS or (method or "standard") not in METHODS:
        return list(words)
    flag, value = _REGULARISERS[suffix]
    typed = any(word.partition("=")[0].replace("_", "-") == flag for word in words)
    return ["train", method or "standard", *words[2:], *([] if typed else [flag, value])]


def parameters(choice: Any) -> dict[str, Any]:
    """Name and hyper-parameters of a chosen method; this is its record."""
    typed = {f.name: getattr(choice, f.name) for f in fields(choice)}
    values = {"name": choice.name, **{k: str(v) if isinstance(v, Schedule) else v for k, v in typed.items()}}
    return {key: value for key, value in values.items() if _NEW.get((choice.name, key), MISSING) != value}


def full_name(record: Mapping[str, Any]) -> str:
    """The method's name with the regularisers it was given: `pat-entm`; `entm` and `ls` for the standard one."""
    name = record["name"]
    if "smoothing" not in record:  # a loss of its own
        return name
    given = [s for s, option in (("entm", "entropy_weight"), ("ls", "smoothing")) if record[option]]
    return "-".join([*([] if name == "standard" and given else [name]), *given])


def build_method(choice: Any, manifold: Manifold | None = None, box: Box = Box()) -> Method:
    """The method with its hyper-parameters, or an `Expression` of it if one of them is scheduled, on `manifold` if it
    needs one; without, just to see whether they are in range. Its points stay in the `box`. Raises `EquipoiseError` for
    values out of range, and for a method that knows no other box than [0, 1].
    """
    options = parameters(choice)
    name = options.pop("name")
    options = {key: getattr(choice, key) for key in options}
    if "manifold" in options:
        options = {key: value for key, value in options.items() if key not in ("manifold_epochs", "codes")}
        options["manifold"] = manifold or Manifold(nn.Identity(), nn.Identity())
    if options.pop("step_schedule", "constant") == "triangular":
        options["step_size"] = _triangular(name, options["eps"], options["step_size"], options["steps"])
    if options.get("generator") is not None:
        options["generator"] = load_generator(options["generator"])
    if "latent" in options:
        options["layer"] = options.pop("latent")
    if "smoothing" in options:  # one of the methods with a `loss`
        weight, smoothing = options.pop("entropy_weight"), options.pop("smoothing")
        options |= {"loss": regularised(weight, smoothing)} if weight or smoothing else {}
    if box != Box() and name not in _ANYWHERE and "layer" not in options:
        require(_takes(METHODS[name], "box"), f"{name} perturbs inputs in [0, 1] alone: scale the data to that range.")
        options["box"] = box
    return METHODS[name](**options)


@schedulable
def _triangular(name: str, eps: float, size: float | None, steps: int) -> StepSize:
    peak = eps / (5 if name.removeprefix("ls-") in ("pgd", "trades", "uta") else 2)
    return Triangular(usual_step_size(eps, steps) if size is None else size, peak)
