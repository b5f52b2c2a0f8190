"""What an experiment has to compute, in plain words: networks to train, evaluations of them, and studies.

A task is a frozen dataclass of plain values. Its `key` is a digest of all that decides its result, those of the tasks
it builds on included, so that the same task is recognised wherever it occurs, and never computed twice.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib import import_module
from inspect import signature
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, Literal

import torch

import equipoise
from equipoise.attacks import transfer
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.rng import Streams
from equipoise.data import Dataset
from equipoise.data import load as load_dataset
from equipoise.evaluation import evaluate_dataset, suite
from equipoise.evaluation.summaries import by_ball
from equipoise.evaluation.verification import fingerprint, read
from equipoise.generators import auto_encoder
from equipoise.masking.result_checks import is_black_box
from equipoise.models import Ensemble, MonteCarloDropout, as_predictive
from equipoise.nets import count_parameters
from equipoise.report.reading import read_metrics
from equipoise.reproduce.studies import STUDIES, Options, load, save
from equipoise.results.findings import Findings, Images, Number, Picture, Study
from equipoise.results.provenance import provenance
from equipoise.results.records import Evaluation, Run
from equipoise.training import (
    MANIFOLD_FILE,
    Progress,
    Recipe,
    build_model,
    fit,
    fit_manifold,
    load_manifold,
    load_run,
)

ReportProgress = Callable[[str, float], None]
"""Called with what is being done and which share of the task is over."""


@dataclass(frozen=True)
class Call:
    """A function of this library and its keyword arguments, in words: `call(methods.udp, eps=0.3, steps=25)`.

    Arguments are JSON-ready, or calls themselves: `loss=call(methods.regularised, entropy_weight=2.0)`.
    """

    function: str
    """Where it is, as `package.module:name`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its keyword arguments."""

    def __call__(self, *args: Any, **more: Any) -> Any:
        """What the function returns."""
        module, _, name = self.function.partition(":")
        made = {name: value() if isinstance(value, Call) else value for name, value in self.options.items()}
        return getattr(import_module(module), name)(*args, **made, **more)

    def __str__(self) -> str:
        """As in Python."""
        words = [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.options.items()]
        return f"{self.function.partition(':')[2]}({', '.join(words)})"


def call(function: Callable[..., Any], **options: Any) -> Call:
    """The call in words. Raises `EquipoiseError` for an argument that the function does not take, and for a function
    that cannot be imported by its name.
    """
    module, name = function.__module__, function.__qualname__
    require("<" not in name, f"{name} has no name to import it by: define it in a module.")
    known = signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        wrong = [option for option in options if option not in known]
        require(not wrong, f"{name} takes no argument {', '.join(wrong)}: it takes {', '.join(known)}.")
    return Call(f"{module}:{name}", options)


@dataclass(frozen=True)
class Setting:
    """Where tasks are worked on, and with which data; plain values, which can be sent to other processes."""

    folder: Path
    """Every task has a folder of its own in it, named by its key."""
    data_root: Path | None = None
    """Where the files of datasets are looked for."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """What stands in for a published dataset: its name, and a file or folder that `equipoise.data.load` takes."""
    command: str = ""
    """What is to be written into records as the command."""
    code: str = ""
    """Version of the code; empty for that of this process."""

    def sha256(self, name: str) -> str:
        """The digest of the dataset of that name, remembered when the dataset is not."""
        return _digest(self.sources.get(name, name), self.data_root)

    def dataset(self, name: str) -> Dataset:
        """The dataset of that name, loaded once per process."""
        return _loaded(self.sources.get(name, name), self.data_root)

    def place(self, task: "Task") -> Path:
        """The folder of a task."""
        return self.folder / key(task, self)


@cache
def _loaded(source: str, root: Path | None) -> Dataset:
    return load_dataset(source, root)


@cache
def _digest(source: str, root: Path | None) -> str:
    return _loaded(source, root).sha256


def forget_datasets() -> None:
    """Free the memory of the datasets that this process has loaded; their digests stay."""
    _loaded.cache_clear()


@dataclass(frozen=True)
class Net:
    """A network, or several of it, in words: see `equipoise.training.build_model`."""

    name: str
    """Name of `equipoise.nets.build`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its other arguments, such as `widths`."""
    members: int = 1
    """Networks of an ensemble."""
    together: bool = False
    """Whether an ensemble's mean is trained, and not every member by itself."""
    dropout_samples: int = 0
    """Draws of Monte Carlo dropout; 0 is off."""
    dropout_loss: Literal["loss of mean", "mean of losses"] = "loss of mean"
    """What a training with Monte Carlo dropout descends: the loss of the mean of the draws, or the mean of their
    losses. The papers write `L(C(x + δ), y)`, which may be read as either."""


@dataclass(frozen=True)
class DataManifold:
    """The manifold of a dataset, learned: a Wasserstein auto-encoder, see `equipoise.training.fit_manifold`."""

    data: str
    """Of what."""
    recipe: Recipe
    """How, the seed included."""
    codes: int = 16
    """Numbers of a code."""
    width: int = 32
    """See `equipoise.generators.auto_encoder`."""
    samples: int | None = None
    """From at most so many training samples, drawn by the seed."""

    kind: ClassVar = "manifold"

    @property
    def needs(self) -> "Sequence[Task]":
        """Nothing."""
        return ()

    @property
    def label(self) -> str:
        """In a few words."""
        return f"manifold of {self.data}, {self.codes} numbers a code, seed {self.recipe.seed}"

    def changed(self, changes: Mapping[str, Any]) -> "DataManifold":
        """The same: settings are those of trainings of classifiers."""
        return self

    def scaled(self, scale: float) -> "DataManifold":
        """As of a training."""
        recipe, samples = _shortened(self.recipe, self.samples, self.data, scale)
        return replace(self, recipe=recipe, samples=samples)

    def run(self, setting: Setting, tell: ReportProgress) -> None:
        """Learn it, or go on; keep what it does to a few test samples."""
        began = perf_counter()
        place, data = setting.place(self), _limited(setting.dataset(self.data), self.samples, self.recipe.seed)
        place.mkdir(parents=True, exist_ok=True)
        manifold = auto_encoder(data.shape, self.codes, self.width, self.recipe.seed)
        losses = fit_manifold(manifold, data, self.recipe, out=place / MANIFOLD_FILE, progress=tell)[-1]
        pixels = losses.reconstruction / data.train.x[0].numel()
        numbers = [Number("squared error of a pixel", [pixels]), Number("MMD of the codes, squared", [losses.mmd])]
        pictures = [_gallery(place, data)] if len(data.shape) == 3 else []
        question = f"What is near an image of {data.name}?"
        _keep(place, "manifold", question, "", Findings(numbers, pictures), setting, began)


def _gallery(place: Path, data: Dataset) -> Picture:
    """Test samples, what the manifold makes of them, and points near them on it."""
    x = data.test.x[:8]
    drawn = load_manifold(place).gallery(x, 6, 0.06, Streams.of(0, torch.arange(len(x))))
    names = ["sample", "reconstruction", *["near it"] * 6]
    panel = Images("samples of the manifold", drawn.double().numpy(), [""] * len(x), names)
    return Picture("manifold", "Test samples and points near them on the manifold, sigma = .06.", [panel], columns=1)


@dataclass(frozen=True)
class Training:
    """A network trained from scratch."""

    method: Call
    """The method: a call of a function of `equipoise.training.methods`."""
    net: Net
    """What is trained."""
    data: str
    """On what."""
    recipe: Recipe
    """How, the seed included."""
    samples: int | None = None
    """On at most so many training samples, drawn by the seed."""
    manifold: DataManifold | None = None
    """The manifold that a method wants as its first argument, as `methods.r4` does."""

    kind: ClassVar = "training"

    @property
    def needs(self) -> "Sequence[Task]":
        """The manifold, if it wants one."""
        return () if self.manifold is None else (self.manifold,)

    @property
    def label(self) -> str:
        """In a few words."""
        return f"{self.method} on {self.data}, {self.net.name}, seed {self.recipe.seed}"

    @property
    def settings(self) -> list[str]:
        """What `changed` can change: fields of the recipe, and options of the method as `method.NAME`."""
        module, _, name = self.method.function.partition(":")
        options = signature(getattr(import_module(module), name)).parameters
        own = [one.name for one in fields(Recipe) if one.name not in (*_FREE, "seed")]
        return [*own, *(f"method.{option}" for option in options if option not in ("manifold", "options", "loss"))]

    def changed(self, changes: Mapping[str, Any]) -> "Training":
        """With those of the settings that it has changed. Raises `EquipoiseError` for a value out of range."""
        mine = {name: value for name, value in changes.items() if name in self.settings}
        recipe = {name: _as_field(name, value) for name, value in mine.items() if not name.startswith("method.")}
        options = {name.removeprefix("method."): value for name, value in mine.items() if name.startswith("method.")}
        changed = replace(self, recipe=replace(self.recipe, **recipe))
        if options:
            method = replace(self.method, options={**self.method.options, **options})
            try:
                method(*([None] if self.manifold else []))  # are they in range?
            except (TypeError, ValueError) as error:
                raise EquipoiseError(f"{method} cannot be made: {error}.") from error
            changed = replace(changed, method=method)
        return changed

    def scaled(self, scale: float) -> "Training":
        """A share `scale` of the epochs; below one epoch, of the training samples, at least 200. An adversarial
        generator, which trains alongside, keeps its number of steps: it takes more for each of the classifier's.
        """
        recipe, samples = _shortened(self.recipe, self.samples, self.data, scale)
        manifold = None if self.manifold is None else self.manifold.scaled(scale)
        method, size = self.method, self.samples or SIZES.get(self.data)
        if method.function.endswith(":r2") and size is not None:
            ratio = self.recipe.epochs * size / (recipe.epochs * (samples or size))
            steps = round(method.options.get("generator_steps", 1) * ratio)
            method = replace(method, options={**method.options, "generator_steps": steps}) if steps > 1 else method
        return replace(self, method=method, recipe=recipe, samples=samples, manifold=manifold)

    def run(self, setting: Setting, tell: ReportProgress) -> None:
        """Train, or go on."""
        place, data = setting.place(self), _limited(setting.dataset(self.data), self.samples, self.recipe.seed)
        net = {**asdict(self.net), "shape": list(data.shape), "classes": len(data.classes), "seed": self.recipe.seed}
        together, dropout_loss = net.pop("together"), net.pop("dropout_loss")
        model = build_model(net)
        method = self.method(*([load_manifold(setting.place(self.manifold))] if self.manifold else []))
        if isinstance(model, Ensemble) and not together:
            method = method.per_member()
        if isinstance(model, MonteCarloDropout) and dropout_loss == "mean of losses":
            method = method.per_member(total=False)

        def progress(now: Progress) -> None:
            done = now.epoch - (now.metrics is None) + now.step / max(now.steps, 1)  # metrics come after an epoch
            tell(f"epoch {now.epoch} of {now.epochs}", min(done / now.epochs, 1.0))

        fit(
            method,
            model,
            data,
            self.recipe,
            out=place,
            resume=(place / "run.json").exists(),
            method_record={"name": self.method.function.partition(":")[2], **plain(self.method.options)},
            net_record=net | {"parameters": count_parameters(as_predictive(model).module)},
            command=setting.command,
            progress=progress,
        )


def _as_field(name: str, value: Any) -> Any:
    """A typed value as the recipe's field of that name wants it: whole numbers for real ones, one for several."""
    usual = getattr(Recipe(), name)
    if isinstance(usual, tuple):
        value = value if isinstance(value, tuple | list) else (value,)
        return tuple(float(one) if isinstance(one, int) else one for one in value)
    value = float(value) if isinstance(usual, float) and isinstance(value, int) else value
    fits = usual is None or type(value) is type(usual)
    require(fits, f"{name} = {value!r}: expected {_KINDS.get(type(usual), 'a word')}, as its default {usual!r} is.")
    return value


_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def _shortened(recipe: Recipe, samples: int | None, data: str, scale: float) -> tuple[Recipe, int | None]:
    """A share of the epochs, rounded; below one epoch, of the training samples, at least 200."""
    epochs = max(round(recipe.epochs * scale), 1)
    share = min(recipe.epochs * scale, 1.0)
    size = samples or SIZES.get(data)
    few = samples if share == 1 or size is None else max(ceil(size * share), min(size, 200))
    return replace(recipe, epochs=epochs), few


def _limited(data: Dataset, samples: int | None, seed: int) -> Dataset:
    """The dataset with at most so many training samples."""
    return data if samples is None or samples >= len(data.train) else data.limit(samples, seed)


@dataclass(frozen=True)
class Evaluated:
    """Accuracy of a trained network, clean and under attacks."""

    of: Training
    """The network."""
    attacks: Sequence[str]
    """Names of `equipoise.evaluation.suite`."""
    eps: Sequence[float] = ()
    """Their radii."""
    norm: str = "linf"
    """Their norm."""
    examples: int = 1000
    """So many test samples."""
    weights: str = "best"
    """Weights of the best or of the last epoch."""
    steps: int | None = None
    """Steps of the attacks that have no published budget."""
    step_size: float | None = None
    """Their step size."""
    restarts: int = 1
    """Their restarts."""
    proxies: Sequence[Training] = ()
    """Networks on which the attacks are made, instead of on the network itself."""

    kind: ClassVar = "evaluation"

    @property
    def needs(self) -> Sequence[Training]:
        """The network and the proxies."""
        return (self.of, *self.proxies)

    @property
    def data(self) -> str:
        """That of the training."""
        return self.of.data

    @property
    def label(self) -> str:
        """In a few words."""
        return f"{' '.join(self.attacks)} in {self.norm} against {self.of.label}"

    def changed(self, changes: Mapping[str, Any]) -> "Evaluated":
        """Of networks trained with settings changed."""
        return replace(self, of=self.of.changed(changes), proxies=tuple(one.changed(changes) for one in self.proxies))

    def scaled(self, scale: float) -> "Evaluated":
        """On a share of the samples, at least 10, of a network with a share of its training."""
        proxies = tuple(proxy.scaled(scale) for proxy in self.proxies)
        examples = max(ceil(self.examples * scale), min(self.examples, 10))
        return replace(self, of=self.of.scaled(scale), proxies=proxies, examples=examples)

    def run(self, setting: Setting, tell: ReportProgress) -> None:
        """Evaluate, or go on."""
        place, out = setting.place(self), setting.place(self) / "evaluation.json"
        model, run = load_run(setting.place(self.of), self.weights, self.of.recipe.pick_device())
        own = suite(
            self.attacks, self.eps, self.norm, steps=self.steps, step_size=self.step_size, restarts=self.restarts
        )
        if self.proxies:
            own = by_ball([attack for proxy in self.proxies for attack in _moved(proxy, self.weights, own, setting)])
        place.mkdir(parents=True, exist_ok=True)
        evaluate_dataset(
            model,
            setting.dataset(self.data),
            own,
            target=str(setting.place(self.of)),
            examples=self.examples,
            weights=self.weights,
            seed=run.provenance.seed,
            command=setting.command,
            out=out,
            resume=Path(f"{out}.partial").is_dir(),
            progress=lambda what, done, total: tell(what, done / max(total, 1)),
        )


def _moved(proxy: Training, weights: str, attacks: Any, setting: Setting) -> Any:
    """The attacks of gradients, made on the proxy, of whose training the same epoch counts."""
    model, _ = load_run(setting.place(proxy), weights, proxy.recipe.pick_device())
    sha = fingerprint(model)["sha256"]
    return [
        (f"{name} from {proxy.method}", transfer(model, attack, str(proxy.method), sha))
        for name, attack in attacks
        if not is_black_box(name)
    ]


@dataclass(frozen=True)
class StudyTask:
    """One of `equipoise.reproduce.studies`."""

    name: str
    """Which one."""
    seeds: int | None = None
    """Independent repeats; None is the study's own number."""
    data: str = ""
    """On which dataset, of the studies that run on any."""
    samples: int | None = None
    """At most so many training samples."""
    quick: bool = False
    """Its quick form."""

    kind: ClassVar = "study"

    @property
    def needs(self) -> "Sequence[Task]":
        """Nothing."""
        return ()

    @property
    def label(self) -> str:
        """In a few words."""
        return f"study {self.name}" + (f" on {self.data}" if self.data else "")

    def changed(self, changes: Mapping[str, Any]) -> "StudyTask":
        """The same: a study has settings of its own."""
        return self

    def scaled(self, scale: float) -> "StudyTask":
        """Its quick form, below a twentieth; a share of its seeds is not taken, as its intervals live by them."""
        return replace(self, quick=self.quick or scale < 0.05)

    def run(self, setting: Setting, tell: ReportProgress) -> None:
        """Run the study."""
        began = perf_counter()
        entry = STUDIES[self.name]
        options = Options(
            quick=self.quick,
            seeds=self.seeds,
            data=setting.sources.get(self.data, self.data) or None,
            data_root=setting.data_root,
            limit=self.samples,
        )
        found = entry.run(options, tell)
        _keep(setting.place(self), entry.name, entry.question, entry.source, found, setting, began, self.quick)


@dataclass(frozen=True)
class Measured:
    """Findings about trained networks, by a function `(models, data, tell, **options) -> Findings`."""

    function: Call
    """The function, with its options."""
    of: Sequence[Training]
    """The networks."""
    question: str
    """What it asks, in a sentence."""
    weights: str = "best"
    """Weights of the best or of the last epoch."""
    examples: int = 1000
    """So many test samples."""
    samples: int | None = None
    """At most so many training samples of the data and of the target, drawn by seed 0."""
    target: str = ""
    """Another dataset, which the function is given as `target`."""
    courses: bool = False
    """Whether the function is given the metrics of every epoch, training by training, as `courses`."""
    manifold: DataManifold | None = None
    """The manifold, which the function is given as `manifold`."""

    kind: ClassVar = "measurement"

    @property
    def needs(self) -> "Sequence[Task]":
        """The networks, and the manifold if it wants one."""
        return (*self.of, *(() if self.manifold is None else (self.manifold,)))

    @property
    def data(self) -> str:
        """That of the first training."""
        return self.of[0].data

    @property
    def label(self) -> str:
        """In a few words."""
        return f"{self.function} of {', '.join(str(one.method) for one in self.of)}"

    def changed(self, changes: Mapping[str, Any]) -> "Measured":
        """Of networks trained with settings changed."""
        return replace(self, of=tuple(one.changed(changes) for one in self.of))

    def scaled(self, scale: float) -> "Measured":
        """On a share of the samples, at least 10, of networks with a share of their training."""
        examples = max(ceil(self.examples * scale), min(self.examples, 10))
        samples = None if self.samples is None else max(ceil(self.samples * scale), min(self.samples, 200))
        manifold = None if self.manifold is None else self.manifold.scaled(scale)
        of = tuple(one.scaled(scale) for one in self.of)
        return replace(self, of=of, examples=examples, samples=samples, manifold=manifold)

    def run(self, setting: Setting, tell: ReportProgress) -> None:
        """Measure."""
        began = perf_counter()
        models = [load_run(setting.place(one), self.weights)[0] for one in self.of]
        more: dict[str, Any] = {}
        if self.target:
            more["target"] = self._part(setting.dataset(self.target))
        if self.courses:
            more["courses"] = [read_metrics(setting.place(one) / "metrics.jsonl") for one in self.of]
        if self.manifold is not None:
            more["manifold"] = load_manifold(setting.place(self.manifold))
        data = self._part(setting.dataset(self.data))
        found = self.function(models, data, tell, **more)
        _keep(setting.place(self), self.function.function.partition(":")[2], self.question, "", found, setting, began)

    def _part(self, data: Dataset) -> Dataset:
        data = replace(data, test=data.test.limit(max(self.examples, len(data.classes))))  # a dataset has every class
        return data if self.samples is None else data.limit(self.samples)


Task = DataManifold | Training | Evaluated | StudyTask | Measured
"""Something to compute, into a folder: it knows its `needs`, its `data`, a share of itself by `scaled`, and how to
`run`, or to go on where it was stopped.
"""


def _keep(
    place: Path,
    name: str,
    question: str,
    source: str,
    findings: Findings,
    setting: Setting,
    began: float,
    quick: bool = False,
) -> None:
    """Write findings as a study, which `began` at that reading of `perf_counter`."""
    origin = asdict(provenance(0, torch.device("cpu"), setting.command))
    place.mkdir(parents=True, exist_ok=True)
    save(place, Study(name, question, source, findings, origin, quick, perf_counter() - began))


def result(task: Task, setting: Setting) -> Run | Evaluation | Study:
    """The record of a finished task. Raises `EquipoiseError` if it is missing or damaged."""
    return result_at(task, setting.place(task))


def result_at(task: Task, place: Path) -> Run | Evaluation | Study:
    """The record of a finished task in the folder where it was computed, by whichever version of the library."""
    if isinstance(task, Training):
        return load_run(place)[1]
    return read(place / "evaluation.json") if isinstance(task, Evaluated) else load(place)


SIZES = {
    "mnist": 60_000,
    "fashion-mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "svhn": 73_257,
    "digits": 1_438,
}
"""Training samples of the published datasets."""
TEST_SIZES = {
    "mnist": 10_000,
    "fashion-mnist": 10_000,
    "cifar10": 10_000,
    "cifar100": 10_000,
    "svhn": 26_032,
    "digits": 359,
}
"""Their test samples."""


_FREE = ("device", "devices", "checkpoint_minutes", "tensorboard")  # of a recipe: they do not decide the result


def plain(value: Any) -> Any:
    """JSON-ready: tuples become lists, calls and other dataclasses mappings."""
    if isinstance(value, Call):
        return {"call": value.function, **plain(value.options)}
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    raise EquipoiseError(f"{value!r} cannot be written down as the argument of a task: expected plain values or calls.")


def datasets(task: Task) -> list[str]:
    """The names of the datasets that a task works on."""
    return [name for name in (task.data, getattr(task, "target", "")) if name]


def described(task: Task) -> dict[str, Any]:
    """All that decides the result of a task, apart from the data and the code; JSON-ready."""
    return {"kind": task.kind, **{name: _described(value) for name, value in vars(task).items()}}


def _described(value: Any) -> Any:
    if isinstance(value, Training | DataManifold):
        return described(value)
    if isinstance(value, Recipe):
        return plain({name: one for name, one in asdict(value).items() if name not in _FREE})
    if isinstance(value, Net):
        return plain(asdict(value))
    return [_described(one) for one in value] if isinstance(value, list | tuple) else plain(value)


def key(task: Task, setting: Setting) -> str:
    """A digest of the task, its data and the code: the name of its folder."""
    content = {
        "task": described(task),
        "data": [setting.sha256(name) for name in datasets(task)],
        "code": setting.code or code_version(),
    }
    return f"{task.kind}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]}"


@cache
def code_version() -> str:
    """A digest of the library's source, without what only reads, presents or lists: changing a page or a paper's
    number makes nothing stale. What tasks do and experiments measure is part of it.
    """
    root, digest = Path(equipoise.__file__).parent, hashlib.sha256()
    for path in sorted(path for suffix in ("py", "c", "h") for path in root.rglob(f"*.{suffix}")):
        room, *inner = path.relative_to(root).parts
        presents = room in ("cli", "report") or (room == "reproduce" and inner[0] != "studies")
        if not presents or path.name.startswith(("measures", "tasks")):
            digest.update(os.fsencode(path.relative_to(root).as_posix()) + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
