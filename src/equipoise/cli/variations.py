"""What `train` can do with whatever method: several norms, a memory of each sample, a teacher, unlabelled samples."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from equipoise.attacks.gradient import udp
from equipoise.cli.method_options import build_method, parameters
from equipoise.cli.options import Count, CountOrZero, fraction
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.schedules import Schedule, schedulable
from equipoise.core.types import Points
from equipoise.data import Dataset
from equipoise.generators import Manifold
from equipoise.geometry import NORMS, Box
from equipoise.losses.objectives import kl
from equipoise.losses.terms import Method, Term
from equipoise.training import load_run, methods


@dataclass(frozen=True)
class Variation:
    """What is changed of a method."""

    also: tuple[str, ...] = ()
    """Further balls to perturb in, as norm:eps, such as l2:1.5; their steps have the usual size."""
    combine: Literal["alternate", "average", "worst"] = "alternate"
    """How the balls of --also are combined. A batch each in turn, at the cost of one; the mean of their losses; or the
    worst of their points."""
    perturb_every: Count = 1
    """Perturb one of so many batches, and leave the others clean."""
    remember: bool = False
    """Start every perturbation where it ended for this sample in the epoch before."""
    adaptive_eps: bool = False
    """Give every sample a radius of its own, which grows while the model withstands the attack."""
    teacher: Path | None = None
    """Run whose predictions the network follows at its perturbed points."""
    teacher_weight: float = 1.0
    """Weight of the divergence from the teacher."""
    teacher_temperature: float = 1.0
    """Temperature at which teacher and network are compared."""
    labels: CountOrZero = 0
    """Use the labels of this many training samples alone, and the others as unlabelled; 0 uses all."""
    consistency: float = 0.0
    """Weight of the divergence between unlabelled samples and their udp points, with --labels."""

    def record(self) -> dict[str, Any]:
        """What is changed, for the record; empty for nothing."""
        usual = asdict(Variation())
        changed = {name: value for name, value in asdict(self).items() if value != usual[name]}
        return {name: str(value) if isinstance(value, Path) else value for name, value in changed.items()}

    def check(self) -> None:
        """Raise `EquipoiseError` for options that say nothing without others."""
        require(self.also != () or self.combine == "alternate", "--combine says how to combine --also: give some.")
        require((self.labels > 0) == (self.consistency > 0), "--labels and --consistency go together: give both.")
        require(
            self.teacher is not None or (self.teacher_weight, self.teacher_temperature) == (1.0, 1.0),
            "--teacher-weight and --teacher-temperature need --teacher RUN.",
        )

    def of(self, choice: Any, manifold: Manifold | None = None, box: Box = Box()) -> Method:
        """The chosen method with the changes, in the `box`. Raises `EquipoiseError` for what it cannot have."""
        require(
            not (self.adaptive_eps and isinstance(getattr(choice, "eps", 0.0), Schedule)),
            "--adaptive-eps starts every radius at --eps and adapts it from there: give --eps as one number.",
        )
        made = build_method(choice, manifold, box)
        if self.also:
            made = _COMBINED[self.combine](
                made, *(build_method(_within(choice, ball), manifold, box) for ball in self.also)
            )
        if self.remember:
            made = methods.remembering(made)
        if self.adaptive_eps:
            made = methods.adaptive_eps(made)
        if self.perturb_every > 1:
            made = methods.every(self.perturb_every, made)
        if self.teacher is not None:
            teacher, _ = load_run(self.teacher)
            made = methods.distilled(made, teacher, self.teacher_weight, self.teacher_temperature)
        return made if self.labels == 0 else _consistent(made, self.consistency, **_ball(choice), box=box)

    def split(self, data: Dataset, seed: int) -> tuple[Dataset, Points | None]:
        """The samples with labels, and those without."""
        if self.labels == 0:
            return data, None
        require(
            self.labels < len(data.train), f"--labels {self.labels}: that leaves none of {len(data.train)} unlabelled."
        )
        return data.limit(self.labels, seed), data.train.beyond(self.labels, seed).x


_COMBINED = {"alternate": methods.alternating, "average": methods.average_of, "worst": methods.worst_of}


def _within(choice: Any, ball: str) -> Any:
    """The choice with another ball, typed as `l2:1.5`."""
    norm, colon, eps = ball.partition(":")
    require("norm" in parameters(choice), f"--also {ball}: {choice.name} perturbs in no ball of a norm.")
    require(bool(colon) and norm in NORMS, f"--also {ball!r:.80}: expected norm:eps, such as l2:1.5.")
    try:
        changed: dict[str, Any] = {"norm": norm, "eps": fraction(eps)}
    except ValueError as error:
        raise EquipoiseError(f"--also {ball}: {error}.") from error
    return replace(choice, **changed, **({"step_size": None} if "step_size" in parameters(choice) else {}))


def _ball(choice: Any) -> dict[str, Any]:
    """The ball, and the steps, of a chosen method."""
    names = parameters(choice)
    require("eps" in names and "norm" in names, f"--consistency: {choice.name} has no eps to perturb within.")
    return {name: getattr(choice, name) for name in ("eps", "norm", "steps") if name in names}


@schedulable
def _consistent(method: Method, weight: float, eps: float, norm: str, steps: int = 20, box: Box = Box()) -> Method:
    """The method and `λ KL(p(x) ‖ p(x'))` on unlabelled samples, x' their udp points."""
    return method + weight * Term(kl(), udp(eps, steps=steps, norm=norm, box=box)).on_unlabelled()
