"""The requests: each command is a dataclass, each field an option, each docstring its help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from equipoise.cli.checking_data import Data
from equipoise.cli.listing import Experiments, Variant
from equipoise.cli.options import Count, CountOrZero, Positional
from equipoise.cli.published_models import Models
from equipoise.cli.using_requests import Export, Predict, Table
from equipoise.cli.variations import Variation
from equipoise.core.types import Precision
from equipoise.data.reading import Reading
from equipoise.geometry import NormName
from equipoise.training import Recipe
from equipoise.training.penalties import Radii


@dataclass(frozen=True)
class Train(Reading):
    """Train a network and evaluate it.

    The setting of the papers for colour images: --net preact-resnet18 --optimizer sgd --lr 0.15 --schedule triangular
    --weight-decay 5e-4 --epochs 60 --augment crop-flip --mode train

    Example: equipoise train udp --data digits --eps 0.15 --steps 10 --out runs/udp
    """

    method: Any
    data: str = "digits"
    """Dataset or your own data. digits, mnist, fashion-mnist, cifar10, cifar100, svhn; a folder or archive of images,
    arrays as .npz or .npy, a table as .csv."""
    data_root: Path | None = None
    """Folder to look for datasets in."""
    examples: Count | None = None
    """Train on at most this many samples."""
    net: str = "mlp"
    """Network, such as lenet, or your own as package.module:factory. There are mlp, lenet, lenet-wide, cnn4, small-cnn,
    preact-resnet18, preact-resnet18-udp (of the code of U), resnet18, resnet18-dropout, resnet20, wide-resnet
    (34-10), and with --gp-inducing-points fc-resnet, wide-resnet-features."""
    width: int | None = None
    """Multiplier of the filters of a lenet, 1 to 12."""
    widths: tuple[int, ...] = ()
    """Sizes of the hidden layers of an mlp, such as 512 256."""
    net_option: tuple[str, ...] = ()
    """Other arguments of the network, as key=value."""
    members: Count = 1
    """Members of an ensemble. They differ in their initial weights; the prediction is their mean."""
    joint_loss: bool = False
    """Minimise the loss of the ensemble's mean instead of the loss of each member."""
    dropout_loss: Literal["loss-of-mean", "mean-of-losses"] = "loss-of-mean"
    """Training loss of Monte Carlo dropout: the loss of the mean prediction, or the mean of the losses."""
    dropout_samples: CountOrZero = 0
    """Forward passes of Monte Carlo dropout whose mean is the prediction; 0 is off."""
    gp_inducing_points: CountOrZero = 0
    """Inducing points of Gaussian processes on the features of the network (DUE); 0 is off."""
    normalize: bool = False
    """Standardise the channels in a first layer, by mean and standard deviation of the training data."""
    out: Path | None = None
    """Folder of the run; by default runs/METHOD-DATA-SEED."""
    config: Path | None = None
    """Repeat the options of a run, from its run.json; what is typed besides counts. The method may be left out."""
    resume: bool = False
    """Continue the run in --out, with its own options. --epochs and --patience may be changed."""
    overwrite: bool = False
    """Replace the run in --out. It is kept until the new one has its first checkpoint."""
    init: Path | None = None
    """Weights to start from. Those of a run, of a model that `equipoise models` lists, or in a file (safetensors, or a
    state_dict that torch.save wrote), of the same network."""
    training_minutes: float | None = field(default=None, metadata={"flag": "--minutes"})
    """Time budget of the training: as many epochs as fit, at most 200."""
    evaluate_examples: CountOrZero | None = None
    """Test samples of the final evaluation, 0 for none. By default 1000, or 200 for a large network on a CPU."""
    variation: Variation = Variation()
    recipe: Recipe = Recipe()
    loaded: Any = field(default=None, repr=False)
    """The data, where they have been read already."""


@dataclass(frozen=True)
class ModelRequest(Reading):
    """A model and the data it is measured on."""

    target: Positional[str]
    """Run directory, name of a model that `equipoise models` lists, or a model of your own as package.module:factory.
    Or package.module:function, from arrays to scores or labels, a classifier of scikit-learn there, or an ONNX file."""
    data: str | None = None
    """Dataset or file, as for train; by default that of the run."""
    data_root: Path | None = None
    """Folder to look for datasets in."""
    weights: Literal["best", "last"] = "best"
    """Weights of the run, best by validation or last."""
    checkpoint: Path | None = None
    """Weights of a package.module:factory. A safetensors file, or a state_dict that torch.save wrote."""
    net_option: tuple[str, ...] = ()
    """Arguments of a package.module:factory, as key=value."""
    model_kind: Literal["factory", "function"] | None = None
    """Whether package.module:name makes a model or predicts. By default its parameters tell."""
    seed: int = 0
    """Random seed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto takes a GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(ModelRequest):
    """Evaluate a model: its accuracy, clean and under attacks.

    Example: equipoise evaluate runs/udp --attacks fgsm pgd100 --eps 4/255 8/255
    """

    attacks: tuple[str, ...] | None = None
    """Attacks, such as fgsm, pgd100 (of 100 steps) or autoattack. By default fgsm and pgd, on a model without gradients
    square and hop-skip-jump. By gradients: clean (none), fgsm, r-fgsm, pgd, cw,
    uta, udp, trades; a number sets the steps; fgsm-8, pgd40-8 and cw40-8 have a radius of 8/255, 5 restarts and
    steps of 0.8/255. With published budgets: autoattack, autoattack-rand, autoattack-plus, cascade, apgd-ce,
    apgd-dlr, apgd-t, apgd-fgsm, pma, fab-t, square, random-search, adaptive. Minimum-norm: bg, ddn, deepfool, fmn,
    pdpgd, sigma-zero, nearest, hop-skip-jump (labels alone)."""
    eps: tuple[float, ...] = ()
    """Radii, in pixels of [0, 1]; by default for a run: half, once and twice that of its validation attacks."""
    norm: Literal["linf", "l2", "l1", "l0"] | None = None
    """Norm of the ball; by default linf, or that of the run's training. l0 counts changed features, for pdpgd and
    sigma-zero."""
    steps: int | None = None
    """Steps of the attacks; by default 40."""
    step_size: float | None = None
    """Step size; by default 2.5 eps / steps."""
    restarts: Count = 1
    """Random restarts of each attack."""
    queries: Count | None = None
    """Queries per sample of attacks without gradients. By default square has 5000, hop-skip-jump 1000, random-search
    10000."""
    examples: CountOrZero = 1000
    """Test samples, the same ones for every model; 0 for all."""
    batch_size: Count = 256
    """Samples attacked at once. Changes the speed, not the result."""
    images: bool = True
    """Store the adversarial images, for `equipoise verify`."""
    resume: bool = False
    """Continue an interrupted evaluation."""
    overwrite: bool = False
    """Replace a record of another request in --out. The same request is answered from it."""
    shard: str = "1/1"
    """Shard to compute, as i/n; `equipoise merge` puts the records of all n together."""
    processes: Count = 1
    """Processes that share the work. The record is the same."""
    address: str | None = None
    """Address of a Ray cluster on which the --processes run, such as auto."""
    corruptions: tuple[str, ...] = ()
    """Common corruptions to evaluate as well. mnist-c, cifar-c and imagenet-c stand for all of these collections (also
    cifar-c-15, without those kept for validation); or choose some: fog rotate, cifar-c/snow, cifar-c/snow/3.
    """
    corruptions_root: Path | None = None
    """Folder of the published MNIST-C (a folder per corruption) or CIFAR-10-C (a file per corruption); without it the
    images are made from the seed.
    """
    certified: Literal["ibp", "crown-ibp", "crown"] | None = None
    """Also compute certified accuracy in the balls of the attacks. From the fastest to the tightest: ibp, crown-ibp,
    crown. For networks of linear, convolutional, pooling and pointwise layers."""
    transfer_from: tuple[Path, ...] = ()
    """Other runs on the same data: attack each of them too and test the result on this model (black box)."""
    lattice: Count | None = None
    """Attack images of N + 1 values, which survive being saved: 255 for 8 bits. The test images must have such values
    too."""
    expected_clean_accuracy: float | None = None
    """Published clean accuracy in [0, 1]; a measured one that differs raises a warning."""
    robustbench: Path | None = None
    """Also write the result in the format of RobustBench."""
    fail_under: float | None = None
    """Exit with code 1 if the lower end of the interval of the lowest robust accuracy is below this, such as 0.55."""
    junit: Path | None = None
    """Also write JUnit XML, a test per accuracy; replaces the file."""
    sarif: Path | None = None
    """Also write SARIF 2.1.0, with the flags as warnings; replaces the file."""
    save_images: Path | None = None
    """Folder for the adversarial images as PNG files."""
    precision: Precision = "32"
    """Precision of the attacks. Every success of bf16 is confirmed in float32."""
    out: Path | None = None
    """File of the record. By default named after the request, in the run or the current folder."""


@dataclass(frozen=True, kw_only=True)
class Audit(ModelRequest):
    """Test a model for gradient masking: a verdict, and the measurement behind every indicator.

    Exit code 0: no indicator of masking; 2: the command cannot be carried out; 3: masked; 4: too few samples to tell.

    Example: equipoise audit runs/udp --eps 8/255 --time-budget 5 --out audit.html
    """

    eps: float | None = None
    """Radius at which robustness is claimed, in pixels of [0, 1]; by default that of the run's validation."""
    norm: NormName | None = None
    """Norm of the ball; by default linf, or that of the run's training."""
    time_budget: float = 5.0
    """Time budget in minutes: it decides how many samples are attacked, 100 to 1000, and is spent to the end on longer
    attacks on those that are left."""
    transfer_from: Path | None = None
    """Another run on the same data, whose adversarial examples are tested on this model too."""
    batch_size: Count = 256
    """Samples at a time; changes the memory used, not the result."""
    out: Path = Path("audit.html")
    """File of the page; the record lies beside it, as .json."""
    overwrite: bool = False
    """Replace a page and a record in --out that answer another request."""


@dataclass(frozen=True, kw_only=True)
class Score(ModelRequest):
    """Compute a robustness score: expected agreement of predictions near a sample, integrated over radii.

    Example: equipoise score runs/udp --score r2 --examples 1000 --out r2.json
    """

    score: str = "r2"
    """Definition of robustness, such as r1, r2, r4. r1: mean margin over the whole box; r2: mean margin of the data, by
    the nearest of several attacks; r2-published: by those of the paper; label-aware: as r2, 0 where the prediction
    is wrong; manifold: margin along the data; r4: average agreement along the data; or your own as
    package.module:score."""
    examples: CountOrZero = 1000
    """Test samples, or points of the box; 0 for the whole test set."""
    norm: NormName = "l2"
    """Norm of the distances."""
    manifold: Path | None = None
    """Auto-encoder of r4 and manifold: a run directory of r4 or on-manifold, or its file; by default the run's own."""
    samples: int | None = None
    """Samples near each input, for r4 and manifold; by default 200."""
    sigma: float | None = None
    """Standard deviation of the noise on the code of an input, for r4 and manifold; by default 0.06."""
    radii: Radii | None = None
    """Radii of r4: uniform up to the diameter of the box (the default), or the distances of the samples."""
    certified: bool = False
    """Also compute a certified lower bound of r2 or label-aware, for networks of linear, convolutional, ReLU and
    pooling layers."""
    certificate: Literal["crown", "crown-ibp", "ibp"] | None = None
    """Certificate: crown, the tightest (the default), takes minutes a sample for a convolutional network; ibp is the
    fastest."""
    batch_size: Count = 64
    """Samples at a time; changes the memory used, not the result."""
    out: Path = Path("score.json")
    """File of the record, with the value of each sample; a page with the curve lies beside it, as .html."""
    overwrite: bool = False
    """Replace a record of another request in --out. The same request is answered from it."""


@dataclass(frozen=True)
class Verify:
    """Re-check every claim of a record: re-run the model on the stored images, on the CPU in float32.

    Of a published model the weights and all that its record says of them are checked.

    Example: equipoise verify aa.json
    """

    record: Positional[Path]
    """Record that `equipoise evaluate` wrote; or a published model, as its folder or the name in `equipoise models`."""
    target: str | None = None
    """The run or package.module:factory, if it has moved."""
    data: str | None = None
    """The dataset, if it has moved."""
    data_root: Path | None = None
    """Folder of the files of the dataset, if they have moved."""
    checkpoint: Path | None = None
    """Weights of a package.module:factory, if they have moved."""
    corruptions_root: Path | None = None
    """Folder of the published MNIST-C or CIFAR-10-C, if it has moved."""


@dataclass(frozen=True)
class Merge:
    """Merge the records of all shards of an evaluation.

    Example: equipoise merge aa1.json aa2.json --out aa.json
    """

    records: Positional[tuple[Path, ...]]
    """Records that `equipoise evaluate --shard i/n` wrote."""
    out: Path | None = None
    """File of the whole record; by default beside the first shard, under its name without -1of2."""
    overwrite: bool = False
    """Replace a record of another evaluation in --out."""


@dataclass(frozen=True)
class Report:
    """Write one HTML page that compares runs.

    Example: equipoise report runs/pgd runs/udp --out report.html
    """

    runs: Positional[tuple[Path, ...]]
    """Run directories, names of models that `equipoise models` lists, and records that `equipoise evaluate` or
    `equipoise score` wrote; or the folder of one `equipoise reproduce`."""
    out: Path = Path("report.html")
    """File of the report."""
    overwrite: bool = False
    """Replace another page in --out."""


@dataclass(frozen=True)
class Study:
    """Run one of the papers' small experiments and write its figures and key numbers.

    Example: equipoise study narrow-corridor --out studies/narrow-corridor
    """

    name: Positional[str]
    """One of narrow-corridor, lms5, two-distance, due, theorem, appearance, opposite-class, overfitting, capacity,
    transfer, entropy-weight."""
    out: Path | None = None
    """Folder of the page, its figures and the data behind them; by default studies/NAME."""
    overwrite: bool = False
    """Replace the study in --out."""
    quick: bool = False
    """Run a small version in seconds: a check that the study works, whose numbers mean nothing."""
    seeds: Count | None = None
    """Independent repetitions; by default as many as the study defines."""
    seed: int = 0
    """Random seed of the first repetition; the others follow."""
    data: str | None = None
    """Dataset or file, as for train, of the studies that run on any; by default the study's own."""
    data_root: Path | None = None
    """Folder to look for datasets in."""
    examples: Count | None = None
    """Use at most this many training samples."""
    widths: tuple[int, ...] = ()
    """Widths of the networks of the capacity study, such as 1 2 4 8 12; by default 1 2 4."""
    processes: Count = 2
    """Processes that share the networks of a study that trains many; the result is the same."""


@dataclass(frozen=True)
class Reproduce:
    """Reproduce a table or figure of a paper, at any scale, and compare it with the published values.

    The same command continues an interrupted reproduction; finished tasks are not repeated.

    Example: equipoise reproduce rethinking-table-9 --scale 0.2 --data-root DIR
    """

    name: Positional[str]
    """Experiment; `equipoise experiments` lists them."""
    scale: float = 1.0
    """Share of the paper's epochs, samples and seeds, in (0, 1]; 1 follows its protocol exactly."""
    variant: Variant = "corrected"
    """With the quirks of the paper's own code, or without."""
    seeds: int | None = None
    """Training runs of each kind; by default the scale's share of the paper's number, at least one."""
    examples: int | None = None
    """Test samples of every network, at most; by default the scale's share of the paper's number."""
    set: tuple[str, ...] = ()
    """Deviate from the paper in settings of the trainings, as NAME=VALUE: lr=0.1, or method.softness=0. The record and
    the page say so."""
    select: tuple[str, ...] = ()
    """Compute only the parts that need no other datasets, such as mnist; by default all parts."""
    data_root: Path | None = None
    """Folder to look for datasets in."""
    data: tuple[str, ...] = ()
    """Replacement of a published dataset, as NAME=PATH: a .npz file, a folder or an archive of images."""
    download: bool = False
    """Download the published datasets that are missing."""
    synthetic: bool = False
    """Use synthetic images in place of all datasets: a check that everything works, without meaning for the paper."""
    workers: Count | None = None
    """Processes that share the work, one thread each; by default all cores. 1 works in this process."""
    address: str | None = None
    """Ray cluster to work on, such as auto or HOST:6379; its machines need the same folders."""
    reuse: tuple[Path, ...] = ()
    """Folders of other reproductions, whose finished tasks are reused instead of computed again."""
    out: Path | None = None
    """Folder of the results; by default reproductions/NAME."""


@dataclass(frozen=True)
class Push:
    """Write a run as the folder that a model hub expects; nothing is sent anywhere.

    The folder holds the weights, the record of the training, the record of an evaluation and a card: data, recipe,
    accuracies with intervals, how to load the model and how to verify it. Places on this machine are left out of the
    records.

    Example: equipoise push runs/udp --evaluation aa.json --out my-model
    """

    target: Positional[Path]
    """Run directory."""
    out: Path
    """Folder to write."""
    evaluation: Path | None = None
    """Record of `equipoise evaluate` about these weights; by default that of the end of the training."""
    weights: Literal["best", "last"] = "best"
    """Weights of the run, best by validation or last."""
    name: str | None = None
    """Name of the model on the card; by default that of the folder."""
    license: str = "other"
    """Licence that the card names, such as mit."""
    overwrite: bool = False
    """Replace other files of the same names in --out."""


@dataclass(frozen=True)
class Doctor:
    """Describe this installation: processor, kernels, threads, devices, extras, caches.

    Example: equipoise doctor
    """


Command = (
    Train
    | Evaluate
    | Audit
    | Score
    | Verify
    | Merge
    | Report
    | Table
    | Predict
    | Export
    | Study
    | Experiments
    | Reproduce
    | Models
    | Push
    | Data
    | Doctor
)
REQUESTS: dict[str, type[Command]] = {
    "train": Train,
    "evaluate": Evaluate,
    "audit": Audit,
    "score": Score,
    "verify": Verify,
    "merge": Merge,
    "report": Report,
    "table": Table,
    "predict": Predict,
    "export": Export,
    "study": Study,
    "experiments": Experiments,
    "reproduce": Reproduce,
    "models": Models,
    "push": Push,
    "data": Data,
    "doctor": Doctor,
}
"""The dataclass of each command."""
