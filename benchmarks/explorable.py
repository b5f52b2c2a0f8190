"""Train the networks of the explorable page on problems in the plane, and write the page: `docs/explorable.html`.

    python benchmarks/explorable.py                     # about four minutes on one core
    python benchmarks/explorable.py --quick --out x.html

The page is one file that needs neither a server nor a network: `explorable.html` with the data in it. For each problem,
method, eps and number of steps it has the network's probability of class 1 on a grid, where the method moves a few of
the training points, and the distance of those points to the network's boundary.
"""

import argparse
import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipoise.attacks import Ascent
from equipoise.data import Split
from equipoise.reproduce.studies import plane, toys
from equipoise.reproduce.studies.toys import Toy

HERE = Path(__file__).parent
RADII = (0.1, 0.2, 0.4)
STEPS = (1, 3, 10)
SHOWN = 60
"""Training points that are shown, half of each class."""


@dataclass(frozen=True)
class Budget:
    """How much is computed."""

    sizes: plane.Sizes
    rows: int
    """Rows of the grid that is shown; distances are measured on one six times as fine."""
    radii: tuple[float, ...] = RADII
    steps: tuple[int, ...] = STEPS


WHOLE = Budget(plane.Sizes(points=300, widths=(64, 64), steps=240), 52)
QUICK = Budget(plane.Sizes(points=40, widths=(8,), steps=4, batch_size=16), 12, RADII[:1], STEPS[:1])


def packed(values: np.ndarray, low: float, high: float) -> str:
    """Numbers between two ends as bytes, in base64."""
    scaled = np.clip((values - low) / (high - low), 0, 1) * 255
    return base64.b64encode(scaled.round().astype(np.uint8).tobytes()).decode()


def placed(toy: Toy, points: np.ndarray) -> list[list[float]]:
    """Points, rounded to what a screen can show."""
    return np.round(points, 3).tolist()


def shown(split: Split) -> Split:
    """A few points of each class."""
    of_class = [(split.y == label).nonzero()[:, 0][: SHOWN // 2] for label in (0, 1)]
    index = torch.cat(of_class)
    return Split(split.x[index], split.y[index])


def to_boundary(model: torch.nn.Module, toy: Toy, points: np.ndarray, rows: int) -> np.ndarray:
    """The L2 distance from each point to the nearest point of a grid with another prediction."""
    flat = toy.wider(0.5).grid(rows).reshape(-1, 2)
    there, here = plane.classes(model, toy, flat), plane.classes(model, toy, points)
    distances = np.full(len(points), np.nan)
    for row, (point, label) in enumerate(zip(points, here, strict=True)):
        other = flat[there != label]
        if len(other):
            distances[row] = np.linalg.norm(other - point, axis=1).min()
    return distances


def perturbation(name: str, toy: Toy, eps: float, steps: int) -> Ascent | None:
    """The perturbation that a method trains on; none for standard training."""
    term = plane.method(name, toy, eps, 2.5 * eps / steps, steps)
    points = [at for at in term.perturbations if isinstance(at, Ascent)] if name != "standard" else []
    return points[0] if points else None


def network(toy: Toy, name: str, eps: float, steps: int, budget: Budget) -> dict[str, Any]:
    """One setting: the network's probabilities, its moves, its margins, its numbers."""
    method = plane.method(name, toy, eps, 2.5 * eps / steps, steps)
    training = plane.Training(toy, method, 0, budget.sizes)
    model, split = plane.train(training).module, training.data.train
    few = shown(split)
    points, labels = toy.from_unit(few.x), few.y.numpy()
    grid = toy.grid(budget.rows)
    probability = plane.look(model, toy, grid).log_probs[:, 1].exp().numpy()
    ascent = perturbation(name, toy, eps, steps)
    margins = to_boundary(model, toy, points, 6 * budget.rows)
    right = plane.classes(model, toy, points) == labels
    return {
        "grid": packed(probability, 0, 1),
        "moved": None if ascent is None else placed(toy, plane.perturb(ascent, model, toy, few, 0)),
        "margin": [None if np.isnan(m) or not ok else round(float(m), 3) for m, ok in zip(margins, right, strict=True)],
        "accuracy": round(float((plane.classes(model, toy, toy.from_unit(split.x)) == split.y.numpy()).mean()), 4),
        "agreement": round(plane.agreement(model, toy, 4 * budget.rows), 4),
    }


def settings(budget: Budget) -> Iterator[tuple[str, float, int]]:
    """Methods with radii and numbers of steps; standard training has neither."""
    yield "standard", 0.0, 1
    for name in plane.METHODS[1:]:
        yield from ((name, eps, steps) for eps in budget.radii for steps in budget.steps)


def problem(toy: Toy, title: str, text: str, budget: Budget) -> dict[str, Any]:
    """A problem, and the networks trained on it."""
    networks = {}
    for name, eps, steps in settings(budget):
        networks[f"{name} {eps:g} {steps}"] = network(toy, name, eps or 1.0, steps, budget)
        print(toy.name, name, eps, steps, flush=True)
    split = plane.Training(toy, plane.method("standard", toy, 1.0), 0, budget.sizes).data.train
    few, truth = shown(split), toy.max_margin(toy.grid(budget.rows))
    return {
        "title": title,
        "text": text,
        "extent": toy.extent,
        "rows": budget.rows,
        "columns": truth.shape[1],
        "truth": packed(truth, -1, 1),
        "assumption": round(toy.largest_eps(), 3),
        "points": placed(toy, toy.from_unit(few.x)),
        "labels": few.y.tolist(),
        "networks": networks,
    }


PROBLEMS = (
    (
        toys.narrow_corridor,
        "Narrow corridor",
        "The gap between the classes widens from the bottom left to the top right. One eps cannot fit everywhere.",
    ),
    (
        toys.two_distance,
        "Two distances",
        "On the left the classes nearly touch; on the right they are far apart.",
    ),
    (
        toys.lms5,
        "Line and slabs",
        "A line separates the classes with a small margin, five slabs with a larger one. The best boundary uses both.",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "explorable.html")
    parser.add_argument("--quick", action="store_true", help="a few tiny networks, to see that everything works")
    options = parser.parse_args()
    budget = QUICK if options.quick else WHOLE
    problems = [problem(make(), title, text, budget) for make, title, text in PROBLEMS[: 1 if options.quick else None]]
    data = {"problems": problems, "methods": plane.METHODS, "radii": budget.radii, "steps": budget.steps}
    page = (HERE / "explorable.html").read_text("utf-8")
    options.out.write_text(page.replace("/*DATA*/null", json.dumps(data, separators=(",", ":"))), "utf-8")
    print(f"wrote {options.out}, {options.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
