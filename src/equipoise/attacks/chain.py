"""Attacks in sequence: AutoAttack (Croce & Hein 2020) and our own cascade.

standard   APGD-CE, APGD-T, FAB-T, Square
rand       APGD-CE and APGD-DLR over the expectation of a random model
plus       APGD-CE and APGD-DLR with 5 restarts, FAB-T with 5 restarts, Square, APGD-T
cascade    two cheap attacks, then those of `standard`
"""

from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from equipoise.attacks.apgd import apgd, apgd_t
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.attack import AttackLike, Composite, Wrapped
from equipoise.attacks.black_box.square import square
from equipoise.attacks.gradient import cw
from equipoise.attacks.inputs import AttackInputs
from equipoise.attacks.minimum_norm.fab import FAB, fab
from equipoise.attacks.result import AttackResult
from equipoise.core import progress
from equipoise.core.caching import cached
from equipoise.core.checks import checked_call
from equipoise.core.errors import require
from equipoise.core.types import Precision
from equipoise.geometry import Ball, Box
from equipoise.losses.objectives import cross_entropy, dlr, margin

Version = Literal["standard", "rand", "plus"]

DRAWS = 20
"""Draws of a random model over which `rand` averages every gradient (EOT)."""


@dataclass(frozen=True)
class Chain(Composite):
    """Attacks in sequence, on one ball; a sample leaves at its first success, `AttackResult.part` is that attack.

    With `target=` every one leads to the given classes, also those that on their own choose the most likely ones.
    """

    kind = "chain"
    needs_labels = True

    parts: tuple[tuple[str, AttackLike], ...]
    """Names and attacks, in the order in which they run."""
    notes: tuple[str, ...] = ()
    """What was changed to fit the model."""
    geometry: Ball = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(len(self.parts) > 0, "a chain of no attacks proves nothing: give at least one (name, attack) pair.")
        balls = {attack.geometry for _, attack in self.parts}
        require(len(balls) == 1, f"the attacks of a chain must share one ball, these have {len(balls)}.")
        object.__setattr__(self, "geometry", self.parts[0][1].geometry)

    def run(self, inputs: AttackInputs) -> AttackResult:
        """Each attack on the samples that no attack before it has fooled."""
        result, active = None, torch.arange(len(inputs), device=inputs.x.device)
        chain, _ = fitted("chain", self, inputs.classes, targeted=inputs.target is not None)
        for number, (name, attack) in enumerate(progress.shares(chain.parts, self.names)):
            remaining = inputs[active]
            new = cached(name, partial(attack, inputs.model, remaining.x, remaining.y, **remaining.options))
            new = replace(new, part=torch.full_like(new.part, number))
            if result is None:
                result = new
            else:
                old = result[active]
                # A random model may err less at the new point than at the old one.
                better = new.success | (new.errors >= old.errors)
                result = result.with_rows(active, old.where(new, better))
            active = (~result.success).nonzero()[:, 0]
            if len(active) == 0:
                break
        assert result is not None
        return inputs.judge(self.geometry, result)


def fitted(name: str, attack: Any, classes: int, *, targeted: bool = False) -> tuple[Any, list[str]]:
    """Return an attack fitted to a number of classes, and what had to be changed, in words: where the DLR is not
    defined the margin takes its place, and there are no more targets than other classes; with given target classes
    (`targeted`) these take the place of the most likely ones.
    """
    if isinstance(attack, Chain):
        parts = [(part, *fitted(part, inner, classes, targeted=targeted)) for part, inner in attack.parts]
        notes = list(dict.fromkeys(note for *_, part_notes in parts for note in part_notes))
        return Chain(tuple((part, inner) for part, inner, _ in parts), tuple(notes)), notes
    if isinstance(attack, Wrapped) and is_dataclass(attack):
        inner, notes = fitted(name, attack.attack, classes, targeted=targeted)
        return replace(attack, attack=inner), notes
    if not isinstance(attack, Ascent | FAB):
        return attack, []
    option = "num_targets" if isinstance(attack, Ascent) else "targets"
    targets, notes = getattr(attack, option), []
    if targeted and isinstance(attack, Ascent):
        attack, targets = replace(attack, num_targets=None), None
    if targets is not None and targets > classes - 1:
        notes.append(f"{name}: {classes - 1} targets instead of {targets}, the model has {classes} classes")
        attack = replace(attack, **{option: classes - 1})
    if isinstance(attack, Ascent):
        towards = targeted or attack.target is not None or attack.num_targets is not None
        if classes < attack.objective.classes[towards]:
            kind = "targeted " if towards else ""
            notes.append(f"{name}: margin instead of {kind}{attack.objective.name}, the model has {classes} classes")
            attack = replace(attack, objective=margin)
    return attack, notes


@checked_call()
def autoattack(
    eps: float,
    norm: str = "linf",
    version: Version = "standard",
    precision: Precision = "32",
    box: Box = Box(),
) -> Chain:
    """AutoAttack with the published budgets: 100 steps, 9 targets (5 of APGD-T in L1), 5000 queries; 5 restarts of
    APGD-CE in L1 (Croce & Hein 2020 and 2021).

    `plus` has FAB towards 9 targets with 5 restarts where the original has an untargeted one. `precision="bf16"`
    computes the attacks in bfloat16; every success is confirmed in float32. Raises `EquipoiseError`.
    """
    sparse = norm == "l1"
    common: dict[str, Any] = {"norm": norm, "precision": precision, "box": box}
    match version:
        case "standard":
            parts: list[tuple[str, AttackLike]] = [
                ("apgd-ce", apgd(eps, restarts=5 if sparse else 1, **common)),
                ("apgd-t", apgd_t(eps, targets=5 if sparse else 9, **common)),
                ("fab-t", fab(eps, **common)),
                ("square", square(eps, **common)),
            ]
        case "rand":
            random = common | {"resample": True, "eot_samples": DRAWS}
            parts = [
                ("apgd-ce", apgd(eps, objective=cross_entropy, **random)),
                ("apgd-dlr", apgd(eps, objective=dlr, **random)),
            ]
        case "plus":
            parts = [
                ("apgd-ce", apgd(eps, restarts=5, **common)),
                ("apgd-dlr", apgd(eps, objective=dlr, restarts=5, **common)),
                ("fab-t", fab(eps, restarts=5, **common)),
                ("square", square(eps, **common)),
                ("apgd-t", apgd_t(eps, **common)),
            ]
    return Chain(tuple(parts))


@checked_call()
def cascade(eps: float, norm: str = "linf", precision: Precision = "32", box: Box = Box()) -> Chain:
    """Ten steps on the margin and a short APGD-T, then every attack of AutoAttack `standard`, with the same draws.

    So whatever the standard sequence fools falls here too, and what falls to the cheap attacks costs little.
    """
    common: dict[str, Any] = {"norm": norm, "precision": precision, "box": box}
    cheap: tuple[tuple[str, AttackLike], ...] = (
        ("cw10", cw(eps, steps=10, **common)),
        ("apgd-t20", apgd_t(eps, steps=20, targets=3, **common)),
    )
    return Chain(cheap + autoattack(eps, norm, precision=precision, box=box).parts)
