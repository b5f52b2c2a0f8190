"""Uncertainty-guided robust training, and honest robustness evaluation, of classifiers.

    import equipoise as eq

    net, digits = eq.nets.build("mlp", (1, 8, 8), classes=10), eq.data.load("digits")
    eq.train(eq.methods.udp(eps=0.1, step_size=0.02, steps=10), net, digits)
    clean, robust = eq.evaluate(net, digits.test.x, digits.test.y, [("pgd", eq.attacks.pgd(eps=0.1))])
    robust_net, record = eq.load("digits/udp-0.15")  # of the models that `equipoise models` lists, or a run directory

The names of `__all__` are imported the first time they are used, so that `import equipoise` alone costs nothing.
"""

from typing import TYPE_CHECKING, Any

from equipoise.core import deprecation
from equipoise.core.lazy import lazy_names

if TYPE_CHECKING:
    from equipoise import attacks, data, losses, models, nets, scores
    from equipoise.attacks import spaces, steps
    from equipoise.attacks.ascent import Ascent
    from equipoise.attacks.result import AttackResult
    from equipoise.certified import certified as certify
    from equipoise.core import schedules
    from equipoise.core.errors import EquipoiseError, EquipoiseWarning
    from equipoise.core.types import Prediction
    from equipoise.evaluation import evaluate
    from equipoise.evaluation.predicting import predict
    from equipoise.geometry import Ball, Box
    from equipoise.losses import Method, Term
    from equipoise.masking.investigate import investigate as check_masking
    from equipoise.models import Single, as_predictive
    from equipoise.models.exported import export
    from equipoise.report.tables import tabulate
    from equipoise.scores.instances import score
    from equipoise.training import Recipe, methods
    from equipoise.training import fit as train
    from equipoise.training import load_run as load
    from equipoise.training.estimator import RobustClassifier

    __version__: str

__all__ = [
    "Ascent",
    "AttackResult",
    "Ball",
    "Box",
    "EquipoiseError",
    "EquipoiseWarning",
    "Method",
    "Prediction",
    "Recipe",
    "RobustClassifier",
    "Single",
    "Term",
    "as_predictive",
    "attacks",
    "certify",
    "check_masking",
    "data",
    "evaluate",
    "export",
    "load",
    "losses",
    "methods",
    "models",
    "nets",
    "predict",
    "schedules",
    "score",
    "scores",
    "spaces",
    "steps",
    "tabulate",
    "train",
]
_HOMES = {
    "Ascent": "attacks.ascent:Ascent",
    "Ball": "geometry:Ball",
    "Box": "geometry:Box",
    "EquipoiseError": "core.errors:EquipoiseError",
    "EquipoiseWarning": "core.errors:EquipoiseWarning",
    "Method": "losses:Method",
    "AttackResult": "attacks.result:AttackResult",
    "Prediction": "core.types:Prediction",
    "Single": "models:Single",
    "Recipe": "training:Recipe",
    "RobustClassifier": "training.estimator:RobustClassifier",
    "Term": "losses:Term",
    "as_predictive": "models:as_predictive",
    "certify": "certified:certified",
    "check_masking": "masking.investigate:investigate",
    "evaluate": "evaluation:evaluate",
    "export": "models.exported:export",
    "load": "training:load_run",
    "methods": "training.methods",
    "predict": "evaluation.predicting:predict",
    "schedules": "core.schedules",
    "score": "scores.instances:score",
    "spaces": "attacks.spaces",
    "steps": "attacks.steps",
    "tabulate": "report.tables:tabulate",
    "train": "training:fit",
}
"""Where each public name lives: a module, or a name in one."""

deprecation.install()
_find, _listed = lazy_names(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    return _version() if name == "__version__" else _find(name)


def __dir__() -> list[str]:
    return [*_listed(), "__version__"]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("equipoise")
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "0.0.0"
