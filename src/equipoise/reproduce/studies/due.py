"""Do uncertainty-driven perturbations work with a Gaussian process on deep features? (U Figs 10, 11; T Figs 5, 6)

DUE (van Amersfoort et al. 2021): a sparse variational Gaussian process on the features of a network that keeps
distances. It is trained on clean points and its points are perturbed, by PGD through its loss and by UDP through its
entropy; then it is trained on such perturbations. Training ascends the evidence lower bound,

    mean over samples f of the GP: CE(f(x~), y)    +    KL(q || p) / n.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from equipoise.attacks import gradient as attacks
from equipoise.core.rng import fold
from equipoise.losses.objectives import cross_entropy, each
from equipoise.losses.terms import Method, as_method
from equipoise.models import DeepKernelGP
from equipoise.models.deep_kernel_gp import KLToPrior, deep_kernel_gp
from equipoise.nets import Normalize
from equipoise.nets.due import FCResNet
from equipoise.reproduce.studies.options import Options, ReportProgress
from equipoise.reproduce.studies.plane import (
    EVERYWHERE,
    Sizes,
    accuracy,
    agreement,
    attack,
    classes,
    crossed,
    look,
    perturb,
    regions,
    run_through,
    seeds_of,
    uncertainty,
)
from equipoise.reproduce.studies.processes import run_all, share
from equipoise.reproduce.studies.toys import Toy, two_distance
from equipoise.results.findings import Findings, Number, Picture, Regions

EPS, STEP_SIZE, STEPS = 1.0, 0.1, 50
"""The papers' (U App. D.5, D.6), in their units."""
SMALL_STEP = 0.02
"""A fifth of the papers' step size, with which the papers' number of steps still reaches eps. The controlled run: steps
of the papers' size jump to and fro across the ridge of the entropy, so that training by UDP keeps points on the wrong
side of it."""
NAMES = ("clean", "PGD", "UDP")


@dataclass(frozen=True)
class Case:
    """One of the study's trainings."""

    name: str
    """What its points are perturbed by, one of `NAMES`."""
    seed: int
    """Seed."""
    step_size: float = STEP_SIZE
    """Step size of the perturbations, in the papers' units."""


@dataclass(frozen=True)
class Shape:
    """The deep-kernel Gaussian process."""

    features: int = 32
    """Features of the extractor."""
    depth: int = 2
    """Its residual blocks."""
    inducing: int = 20
    """Inducing points."""
    samples: int = 8
    """Samples of the GP: members of the prediction."""


def run(options: Options, tell: ReportProgress) -> Findings:
    """Where perturbations of a deep-kernel GP go, and what training with them gives."""
    toy, sizes, shape, rows, steps = two_distance(), Sizes(points=200, steps=100, lr=2e-2), Shape(), 80, STEPS
    if options.quick:
        sizes, shape, rows, steps = replace(sizes, points=40, steps=8), Shape(8, 1, 5, 4), 24, 5
    seeds = seeds_of(options, 5, quick=1)
    cases = [Case(name, seed) for name in NAMES for seed in seeds]
    cases += [Case(name, seed, SMALL_STEP) for name in NAMES[1:] for seed in seeds]
    told = share(tell, "Gaussian process", len(cases))
    weights = run_all(partial(_train, toy, sizes, shape, steps), cases, told, options.processes)
    trained = {case: _build(toy, sizes, shape, case) for case in cases}
    for case, found in zip(cases, weights, strict=True):
        trained[case].module.eval().load_state_dict(found)
    data = {seed: toy.dataset(sizes.points, 2, fold(seed, 0)) for seed in seeds}
    moved = {
        (name, s): perturb(attack(name, toy, EPS, STEP_SIZE, steps), trained[Case("clean", s)], toy, data[s].train, s)
        for name in NAMES[1:]
        for s in seeds
    }
    numbers = []
    for name, says in (("PGD", "cross notably the boundary (U App. D.5)"), ("UDP", "do not cross it (U App. D.5)")):
        labels = {seed: data[seed].train.y.numpy() for seed in seeds}
        numbers += [
            Number(
                f"points that {name}-{steps} moves across the boundary of the model trained on clean points",
                [float((classes(trained[Case("clean", s)], toy, moved[name, s]) != labels[s]).mean()) for s in seeds],
                paper=says,
                percent=True,
            ),
            Number(
                f"points that {name}-{steps} moves across the max-margin boundary",
                [float(crossed(toy, moved[name, s], labels[s]).mean()) for s in seeds],
                percent=True,
            ),
        ]
    says = {
        "PGD": "is not able to classify the dataset (U Fig 11)",
        "UDP": "classifies the dataset correctly (U Fig 11)",
    }
    for name, size in _TRAININGS:
        of = [(trained[Case(name, seed, size)], data[seed].train) for seed in seeds]
        called = "trained on clean points" if name == "clean" else f"trained by {_called(name, size, steps)}"
        numbers += [
            Number(f"accuracy on the training points, {called}", [accuracy(m, s) for m, s in of],
                   paper=says.get(name, "") if size == STEP_SIZE else "", percent=True),
            Number(f"agreement with the max-margin boundary, {called}", [agreement(m, toy, 100) for m, _ in of],
                   percent=True),
        ]  # fmt: skip
    first = seeds[0]
    pictures = [
        Picture(
            "attacks",
            f"{steps} steps of {STEP_SIZE:g} with eps {EPS:g} on a model trained on clean points: PGD over its "
            "probability, UDP over its entropy (U Fig 10; T Fig 5).",
            _attacks(toy.wider(EPS), 3 * rows // 2, trained[Case("clean", first)], data[first].train,
                     moved["PGD", first], moved["UDP", first]),
            2,
        ),
        Picture(
            "training",
            "Decision regions after training on clean points, by PGD, and by UDP (U Fig 11; T Fig 6), and with smaller "
            "steps.",
            [regions(name if name == "clean" else f"{name}-{steps}, steps of {size:g}",
                     trained[Case(name, first, size)], toy, rows, data[first].train) for name, size in _TRAININGS],
            5,
        ),
    ]  # fmt: skip
    settings: dict[str, Any] = {
        **sizes.settings(), "widths": None, "features": shape.features, "depth": shape.depth,
        "inducing": shape.inducing, "samples": shape.samples, "eps": EPS, "step_size": STEP_SIZE,
        "small_step_size": SMALL_STEP, "perturbation_steps": steps, "seeds": seeds, "toy": toy.name,
    }  # fmt: skip
    return Findings(numbers, pictures, settings, _verdict(numbers))


_TRAININGS = (*((name, STEP_SIZE) for name in NAMES), *((name, SMALL_STEP) for name in NAMES[1:]))


def _called(name: str, step_size: float, steps: int) -> str:
    return f"{name}-{steps}, eps {EPS:g}, steps of {step_size:g}"


def bound(name: str, toy: Toy, n: int, steps: int, step_size: float = STEP_SIZE) -> Method:
    """The negative evidence lower bound at the points of PGD or UDP, or at the clean ones."""
    length = {"eps": EPS / toy.scale, "step_size": step_size / toy.scale, "steps": steps, "box": EVERYWHERE}
    loss = each(cross_entropy)
    match name:
        case "PGD":
            part = as_method(loss @ attacks.pgd(**length, start="zero", return_point="last"))
        case "UDP":
            part = as_method(loss @ attacks.udp(**length))
        case _:
            part = as_method(loss)
    return part.with_penalty(1.0, KLToPrior(n))


def _build(toy: Toy, sizes: Sizes, shape: Shape, case: Case) -> DeepKernelGP:
    """The model before it is trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(abs(fold(case.seed, 1)))
        extractor = nn.Sequential(Normalize([0.5], [1 / toy.scale]), FCResNet((2,), shape.features, shape.depth))
        x = toy.dataset(sizes.points, 2, fold(case.seed, 0)).train.x
        return deep_kernel_gp(extractor, 2, x, shape.inducing, samples=shape.samples, seed=case.seed)


def _train(toy: Toy, sizes: Sizes, shape: Shape, steps: int, case: Case) -> dict[str, torch.Tensor]:
    """The trained weights: bounded layers travel between processes in no other form."""
    data, model = toy.dataset(sizes.points, 2, fold(case.seed, 0)), _build(toy, sizes, shape, case)
    run_through(bound(case.name, toy, len(data.train), steps, case.step_size), model, data, sizes, case.seed)
    return model.module.eval().state_dict()


def _attacks(toy: Toy, rows: int, model: DeepKernelGP, split: Any, pgd: np.ndarray, udp: np.ndarray) -> list[Regions]:
    few = np.linspace(0, len(split) - 1, min(90, len(split))).astype(int)
    shown = {"points": toy.from_unit(split.x)[few], "labels": split.y.numpy()[few]}
    left = regions("PGD over the probability", model, toy, rows, split, truth=None, moved=pgd[few], **shown)
    entropies = uncertainty(model, toy, rows)
    boundary = look(model, toy, toy.grid(rows)).log_probs[:, 1].exp().numpy() - 0.5
    right = Regions(
        "UDP over the entropy", entropies.astype(np.float32), toy.extent, "entropy, nats", None,
        boundary=boundary.reshape(entropies.shape).astype(np.float32), moved=udp[few], **shown,
    )  # fmt: skip
    return [left, right]


def _verdict(numbers: list[Number]) -> str:
    pgd, udp, clean, by_pgd, by_udp, small_pgd, small_udp = (numbers[i].mean for i in (0, 2, 4, 6, 8, 10, 12))
    return (
        f"PGD moves {pgd:.0%} of the points across the boundary of the deep-kernel GP, UDP {udp:.0%}. Accuracy on the "
        f"training points: {clean:.1%} trained on clean ones, {by_pgd:.1%} by PGD, {by_udp:.1%} by UDP; with steps of "
        f"{SMALL_STEP:g} {small_pgd:.1%} by PGD, {small_udp:.1%} by UDP."
    )
