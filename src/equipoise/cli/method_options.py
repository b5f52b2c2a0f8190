"""The training methods as they can be typed: each a dataclass, each field a flag, each docstring its help."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Annotated, Any, Literal

from torch import nn
from tyro.conf import Suppress, subcommand

from equipoise.attacks.gradient import usual_step_size
from equipoise.attacks.steps import StepSize, Triangular
from equipoise.core.types import Mode
from equipoise.corruptions import CORRUPTIONS
from equipoise.generators import Manifold
from equipoise.geometry import NormName
from equipoise.losses.objectives import Divergence, regularised
from equipoise.losses.terms import Method
from equipoise.training import load_generator, methods
from equipoise.training.penalties import Radii


@dataclass(frozen=True)
class Perturbation:
    """How far perturbations go."""

    eps: float
    """Radius of the ball, in pixels of [0, 1]: 0.1, or 8/255."""
    norm: NormName = "linf"
    """Norm of the ball."""
    mode: Mode = "eval"
    """Mode of the network while perturbing. eval is faster; train uses batch statistics, as the papers' runs do."""


@dataclass(frozen=True)
class Climb:
    """How a perturbation of several steps gets there."""

    step_size: float | None = None
    """Length of a step; by default 2.5 eps / steps."""
    step_schedule: Literal["constant", "triangular"] = "constant"
    """triangular: from the step size up to eps/2 (pgd, trades and uta: eps/5) at half of the steps, and back; the first
    and the last step have the step size."""


@dataclass(frozen=True)
class Loss:
    """What is descended, and climbed by the methods that climb the loss."""

    entropy_weight: float = 0.0
    """Weight of the output's entropy, which is subtracted from the loss; METHOD-entm sets it to 2."""
    smoothing: float = 0.0
    """Label smoothing in [0, 1]; METHOD-ls sets it to 0.74."""


@dataclass(frozen=True)
class Standard:
    """Training without perturbations."""

    name: Suppress[str]
    """Which method."""
    loss: Loss = Loss()


@dataclass(frozen=True)
class Diverse:
    """An ensemble regularised to be diverse, without perturbations; add --members 3."""

    name: Suppress[str]
    """Which method."""
    entropy_weight: float = 2.0
    """Weight of the entropy of the mean, which is subtracted from the loss."""
    diversity_weight: float = 0.5
    """Weight of the log determinant of the members' wrong classes, which is subtracted too."""


@dataclass(frozen=True)
class OneStep:
    """A perturbation of one step."""

    name: Suppress[str]
    """Which method."""
    perturbation: Perturbation
    loss: Loss = Loss()


@dataclass(frozen=True)
class RandomStep:
    """A perturbation of one step from a random start."""

    name: Suppress[str]
    """Which method."""
    perturbation: Perturbation
    step_size: float | None = None
    """Length of the step; by default 1.25 eps."""
    loss: Loss = Loss()


@dataclass(frozen=True)
class NoisyStep:
    """A perturbation of one step from noise, not projected back."""

    name: Suppress[str]
    """Which method."""
    perturbation: Perturbation
    step_size: float | None = None
    """Length of the step; by default eps."""
    noise: float = 2.0
    """Radius of the uniform noise, in multiples of eps."""
    loss: Loss = Loss()


@dataclass(frozen=True)
class AlignedStep:
    """A perturbation of one step, and a penalty on gradients that turn within the ball."""

    name: Suppress[str]
    """Which method."""
    perturbation: Perturbation
    weight: float = 0.2
    """Weight of the penalty."""
    loss: Loss = Loss()


@dataclass(frozen=True)
class Generated:
    """A clean loss, and far-away adversarial examples by a generator network that trains alongside."""

    name: Suppress[str]
    """Which method."""
    weight: float = 1.0
    """Weight of the distance to the generated examples, which is subtracted from the loss."""
    softness: float = 1.0
    """Added to the cross-entropy by which that distance is divided; 0 is as published."""
    halvings: int = 6
    """Bisections that move a generated example back to the boundary; 0 leaves it where it is."""
    crossing: float = 10.0
    """Weight, in the generator's loss, of being predicted otherwise; 1 is as published."""
    scores: Literal["logits", "probabilities"] = "logits"
    """What the generator looks at to be predicted otherwise; probabilities is as published."""
    clean: Literal["held", "live"] = "held"
    """Whether the prediction at the clean point is a constant of the gradient; live is as published."""
    generator_lr: float = 3e-3
    """Learning rate of the generator."""
    generator_steps: int = 1
    """Steps of the generator for each of the classifier's."""
    generator: str | None = None
    """A run of r2, or a generator.safetensors, whose generator to start from."""
    loss: Loss = Loss()


@dataclass(frozen=True)
class Mixed:
    """A share of the clean loss, and the rest at a perturbation of several steps that climbs the same loss."""

    name: Suppress[str]
    """Which method."""
    perturbation: Perturbation
    climb: Climb = Climb()
    steps: int = 10
    """Number of steps."""
    clean_share: float = 0.5
    """Share of the clean loss."""
    loss: Loss = Loss()


@dataclass(frozen=True)
class Smooth:
    """A clean loss, and a penalty on logits that move apart fast."""

    name: Suppress[str]
    """Which method."""
    weight: float = 0.01
    """Weight of the penalty."""
    directions: int = 0
    """Random directions by which the penalty is estimated, at less cost; 0 computes it exactly."""
    loss: Loss = Loss()


@dataclass(frozen=True)
class Learned:
    """The data manifold, an auto-encoder that is trained first and kept in the run."""

    manifold: str | None = None
    """A manifold that was trained before: its manifold.safetensors, or the run that holds it."""
    manifold_epochs: int = 10
    """Epochs of its training."""
    codes: int = 16
    """Numbers in a code."""


@dataclass(frozen=True)
class Agreeing:
    """A clean loss, and the disagreement with samples of the data manifold nearby."""

    name: Suppress[str]
    """Which method."""
    learned: Learned = Learned()
    weight: float = 1.0
    """Weight of the disagreement."""
    samples: int = 10
    """Samples for each input, and radii at which they are looked at."""
    sigma: float = 0.06
    """Deviation of the noise on an input's code."""
    radii: Radii = "distances"
    """Which radii: the distances of the samples, or uniform up to the diameter of the pixel cube."""
    loss: Loss = Loss()


@dataclass(frozen=True)
class Coded:
    """A perturbation of several steps in the codes of the data manifold, in whose units the ball is."""

    name: Suppress[str]
    """Which method."""
    perturbation: Perturbation
    learned: Learned = Learned()
    climb: Climb = Climb()
    steps: int = 10
    """Number of steps."""
    loss: Loss = Loss()


@dataclass(frozen=True)
class Corrupting:
    """A share of the clean loss, and the rest on corrupted images."""

    name: Suppress[str]
    """Which method."""
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    """Corruptions to train on; one of them is drawn for each image and step. Do not test on the same ones."""
    clean_share: float = 0.5
    """Share of the clean loss."""
    loss: Loss = Loss()


@dataclass(frozen=True)
class Misclassified:
    """A boosted loss and a divergence weighted by how wrong the clean prediction is, at a perturbation."""

    name: Suppress[str]
    """Which method."""
    perturbation: Perturbation
    climb: Climb = Climb()
    steps: int = 10
    """Number of steps."""
    beta: float = 5.0
    """Weight of the divergence."""


@dataclass(frozen=True)
class Uncertainty:
    """What a perturbation climbs that looks at no label."""

    uncertainty: Literal[
        "entropy", "mutual_information", "expected_entropy", "variance", "logit_variance", "least_confidence", "margin"
    ] = "entropy"
    """Which uncertainty: of the mean prediction, or of how the members of an ensemble disagree."""


@dataclass(frozen=True)
class Divergent:
    """How far the output may move."""

    beta: float = 6.0
    """Weight of the divergence."""
    divergence: Divergence = "clean||here"
    """Which divergence: KL(clean || perturbed), the reverse, or soft cross-entropy."""


@dataclass(frozen=True)
class Place:
    """Where a perturbation in a latent space lives."""

    latent: str
    """The layer whose output is perturbed, such as fc1 of a lenet; the ball is in its units. In L2 and L1 the members
    of an ensemble share one ball."""


@dataclass(frozen=True)
class Iterated:
    """A perturbation of several steps."""

    name: Suppress[str]
    """Which method."""
    perturbation: Perturbation
    climb: Climb = Climb()
    steps: int = 20
    """Number of steps."""
    loss: Loss = Loss()


@dataclass(frozen=True)
class Friendly:
    """A perturbation of several steps that stops where the prediction is wrong."""

    name: Suppress[str]
    """Which method."""
    perturbation: Perturbation
    climb: Climb = Climb()
    steps: int = 10
    """Number of steps at the most."""
    tau: int = 0
    """Steps beyond the first point where the prediction is wrong."""
    loss: Loss = Loss()


@dataclass(frozen=True)
class Uncertain:
    """A perturbation of several steps to where the model is uncertain."""

    name: Suppress[str]
    """Which method."""
    perturbation: Perturbation
    climb: Climb = Climb()
    what: Uncertainty = Uncertainty()
    steps: int = 20
    """Number of steps; udp draws a number up to it for each sample."""
    loss: Loss = Loss()


@dataclass(frozen=True)
class Weighted:
    """A clean term, and a weighted one where the model is uncertain."""

    name: Suppress[str]
    """Which method."""
    perturbation: Perturbation
    climb: Climb = Climb()
    what: Uncertainty = Uncertainty()
    steps: int = 20
    """Number of steps; for each sample a number up to it is drawn."""
    weight: float = 1.0
    """Weight of the perturbed term beside the clean one."""
    loss: Loss = Loss()


@dataclass(frozen=True)
class Diverging:
    """A clean term, and a divergence from the clean output at a perturbation of several steps."""

    name: Suppress[str]
    """Which method."""
    perturbation: Perturbation
    climb: Climb = Climb()
    how_far: Divergent = Divergent()
    steps: int = 20
    """Number of steps."""
    loss: Loss = Loss()


@dataclass(frozen=True)
class UncertainDiverging:
    """A clean term, and a divergence from the clean output where the model is uncertain."""

    name: Suppress[str]
    """Which method."""
    perturbation: Perturbation
    climb: Climb = Climb()
    what: Uncertainty = Uncertainty()
    how_far: Divergent = Divergent()
    steps: int = 20
    """Number of steps; for each sample a number up to it is drawn."""
    loss: Loss = Loss()


@dataclass(frozen=True, kw_only=True)
class LatentIterated(Iterated):
    """The same in a latent space."""

    place: Place


@dataclass(frozen=True, kw_only=True)
class LatentUncertain(Uncertain):
    """The same in a latent space."""

    place: Place


@dataclass(frozen=True, kw_only=True)
class LatentWeighted(Weighted):
    """The same in a latent space."""

    place: Place


@dataclass(frozen=True, kw_only=True)
class LatentDiverging(Diverging):
    """The same in a latent space."""

    place: Place


def _named(name: str, kind: type, description: str, **defaults: Any) -> Any:
    return subcommand(name, constructor=partial(kind, name, **defaults), description=description)


Choice = (
    Annotated[Standard, subcommand("standard", default=Standard("standard"), description="No perturbations.")]
    | Annotated[Diverse, _named("adp", Diverse, "An ensemble whose members err differently.")]
    | Annotated[OneStep, _named("fgsm", OneStep, "One step up the loss.")]
    | Annotated[RandomStep, _named("r-fgsm", RandomStep, "fgsm from a random start.")]
    | Annotated[NoisyStep, _named("n-fgsm", NoisyStep, "fgsm from noise, not projected back.")]
    | Annotated[AlignedStep, _named("gradalign", AlignedStep, "fgsm with aligned gradients.")]
    | Annotated[Generated, _named("r2", Generated, "Far from what a generator network finds.")]
    | Annotated[Iterated, _named("pgd", Iterated, "At the point of greatest loss.", steps=10)]
    | Annotated[Friendly, _named("friendly", Friendly, "pgd that stops where the prediction is wrong.")]
    | Annotated[Mixed, _named("pat", Mixed, "Half the clean loss, half that at the pgd point.")]
    | Annotated[Corrupting, _named("corruption", Corrupting, "Half the clean loss, half that on corrupted images.")]
    | Annotated[Misclassified, _named("mart", Misclassified, "pgd that looks harder at what is misclassified.")]
    | Annotated[Uncertain, _named("udp", Uncertain, "At the point of greatest uncertainty, 1 to K steps away.")]
    | Annotated[Uncertain, _named("uta", Uncertain, "At the point of greatest uncertainty, K steps away.")]
    | Annotated[Weighted, _named("udpr", Weighted, "The clean loss plus that at the udp point.")]
    | Annotated[
        Diverging,
        _named("trades", Diverging, "The clean loss plus the divergence at its greatest.", steps=10),
    ]
    | Annotated[
        UncertainDiverging,
        _named(
            "udp-trades",
            UncertainDiverging,
            "The clean loss plus the divergence at the udp point.",
            how_far=Divergent(1.0, "soft-cross-entropy"),
        ),
    ]
    | Annotated[Smooth, _named("hein", Smooth, "Logits that do not move apart fast (cross-Lipschitz).")]
    | Annotated[Agreeing, _named("r4", Agreeing, "Agreement with samples of the data manifold nearby.")]
    | Annotated[Coded, _named("on-manifold", Coded, "pgd in the codes of the data manifold (Stutz).")]
    | Annotated[LatentIterated, _named("ls-pgd", LatentIterated, "pgd in a latent space.")]
    | Annotated[LatentUncertain, _named("ls-udp", LatentUncertain, "udp in a latent space.")]
    | Annotated[LatentUncertain, _named("ls-uta", LatentUncertain, "uta in a latent space.")]
    | Annotated[LatentWeighted, _named("ls-udpr", LatentWeighted, "udpr in a latent space.")]
    | Annotated[LatentDiverging, _named("ls-trades", LatentDiverging, "trades in a latent space.")]
)
METHODS: dict[str, Callable[..., Method]] = {
    "standard": methods.standard,
    "adp": methods.adp,
    "fgsm": methods.fgsm_at,
    "r-fgsm": methods.r_fgsm_at,
    "n-fgsm": methods.n_fgsm_at,
    "gradalign": methods.gradalign_at,
    "r2": methods.r2,
    "pgd": methods.pgd_at,
    "friendly": methods.friendly_at,
    "pat": methods.pat,
    "corruption": methods.corruption_at,
    "mart": methods.mart,
    "udp": methods.udp,
    "uta": methods.uta,
    "udpr": methods.udpr,
    "trades": methods.trades,
    "udp-trades": methods.udp_trades,
    "hein": methods.hein,
    "r4": methods.r4,
    "on-manifold": methods.on_manifold_at,
    "ls-pgd": methods.ls_pgd,
    "ls-udp": methods.ls_udp,
    "ls-uta": methods.ls_uta,
    "ls-udpr": methods.ls_udpr,
    "ls-trades": methods.ls_trades,
}


_LOSSES = {"entm": ("--entropy-weight", "2"), "ls": ("--smoothing", "0.74")}
"""What may be written behind a method's name, and by itself for the standard one."""


def spelled_out(words: Sequence[str]) -> list[str]:
    """`train pat-entm ...` as `train pat --entropy-weight 2 ...`, with the weight that was typed, if one was."""
    if len(words) < 2 or words[0] != "train" or words[1] in METHODS:
        return list(words)
    method, _, suffix = ("standard", "", "entm") if words[1] == "maxe" else words[1].rpartition("-")
    if suffix not in _LOSSES or (method or "standard") not in METHODS:
        return list(words)
    flag, value = _LOSSES[suffix]
    typed = any(word.partition("=")[0].replace("_", "-") == flag for word in words)
    return ["train", method or "standard", *words[2:], *([] if typed else [flag, value])]


def parameters(choice: Any) -> dict[str, Any]:
    """Name and hyper-parameters of a chosen method, flat; this is its record."""
    found: dict[str, Any] = {}
    for field in fields(choice):
        value = getattr(choice, field.name)
        found |= parameters(value) if is_dataclass(value) else {field.name: value}
    return found


def full_name(record: Mapping[str, Any]) -> str:
    """The method's name with the regularisers it was given: `pat-entm`; `entm` and `ls` for the standard one."""
    name = record["name"]
    if "smoothing" not in record:  # a loss of its own
        return name
    given = [s for s, field in (("entm", "entropy_weight"), ("ls", "smoothing")) if record[field]]
    return "-".join([*([] if name == "standard" and given else [name]), *given])


def build_method(choice: Any, manifold: Manifold | None = None) -> Method:
    """The method with its hyper-parameters, on `manifold` if it needs one; without, just to see whether they are in
    range. Raises `EquipoiseError` for values out of range.
    """
    options = parameters(choice)
    if "manifold" in options:
        options = {name: value for name, value in options.items() if name not in ("manifold_epochs", "codes")}
        options["manifold"] = manifold or Manifold(nn.Identity(), nn.Identity())
    name, steps = options.pop("name"), options.get("steps", 1)
    if options.pop("step_schedule", "constant") == "triangular":
        options["step_size"] = _triangular(name, options["eps"], options["step_size"], steps)
    if options.get("generator") is not None:
        options["generator"] = load_generator(options["generator"])
    if "latent" in options:
        options["layer"] = options.pop("latent")
    if "smoothing" in options:  # one of the methods that descend a `Loss`
        weight, smoothing = options.pop("entropy_weight"), options.pop("smoothing")
        options |= {"loss": regularised(weight, smoothing)} if weight or smoothing else {}
    return METHODS[name](**options)


def _triangular(name: str, eps: float, size: float | None, steps: int) -> StepSize:
    peak = eps / (5 if name.removeprefix("ls-") in ("pgd", "trades", "uta") else 2)
    return Triangular(usual_step_size(eps, steps) if size is None else size, peak)
