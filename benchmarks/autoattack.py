"""Time of AutoAttack in equipoise and as published, stage by stage, interleaved in one process. See README.md."""

import argparse
import math
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # runs from a checkout that is not installed

import textbook
import textbook_autoattack
from textbook_autoattack import STAGES, Budget
from training_step import Report, images, timed

from equipoise import nets
from equipoise.attacks import AttackResult, apgd, apgd_t, fab, pgd, square
from equipoise.data import load

Data = tuple[Tensor, Tensor]
DATA_ROOT = Path(__file__).parents[2] / "shared" / "data"
"""Folder of Fashion-MNIST, beside the checkout."""


@dataclass(frozen=True)
class Case:
    """What is timed, and the required total speed-up over the textbook code."""

    net: str
    samples: int
    eps: float
    budget: Budget
    precision: str
    floor: float | None

    @property
    def name(self) -> str:
        b = self.budget
        return (
            f"{self.net}, {self.samples} points, {self.precision}: {b.steps} steps, {b.targets} targets, "
            f"{b.queries} queries"
        )


def case_of(net: str, precision: str, samples: int | None, quick: bool) -> Case:
    """The case of a network; a quick one is shortened and has no floor."""
    if net == "lenet":
        case = Case(net, 1000, 0.1, Budget(), precision, 8.0)
        short = replace(case, samples=200, budget=Budget(20, 3, 500), floor=None)
    else:
        case = Case(net, 64, 8 / 255, Budget(10, 2, 200), precision, 2.0)
        short = replace(case, samples=8, budget=Budget(5, 1, 20), floor=None)
    case = short if quick else case
    return case if samples is None else replace(case, samples=samples)


def fashion_mnist(samples: int, root: Path) -> tuple[Data, Data]:
    """10,000 training images of Fashion-MNIST and the first test images."""
    dataset = load("fashion-mnist", root, download=False)
    train, test = dataset.train[:10_000], dataset.test[:samples]
    return (train.x, train.y), (test.x, test.y)


def digits(samples: int) -> tuple[Data, Data]:
    """Handwritten digits, drawn with replacement; the first training images are attacked."""
    x, y = images("lenet", max(4000, samples), "cpu")
    return (x, y), (x[:samples], y[:samples])


def shapes(samples: int) -> tuple[Data, Data]:
    """One pattern of coloured blobs per class, with noise; the attacked images have other noise."""
    g = torch.Generator().manual_seed(0)
    blobs = 0.5 + 0.6 * (F.interpolate(torch.rand(10, 3, 4, 4, generator=g), size=(32, 32), mode="bilinear") - 0.5)

    def draw(count: int) -> Data:
        y = torch.randint(10, (count,), generator=g)
        return (blobs[y] + 0.1 * torch.randn(count, 3, 32, 32, generator=g)).clamp(0, 1), y

    return draw(320), draw(samples)


def trained(case: Case, data: Data, epochs: int, device: str) -> nn.Module:
    """The network after some epochs of PGD training from a fixed seed, in eval mode."""
    x, y = (tensor.to(device) for tensor in data)
    model = nets.build(case.net, shape=tuple(x.shape[1:]), classes=10, seed=0).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3 if case.net == "lenet" else 5e-4)
    steps, batch = (5, 128) if case.net == "lenet" else (1, 32)
    perturb = pgd(case.eps, steps=steps, start="zero", return_point="last")
    for epoch in range(epochs):
        for index in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(batch):
            adv = perturb(model, x[index], y[index]).x
            model.train()
            textbook.train(model, optimizer, F.cross_entropy(model(adv), y[index]))
    return model.eval()


Stage = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Takes a mask of the robust samples; returns the mask afterwards, and the adversarial points of the others."""


def textbook_stages(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Stage]:
    def stage(name: str) -> Stage:
        return lambda robust: textbook_autoattack.stage(STAGES[name], model, x, y, robust, case.eps, budget=case.budget)

    return {name: stage(name) for name in STAGES}


def attacks_of(case: Case) -> dict[str, Callable[..., AttackResult]]:
    """Our attacks with the case's budget."""
    b, precision = case.budget, case.precision
    return {
        "apgd-ce": apgd(case.eps, steps=b.steps, precision=precision),
        "apgd-t": apgd_t(case.eps, steps=b.steps, targets=b.targets, precision=precision),
        "fab-t": fab(case.eps, steps=b.steps, targets=b.targets, precision=precision),
        "square": square(case.eps, queries=b.queries, precision=precision),
    }


def our_stages(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Stage]:
    layout = torch.contiguous_format if case.net == "lenet" else torch.channels_last
    model, x = deepcopy(model).to(memory_format=layout), x.contiguous(memory_format=layout)

    def stage(attack: Callable[..., AttackResult]) -> Stage:
        def run(robust: Tensor) -> tuple[Tensor, Tensor]:
            index = robust.nonzero()[:, 0]
            if len(index) == 0:
                return robust, x
            result = attack(model, x[index], y[index], index=index)
            remaining, adv = robust.clone(), x.clone()
            remaining[index[result.success]] = False
            adv[index] = result.x
            return remaining, adv

        return run

    return {name: stage(attack) for name, attack in attacks_of(case).items()}


def still_robust(model: nn.Module, x: Tensor, y: Tensor, adv: Tensor, eps: float) -> Tensor:
    """Mask of the samples whose point is not misclassified within the ball and [0, 1], checked again in float32."""
    misclassified = predicted(model, adv) != y
    outside = (textbook_autoattack.clip(adv, x, eps, "linf") - adv).abs().flatten(1).amax(1)
    return ~(misclassified & (outside <= 1e-6))


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch).argmax(1) for batch in x.split(250)])


def sign_test(worse: int, better: int) -> float:
    """One-sided p-value of the sign test: that an attack is the weaker one on at least `worse` of the samples on which
    two equally strong attacks differ.
    """
    differ = worse + better
    return sum(math.comb(differ, k) for k in range(worse, differ + 1)) / 2**differ


def alternated(
    runs: dict[str, Callable[[], tuple[Tensor, Tensor]]], device: str, repeats: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, list[tuple[float, float]]]]:
    """The result of each run, and its wall and processor seconds in every round."""
    results: dict[str, tuple[Tensor, Tensor]] = {}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}

    def run(name: str) -> None:
        results[name] = runs[name]()

    for repeat in range(repeats):
        for name in sorted(runs, reverse=bool(repeat % 2)):
            times[name].append(timed(partial(run, name), device))
    return results, times


def measure(case: Case, model: nn.Module, x: Tensor, y: Tensor, device: str, repeats: int) -> dict[str, Any]:
    """Time both stage by stage, each on the samples that it has not fooled yet, and compare the robust samples."""
    sides = {"textbook": textbook_stages(case, model, x, y), "ours": our_stages(case, model, x, y)}
    correct = predicted(model, x) == y
    short = replace(case, budget=Budget(2, 1, 2))
    few = torch.arange(len(x), device=x.device) < 16
    for make in (textbook_stages, our_stages):  # only warms up
        for run in make(short, model, x, y).values():
            run(correct & few)
    robust, adv = ({name: value.clone() for name in sides} for value in (correct, x))
    stages: list[dict[str, Any]] = []
    for stage in STAGES:
        runs = {name: partial(side[stage], robust[name]) for name, side in sides.items()}
        results, times = alternated(runs, device, repeats)
        for name, (remaining, points) in results.items():
            fooled = robust[name] & ~remaining
            adv[name][fooled] = points[fooled]
            robust[name] = remaining
        stages.append(
            {
                "stage": stage,
                "wall_s": {name: median(wall for wall, _ in times[name]) for name in sides},
                "cpu_s": {name: median(cpu for _, cpu in times[name]) for name in sides},
                "robust_accuracy": {name: float(robust[name].float().mean()) for name in sides},
            }
        )
    confirmed = {name: correct & still_robust(model, x, y, adv[name], case.eps) for name in sides}
    worse, better = (
        int((confirmed[own] & ~confirmed[other]).sum()) for own, other in (("ours", "textbook"), ("textbook", "ours"))
    )
    total = {kind: {name: sum(s[kind][name] for s in stages) for name in sides} for kind in ("wall_s", "cpu_s")}
    clock = "wall_s" if device == "cuda" else "cpu_s"
    ratio = total[clock]["textbook"] / total[clock]["ours"] if total[clock]["ours"] else math.nan
    return {
        **asdict(case),
        "name": case.name,
        "clean_accuracy": float(correct.float().mean()),
        "stages": stages,
        "total": total,
        "decided_by": clock,
        "ratio": ratio,
        "seconds_per_1000": {name: 1000 * s / len(x) for name, s in total["wall_s"].items()},
        "robust_accuracy": {name: float(mask.float().mean()) for name, mask in confirmed.items()},
        "unconfirmed": {name: int((confirmed[name] & ~robust[name]).sum()) for name in sides},
        "robust_only_against": {"ours": worse, "textbook": better},
        "chance": sign_test(worse, better),
        "as_strong": sign_test(worse, better) >= 0.05,
        "passed": None if case.floor is None else ratio >= case.floor,
    }


def described(result: dict[str, Any]) -> str:
    """The result of a case as text."""
    clock = result["decided_by"]
    seconds_of = "wall" if clock == "wall_s" else "processor"

    def row(name: str, seconds: dict[str, float], accuracy: dict[str, float]) -> str:
        ratio = seconds["textbook"] / seconds["ours"] if seconds["ours"] else math.nan
        return (
            f"  {name:8} {seconds['textbook']:9.2f} {seconds['ours']:9.2f} {ratio:7.2f}"
            f" {accuracy['textbook']:16.2%} {accuracy['ours']:9.2%}"
        )

    lines = [result["name"], f"  {seconds_of} s   textbook      ours   ratio   robust textbook      ours"]
    lines.append(f"  {'clean':8} {'':27} {result['clean_accuracy']:16.2%} {result['clean_accuracy']:9.2%}")
    lines += [row(s["stage"], s[clock], s["robust_accuracy"]) for s in result["stages"]]
    verdict = "no floor for a shortened run"
    if result["floor"] is not None:
        verdict = f"{'pass' if result['passed'] else 'FAIL'} (floor {result['floor']:g})"
    lines.append(row("total", result["total"][clock], result["robust_accuracy"]) + f"   {verdict}")
    per = result["seconds_per_1000"]
    lines.append(f"  wall seconds per 1,000 points: textbook {per['textbook']:.1f}, ours {per['ours']:.1f}")
    only, again = result["robust_only_against"], result["unconfirmed"]
    lines.append(
        f"  robust against one only: textbook {only['textbook']}, ours {only['ours']}   "
        f"{'pass' if result['as_strong'] else 'FAIL'} (p = {result['chance']:.2g} if ours were as strong, floor 0.05); "
        f"errors not confirmed: textbook {again['textbook']}, "
        f"ours {again['ours']}"
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=("lenet", "preact-resnet18"), default="lenet")
    parser.add_argument("--samples", type=int, help="samples to attack (default: 1000 for lenet, 64 for the ResNet)")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32", help="of our search (default: 32)")
    parser.add_argument("--quick", action="store_true", help="fewer points, steps, targets and queries; no floor")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="threads on a CPU (default: torch's)")
    parser.add_argument("--repeats", type=int, default=1, help="timed rounds of each stage (default: 1)")
    parser.add_argument("--epochs", type=int, default=4, help="of the PGD training beforehand (default: 4)")
    parser.add_argument("--data-root", type=Path, help="folder of Fashion-MNIST (default: ../shared/data, else digits)")
    parser.add_argument("--out", type=Path, help="write the results to this path, as NAME.json and NAME.txt")
    args = parser.parse_args()
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    case = case_of(args.net, args.precision, args.samples, args.quick)
    root = args.data_root or (DATA_ROOT if DATA_ROOT.is_dir() else None)
    if args.net != "lenet":
        source, (train, test) = "coloured blobs", shapes(case.samples)
    elif root is not None:
        source, (train, test) = "Fashion-MNIST", fashion_mnist(case.samples, root)
    else:
        source, (train, test) = "digits", digits(case.samples)
    report = Report(device, source)
    model = trained(case, train, args.epochs, device)
    result = measure(case, model, test[0].to(device), test[1].to(device), device, args.repeats)
    report.add(described(result))
    report.write(args.out, {"data": source, "case": result})
    # A missed floor is only printed, as it depends on the machine; a weaker attack is an error.
    return int(not result["as_strong"])


if __name__ == "__main__":
    sys.exit(main())
