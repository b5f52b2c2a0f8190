"""What can be typed: each command is a dataclass, each field a flag, each docstring its help."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from torch import nn
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, Suppress, arg, subcommand
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

import equipoise
from equipoise import methods
from equipoise.attacks.gradient import usual_step_size
from equipoise.cli.reproducing import Experiments, Reproduce
from equipoise.cli.scoring import Score
from equipoise.cli.studying import Study
from equipoise.corruptions import CORRUPTIONS
from equipoise.errors import EquipoiseError, unknown
from equipoise.generators import Manifold
from equipoise.geometry import NormName
from equipoise.objectives import Divergence, regularised
from equipoise.penalties import Radii
from equipoise.steps import StepSize, Triangular
from equipoise.terms import Method
from equipoise.training import Recipe, load_generator
from equipoise.types import Mode, Precision


def fraction(text: str) -> float:
    """A number, or a quotient such as `8/255`. Raises `ValueError` for anything else, NaN included."""
    above, slash, below = text.partition("/")
    try:
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"expected a number or a fraction such as 8/255, got {text!r}")
    return value


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
    """triangular: from the step size up to eps/2 (pgd and trades: eps/5) at half of the steps, and back."""


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
    generator_lr: float = 3e-3
    """Learning rate of the generator."""
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
        _named("udp-trades", UncertainDiverging, "The clean loss plus the divergence at the udp point."),
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


def _spelled_out(words: Sequence[str]) -> list[str]:
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
    peak = eps / (5 if name.removeprefix("ls-") in ("pgd", "trades") else 2)
    return Triangular(usual_step_size(eps, steps) if size is None else size, peak)


@dataclass(frozen=True)
class Train:
    """Train a network and evaluate it.

    Example: equipoise train udp --data digits --eps 0.15 --steps 10 --out runs/udp

    The papers' setting for colour images: --net preact-resnet18 --optimizer sgd --lr 0.15 --schedule triangular
    --weight-decay 5e-4 --epochs 60 --augment crop-flip --mode train. `equipoise train udp --help` lists every flag.
    """

    method: Annotated[Choice, arg(name="")]
    data: str = "digits"
    """digits, mnist, fashion-mnist, cifar10, cifar100, svhn; or a .npz file; or a folder or archive of images."""
    data_root: Path | None = None
    """Where the files of a dataset are looked for before they are downloaded."""
    limit: int | None = None
    """Train on at most so many samples."""
    net: str = "mlp"
    """mlp, lenet, lenet-wide, cnn4, small-cnn, preact-resnet18, resnet18, resnet18-dropout, resnet20, wide-resnet
    (34-10), or your own as package.module:factory; with --inducing fc-resnet or wide-resnet-features."""
    width: int | None = None
    """lenet: multiplies its filters, 1 to 12."""
    widths: tuple[int, ...] = ()
    """mlp: sizes of its hidden layers, such as 512 256."""
    net_option: tuple[str, ...] = ()
    """Other arguments of the network, as key=value."""
    members: int = 1
    """Networks of an ensemble, which differ in their initial weights; its mean is the prediction."""
    together: FlagCreatePairsOff[bool] = False
    """Train the mean of an ensemble; by default every member descends its own loss."""
    dropout_samples: int = 0
    """Draws of a network with dropout layers whose mean is the prediction, as in Monte Carlo dropout; 0 is off."""
    inducing: int = 0
    """Inducing points of Gaussian processes on the features of fc-resnet or wide-resnet-features (DUE); 0 is off."""
    normalize: FlagCreatePairsOff[bool] = False
    """Standardise the channels by the training data's mean and deviation, in a layer inside the network."""
    out: Path | None = None
    """Where the run is written; by default runs/METHOD-DATA-SEED."""
    resume: FlagCreatePairsOff[bool] = False
    """Continue the run in --out where it stopped."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the run in --out."""
    evaluate_examples: int | None = None
    """Test samples of the final evaluation; by default 1000, or 200 for a large network on a CPU; 0 skips it."""
    recipe: OmitArgPrefixes[Recipe] = Recipe()


@dataclass(frozen=True)
class Evaluate:
    """Accuracy of a model, clean and under attacks.

    Example: equipoise evaluate runs/udp --attacks fgsm pgd100 --eps 4/255 8/255 --restarts 5
    """

    target: Positional[str]
    """A run directory, or a model of your own as package.module:factory."""
    attacks: tuple[str, ...] = ("fgsm", "pgd")
    """clean, fgsm, r-fgsm, pgd, cw, uta, udp, trades; a number sets the steps, as in pgd100; fgsm-8, pgd40-8
    and cw40-8 have a radius of 8/255, 5 starts and steps of 0.8/255. With published budgets:
    autoattack, autoattack-rand, autoattack-plus, cascade, apgd-ce, apgd-dlr, apgd-t, fab-t, square, random-search,
    adaptive. To the nearest boundary: bg, deepfool, fmn, nearest."""
    eps: tuple[float, ...] = ()
    """Radii, in pixels of [0, 1]; by default for a run: half, once and twice that of its validation attacks."""
    norm: NormName | None = None
    """Norm of the ball; by default linf, or that of the run's training."""
    steps: int | None = None
    """Steps of the attacks; by default 40."""
    step_size: float | None = None
    """Length of a step; by default 2.5 eps / steps."""
    restarts: int = 1
    """How often each attack starts again from another random point."""
    examples: int = 1000
    """Test samples, the same ones for every model; 0 for all."""
    data: str | None = None
    """Dataset or file, as for train; by default that of the run."""
    data_root: Path | None = None
    """Where the files of a dataset are looked for."""
    weights: Literal["best", "last"] = "best"
    """Which weights of a run."""
    checkpoint: Path | None = None
    """Weights for a package.module:factory, a safetensors file."""
    net_option: tuple[str, ...] = ()
    """Arguments of a package.module:factory, as key=value."""
    seed: int = 0
    """Seed of the attacks."""
    batch_size: int = 256
    """Samples attacked at once; changes the speed, not the result."""
    images: bool = True
    """Store the adversarial images beside the record, for `equipoise verify`."""
    resume: bool = False
    """Continue an evaluation that was stopped, to the same record."""
    shard: str = "1/1"
    """Which part to compute, as i/n; `equipoise merge` puts the records of all n together."""
    processes: int = 1
    """Processes that share the work, each a shard; the record is that of one."""
    corruptions: tuple[str, ...] = ()
    """Also measure accuracy on corrupted images: mnist-c for the 15 of MNIST-C, or some of them, such as fog rotate."""
    corruptions_root: Path | None = None
    """A folder of the published MNIST-C, with a folder per corruption; without, the images are made from the seed."""
    transfer_from: tuple[Path, ...] = ()
    """Other runs on the same data: the attacks are made on each of them too, and judged on this model (black box)."""
    reported: float | None = None
    """Clean accuracy that was reported for the model, in [0, 1]; one that differs raises a flag."""
    robustbench: Path | None = None
    """Also write the result as RobustBench lists models."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    precision: Precision = "32"
    """bf16 computes the attacks in bfloat16; every success is confirmed in float32."""
    out: Path | None = None
    """Where the record is written; by default inside the run, or eval.json."""


@dataclass(frozen=True)
class Report:
    """One HTML file that compares runs.

    Example: equipoise report runs/pgd runs/udp --out report.html
    """

    runs: Positional[tuple[Path, ...]]
    """Run directories, and records that `equipoise evaluate` or `equipoise score` wrote; or the folder of one
    `equipoise reproduce`."""
    out: Path = Path("report.html")
    """Where the report is written."""


@dataclass(frozen=True)
class Verify:
    """Check a record: infer every claim again from the stored images, on the CPU in float32.

    Example: equipoise verify aa.json
    """

    record: Positional[Path]
    """A record that `equipoise evaluate` wrote."""
    target: str | None = None
    """The run or package.module:factory it is about, if it has moved."""
    data: str | None = None
    """The dataset, if not as it was evaluated."""
    data_root: Path | None = None
    """Where the files of the dataset are now, if not where they were."""
    checkpoint: Path | None = None
    """Weights for a package.module:factory, if they have moved."""
    corruptions_root: Path | None = None
    """The folder of the published MNIST-C, if it has moved."""


@dataclass(frozen=True)
class Merge:
    """Put the records of all shards of an evaluation together.

    Example: equipoise merge aa1.json aa2.json --out aa.json
    """

    records: Positional[tuple[Path, ...]]
    """The records that `equipoise evaluate --shard i/n` wrote."""
    out: Path = Path("eval.json")
    """Where the whole record is written."""


@dataclass(frozen=True)
class Audit:
    """Find out whether a model is robust or its gradients are masked: a verdict, sign by sign.

    Example: equipoise audit runs/udp --eps 8/255 --minutes 5 --out audit.html
    """

    target: Positional[str]
    """A run directory, or a model of your own as package.module:factory."""
    eps: float | None = None
    """Radius at which it is said to be robust, in pixels of [0, 1]; by default that of the run's validation attacks."""
    norm: NormName | None = None
    """Norm of the ball; by default linf, or that of the run's training."""
    minutes: float = 5.0
    """Time to spend, about: decides how many samples are attacked, from 100 to 1000."""
    transfer_from: Path | None = None
    """Another run on the same data, whose adversarial images the model has to stand too."""
    data: str | None = None
    """Dataset or file, as for train; by default that of the run."""
    data_root: Path | None = None
    """Where the files of a dataset are looked for."""
    weights: Literal["best", "last"] = "best"
    """Which weights of a run."""
    checkpoint: Path | None = None
    """Weights for a package.module:factory, a safetensors file."""
    net_option: tuple[str, ...] = ()
    """Arguments of a package.module:factory, as key=value."""
    batch_size: int = 256
    """Samples at a time; decides the memory, not the result."""
    seed: int = 0
    """Seed of everything random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    out: Path = Path("audit.html")
    """Where the page is written; the record beside it, as .json."""


Command = Train | Evaluate | Audit | Score | Verify | Merge | Report | Study | Experiments | Reproduce
COMMANDS = ("train", "evaluate", "audit", "score", "verify", "merge", "report", "study", "experiments", "reproduce")
_Commands = (
    Annotated[Train, subcommand("train")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Audit, subcommand("audit")]
    | Annotated[Score, subcommand("score")]
    | Annotated[Verify, subcommand("verify")]
    | Annotated[Merge, subcommand("merge")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Study, subcommand("study")]
    | Annotated[Experiments, subcommand("experiments")]
    | Annotated[Reproduce, subcommand("reproduce")]
)


def parse(argv: Sequence[str]) -> Command:
    """The command that `argv` asks for.

    Raises `EquipoiseError` for an unknown command or method, and exits as command lines do, with 2 after a message for
    flags that cannot be understood and with 0 after --help and --version.
    """
    if argv and argv[0] in ("--version", "-V"):
        print(f"equipoise {equipoise.__version__}")
        sys.exit(0)
    argv = _spelled_out(argv)
    names = [a for a in argv[:2] if not a.startswith("-")]
    if names and names[0] not in COMMANDS:
        raise unknown("command", names[0], COMMANDS)
    if len(names) == 2 and names[0] == "train" and names[1] not in METHODS:
        raise unknown("method", names[1], METHODS)
    with _readable():
        return tyro.cli(
            _Commands,
            prog="equipoise",
            description="Train robust classifiers, and measure honestly how robust any classifier is. --version says "
            "which equipoise this is.",
            args=list(argv),
            config=(
                tyro.conf.CascadeSubcommandArgs,
                tyro.conf.OmitArgPrefixes,
                tyro.conf.OmitSubcommandPrefixes,
            ),
        )


_METAVARS = {float: "NUMBER", int: "INT", str: "TEXT", Path: "PATH"}


def _readable() -> ConstructorRegistry:
    """Every number on the command line may be a fraction; what may be left out is not written as a union with None."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        kinds = [kind for kind in get_args(info.type) or (info.type,) if kind is not type(None)]
        if len(kinds) != 1 or kinds[0] not in _METAVARS:
            return None
        kind = kinds[0]
        convert = fraction if kind is float else kind
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=_METAVARS[kind],
            instance_from_str=lambda args: convert(args[0]),
            is_instance=lambda value: value is None or isinstance(value, (int, float) if kind is float else kind),
            str_from_instance=lambda value: [
                "unset" if value is None else f"{value:g}" if kind is float else str(value)
            ],
        )

    return registry


def net_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs, with values as numbers, true, false, tuples ("3,4", "3,", ",") or else text.

    Raises `EquipoiseError` for anything that is no such pair.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key.isidentifier() and equals):
            raise EquipoiseError(f"--net-option {pair!r} is not of the form key=value.")
        options[key] = tuple(_scalar(v) for v in value.split(",") if v) if "," in value else _scalar(value)
    return options


def _scalar(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
