"""Transferred attacks: points made on a proxy, evaluated on the model under test (R, Sec. 5.1, `black-box`).

They need no gradient of the model under test: where such an attack fools more samples than the same one on the model
itself, gradients are masked (R, Sec. 5.2.1).
"""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from equipoise.attacks.ascent import Ascent
from equipoise.attacks.attack import Attack, AttackLike
from equipoise.attacks.chain import Chain
from equipoise.attacks.inputs import AttackInputs, validated_inputs
from equipoise.attacks.result import AttackResult
from equipoise.attacks.spaces import Input
from equipoise.core.checks import checked_call
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.types import Predictive
from equipoise.geometry import Ball
from equipoise.models import as_predictive


@dataclass(frozen=True)
class Transfer(Attack):
    """An attack on another model, whose points are tried on the model under test."""

    kind = "transfer"
    needs_labels = True
    asks_for = "labels"

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
        """Attack the proxy, and evaluate the model under test at every point, whether it fools the proxy or not.

        `success`, `prediction` and `distance` are those of the model under test; `evaluations`, `iteration` and the
        counts of gradients those of the attack on the proxy, with one more evaluation of the model under test.
        """
        try:
            with validated_inputs(self.proxy, inputs.x, inputs.y, self.geometry, **inputs.options) as proxy:
                require(
                    proxy.classes == inputs.classes,
                    f"it has {proxy.classes} classes, the model under test has {inputs.classes}: a label would mean "
                    "two things.",
                )
                made = self.attack(self.proxy, inputs.x, inputs.y, **inputs.options)
        except EquipoiseError as error:
            raise EquipoiseError(f"the proxy {self.name!r}: {error}") from error
        return inputs.confirm_all(self.geometry, made.x, made.costs)


@checked_call()
def transfer(proxy: "nn.Module | Predictive", attack: AttackLike, name: str, sha256: str = "") -> Attack:
    """`attack` made on `proxy`, which records call `name`, and judged on the model it is then called with.

    An ascent that would stop at its first success on the proxy goes on to its best point instead, as a point just
    beyond the boundary of one model rarely fools another. A `Chain` becomes one of transferred parts, in which a sample
    leaves when it fools the model under test.
    """
    if isinstance(attack, Chain):
        parts = tuple((part, transfer(proxy, inner, name, sha256)) for part, inner in attack.parts)
        return replace(attack, parts=parts)
    if isinstance(attack, Ascent) and attack.return_point == "first_success":
        attack = replace(attack, return_point="best")
    return Transfer(proxy, attack, name, sha256)
