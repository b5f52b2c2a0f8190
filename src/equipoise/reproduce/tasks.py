"""What an experiment has to compute: networks to train, evaluations and measurements of them, and studies.

A task is a frozen dataclass of plain values; `equipoise.reproduce.running` runs it, in a folder named by a digest of
all that decides its result, so that a task is recognised wherever it occurs and never computed twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module
from inspect import signature
from math import ceil
from typing import Any, ClassVar, NamedTuple, TypeVar

from equipoise.core.errors import EquipoiseError, require
from equipoise.training import Recipe


class Kind(NamedTuple):
    """Shape of a published dataset, and its numbers of training samples, test samples and classes."""

    shape: tuple[int, ...]
    train: int
    test: int
    classes: int = 10


KINDS: Mapping[str, Kind] = {
    "mnist": Kind((1, 28, 28), 60_000, 10_000),
    "fashion-mnist": Kind((1, 28, 28), 60_000, 10_000),
    "cifar10": Kind((3, 32, 32), 50_000, 10_000),
    "cifar100": Kind((3, 32, 32), 50_000, 10_000, 100),
    "svhn": Kind((3, 32, 32), 73_257, 26_032),
    "digits": Kind((1, 8, 8), 1_438, 359),
}
"""The published datasets that experiments use."""
SIZES = {name: kind.train for name, kind in KINDS.items()}
TEST_SIZES = {name: kind.test for name, kind in KINDS.items()}
_METHODS = "equipoise.training.methods"  # whose names stay where the files behind them may not
_WITHOUT_EFFECT = ("device", "devices", "checkpoint_minutes", "tensorboard")  # fields of a recipe that decide nothing


@dataclass(frozen=True)
class Call:
    """A function of this library and its keyword arguments as data: `call(methods.udp, eps=0.3, steps=25)`.

    Arguments are JSON-ready, or calls themselves: `loss=call(methods.regularised, entropy_weight=2.0)`.
    """

    function: str
    """Where the function is, as `package.module:name`."""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The function's name, without its module."""
        return self.function.partition(":")[2]

    @property
    def target(self) -> Callable[..., Any]:
        """The function itself."""
        return getattr(import_module(self.function.partition(":")[0]), self.name)

    def __call__(self, *args: Any, **more: Any) -> Any:
        """Call the function, with further arguments if given."""
        options = {name: value() if isinstance(value, Call) else value for name, value in self.options.items()}
        return self.target(*args, **options, **more)

    def __str__(self) -> str:
        """As in Python."""
        words = [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.options.items()]
        return f"{self.name}({', '.join(words)})"


def call(function: Callable[..., Any], **options: Any) -> Call:
    """Return the call as data. Raises `EquipoiseError` for an argument that the function does not take, and for a
    function that cannot be imported by its name.
    """
    module, name = function.__module__, function.__qualname__
    require("<" not in name, f"{name} has no name to import it by: define it in a module.")
    known = signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        wrong = [option for option in options if option not in known]
        require(not wrong, f"{name} takes no argument {', '.join(wrong)}: it takes {', '.join(known)}.")
    home = _METHODS if module.startswith(f"{_METHODS}.") else module
    return Call(f"{home}:{name}", options)


class _Task:
    @property
    def needs(self) -> "tuple[Training | DataManifold, ...]":
        """The tasks whose results this one builds on: those among its fields."""
        values = [value if isinstance(value, list | tuple) else (value,) for value in vars(self).values()]
        return tuple(one for value in values for one in value if isinstance(one, Training | DataManifold))


@dataclass(frozen=True)
class Net:
    """A network, an ensemble or Monte Carlo dropout as data: see `equipoise.training.build_model`."""

    name: str
    """Name of `equipoise.nets.build`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its other arguments, such as `widths`."""
    members: int = 1
    """Number of networks of an ensemble."""
    together: bool = False
    """Whether the mean of an ensemble is trained, instead of every member by its own loss."""
    dropout_samples: int = 0
    """Number of Monte Carlo dropout samples, whose mean is trained; 0 is off. (The papers write `L(C(x + δ), y)`, which
    may also be read as the mean of their losses.)"""


@dataclass(frozen=True)
class DataManifold(_Task):
    """The learned manifold of a dataset: a Wasserstein auto-encoder, see `equipoise.training.fit_manifold`."""

    data: str
    recipe: Recipe
    codes: int = 16
    """Dimension of the code."""
    width: int = 32
    """See `equipoise.generators.auto_encoder`."""
    samples: int | None = None
    """Maximum number of training samples, drawn by the seed."""

    kind: ClassVar = "manifold"

    @property
    def label(self) -> str:
        """A short description."""
        return f"manifold of {self.data}, {self.codes} numbers a code, seed {self.recipe.seed}"

    def scaled(self, scale: float) -> "DataManifold":
        """Return it shortened as a training is."""
        recipe, samples = _shortened(self.recipe, self.samples, self.data, scale)
        return replace(self, recipe=recipe, samples=samples)


@dataclass(frozen=True)
class Training(_Task):
    """A network trained from scratch."""

    method: Call
    net: Net
    data: str
    recipe: Recipe
    """How it is trained, seed included."""
    samples: int | None = None
    """Maximum number of training samples, drawn by the seed."""
    manifold: DataManifold | None = None
    """The manifold that some methods take as their first argument, as `methods.r4` does."""

    kind: ClassVar = "training"

    @property
    def label(self) -> str:
        """A short description."""
        return f"{self.method} on {self.data}, {self.net.name}, seed {self.recipe.seed}"

    @property
    def settings(self) -> list[str]:
        """What `with_settings` can change: fields of the recipe, and options of the method as `method.NAME`."""
        own = [one.name for one in fields(Recipe) if one.name not in (*_WITHOUT_EFFECT, "seed")]
        options = signature(self.method.target).parameters
        return [*own, *(f"method.{option}" for option in options if option not in ("manifold", "options", "loss"))]

    def with_settings(self, changes: Mapping[str, Any]) -> "Training":
        """Return the training with those of its settings changed that `changes` names. Raises `EquipoiseError` for a
        value of the wrong type or out of range.
        """
        known = {name: value for name, value in changes.items() if name in self.settings}
        recipe = {name: _converted(name, value) for name, value in known.items() if not name.startswith("method.")}
        options = {name.removeprefix("method."): value for name, value in known.items() if name.startswith("method.")}
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
        """Return the training with a share `scale` of the epochs; below one epoch, of the training samples, at least
        200. An adversarial generator, which is trained alongside, keeps its total number of steps: it takes more for
        each step of the classifier.
        """
        recipe, samples = _shortened(self.recipe, self.samples, self.data, scale)
        method, size = self.method, self.samples or SIZES.get(self.data)
        if method.name == "r2" and size is not None:
            ratio = self.recipe.epochs * size / (recipe.epochs * (samples or size))
            steps = round(method.options.get("generator_steps", 1) * ratio)
            method = replace(method, options={**method.options, "generator_steps": steps}) if steps > 1 else method
        return replace(_with_scaled_needs(self, scale), method=method, recipe=recipe, samples=samples)


@dataclass(frozen=True)
class Evaluated(_Task):
    """Accuracy of a trained network, clean and under attacks."""

    of: Training
    attacks: Sequence[str]
    """Names of `equipoise.evaluation.suite`."""
    eps: Sequence[float] = ()
    norm: str = "linf"
    examples: int = 1000
    """Number of test samples."""
    weights: str = "best"
    """Weights of the best or of the last epoch."""
    steps: int | None = None
    """Number of steps of the attacks that have no published budget."""
    step_size: float | None = None
    restarts: int = 1
    proxies: Sequence[Training] = ()
    """Networks on which the attacks are made, instead of on the network itself."""

    kind: ClassVar = "evaluation"

    @property
    def data(self) -> str:
        """The dataset of the training."""
        return self.of.data

    @property
    def label(self) -> str:
        """A short description."""
        return f"{' '.join(self.attacks)} in {self.norm} against {self.of.label}"

    def scaled(self, scale: float) -> "Evaluated":
        """Return it on a share of the samples, at least 10, of a network with that share of its training."""
        return replace(_with_scaled_needs(self, scale), examples=_share(self.examples, scale, 10))


@dataclass(frozen=True)
class StudyTask(_Task):
    """One of `equipoise.reproduce.studies`."""

    name: str
    data: str = ""
    """Dataset of the studies that run on any."""
    quick: bool = False

    kind: ClassVar = "study"

    @property
    def label(self) -> str:
        """A short description."""
        return f"study {self.name}" + (f" on {self.data}" if self.data else "")

    def scaled(self, scale: float) -> "StudyTask":
        """Return its quick form, below a twentieth; the number of seeds stays, as the study's intervals need them."""
        return replace(self, quick=self.quick or scale < 0.05)


@dataclass(frozen=True)
class MeasureTask(_Task):
    """Findings about trained networks, by a function `(models, data, report_progress, **options) -> Findings`."""

    function: Call
    """The function, with its options."""
    of: Sequence[Training]
    question: str
    weights: str = "best"
    """Weights of the best or of the last epoch."""
    examples: int = 1000
    """Number of test samples."""
    samples: int | None = None
    """Maximum number of training samples of the data and of the target, drawn by seed 0."""
    target: str = ""
    """Another dataset, which is passed to the function as `target`."""
    courses: bool = False
    """Whether the metrics of every epoch, training by training, are passed to the function as `courses`."""
    manifold: DataManifold | None = None
    """The manifold that is passed to the function as `manifold`."""

    kind: ClassVar = "measurement"

    @property
    def data(self) -> str:
        """The dataset of the first training."""
        return self.of[0].data

    @property
    def label(self) -> str:
        """A short description."""
        return f"{self.function} of {', '.join(str(one.method) for one in self.of)}"

    def scaled(self, scale: float) -> "MeasureTask":
        """Return it on a share of the samples, at least 10, of networks with that share of their training."""
        samples = None if self.samples is None else _share(self.samples, scale, 200)
        return replace(_with_scaled_needs(self, scale), examples=_share(self.examples, scale, 10), samples=samples)


Task = DataManifold | Training | Evaluated | StudyTask | MeasureTask
"""Something to compute in a folder of its own: it has a `label`, the tasks it `needs`, the name of its `data`, and
`scaled`, which gives a share of it.
"""
_SomeTask = TypeVar("_SomeTask", bound=Task)


def _with_needs(task: _SomeTask, change: Callable[[Any], Any]) -> _SomeTask:
    """The task with `change` applied to every task it needs."""
    changed = {}
    for name, value in vars(task).items():
        if isinstance(value, Training | DataManifold):
            changed[name] = change(value)
        elif isinstance(value, list | tuple) and any(isinstance(one, Training) for one in value):
            changed[name] = tuple(change(one) for one in value)
    return replace(task, **changed)


def _with_scaled_needs(task: _SomeTask, scale: float) -> _SomeTask:
    return _with_needs(task, lambda needed: needed.scaled(scale))


def with_settings(task: Task, changes: Mapping[str, Any]) -> Task:
    """Return the task with settings of all its trainings changed, see `Training.with_settings`."""
    if isinstance(task, Training):
        return task.with_settings(changes)
    return _with_needs(task, lambda needed: with_settings(needed, changes))


def _converted(name: str, value: Any) -> Any:
    """A typed value as the recipe's field of that name holds it: whole numbers as real ones, one value as several."""
    default = getattr(Recipe(), name)
    if isinstance(default, tuple):
        values = value if isinstance(value, tuple | list) else (value,)
        return tuple(float(one) if isinstance(one, int) else one for one in values)
    return float(value) if isinstance(default, float) and type(value) is int else value


def _share(size: int, scale: float, least: int) -> int:
    """A share of this number of samples, at least `least` where there are that many."""
    return max(ceil(size * scale), min(size, least))


def _shortened(recipe: Recipe, samples: int | None, data: str, scale: float) -> tuple[Recipe, int | None]:
    """A share of the epochs, rounded; below one epoch, of the training samples, at least 200."""
    share, size = min(recipe.epochs * scale, 1.0), samples or SIZES.get(data)
    fewer = samples if share == 1 or size is None else _share(size, share, 200)
    return replace(recipe, epochs=max(round(recipe.epochs * scale), 1)), fewer


def datasets(task: Task) -> list[str]:
    """Return the names of the datasets that a task works on."""
    return [name for name in (task.data, getattr(task, "target", "")) if name]


def described(task: Task) -> dict[str, Any]:
    """Return all that decides the result of a task, apart from the data and the code; JSON-ready."""
    return {"kind": task.kind, **{name: plain(value) for name, value in vars(task).items()}}


def plain(value: Any) -> Any:
    """Return a field of a task as JSON-ready data. Raises `EquipoiseError` for a value of another type."""
    match value:
        case Training() | DataManifold():
            return described(value)
        case Recipe():
            return plain({name: one for name, one in asdict(value).items() if name not in _WITHOUT_EFFECT})
        case Net():
            return plain(asdict(value))
        case Call():
            return {"call": value.function, **plain(value.options)}
        case Mapping():
            return {str(name): plain(one) for name, one in value.items()}
        case list() | tuple():
            return [plain(one) for one in value]
        case str() | int() | float() | None:
            return value
    raise EquipoiseError(f"{value!r} cannot be written down as the argument of a task: expected plain values or calls.")
