"""Old names of modules, of names in them and of arguments: they still work, with a `DeprecationWarning`."""

import functools
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar, cast

T = TypeVar("T", bound=Callable[..., Any])

MOVED = {
    "ascent": "attacks.ascent",
    "attacks.autoattack": "attacks.chain",
    "attacks.bg": "attacks.minimum_norm.hein_andriushchenko",
    "attacks.boundary": "attacks.minimum_norm.search",
    "attacks.deepfool": "attacks.minimum_norm.deepfool",
    "attacks.fab": "attacks.minimum_norm.fab",
    "attacks.fmn": "attacks.minimum_norm.fmn",
    "attacks.minimal": "attacks.minimum_norm.bisection",
    "attacks.nearest": "attacks.minimum_norm.nearest",
    "attacks.random_search": "attacks.black_box.random_search",
    "attacks.square": "attacks.black_box.square",
    "attacks.transfer": "attacks.black_box.transfer",
    "calls": "kernels.torch_calls",
    "convolution": "kernels.input_gradients",
    "corrupted": "training.corruption",
    "data.load": "data.finding",
    "diagnostics.masking": "masking.exact_tests",
    "diagnostics.verdict": "masking.investigate",
    "errors": "core.errors",
    "evaluation.audit": "evaluation.verification",
    "evaluation.flags": "masking.model_checks",
    "evaluation.verify": "evaluation.confirm",
    "experiments": "reproduce",
    "filling": "geometry.water_filling",
    "findings": "results.findings",
    "hyperplane": "geometry.hyperplane",
    "interop": "evaluation.interop",
    "local_forward": "kernels.windowed",
    "methods": "training.methods",
    "native": "kernels.native",
    "nets.cnn4": "nets.convolutional",
    "nets.lenet": "nets.convolutional",
    "nets.preact_resnet": "nets.residual",
    "nets.resnet": "nets.residual",
    "nets.resnet20": "nets.residual",
    "nets.small_cnn": "nets.convolutional",
    "nets.wide_resnet": "nets.residual",
    "objectives": "losses.objectives",
    "penalties": "training.penalties",
    "perturbed": "attacks.result",
    "predictive": "models",
    "proportions": "results.statistics",
    "provenance": "results.provenance",
    "records": "results.records",
    "reproduce.measures_rf": "reproduce.measures",
    "reproduce.overview": "reproduce.registry",
    "reproduce.studies.options": "reproduce.studies.design",
    "reproduction": "results.reproduction",
    "rng": "core.rng",
    "spaces": "attacks.spaces",
    "steps": "attacks.steps",
    "studies": "reproduce.studies",
    "terms": "losses.terms",
    "training.judgement": "training.monitoring",
    "types": "core.types",
    "verdicts": "results.masking",
}
"""Old names and new ones, below `equipoise`; a package stands for its modules."""


def new_name(name: str) -> str | None:
    """The new name of a module that has moved; None for any other."""
    package, _, old = name.partition(".")
    head, tail = old, ""
    while package == "equipoise" and head:
        if head in MOVED:
            return f"equipoise.{MOVED[head]}{tail}"
        head, _, last = head.rpartition(".")
        tail = f".{last}{tail}"
    return None


class Moved(MetaPathFinder, Loader):
    """Imports a module of an old name as the one that it is now."""

    def __init__(self) -> None:
        self._own: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for a module that has moved."""
        return None if new_name(fullname) is None else ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module under its new name."""
        new = new_name(spec.name)
        assert new is not None
        package, _, name = spec.name.rpartition(".")
        public = name in getattr(sys.modules[package], "__all__", ())
        if public and callable(getattr(sys.modules[package], name)):  # a module would take the place of a function
            raise ModuleNotFoundError(f"{spec.name} has moved: import {new}", name=spec.name)
        # The import system's own frames are not counted.
        warnings.warn(f"{spec.name} has moved: import {new}", DeprecationWarning, stacklevel=2)
        module = import_module(new)
        self._own[new] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module back the spec that the import system has just replaced."""
        module.__spec__ = self._own.pop(module.__name__)


def install() -> None:
    """Let old names be imported, after all that exist have been looked for."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.append(Moved())


def renamed_names(module: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module in which old names, the keys of `renamed`, stand for new ones. A new name is
    one of the module itself, or `other.module:name`.
    """

    def find(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = renamed[name].rpartition(":")
        _warn(f"{module}.{name} has been renamed: write {home or module}.{new}")
        return getattr(import_module(home or module), new)

    return find


def renamed_arguments(**renamed: str) -> Callable[[T], T]:
    """Decorate a function or a class so that it also takes old names of keyword arguments: `old="new"`. Where both are
    given, as by `dataclasses.replace`, the old one counts.
    """

    def decorate(target: T) -> T:
        call = target.__init__ if isinstance(target, type) else target

        @functools.wraps(call)
        def wrapped(*args: Any, **options: Any) -> Any:
            for old in renamed.keys() & options.keys():
                _warn(f"{old}= has been renamed: write {renamed[old]}=")
                options[renamed[old]] = options.pop(old)
            return call(*args, **options)

        if isinstance(target, type):
            setattr(target, "__init__", wrapped)  # noqa: B010, as a type checker takes offence at the plain form
        return cast(T, target if isinstance(target, type) else wrapped)

    return decorate


def renamed_attribute(old: str, new: str) -> property:
    """Return the property of the old name of an attribute."""

    def read(owner: Any) -> Any:
        _warn(f"{type(owner).__name__}.{old} has been renamed: write {new}")
        return getattr(owner, new)

    return property(read, doc=f"The old name of `{new}`.")


def _warn(message: str) -> None:
    """Warn at the line outside of this package that used the old name."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).split(".")[0] in ("equipoise", "importlib"):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, DeprecationWarning, stacklevel=depth)
