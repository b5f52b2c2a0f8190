"""What can be typed: each command is a dataclass, each field a flag, each docstring its help."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg, subcommand
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from equipoise.cli.method_options import METHODS, Choice, parameters, spelled_out
from equipoise.cli.overview import COMMANDS
from equipoise.cli.pairs import pairs
from equipoise.cli.reproducing import Experiments, Reproduce
from equipoise.cli.scoring import Score
from equipoise.cli.studying import Study
from equipoise.core.errors import unknown
from equipoise.core.types import Precision
from equipoise.geometry import NormName
from equipoise.training import Recipe

_LARGEST_WHOLE = 2**63 - 1


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


def whole(text: str) -> int:
    """A whole number. Raises `ValueError` for anything else, and for one that does not fit into 64 bits."""
    value = int(text)
    if abs(value) > _LARGEST_WHOLE:
        raise ValueError(f"expected a whole number of at most {_LARGEST_WHOLE}, got {text}")
    return value


def path(text: str) -> Path:
    """A path. Raises `ValueError` for an empty text, which would be the current folder."""
    if not text:
        raise ValueError("expected a path, got an empty text")
    return Path(text)


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
    """mlp, lenet, lenet-wide, cnn4, small-cnn, preact-resnet18, preact-resnet18-udp (that of U's code), resnet18,
    resnet18-dropout, resnet20, wide-resnet (34-10), or your own as package.module:factory; with --inducing fc-resnet
    or wide-resnet-features."""
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
    dropout_loss: Literal["loss-of-mean", "mean-of-losses"] = "loss-of-mean"
    """What Monte Carlo dropout descends in training: the loss of the mean of the draws, or the mean of their losses."""
    dropout_samples: int = 0
    """Draws of a network with dropout layers whose mean is the prediction, as in Monte Carlo dropout; 0 is off."""
    inducing: int = 0
    """Inducing points of Gaussian processes on the features of fc-resnet or wide-resnet-features (DUE); 0 is off."""
    normalize: FlagCreatePairsOff[bool] = False
    """Standardise the channels by the training data's mean and deviation, in a layer inside the network."""
    out: Path | None = None
    """Where the run is written; by default runs/METHOD-DATA-SEED."""
    resume: FlagCreatePairsOff[bool] = False
    """Continue the run in --out where it stopped, with its options; --epochs and --patience may be others."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the run in --out, once the new one has its first checkpoint."""
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
    """Weights for a package.module:factory: a safetensors file, or a state_dict that torch.save wrote."""
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
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the record in --out, if it answers another request; the same request is answered from it."""
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
    """Where the record is written; by default named by what is evaluated, inside the run or in the current folder."""


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
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the page in --out, if it is another one."""


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
    out: Path | None = None
    """Where the whole record is written; by default beside the first shard, under its name without -1of2."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the record in --out, if it is of another evaluation."""


@dataclass(frozen=True)
class Audit:
    """Find out whether a model is robust or its gradients are masked: a verdict, sign by sign.

    Exit code 0: no sign of masking; 1: masked; 2: the command cannot be carried out; 3: too few samples to tell.

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
    """Weights for a package.module:factory: a safetensors file, or a state_dict that torch.save wrote."""
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
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the page and the record in --out, if they answer another request."""


Command = Train | Evaluate | Audit | Score | Verify | Merge | Report | Study | Experiments | Reproduce
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
    flags that cannot be understood and with 0 after --help.
    """
    argv = spelled_out(argv)
    names = [a for a in argv[:2] if not a.startswith("-")]
    if names and names[0] not in COMMANDS:
        raise unknown("command", names[0], COMMANDS)
    if len(names) == 2 and names[0] == "train" and names[1] not in METHODS:
        raise unknown("method", names[1], METHODS)
    with _readable():
        return tyro.cli(
            _Commands,
            prog="equipoise",
            args=list(argv),
            config=(
                tyro.conf.CascadeSubcommandArgs,
                tyro.conf.OmitArgPrefixes,
                tyro.conf.OmitSubcommandPrefixes,
            ),
        )


def questions(options: Command) -> list[str]:
    """Return a question for each typed radius that is of another norm's size, or of another range of pixels."""
    if isinstance(options, Train):
        method = parameters(options.method)
        typed = [(method["norm"], method["eps"])] if "norm" in method and "latent" not in method else []
    elif isinstance(options, Evaluate):
        typed = [(options.norm or "linf", eps) for eps in options.eps]
    elif isinstance(options, Audit) and options.eps is not None:
        typed = [(options.norm or "linf", options.eps)]
    else:
        typed = []
    return [question for norm, eps in dict.fromkeys(typed) if (question := _question(norm, eps))]


_LARGEST_LINF_LEVEL = 16
"""Radii of up to so many of 255 grey levels are usual in linf, and tiny in l2 and l1."""


def _question(norm: str, eps: float) -> str:
    level = eps * 255
    in_levels = 0.5 < level < _LARGEST_LINF_LEVEL + 0.5 and math.isclose(level, round(level), rel_tol=1e-6)
    if norm != "linf" and in_levels:
        usual = "0.25 to 1 for CIFAR-10 and 1 to 2 for MNIST" if norm == "l2" else "5 to 12 for CIFAR-10"
        return (
            f"eps = {round(level)}/255 is a radius as used in linf; in {norm} it changes one pixel of an image by "
            f"{round(level)} grey levels and no other (usual are {usual}): is --norm linf meant?"
        )
    if norm == "linf" and 1 <= eps < math.inf:
        meant = f": is {eps:g}/255 meant?" if eps == round(eps) and eps < 255 else "."
        return f"eps = {eps:g} in linf lets every pixel of [0, 1] become anything{meant}"
    return ""


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
        convert = {float: fraction, int: whole, Path: path}.get(kind, kind)
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


def net_options(words: Sequence[str]) -> dict[str, Any]:
    """The arguments of a network, see `pairs`."""
    return pairs(words, "--net-option")
