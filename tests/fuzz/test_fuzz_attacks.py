"""What every attack promises, for models, inputs, balls and surroundings drawn at random."""

import copy
import math
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.attacks import (
    ATTACKS,
    Attack,
    AttackResult,
    Bisected,
    Chain,
    adaptive,
    apgd,
    apgd_fgsm,
    apgd_t,
    autoattack,
    bg,
    ddn,
    deepfool,
    fab,
    fitted,
    fmn,
    margin_attack,
    minimal_l2,
    nearest,
    pdpgd,
    pgd,
    pma,
    random_search,
    sigma_zero,
    square,
    targeted,
    transfer,
)
from equipoise.attacks.steps import Momentum, Uniform
from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.geometry import Box

sys.path.insert(0, str(Path(__file__).parent))

from odd_models import EXACT, KINDS, MAY_BE_REFUSED, build, logits_in

pytestmark = [
    pytest.mark.fuzz,
    pytest.mark.unchecked,
    pytest.mark.filterwarnings("ignore:eps = .* is larger than the box"),
]

Make = Callable[[float, str, Box], Attack]


def _short(make: Callable[..., Attack], budget: dict[str, int], eps: float, norm: str, box: Box) -> Attack:
    return make(eps, norm=norm, box=box, **budget)


ROWS: dict[str, Make] = {
    **{name: partial(_short, make, {} if "fgsm" in name else {"steps": 3}) for name, make in ATTACKS.items()},
    "pgd restarts": lambda e, n, b: pgd(
        e, steps=3, norm=n, box=b, start=Uniform(), restarts=2, return_point="first_success"
    ),
    "pgd momentum": lambda e, n, b: pgd(e, steps=3, norm=n, box=b, step=Momentum(), return_point="best"),
    "pgd bf16": lambda e, n, b: pgd(e, steps=3, norm=n, box=b, precision="bf16", return_point="first_success"),
    "pgd draws": lambda e, n, b: pgd(e, steps=3, norm=n, box=b, resample=True, eot_samples=2),
    "targeted pgd": lambda e, n, b: targeted(pgd(e, steps=3, norm=n, box=b)),
    "several targets": lambda e, n, b: pgd(e, steps=3, norm=n, box=b, num_targets=2, return_point="first_success"),
    "apgd": lambda e, n, b: apgd(e, n, 6, box=b),
    "apgd-t": lambda e, n, b: apgd_t(e, n, 6, targets=2, box=b),
    "fab": lambda e, n, b: fab(e, n, 4, targets=2, box=b),
    "fab nearest": lambda e, n, b: fab(e, n, 4, targets=2, return_point="nearest", box=b),
    "square": lambda e, n, b: square(e, n, 20, box=b),
    "square restarts": lambda e, n, b: square(e, n, 8, box=b, restarts=2),
    "random-search": lambda e, n, b: random_search(e, n, 20, box=b),
    "adaptive": lambda e, n, b: adaptive(e, n, 2, restarts=1, box=b),
    "bisected": lambda e, n, b: Bisected(pgd(e, steps=3, norm=n, box=b), 6, 4),
    "bg": lambda e, n, b: bg(e, n, targets=2, box=b, steps=10),
    "deepfool": lambda e, n, b: deepfool(e, n, 4, targets=2, box=b),
    "fmn": lambda e, n, b: fmn(e, n, 6, box=b),
    "ddn": lambda e, n, b: ddn(e, "l2", 6, box=b),
    "pdpgd": lambda e, n, b: pdpgd(e, n, 6, box=b),
    "sigma-zero": lambda e, n, b: sigma_zero(steps=6, box=b),
    "pma": lambda e, n, b: pma(e, n, 4, box=b),
    "apgd-fgsm": lambda e, n, b: apgd_fgsm(e, n, 6, box=b),
    "fab draws": lambda e, n, b: fab(e, n, 3, targets=2, eot_samples=2, box=b),
    "nearest": lambda e, n, b: nearest(n, e, steps=4, box=b, radii=(max(e, 1e-3),), halvings=6, looks=4),
    "margin_attack": lambda e, n, b: margin_attack(n, e, radii=(max(e, 1e-3),), steps=3, halvings=6, looks=4, box=b),
    "minimal_l2": lambda e, n, b: minimal_l2(0.05 * (b.high - b.low), 20, halvings=6, looks=4, box=b),
    "transfer": lambda e, n, b: pgd(e, steps=3, norm=n, box=b),
    "chain": lambda e, n, b: Chain(
        (("apgd-t", ROWS["apgd-t"](e, n, b)), ("fab", ROWS["fab"](e, n, b)), ("square", ROWS["square"](e, n, b)))
    ),
    "autoattack": lambda e, n, b: Chain(
        tuple((name, _shortened(part)) for name, part in autoattack(e, n, box=b).parts)
    ),
}


def _shortened(attack: Any) -> Any:
    """A part of AutoAttack with a budget of a few steps."""
    name = "queries" if hasattr(attack, "queries") else "steps"
    return replace(attack, **{name: 10})


@dataclass(frozen=True)
class Case:
    """What an attack is tried on."""

    kind: str
    shape: tuple[int, ...]
    classes: int
    double: bool
    box: tuple[float, float]
    norm: str
    share: float
    """eps as a share of the distance between opposite corners of the box."""
    batch: int
    labels: str
    around: str
    seed: int

    @property
    def eps(self) -> float:
        corners = {"linf": 1.0, "l2": math.sqrt(math.prod(self.shape)), "l1": float(math.prod(self.shape))}[self.norm]
        return self.share * (self.box[1] - self.box[0]) * corners

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32


AROUND = ("nothing", "no_grad", "autocast bf16", "autocast f16", "float64 by default", "inference mode",
          "deterministic", "train mode", "gradients", "another thread", "strided")  # fmt: skip

CHOICES: dict[str, list[Any]] = {
    "kind": list(KINDS),
    "shape": [(1,), (2,), (17,), (1, 1, 1), (1, 1, 5), (3, 5, 2), (2, 4, 4), (9, 3, 3), (1, 8, 8)],
    "classes": [2, 3, 5, 10, 1000],
    "double": [False, True],
    "box": [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)],
    "norm": ["linf", "l2", "l1"],
    "share": [0.0, 1e-6, 0.03, 0.3, 2.0],
    "batch": [1, 2, 3, 5],
    "labels": ["predicted", "any"],
    "around": list(AROUND),
    "seed": list(range(1000)),
}
cases = st.builds(Case, **{name: st.sampled_from(values) for name, values in CHOICES.items()})


FEWER = settings(max_examples=settings().max_examples // 5)
"""There are many attacks."""


def inputs(case: Case) -> Tensor:
    """Points of the box, some of them in its corners."""
    g = torch.Generator().manual_seed(case.seed)
    x = torch.rand(case.batch, *case.shape, generator=g, dtype=torch.float64)
    x[::3] = x[::3].round()
    low, high = case.box
    return (low + (high - low) * x).to(case.dtype).clamp(low, high)


def snapshot(model: nn.Module) -> list[Any]:
    """Everything about a model that an attack must leave as it was."""
    found: list[Any] = []
    for name, module in model.named_modules():
        keys = sorted(k for k in vars(module) if not k.startswith("_backward_hooks"))
        hooks = [len(v) for k, v in sorted(vars(module).items()) if k.endswith("hooks") and v is not None]
        found.append((name, id(module), type(module), module.training, keys, hooks))
    for name, p in [*model.named_parameters(), *model.named_buffers()]:
        found.append((name, id(p), type(p), p.requires_grad, p._version, p.detach().numpy().tobytes()))
        found.append(None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes()))
    return found


def surroundings() -> list[Any]:
    """Everything about the process that an attack must leave as it was."""
    return [
        torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state()), torch.get_default_dtype(),
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(), torch.is_anomaly_enabled(),
    ]  # fmt: skip


@contextmanager
def around(name: str) -> Iterator[None]:
    context = {
        "no_grad": torch.no_grad,
        "autocast bf16": lambda: torch.autocast("cpu", torch.bfloat16),
        "autocast f16": lambda: torch.autocast("cpu", torch.float16),
        "inference mode": torch.inference_mode,
    }.get(name, nullcontext)
    if name == "float64 by default":
        torch.set_default_dtype(torch.float64)
    if name == "deterministic":
        torch.use_deterministic_algorithms(True)
    try:
        with context():
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)


def assert_same(a: AttackResult, b: AttackResult) -> None:
    for name in ("x", "success", "distance", "prediction", "evaluations", "iteration", "part"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def length(move: Tensor, norm: str) -> Tensor:
    flat = move.double().flatten(1)
    features = flat.ne(0).sum(1).double()
    return {"linf": flat.abs().amax(1), "l2": flat.norm(dim=1), "l1": flat.abs().sum(1), "l0": features}[norm]


def attempt(run: Callable[[], AttackResult], case: Case) -> AttackResult | None:
    """The result, or None where the attack rightly declines in one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EquipoiseWarning)
            return run()
    except EquipoiseError as error:
        text = str(error)
        assert "\n" not in text and text.endswith(".") and 20 < len(text) < 500, text
        declined = case.kind in MAY_BE_REFUSED or case.around == "inference mode"
        diverged = case.kind == "NaN on some" and "not finite" in text  # none of the inputs has a finite prediction
        assert declined or diverged, f"needlessly refused: {text}"
        return None


@pytest.mark.parametrize("row", ROWS)
@given(case=cases)
@FEWER
def test_what_every_attack_promises(row: str, case: Case) -> None:
    model = build(case.kind, case.shape, case.classes, case.box, case.seed).to(case.dtype)
    if case.kind == "half precision":
        model.half()
    x = inputs(case)
    before = x.clone()
    y = torch.randint(case.classes, (case.batch,), generator=torch.Generator().manual_seed(case.seed))
    with torch.no_grad():
        z = logits_in(model(x.clone())) if case.kind != "half precision" else None
    if case.labels == "predicted" and z is not None and z.ndim == 2 and z.shape[1] == case.classes:
        y = z.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquipoiseWarning)  # a ball larger than the box is worth a warning
        attack, _ = fitted(row, ROWS[row](case.eps, case.norm, Box(*case.box)), case.classes)
    if row == "transfer":
        proxy = build("perceptron", case.shape, case.classes, case.box, case.seed + 1).to(case.dtype)
        attack = transfer(proxy, attack, "another model")
    clean = copy.deepcopy(model)
    reference = attempt(lambda: attack(clean, x.clone(), y, seed=case.seed), case)

    if case.around == "train mode":
        model.train()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    given_x = x
    if case.around == "gradients":
        given_x = x.clone().requires_grad_()
    if case.around == "strided":
        given_x = x.transpose(0, -1).contiguous().transpose(0, -1)
    was, world = snapshot(model), None
    with around(case.around):
        world = surroundings()
        other: list[Any] = []
        thread = threading.Thread(target=lambda: other.append(attempt(lambda: attack(model, x, y, seed=1), case)))
        if case.around == "another thread":
            thread.start()
        found = attempt(lambda: attack(model, given_x, y, seed=case.seed), case)
        if case.around == "another thread":
            thread.join()
            assert len(other) == 1, "the attack in the other thread failed"
        assert surroundings() == world
    assert snapshot(model) == was
    assert torch.equal(x, before) and torch.equal(given_x, before) and given_x.grad is None
    assert y.dtype == torch.int64
    if case.around != "inference mode":
        assert (found is None) == (reference is None)
    if found is None or reference is None:
        nan = case.kind == "NaN on some" and z is not None
        assert not nan or not z.isfinite().all(1).any(), "refused although some predictions are finite"
        return
    note(f"eps {case.eps}, success {found.success.tolist()}")
    # Another order of the memory rounds otherwise, and dropout draws from a generator that threads share.
    if case.around != "strided" and not (case.kind == "random" and case.around == "another thread"):
        assert_same(found, reference)
    check_points(found, x, y, attack, case)
    if case.kind not in ("random", "coupled"):  # of which a sample alone tells nothing
        check_successes(found, clean, x, y, row)
    if case.kind in EXACT and case.batch > 1 and "bf16" not in row:
        check_batches(found, clean, x, y, attack, case)


def check_points(found: AttackResult, x: Tensor, y: Tensor, attack: Attack, case: Case) -> None:
    """Inside ball and box; counters that can be."""
    low, high = case.box
    assert found.x.shape == x.shape and found.x.dtype == x.dtype and not found.x.requires_grad
    assert found.x.isfinite().all() and found.x.min() >= low and found.x.max() <= high
    norm, n = attack.geometry.norm, math.prod(case.shape)
    move = length(found.x.double() - x.double(), norm)
    rounding = (
        4 * torch.finfo(x.dtype).eps * max(-low, high) * {"linf": 1.0, "l2": math.sqrt(n), "l1": n, "l0": 0.0}[norm]
    )
    assert (move <= attack.geometry.eps * (1 + 1e-5) + rounding).all(), (move.tolist(), attack.geometry.eps)
    assert torch.allclose(found.distance.double(), move, rtol=1e-5, atol=rounding)
    for name in ("evaluations", "nan_gradients", "zero_gradients", "iteration", "part", "crossings"):
        count = getattr(found, name)
        assert count.dtype == torch.int64 and count.shape == y.shape and (count >= 0).all(), name
    assert (found.evaluations >= 1).all()
    assert (found.nan_gradients + found.zero_gradients <= found.evaluations).all()
    if case.kind not in ("NaN gradient", "NaN on some", "NaN on all"):
        assert not found.nan_gradients.any()
    assert (found.prediction >= -1).all() and (found.prediction < case.classes).all()


def alone(model: nn.Module, point: Tensor) -> Tensor:
    """The logits of one sample by itself."""
    weight = next(model.parameters())
    with torch.no_grad():
        return logits_in(model(point.to(weight.dtype, copy=True))).double().reshape(-1)


def check_successes(found: AttackResult, model: nn.Module, x: Tensor, y: Tensor, row: str) -> None:
    """A success is wrong, and finite, where the model sees the point alone; what is clearly wrong is a success."""
    for i in range(len(y)):
        z, at_first = (alone(model, points[i : i + 1]) for points in (found.x, x))
        label = z[y[i]].item()
        others = torch.cat([z[: y[i]], z[y[i] + 1 :]]).amax().item()
        valid = not z.isnan().any() and z.max() < math.inf
        assert (found.prediction[i] >= 0) == valid, "a prediction is none where, and only where, it is not finite"
        if found.success[i]:
            assert valid, "a prediction that is not finite fools nobody"
            assert found.prediction[i] == z.argmax(), "the model predicts something else of the point alone"
            wrong_already = int(at_first.argmax()) != int(y[i])
            assert others > label or wrong_already, f"sample {i} counts as fooled: {others} is not above {label}"
        elif valid and "targeted" not in row:
            size = max(abs(others), abs(label)) if math.isfinite(label) else 0.0
            assert others - label <= 0.01 * size, f"sample {i} is not counted: {others} is far above {label}"


def check_batches(found: AttackResult, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, case: Case) -> None:
    """Neither the size of a batch nor its order matters."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(case.seed))
    again = attack(model, x[order].clone(), y[order], seed=case.seed, index=order, batch_size=2)
    assert torch.equal(again.success, found.success[order])
    assert torch.allclose(again.x, found.x[order], rtol=0, atol=1e-6 * (case.box[1] - case.box[0]))
    alone = [attack(model, x[i : i + 1].clone(), y[i : i + 1], seed=case.seed, index=torch.tensor([i])) for i in (0, 1)]
    assert torch.equal(torch.cat([one.success for one in alone]), found.success[:2])
