"""Minutes from nothing to a published robustness, and whether it is reached. See README.md.

fashion-mnist  the row UDP-PGD (eps 0.3) of U Table 2, every number of it within the 95 % interval of ours
cifar10        50 % accuracy under AutoAttack (Linf 8/255) with a ResNet-18 on one GPU
"""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # runs from a checkout that is not installed

from training_step import Report

import equipoise as eq
from equipoise.reproduce.published import published_values
from equipoise.results.statistics import wilson
from equipoise.training.job import training_split


@dataclass(frozen=True)
class Target:
    """An accuracy to reach: clean, under AutoAttack in a ball, or the mean of both."""

    name: str
    published: float
    norm: str = "linf"
    eps: float = 0.0
    is_mean: bool = False


@dataclass(frozen=True)
class Track:
    """What is trained, how, and what is to be reached. The clock stops when the training ends."""

    data: str
    net: str
    method: str
    options: dict[str, Any]
    recipe: eq.Recipe
    targets: Sequence[Target]
    needs_gpu: bool = False
    net_options: dict[str, Any] = field(default_factory=dict)


def row_of_udp() -> list[Target]:
    """U Table 2, lower half: clean accuracy, and its means with the accuracy under AutoAttack."""
    targets = []
    for row, column, number, _ in published_values("udp", "Table 2, trade-off", decimals=1):
        if row == "UDP-PGD (eps 0.3)" and number is not None:
            norm, _, eps = column.partition(" ")
            ball = {"norm": norm.lower(), "eps": float(eps), "is_mean": True} if eps else {}
            targets.append(Target(column if not eps else f"mean with {column}", number / 100, **ball))
    return targets


TRACKS = {
    "fashion-mnist": Track(
        "fashion-mnist", "lenet", "udp", {"eps": 0.3, "step_size": 0.04, "steps": 9},
        eq.Recipe(epochs=12, batch_size=64, lr=6e-3, schedule="triangular", lr_peak=0.3, ema=0.999, validation=1 / 12),
        row_of_udp(),
    ),
    "cifar10": Track(
        "cifar10", "resnet18", "trades", {"eps": 8 / 255, "step_size": 2 / 255, "steps": 10, "beta": 6.0},
        eq.Recipe(epochs=40, batch_size=128, optimizer="sgd", lr=0.1, weight_decay=5e-4, schedule="triangular",
                  lr_peak=0.3, ema=0.999, precision="bf16", augment="crop-flip", validation=0.02),
        [Target("Linf 8/255", 0.5, "linf", 8 / 255)], needs_gpu=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training from nothing: its minutes, and which samples withstand what."""

    wall_minutes: float
    cpu_minutes: float
    correct: dict[str, list[float]]
    """By target, per sample: 1, 0, or for a mean 1/2."""


def run(track: Track, data: Any, n: int, seed: int, device: str, validate: bool) -> Run:
    """Train, stop the clock, and evaluate by AutoAttack on `n` test samples, or held-out training samples."""
    recipe = replace(track.recipe, seed=seed, device=device, valid_examples=1, valid_steps=1, checkpoint_minutes=0.0)
    wall, cpu = time.perf_counter(), time.process_time()
    net = eq.nets.build(track.net, data.shape, classes=len(data.classes), seed=seed, **track.net_options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", eq.EquipoiseWarning)  # of the single validation sample
        eq.train(getattr(eq.methods, track.method)(**track.options), net, data, recipe)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    split = training_split(data, recipe)[1] if validate else data.test
    split = split.limit(n)
    place = next(net.parameters()).device
    attacks = [
        (target.name, eq.attacks.autoattack(eps=target.eps, norm=target.norm)) for target in track.targets if target.eps
    ]
    clean, *attacked = eq.evaluate(net.eval(), split.x.to(place), split.y.to(place), attacks)
    correct = {"clean": [float(value) for value in clean.correct]}
    found = {record.attack: [float(value) for value in record.correct] for record in attacked}
    for target in track.targets:
        if target.eps:
            robust = found[target.name]
            both = [(a + b) / 2 for a, b in zip(correct["clean"], robust, strict=True)]
            correct[target.name] = both if target.is_mean else robust
    return Run(wall / 60, cpu / 60, correct)


def judged(target: Target, runs: Sequence[Run]) -> dict[str, Any]:
    """The mean over the runs, half the width of its 95 % interval for that many samples, and whether the published
    number is within it or below.
    """
    shares = [one.correct[target.name] for one in runs]
    n, value = len(shares[0]), mean(mean(values) for values in shares)
    low, high = wilson(value * n, n)
    half = (high - low) / 2
    return {**asdict(target), "found": value, "half_width": half, "passed": value + half >= target.published}


def described(name: str, runs: Sequence[Run], results: Sequence[dict[str, Any]], report: Report) -> str:
    n = len(runs[0].correct["clean"])
    minutes = ", ".join(f"{one.wall_minutes:.2f}" for one in runs)
    cpu = mean(one.cpu_minutes for one in runs)
    machine = f"{report.machine['device']}, {report.machine['threads']} threads"
    lines = [
        f"{name}: {mean(one.wall_minutes for one in runs):.2f} minutes ({minutes}; {cpu:.2f} of processor time), "
        f"{len(runs)} seeds, n = {n}, {machine}"
    ]
    for result in results:
        lines.append(
            f"  {result['name']:22} {100 * result['found']:5.1f} ± {100 * result['half_width']:.1f} "
            f"[{100 * result['published']:.1f}]  {'reached' if result['passed'] else 'MISSED'}"
        )
    return "\n".join([*lines, "pass" if all(result["passed"] for result in results) else "FAIL"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--track", choices=list(TRACKS), default="fashion-mnist")
    parser.add_argument("--data", help="name or path of the data (default: the track's)")
    parser.add_argument("--data-root", type=Path, help="folder with the data")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=2, help="threads on a CPU (default: 2)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings, with the seeds 0, 1, ... (default: 1)")
    parser.add_argument("--n", type=int, default=1000, help="test samples (default: 1000)")
    parser.add_argument("--epochs", type=int, help="default: the track's")
    parser.add_argument("--batch", type=int, help="default: the track's")
    parser.add_argument("--lr", type=float, help="default: the track's")
    parser.add_argument("--step-size", type=float, help="default: the track's")
    parser.add_argument("--steps", type=int, help="default: the track's")
    parser.add_argument("--validate", action="store_true", help="evaluate on held-out training samples, to choose by")
    parser.add_argument("--out", type=Path, help="write the results to this path, as NAME.json and NAME.txt")
    args = parser.parse_args()
    track = TRACKS[args.track]
    if track.needs_gpu and args.device != "cpu" and not torch.cuda.is_available():
        print(f"the track {args.track} is for one GPU, and torch sees none: use --device cpu to run it all the same.")
        return 2
    torch.set_num_threads(args.threads)
    changes = {"epochs": args.epochs, "batch_size": args.batch, "lr": args.lr}
    climb = {"step_size": args.step_size, "steps": args.steps}
    track = replace(
        track,
        recipe=replace(track.recipe, **{k: v for k, v in changes.items() if v is not None}),
        options=track.options | {k: v for k, v in climb.items() if v is not None},
    )
    data = eq.data.load(args.data or track.data, root=args.data_root)
    report = Report("cuda" if torch.cuda.is_available() and args.device != "cpu" else "cpu")
    runs = [run(track, data, args.n, seed, args.device, args.validate) for seed in range(args.seeds)]
    results = [judged(target, runs) for target in track.targets]
    where = " (validation)" * args.validate
    recipe = track.recipe
    report.add(
        f"{track.net}, {track.method} {track.options}, {recipe.epochs} epochs, batches of {recipe.batch_size}, "
        f"lr {recipe.lr:g} {recipe.schedule}, ema {recipe.ema:g}"
    )
    report.add(described(f"{data.name}{where}", runs, results, report))
    times = [{"wall": one.wall_minutes, "cpu": one.cpu_minutes} for one in runs]
    settings = {"method": track.method, "options": track.options, "recipe": asdict(recipe)}
    report.write(args.out, {"minutes": times, "n": args.n, **settings, "row": results})
    return int(not all(result["passed"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
