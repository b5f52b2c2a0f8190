"""Transferred attacks: points made on a proxy, judged on the model under test (R, Sec. 5.1, `black-box`).

Nothing is asked of the model under test but its prediction at the point, so that no trick with its gradients helps it:
where such an attack fools more samples than the same one on the model itself, gradients are masked (R, Sec. 5.2.1).
"""

from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import nn

from equipoise.attacks.ascent import Ascent
from equipoise.attacks.attack import Attack, AttackLike
from equipoise.attacks.chain import Chain
from equipoise.attacks.inputs import AttackInputs, validated_inputs
from equipoise.attacks.result import AttackResult, Criterion, confirm
from equipoise.attacks.spaces import Input
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.types import Labels, Predictive
from equipoise.geometry import Ball
from equipoise.models import as_predictive


@dataclass(frozen=True)
class Transfer(Attack):
    """An attack on another model, whose points the model under test has to stand."""

    kind = "transfer"
    needs_labels = True

    proxy: "nn.Module | Predictive"
    """The model on which the points are made."""
    attack: AttackLike
    """The attack that makes them."""
    name: str
    """What records call the proxy."""
    sha256: str = ""
    """The SHA-256 of its weights, such as `equipoise.evaluation.fingerprint` gives."""
    geometry: Ball = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        as_predictive(self.proxy)
        require(self.name != "", "name is empty: say which model the proxy is, so that records can.")
        require(
            isinstance(getattr(self.attack, "space", Input()), Input),
            "the attack perturbs a latent space of the proxy, whose codes mean nothing to another model: leave out its "
            "space.",
        )
        object.__setattr__(self, "geometry", self.attack.geometry)

    def __str__(self) -> str:
        return f"{self.attack} on {self.name}"

    def settings(self) -> dict[str, Any]:
        """Which proxy it was and every parameter of the attack, JSON-ready, for records."""
        made = self.attack.settings()
        proxy = {"name": self.name, "sha256": self.sha256}
        return {"attack": "transfer", "geometry": made["geometry"], "proxy": proxy, "of": made}

    def run(self, inputs: AttackInputs) -> AttackResult:
        """Attack the proxy, and see what the model says of every point that this yields, fooled there or not.

        `success`, `prediction` and `distance` are those of the model under test; `evaluations`, `iteration` and the
        counts of gradients those of the attack on the proxy, with one evaluation more for the judgement.
        """
        x, y = inputs.x, cast(Labels, inputs.y)
        try:
            with validated_inputs(self.proxy, x, y, self.geometry, **inputs.options) as proxy:
                require(
                    proxy.classes == inputs.classes,
                    f"it has {proxy.classes} classes, the model under test has {inputs.classes}: a label would mean "
                    "two things.",
                )
                made = self.attack(self.proxy, x, y, **inputs.options)
        except EquipoiseError as error:
            raise EquipoiseError(f"the proxy {self.name!r}: {error}") from error
        return AttackResult.cat(
            [
                confirm(
                    inputs.predictive,
                    self.geometry,
                    Criterion(y[b]),
                    x[b],
                    made.x[b],
                    inputs.streams[b],
                    evaluations=made.evaluations[b],
                    iteration=made.iteration[b],
                    nan_gradients=made.nan_gradients[b],
                    zero_gradients=made.zero_gradients[b],
                )[0]
                for b in inputs.batches(inputs.batch_size)
            ]
        )


def transfer(proxy: "nn.Module | Predictive", attack: AttackLike, name: str, sha256: str = "") -> Attack:
    """`attack` made on `proxy`, which records call `name`, and judged on the model it is then called with.

    An ascent that would stop where it first fools the proxy climbs on to its best point: right behind the boundary of
    one model another one is mostly right. A `Chain` becomes one of transferred parts, in which a sample leaves when it
    fools the model under test.
    """
    if isinstance(attack, Chain):
        parts = tuple((part, transfer(proxy, one, name, sha256)) for part, one in attack.parts)
        return replace(attack, parts=parts)
    if isinstance(attack, Ascent) and attack.return_point == "first_success":
        attack = replace(attack, return_point="best")
    return Transfer(proxy, attack, name, sha256)
