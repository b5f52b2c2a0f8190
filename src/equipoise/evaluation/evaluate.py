"""Accuracy of a model, clean and under attacks, sample by sample."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from equipoise.attacks import fitted
from equipoise.attacks.attack import Composite
from equipoise.attacks.inputs import AttackInputs, validated_inputs
from equipoise.attacks.result import DRAWS
from equipoise.attacks.spaces import Input
from equipoise.core.caching import cached
from equipoise.core.checks import check_index
from equipoise.core.errors import require, require_integer
from equipoise.core.progress import listening
from equipoise.core.rng import Stream, Streams, fold
from equipoise.core.types import Labels, Points, Predictive
from equipoise.evaluation.confirm import Verified, verify_outcome
from equipoise.evaluation.suites import AttackLike, Suite
from equipoise.evaluation.summaries import joined, with_worst_cases
from equipoise.geometry import EVERYWHERE, Ball, Box
from equipoise.models import Frozen, as_predictive, cut, frozen, global_seed
from equipoise.results.records import AttackRecord, CorruptionResult

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many samples are done, over all attacks: after every attack, and
at every step within one, where a share of the attack counts as that share of its samples, rounded down."""


Batch = Sequence[Tensor]
"""A pair of inputs and labels, as a `DataLoader` yields it."""


@dataclass(frozen=True)
class Block:
    """What came of one batch: the finished unit of an evaluation. Blocks know nothing of each other, so they can be
    computed in any order, by several processes, or again.
    """

    results: list[AttackRecord]
    """Accuracy without an attack, then one entry per attack."""
    points: list[dict[str, np.ndarray]]
    """Per attack the adversarial points that count: `rows` in the batch and `x`."""
    corruptions: list[CorruptionResult] = field(default_factory=list)
    """One entry per corruption, if some were asked for."""


def evaluate(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    attacks: Suite,
    *,
    seed: int = 0,
    index: Int[Tensor, " batch"] | None = None,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> list[AttackRecord]:
    """Accuracy without an attack, under each attack, and in the worst case over the attacks of each ball.

    Samples that are wrong without an attack are not attacked and count as wrong, at distance 0. Every success is
    checked again by `verify_outcome`; one that fails the check does not count, and `refused` in the settings says how
    many did. Random draws depend on `seed` and each sample's `index` (default 0, 1, ...), not on batches or order.
    Raises `EquipoiseError` for input that no attack could take.
    """
    require(isinstance(x, Tensor) and isinstance(y, Tensor), "evaluate needs x and y as torch tensors.")
    attacks = as_suite(attacks)
    require_integer("batch_size", batch_size, 1)
    require_integer("seed", seed)
    predictive = _snapshot(model)
    x, y = check_samples(predictive, x, y, attacks)
    batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
    return evaluate_batches(predictive, batches, attacks, seed=seed, index=index, total=len(x), progress=progress)


def evaluate_batches(
    model: "nn.Module | Predictive",
    batches: Iterable[Batch],
    attacks: Suite,
    *,
    seed: int = 0,
    index: Int[Tensor, " samples"] | None = None,
    total: int | None = None,
    progress: Progress | None = None,
) -> list[AttackRecord]:
    """As `evaluate`, for batches that arrive one by one, as from a `DataLoader`: only one is held in memory.

    Batches are pairs `(x, y)`; they are moved to the model's device. `total` is the number of samples, if known, for
    the progress. Raises `EquipoiseError` as `evaluate` does, naming the first batch that cannot be used.
    """
    predictive, attacks = _snapshot(model), as_suite(attacks)
    require(isinstance(batches, Iterable), f"batches is a {type(batches).__name__}: expected pairs (x, y), one by one.")
    blocks, start = [], 0
    for batch in batches:
        require(
            isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch),
            f"a batch is a {type(batch).__name__}: expected a pair of tensors (x, y).",
        )
        x, y = batch
        own = torch.arange(start, start + len(x)) if index is None else index[start : start + len(x)]
        check_index(own, len(x))
        begun = start

        def report(what: str, done: int, of: int, begun: int = begun, n: int = len(x)) -> None:
            if progress is not None:
                parts = of // n
                progress(what, begun * parts + done, (total if total is not None else begun + n) * parts)

        blocks.append(evaluate_block(predictive, x, y, attacks, seed=seed, index=own, progress=report).results)
        start += len(x)
    require(len(blocks) > 0, "there is no batch to evaluate on: the loader is empty.")
    return with_worst_cases(joined(blocks))


def as_suite(attacks: Any) -> Suite:
    """Named attacks as pairs: a single attack or a dictionary is taken for what it is meant to be. Raises
    `EquipoiseError` for names without radii and for anything else.
    """
    if isinstance(attacks, AttackLike):
        return [(getattr(attacks, "name", type(attacks).__name__.lower()), attacks)]
    if isinstance(attacks, Mapping):
        attacks = list(attacks.items())
    several = isinstance(attacks, Iterable) and not isinstance(attacks, str)
    pairs: list[Any] = list(attacks) if several else [attacks]
    for pair in pairs:
        require(
            isinstance(pair, tuple | list)
            and len(pair) == 2
            and isinstance(pair[0], str)
            and isinstance(pair[1], AttackLike),
            f"attacks holds {pair!r:.80}: expected pairs of a name and an attack, such as "
            "[('pgd', attacks.pgd(8 / 255))], or suite(['pgd', 'autoattack'], eps=[8 / 255]).",
        )
    return pairs


def _snapshot(model: "nn.Module | Predictive") -> Frozen:
    """The model with the weights of now: while it is evaluated, another thread may go on training it."""
    predictive = as_predictive(model)
    return predictive if isinstance(predictive, Frozen) else frozen(predictive, weights=lambda w: cut(w).clone())


def check_samples(
    predictive: Predictive, x: Points, y: Labels, attacks: Suite, part: bool = False
) -> tuple[Points, Labels]:
    """The samples, or a `part` of them, on the model's device. Raises `EquipoiseError` for unusable ones."""
    weight = next(predictive.module.parameters(), None)
    x, y = (x, y) if weight is None else (x.to(weight.device), y.to(weight.device))
    box = attacks[0][1].geometry.box if attacks else Box()
    for name, attack in attacks:
        require(
            isinstance(getattr(attack, "space", Input()), Input),
            f"{name} perturbs a latent space: robustness is measured in the input, where the threat is; leave out its "
            "space. (Called by itself it attacks the codes.)",
        )
    with validated_inputs(predictive, x, y, Ball("linf", 0.0, box), part=part) as case:
        require(
            not case.examined.coupled,
            "in this model a sample's prediction depends on its batch also in eval mode (such as by batch-norm without "
            "running statistics), so its accuracy would depend on the batch size: give batch-norm running statistics, "
            "or make predictions independent of the batch.",
        )
        return case.x, y


def evaluate_block(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    attacks: Suite,
    *,
    index: Int[Tensor, " batch"],
    seed: int = 0,
    images: bool = False,
    progress: Progress | None = None,
) -> Block:
    """One batch: without an attack, then under each attack those that were right. `images` keeps what was found."""
    predictive = as_predictive(model)
    x, y = check_samples(predictive, x, y, attacks, part=True)
    check_index(index, len(x))
    index = index.to(x.device)
    box = attacks[0][1].geometry.box if attacks else Box()
    with validated_inputs(predictive, x, y, Ball("linf", 0.0, box), seed=seed, index=index, part=True) as case:
        generators = global_seed(fold(seed, Stream.GLOBAL, int(index[0])), x.device) if case.random else nullcontext()
        with generators:
            return _evaluated(case, predictive, x, y, attacks, index, seed, images, progress)


def _evaluated(
    case: AttackInputs,
    predictive: Predictive,
    x: Points,
    y: Labels,
    attacks: Suite,
    index: Int[Tensor, " batch"],
    seed: int,
    images: bool,
    progress: Progress | None,
) -> Block:
    """The block, with the global generators seeded if the model draws from them."""
    streams = Streams.of(seed, index).fold(Stream.MODEL)
    draws = DRAWS if case.random else 1
    # Looking at clean samples costs next to nothing: an estimate of the remaining time counts the attacks.
    total, done = len(x) * max(len(attacks), 1), 0

    def report(what: str, n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(what, done, total)

    report("clean", 0)
    begin = time.perf_counter()
    clean = verify_outcome(case.predictive, x, x, y, Ball("linf", 0.0, EVERYWHERE), streams, draws=draws)
    right = (clean.rates >= 0.5).tolist()
    found = [
        AttackRecord(
            "clean",
            attacks[0][1].geometry.norm if attacks else "linf",
            0.0,
            right,
            prediction=clean.prediction.tolist(),
            winner=[None if r else "clean" for r in right],
            evaluations=draws * len(x),
            seconds=time.perf_counter() - begin,
            rates=clean.rates.tolist() if case.random else (),
            choice=clean.choice.tolist() if case.random else (),
            not_finite=int((clean.prediction < 0).sum()),
        )
    ]
    report("clean", 0 if attacks else len(x))
    points = []
    for name, attack in attacks:
        attack, notes = fitted(name, attack, case.classes)
        where = f"{name} {attack.geometry.norm} {attack.geometry.eps:g}"
        with _heard(progress, where, done, len(x), total):
            result, kept = _run(name, attack, notes, case, predictive, x, y, clean, index, seed, images)
        found.append(result)
        points.append(kept)
        report(where, len(x))
    return Block(found, points)


def _heard(progress: Progress | None, where: str, before: int, n: int, total: int) -> AbstractContextManager[None]:
    """Hand on what one attack on `n` samples reports, `before` samples being done already."""
    if progress is None:
        return nullcontext()
    return listening(lambda done, of, what: progress(f"{where}: {what}", before + n * done // of, total))


def _run(
    name: str,
    attack: AttackLike,
    notes: Sequence[str],
    case: AttackInputs,
    model: Predictive,
    x: Points,
    y: Labels,
    clean: Verified,
    index: Int[Tensor, " batch"],
    seed: int,
    images: bool,
) -> tuple[AttackRecord, dict[str, np.ndarray]]:
    """One attack on the samples that are right; the others are wrong already."""
    begin = time.perf_counter()
    draws = DRAWS if case.random else 1
    correct, prediction, rates, choice = clean.rates >= 0.5, clean.prediction.clone(), clean.rates, clean.choice
    attacked = rates > 0  # a random model may be right at times where it is mostly wrong
    distance = torch.zeros(len(y), dtype=torch.float64, device=y.device).masked_fill(correct, torch.inf)
    names = attack.names if isinstance(attack, Composite) else (name,)
    winner: list[str | None] = [None if right else "clean" for right in correct.tolist()]
    iteration: list[int | None] = [None if right else 0 for right in correct.tolist()]
    queries = torch.ones_like(y)
    nan = zero = refused = lost = 0
    rows = attacked.nonzero()[:, 0]
    kept = {"rows": np.zeros(0, np.int64), "x": x[:0].cpu().numpy()}
    if len(rows):
        search = partial(attack, model, x[rows], y[rows], seed=seed, index=index[rows], batch_size=len(x))
        found = cached(name, search)
        streams = Streams.of(seed, index[rows]).fold(Stream.MODEL)
        checked = verify_outcome(case.predictive, x[rows], found.x, y[rows], attack.geometry, streams, draws=draws)
        before = correct[rows]
        correct[rows] = before & ~checked.success
        distance[rows] = torch.where(before, torch.where(checked.success, checked.distance, torch.inf), 0.0)
        wrong = found.success & ~checked.success & ~torch.tensor(case.random, device=x.device)
        unusable = wrong | (checked.prediction < 0)
        prediction[rows] = torch.where(unusable, clean.prediction[rows], checked.prediction)
        rates = rates.index_copy(0, rows, torch.where(checked.fair, checked.rates, rates[rows]))
        choice = choice.index_copy(0, rows, torch.where(checked.fair, checked.choice, choice[rows]))
        lost = int((checked.prediction < 0).sum())
        queries[rows] += found.evaluations + draws
        refused, nan, zero = int(wrong.sum()), int(found.nan_gradients.sum()), int(found.zero_gradients.sum())
        for row, part, step in zip(
            rows[checked.success & before].tolist(),
            found.part[checked.success & before].tolist(),
            found.iteration[checked.success & before].tolist(),
            strict=True,
        ):
            winner[row], iteration[row] = names[part], step
        if images:
            kept = {
                "rows": rows[checked.success & before].cpu().numpy(),
                "x": found.x[checked.success & before].cpu().numpy(),
            }
    result = AttackRecord(
        attack=name,
        norm=attack.geometry.norm,
        eps=attack.geometry.eps,
        correct=correct.tolist(),
        distance=[d if d < float("inf") else None for d in distance.tolist()],
        prediction=prediction.tolist(),
        winner=winner,
        iteration=iteration,
        queries=queries.tolist(),
        settings=attack.settings()
        | ({"notes": list(notes)} if notes else {})
        | ({"refused": refused} if refused else {}),
        evaluations=int(queries[rows].sum()) - len(rows) if len(rows) else 0,
        nan_gradients=nan,
        zero_gradients=zero,
        seconds=time.perf_counter() - begin,
        rates=rates.tolist() if case.random else (),
        choice=choice.tolist() if case.random else (),
        not_finite=lost,
    )
    return result, kept
