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
from equipoise.attacks.attack import Composite, check_answers
from equipoise.attacks.inputs import AttackInputs, validated_inputs
from equipoise.attacks.result import DRAWS, AttackResult
from equipoise.attacks.spaces import Input
from equipoise.core.caching import cached
from equipoise.core.checks import check_index, checked_call
from equipoise.core.errors import kind_of, require, require_integer
from equipoise.core.progress import listening
from equipoise.core.rng import Stream, Streams, fold
from equipoise.core.types import Labels, Points, Predictive
from equipoise.data import inputs_and_labels
from equipoise.evaluation.confirm import Verified, verify_outcome
from equipoise.evaluation.suites import AttackLike, Suite
from equipoise.evaluation.summaries import joined, with_worst_cases
from equipoise.geometry import EVERYWHERE, Ball, Box
from equipoise.models import Frozen, as_predictive, cut, frozen, global_seed
from equipoise.results.accuracies import Results
from equipoise.results.outcomes import CertifiedResult, CorruptionResult
from equipoise.results.records import AttackRecord

Progress = Callable[[str, int, int], None]
"""Called with a text and the numbers of samples that are done and to do, over all attacks: after every attack, and at
every step within one, where a share of the attack counts as that share of its samples, rounded down."""

Batch = Sequence[Tensor]
"""A pair of inputs and labels, as a `DataLoader` yields it."""


@dataclass(frozen=True)
class Block:
    """The results on one batch, the unit in which an evaluation is computed and saved. Blocks are independent: they can
    be computed in any order, by several processes, or again.
    """

    results: list[AttackRecord]
    """Accuracy without an attack, then one entry per attack."""
    points: list[dict[str, np.ndarray]] = field(default_factory=list)
    """For each attack, if images are stored, its adversarial examples: `rows` in the batch and `x`."""
    corruptions: list[CorruptionResult] = field(default_factory=list)
    """One entry per corruption."""
    certified: list[CertifiedResult] = field(default_factory=list)
    """One entry per ball, if certificates were asked for."""


@checked_call()
def evaluate(
    model: "nn.Module | Predictive",
    x: Any,
    y: Any,
    attacks: "Suite | None" = None,
    *,
    seed: int = 0,
    index: Int[Tensor, " batch"] | None = None,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Results:
    """Return the accuracy without an attack, under each attack, and in the worst case over the attacks of each ball.

    `x` and `y` are tensors or arrays. `evaluate(model, data, attacks)` takes whatever `equipoise.data.from_any` does in
    place of the two, such as a `DataLoader`, of a `Dataset` the test split; `evaluate_batches` holds less in memory.

    Samples that are misclassified without an attack are not attacked and count as misclassified, at distance 0. Every
    success is re-verified by `verify_outcome`; one that fails does not count, and `refused` in the settings says how
    many did. Random draws depend on `seed` and each sample's `index` (default 0, 1, ...), not on batches or order.
    Raises `EquipoiseError` for input that no attack could take.
    """
    box = Box(*getattr(x, "box", (0, 1)))
    if attacks is None:
        require(
            not isinstance(y, Tensor | np.ndarray),
            "evaluate(model, x, y) has no attacks: give them last, such as [('pgd', attacks.pgd(8 / 255))].",
        )
        (x, y), attacks = inputs_and_labels(x), y
    elif not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        x, y = inputs_and_labels((x, y))
    attacks = as_suite(attacks)
    require_integer("batch_size", batch_size, 1)
    require_integer("seed", seed)
    predictive = _snapshot(model)
    x, y = check_samples(predictive, x, y, attacks, box=box)
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
) -> Results:
    """As `evaluate`, for batches that arrive one by one, as from a `DataLoader`: only one is held in memory.

    Batches are pairs `(x, y)`; they are moved to the model's device. `total` is the number of samples, if known, for
    the progress. Raises `EquipoiseError` as `evaluate` does, for the first batch that cannot be used.
    """
    predictive, attacks = _snapshot(model), as_suite(attacks)
    require(isinstance(batches, Iterable), f"batches is {kind_of(batches)}: expected pairs (x, y), one by one.")
    blocks, start = [], 0
    for batch in batches:
        require(
            isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(tensor, Tensor) for tensor in batch),
            f"a batch is {kind_of(batch)}: expected a pair of tensors (x, y).",
        )
        x, y = batch
        end = start + len(x)
        batch_index = torch.arange(start, end) if index is None else index[start:end]
        check_index(batch_index, len(x))
        report = progress_within(progress, start, len(x), end if total is None else total)
        blocks.append(evaluate_block(predictive, x, y, attacks, seed=seed, index=batch_index, progress=report).results)
        start = end
    require(len(blocks) > 0, "there is no batch to evaluate on: the loader is empty.")
    return Results(with_worst_cases(joined(blocks)))


def progress_within(progress: Progress | None, done: int, n: int, total: int) -> Progress | None:
    """Return the progress on a block of `n` of `total` samples, before which `done` are finished."""
    if progress is None:
        return None

    def report(text: str, done_in_block: int, of: int) -> None:
        num_attacks = of // n
        progress(text, done * num_attacks + done_in_block, total * num_attacks)

    return report


def as_suite(attacks: Any) -> Suite:
    """Return named attacks as pairs, also from a single attack or a dictionary. Raises `EquipoiseError` for names
    without radii, for two attacks of one name in one ball, and for anything else.
    """
    if isinstance(attacks, AttackLike):
        return [(getattr(attacks, "name", type(attacks).__name__.lower()), attacks)]
    if isinstance(attacks, Mapping):
        attacks = list(attacks.items())
    several = isinstance(attacks, Iterable) and not isinstance(attacks, str)
    pairs: list[Any] = list(attacks) if several else [attacks]
    for pair in pairs:
        shown = getattr(pair, "__name__", repr(pair))
        require(
            isinstance(pair, tuple | list)
            and len(pair) == 2
            and isinstance(pair[0], str)
            and isinstance(pair[1], AttackLike),
            f"attacks holds {shown:.80}: expected pairs of a name and an attack, such as "
            "[('pgd', attacks.pgd(8 / 255))], or suite(['pgd', 'autoattack'], eps=[8 / 255]).",
        )
    keys = [(name, attack.geometry.norm, attack.geometry.eps) for name, attack in pairs]
    for name, norm, eps in keys:
        require(
            keys.count((name, norm, eps)) == 1,
            f"attacks holds two of the name {name!r} in {norm} with eps {eps:g}: give each a name of its own.",
        )
    return pairs


def _snapshot(model: "nn.Module | Predictive") -> Frozen:
    """A copy of the model with its present weights: another thread may go on training it."""
    predictive = as_predictive(model)
    return predictive if isinstance(predictive, Frozen) else frozen(predictive, weights=lambda w: cut(w).clone())


def box_of(attacks: Suite, otherwise: Box = EVERYWHERE) -> Box:
    """Return the valid range of the inputs under these attacks."""
    return attacks[0][1].geometry.box if attacks else otherwise


def check_samples(
    predictive: Predictive, x: Points, y: Labels, attacks: Suite, part: bool = False, box: Box = EVERYWHERE
) -> tuple[Points, Labels]:
    """Return the samples, or a `part` of them, on the model's device. Raises `EquipoiseError` for unusable ones,
    such as samples outside of the attacks' box, or without attacks of this `box`.
    """
    weight = next(predictive.module.parameters(), None)
    x, y = (x, y) if weight is None else (x.to(weight.device), y.to(weight.device))
    for name, attack in attacks:
        check_answers(name, attack, predictive)
        require(
            isinstance(getattr(attack, "space", Input()), Input),
            f"{name} perturbs a latent space: robustness is measured in the input, where the threat is; leave out its "
            "space. (Called by itself it attacks the codes.)",
        )
    with validated_inputs(predictive, x, y, Ball("linf", 0.0, box_of(attacks, box)), part=part) as inputs:
        require(
            not inputs.examined.coupled,
            "in this model a sample's prediction depends on its batch also in eval mode (such as by batch-norm without "
            "running statistics), so its accuracy would depend on the batch size: give batch-norm running statistics, "
            "or make predictions independent of the batch.",
        )
        return inputs.x, y


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
    """Evaluate one batch: without an attack, then under each attack. `images` keeps the adversarial examples."""
    predictive = as_predictive(model)
    x, y = check_samples(predictive, x, y, attacks, part=True)
    check_index(index, len(x))
    index = index.to(x.device)
    ball = Ball("linf", 0.0, box_of(attacks))
    with validated_inputs(predictive, x, y, ball, seed=seed, index=index, part=True) as inputs:
        generators = global_seed(fold(seed, Stream.GLOBAL, int(index[0])), x.device) if inputs.random else nullcontext()
        with generators:
            return _evaluated(inputs, y, attacks, images, progress)


def _evaluated(inputs: AttackInputs, y: Labels, attacks: Suite, images: bool, progress: Progress | None) -> Block:
    """The block, with the global generators seeded if the model draws from them."""
    n = len(y)
    total = n * max(len(attacks), 1)  # predicting the clean samples costs next to nothing: it counts only if alone
    report = progress or (lambda text, done, total: None)
    report("clean", 0, total)
    begin = time.perf_counter()
    clean = _verified(inputs, inputs.x, inputs.x, y, Ball("linf", 0.0, EVERYWHERE), inputs.index)
    correct = (clean.rates >= 0.5).tolist()
    results, points = (
        [
            AttackRecord(
                "clean",
                attacks[0][1].geometry.norm if attacks else "linf",
                0.0,
                correct,
                prediction=clean.prediction.tolist(),
                winner=[None if is_correct else "clean" for is_correct in correct],
                evaluations=_num_draws(inputs) * n,
                seconds=time.perf_counter() - begin,
                rates=clean.rates.tolist() if inputs.random else (),
                choice=clean.choice.tolist() if inputs.random else (),
                not_finite=int((clean.prediction < 0).sum()),
            )
        ],
        [],
    )
    report("clean", 0 if attacks else n, total)
    for number, (name, attack) in enumerate(attacks):
        attack, notes = fitted(name, attack, inputs.classes)
        label = f"{name} {attack.geometry.norm} {attack.geometry.eps:g}"
        with _forwarding(progress, label, number * n, n, total):
            result, examples = _attacked(name, attack, notes, inputs, y, clean, images)
        results.append(result)
        points += [examples] if images else []
        report(label, (number + 1) * n, total)
    return Block(results, points)


def _num_draws(inputs: AttackInputs) -> int:
    return DRAWS if inputs.random else 1


def _verified(
    inputs: AttackInputs, x: Points, points: Points, y: Labels, ball: Ball, index: Int[Tensor, " batch"]
) -> Verified:
    streams = Streams.of(inputs.seed, index).fold(Stream.MODEL)
    return verify_outcome(inputs.predictive, x, points, y, ball, streams, draws=_num_draws(inputs))


def _forwarding(progress: Progress | None, label: str, done: int, n: int, total: int) -> AbstractContextManager[None]:
    """Forward the progress of one attack on `n` samples, `done` samples being finished already."""
    if progress is None:
        return nullcontext()
    return listening(lambda step, of, text: progress(f"{label}: {text}", done + n * step // of, total))


@dataclass
class _Outcome:
    """The outcome of an attack per sample, initially that without the attack, and the attack's counts."""

    correct: Tensor
    distance: Tensor
    prediction: Tensor
    rates: Tensor
    choice: Tensor
    queries: Tensor
    winner: list[str | None]
    iteration: list[int | None]
    evaluations: int = 0
    nan_gradients: int = 0
    zero_gradients: int = 0
    refused: int = 0
    not_finite: int = 0

    @staticmethod
    def without_attack(x: Points, clean: Verified) -> "_Outcome":
        correct = clean.rates >= 0.5
        return _Outcome(
            correct,
            torch.zeros(len(x), dtype=torch.float64, device=x.device).masked_fill(correct, torch.inf),
            clean.prediction.clone(),
            clean.rates.clone(),
            clean.choice.clone(),
            torch.ones_like(clean.prediction),
            winner=[None if is_correct else "clean" for is_correct in correct.tolist()],
            iteration=[None if is_correct else 0 for is_correct in correct.tolist()],
        )

    def update(
        self, active: Tensor, result: AttackResult, verified: Verified, names: Sequence[str], random: bool, draws: int
    ) -> Tensor:
        """Enter what an attack found on the `active` samples, as far as it was verified; return which it fooled."""
        refused = result.success & ~verified.success & (not random)
        unusable = refused | (verified.prediction < 0)
        succeeded = verified.success & self.correct[active]
        fooled = active[succeeded]
        self.correct[fooled] = False
        self.distance[fooled] = verified.distance[succeeded]
        self.prediction[active] = torch.where(unusable, self.prediction[active], verified.prediction)
        self.rates[active] = torch.where(verified.fair, verified.rates, self.rates[active])
        self.choice[active] = torch.where(verified.fair, verified.choice, self.choice[active])
        self.queries[active] += result.evaluations + draws
        self.evaluations = int((result.evaluations + draws).sum())
        self.nan_gradients = int(result.nan_gradients.sum())
        self.zero_gradients = int(result.zero_gradients.sum())
        self.refused, self.not_finite = int(refused.sum()), int((verified.prediction < 0).sum())
        attacks, iterations = result.part[succeeded].tolist(), result.iteration[succeeded].tolist()
        for sample, attack, iteration in zip(fooled.tolist(), attacks, iterations, strict=True):
            self.winner[sample], self.iteration[sample] = names[attack], iteration
        return succeeded


def _attacked(
    name: str, attack: AttackLike, notes: Sequence[str], inputs: AttackInputs, y: Labels, clean: Verified, images: bool
) -> tuple[AttackRecord, dict[str, np.ndarray]]:
    """One attack on the samples that are classified correctly, and with `images` its adversarial examples."""
    begin = time.perf_counter()
    outcome = _Outcome.without_attack(inputs.x, clean)
    examples = {"rows": np.zeros(0, np.int64), "x": inputs.x[:0].cpu().numpy()}
    active = (clean.rates > 0).nonzero()[:, 0]  # a random model may be correct at times where it is mostly wrong
    if len(active):
        x, labels, index = inputs.x[active], y[active], inputs.index[active]
        search = partial(attack, inputs.model, x, labels, seed=inputs.seed, index=index, batch_size=len(y))
        result = cached(name, search)
        verified = _verified(inputs, x, result.x, labels, attack.geometry, index)
        names = attack.names if isinstance(attack, Composite) else (name,)
        succeeded = outcome.update(active, result, verified, names, inputs.random, _num_draws(inputs))
        if images:
            examples = {"rows": active[succeeded].cpu().numpy(), "x": result.x[succeeded].cpu().numpy()}
    record = AttackRecord(
        attack=name,
        norm=attack.geometry.norm,
        eps=attack.geometry.eps,
        correct=outcome.correct.tolist(),
        distance=[d if d < float("inf") else None for d in outcome.distance.tolist()],
        prediction=outcome.prediction.tolist(),
        winner=outcome.winner,
        iteration=outcome.iteration,
        queries=outcome.queries.tolist(),
        settings=attack.settings()
        | ({"notes": list(notes)} if notes else {})
        | ({"refused": outcome.refused} if outcome.refused else {}),
        evaluations=outcome.evaluations,
        nan_gradients=outcome.nan_gradients,
        zero_gradients=outcome.zero_gradients,
        seconds=time.perf_counter() - begin,
        rates=outcome.rates.tolist() if inputs.random else (),
        choice=outcome.choice.tolist() if inputs.random else (),
        not_finite=outcome.not_finite,
    )
    return record, examples
