"""Attacks as they are used to evaluate: stronger than for training, started at random, stopped at the first success."""

import inspect
import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor, nn

from equipoise.attacks import ATTACKS, named
from equipoise.errors import EquipoiseError, require, unknown
from equipoise.geometry import Ball
from equipoise.perturbed import Perturbed
from equipoise.steps import Uniform
from equipoise.types import Labels, Points, Precision, Predictive

STEPS = 40


@runtime_checkable
class Attack(Protocol):
    """What `evaluate` runs; every `Ascent` is one."""

    @property
    def geometry(self) -> Ball:
        """Where perturbed points may lie."""
        ...

    def settings(self) -> dict[str, Any]:
        """Every parameter, JSON-ready."""
        ...

    def __call__(
        self,
        model: "nn.Module | Predictive",
        x: Points,
        y: Labels | None = None,
        *,
        seed: int = 0,
        index: Int[Tensor, " batch"] | None = None,
        batch_size: int = 512,
    ) -> Perturbed:
        """Perturb a batch."""
        ...


Suite = Sequence[tuple[str, Attack]]


def suite(
    names: Sequence[str],
    eps: Sequence[float],
    norm: str = "linf",
    *,
    steps: int | None = None,
    step_size: float | None = None,
    restarts: int = 1,
    precision: Precision = "32",
) -> Suite:
    """The named attacks at every radius of `eps`, in increasing order.

    A name may end in a number of steps, such as `pgd100` or `cw40`; otherwise iterated attacks take `steps`, 40 by
    default, of `step_size`, by default `2.5·eps/steps`, from a start uniform on the ball. `clean` adds nothing:
    accuracy without an attack is always measured. Raises `EquipoiseError` for unknown names and unusable numbers.
    """
    attacks = [name for name in dict.fromkeys(names) if name != "clean"]
    for name in attacks:
        _parse(name)
    require(not attacks or len(eps) > 0, "attacks need at least one radius: give some eps, such as 8/255.")
    return [
        (name, _attack(name, radius, norm, steps, step_size, restarts, precision))
        for radius in sorted(set(eps))
        for name in attacks
    ]


def _parse(name: str) -> tuple[str, int | None]:
    """The attack and the number of steps that a name such as `pgd100` stands for."""
    match = re.fullmatch(r"(.*?)(\d+)?", name)
    base, number = (match[1], match[2]) if match else (name, None)
    if base not in ATTACKS:
        raise unknown("attack", name, ["clean", *ATTACKS])
    if number is not None and not _iterated(base):
        raise EquipoiseError(f"attack {name!r}: {base} takes a single step; leave the number out.")
    return base, None if number is None else int(number)


def _iterated(name: str) -> bool:
    return "steps" in inspect.signature(ATTACKS[name]).parameters


def _attack(
    name: str, eps: float, norm: str, steps: int | None, step_size: float | None, restarts: int, precision: Precision
) -> Attack:
    base, number = _parse(name)
    if base == "fgsm":  # deterministic: nothing to restart
        return named(base, eps, norm=norm, precision=precision)
    options: dict[str, Any] = {"norm": norm, "start": Uniform(), "keep": "first_success", "restarts": restarts}
    if _iterated(base):
        steps = next(n for n in (number, steps, STEPS) if n is not None)
        options |= {"steps": steps, "step_size": step_size}
    return named(base, eps, precision=precision, **options)
