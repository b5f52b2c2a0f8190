"""Published models: which ones come with the package, and what their records say."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from equipoise.core.errors import EquipoiseError
from equipoise.results.records import AttackRecord, Evaluation, Run, load

ROOT = Path(__file__).parent
WEIGHTS, RECORD, EVALUATION = "model.safetensors", "run.json", "evaluation.json.gz"
"""The files of a published model, beside its card."""


def names() -> list[str]:
    """Return the names of the models that come with the package, such as `digits/udp-0.15`, sorted."""
    return sorted(file.parent.relative_to(ROOT).as_posix() for file in ROOT.glob(f"*/*/{RECORD}"))


def find(target: "Path | str") -> Path:
    """Return the folder of the model that comes with the package under the name `target`; a path that exists, and any
    other text, is returned as a path.
    """
    path = Path(target)
    return ROOT / path if not path.exists() and path.as_posix() in names() else path


def hint(target: "Path | str") -> str:
    """Return which models of the package have names near to `target`, to go on a message; empty if none has."""
    near = [] if Path(target).exists() else get_close_matches(str(target).lower(), names(), n=3, cutoff=0.6)
    return f"; models with such a name that come with equipoise: {', '.join(near)}" if near else ""


@dataclass(frozen=True)
class PublishedModel:
    """The records of a published model."""

    run: Run
    """How it was trained."""
    evaluation: Evaluation
    """How robust it is; its `target` is the name of the model."""

    @property
    def name(self) -> str:
        """The name, such as `digits/udp-0.15`."""
        return self.evaluation.target

    @property
    def method(self) -> str:
        """The method of the training with its radius, such as `udp, linf 0.15`."""
        name, eps, norm = (self.run.method.get(key) for key in ("name", "eps", "norm"))
        return f"{name}, {norm} {eps:.4g}" if isinstance(eps, int | float) else f"{name}"

    @property
    def clean(self) -> AttackRecord:
        """Accuracy without an attack."""
        return self.evaluation.results[0]

    @property
    def attacked(self) -> list[AttackRecord]:
        """Accuracy under each attack at each radius."""
        return list(self.evaluation.results[1:])


def read(target: "Path | str") -> PublishedModel:
    """Return the records of a published model, from its folder or the name of one that comes with the package.

    Raises `EquipoiseError` if there is none, or a record is damaged.
    """
    folder = find(target)
    if not (folder / EVALUATION).is_file():
        raise EquipoiseError(f"{target} is no published model: it has no {EVALUATION}{hint(target)}.")
    run, evaluation = load(folder / RECORD), load(folder / EVALUATION)
    if not (isinstance(run, Run) and isinstance(evaluation, Evaluation)):
        raise EquipoiseError(f"{target} is damaged: its {RECORD} or {EVALUATION} is a record of something else.")
    return PublishedModel(run, evaluation)
