"""Attacks for evaluation: stronger than in training, with a random start, stopped at the first success."""

import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from equipoise.attacks import (
    ATTACKS,
    AttackLike,
    adaptive,
    apgd,
    apgd_fgsm,
    apgd_t,
    autoattack,
    bg,
    cascade,
    cw_k,
    ddn,
    deepfool,
    fab,
    fgsm_k,
    fmn,
    hop_skip_jump,
    named,
    nearest,
    pdpgd,
    pgd_k,
    pma,
    random_search,
    sigma_zero,
    square,
)
from equipoise.core.errors import EquipoiseError, require, unknown
from equipoise.core.types import Precision
from equipoise.geometry import Box
from equipoise.losses.objectives import dlr

STEPS = 40


Suite = Sequence[tuple[str, AttackLike]]


def suite(
    names: Sequence[str],
    eps: Sequence[float],
    norm: str = "linf",
    *,
    steps: int | None = None,
    step_size: float | None = None,
    restarts: int = 1,
    queries: int | None = None,
    precision: Precision = "32",
    box: Box = Box(),
) -> Suite:
    """Return the named attacks at every radius of `eps`, in increasing order.

    A name may end in a number of steps, queries or draws: `pgd100`, `square1000`, `random-search5000`. `fgsm-8`,
    `pgd40-8` and `cw40-8` are the attacks of R's tables (`equipoise.attacks.presets`), of radius 8/255 whatever `eps`
    says. Otherwise the attacks of `ATTACKS` take `steps`, 40 by default, of `step_size`, by default `2.5·eps/steps`,
    from a start uniform on the ball, those of `PUBLISHED` have their published budgets, and those of `NEAREST`
    their own: these minimise the distance, and a point counts if it lies within eps. `queries` is the budget of the
    attacks without gradients that have no number. All stay in `box`. `clean` adds nothing: accuracy without an attack
    is always measured. Raises `EquipoiseError` for unknown names, for two names of one attack (`pgd` and `pgd40`), and
    for unusable numbers.
    """
    names = [name for name in dict.fromkeys(names) if name != "clean"]
    presets = [(name, _preset(name, norm, precision, box)) for name in names if _PRESET.fullmatch(name)]
    attacks = [name for name in names if not _PRESET.fullmatch(name)]
    bases = {_parse(name)[0] for name in attacks}
    require(not attacks or len(eps) > 0, "attacks need at least one radius: give some eps, such as 8/255.")
    given = [n for n, v in (("steps", steps), ("step_size", step_size)) if v is not None]
    given += ["restarts"] if restarts != 1 else []
    fixed = sorted(bases & {*PUBLISHED, *NEAREST}) + [name for name, _ in presets]
    require(
        not given or not fixed,
        f"{', '.join(given)}: not for {', '.join(fixed)}, whose budget is the published one "
        "or the number behind the name, as in apgd-ce20; evaluate other attacks with it apart.",
    )
    require(
        queries is None or any(_budget(base) in _ASKING for base in bases),
        f"queries = {queries}: no named attack has such a budget; square, hop-skip-jump and random-search have.",
    )
    others = [
        (name, _attack(name, radius, norm, steps, step_size, restarts, queries, precision, box))
        for radius in set(eps)
        for name in attacks
    ]
    seen: dict[str, str] = {}
    for name, attack in (*others, *presets):
        first = seen.setdefault(str(attack.settings()), name)
        require(first == name, f"{first} and {name} are the same attack: name one of them.")
    return sorted([*others, *presets], key=lambda entry: entry[1].geometry.eps)


_PRESET = re.compile(r"(fgsm|pgd|cw)([0-9]{0,18})-([0-9]+(?:\.[0-9]+)?)")


def _preset(name: str, norm: str, precision: Precision, box: Box) -> AttackLike:
    """FGSM-k, PGDp-k or CWp-k of R's tables."""
    match = _PRESET.fullmatch(name)
    assert match is not None
    base, p, k = match.groups()
    require(norm == "linf", f"attack {name!r} is one in linf, not in {norm}: name it without its radius, {base + p}.")
    require(
        (p == "") == (base == "fgsm"),
        f"attack {name!r}: expected fgsm-K, pgdP-K or cwP-K, with P steps and a radius of K/255, such as pgd40-8.",
    )
    options: dict[str, Any] = {"precision": precision, "box": box}
    return fgsm_k(float(k), **options) if p == "" else {"pgd": pgd_k, "cw": cw_k}[base](int(p), float(k), **options)


PUBLISHED: dict[str, Callable[..., AttackLike]] = {
    "apgd-ce": apgd,
    "apgd-dlr": partial(apgd, objective=dlr),
    "apgd-t": apgd_t,
    "apgd-fgsm": apgd_fgsm,
    "pma": pma,
    "fab-t": fab,
    "square": square,
    "autoattack": autoattack,
    "autoattack-rand": partial(autoattack, version="rand"),
    "autoattack-plus": partial(autoattack, version="plus"),
    "cascade": cascade,
    "random-search": random_search,
    "adaptive": adaptive,
}
"""Attacks with their published budgets."""

NEAREST: dict[str, Callable[..., AttackLike]] = {
    "bg": bg,
    "deepfool": deepfool,
    "fmn": fmn,
    "ddn": ddn,
    "pdpgd": pdpgd,
    "sigma-zero": sigma_zero,
    "nearest": nearest,
    "hop-skip-jump": partial(hop_skip_jump, return_point="first_success"),
}
"""Minimum-norm attacks, in float32 only."""

_ASKING = ("queries", "draws")  # budgets of attacks without gradients


def _parse(name: str) -> tuple[str, int | None]:
    """The attack and the number of steps that a name such as `pgd100` stands for."""
    match = re.fullmatch("(.*?)([0-9]{1,18})?", name)
    base, number = (match[1], match[2]) if match else (name, None)
    if base not in ATTACKS | PUBLISHED | NEAREST:
        raise unknown("attack", name, ["clean", *ATTACKS, *PUBLISHED, *NEAREST])
    if number is not None and _budget(base) is None:
        why = "takes a single step" if base in ATTACKS else "has a budget of its own"
        raise EquipoiseError(f"attack {name!r}: {base} {why}; leave the number out.")
    return base, None if number is None else int(number)


def _budget(name: str) -> str | None:
    """The parameter that the number behind the attack's name sets, if any."""
    parameters = inspect.signature((ATTACKS | PUBLISHED | NEAREST)[name]).parameters
    return next((word for word in ("steps", *_ASKING) if word in parameters), None)


def _attack(
    name: str,
    eps: float,
    norm: str,
    steps: int | None,
    step_size: float | None,
    restarts: int,
    queries: int | None,
    precision: Precision,
    box: Box,
) -> AttackLike:
    base, number = _parse(name)
    if number is None and _budget(base) in _ASKING:
        number = queries
    budget: dict[str, Any] = {"box": box} | ({} if number is None else {str(_budget(base)): number})
    if base in PUBLISHED:
        return PUBLISHED[base](eps, norm=norm, precision=precision, **budget)
    if base in NEAREST:
        require(precision == "32", f"{base} looks for the boundary, which bf16 blurs: leave out precision {precision}.")
        return NEAREST[base](eps=eps, norm=norm, **budget)
    if base == "fgsm":  # deterministic: nothing to restart
        return named(base, eps, norm=norm, precision=precision, box=box)
    options: dict[str, Any] = {"norm": norm, "restarts": restarts, "box": box}
    if base in ("uta", "udp", "trades"):  # of training, where they start near the clean point and return the last
        options |= {"start": "uniform", "return_point": "first_success"}
    if _budget(base) is not None:
        steps = next(n for n in (number, steps, STEPS) if n is not None)
        options |= {"steps": steps, "step_size": step_size}
    return named(base, eps, precision=precision, **options)
