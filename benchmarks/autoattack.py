"""AutoAttack of equipoise beside the published one, stage by stage, interleaved in one process. See README.md."""

import argparse
import json
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
from training_step import images, machine, timed

from equipoise import nets
from equipoise.attacks import AttackResult, apgd, apgd_t, fab, pgd, square
from equipoise.data import load

Data = tuple[Tensor, Tensor]
DATA_ROOT = Path(__file__).parents[2] / "shared" / "data"
"""Where Fashion-MNIST is looked for: beside the checkout."""


@dataclass(frozen=True)
class Case:
    """What is timed, and how much faster than the textbook all of it has to be."""

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


def chosen(net: str, precision: str, samples: int | None, quick: bool) -> Case:
    """The case of that name; a quick one is shortened and has no floor."""
    if net == "lenet":
        case = Case(net, 1000, 0.1, Budget(), precision, 4.0 if precision == "bf16" else 3.0)
        short = replace(case, samples=200, budget=Budget(20, 3, 500), floor=None)
    else:
        case = Case(net, 64, 8 / 255, Budget(10, 2, 200), precision, 2.0)
        short = replace(case, samples=8, budget=Budget(5, 1, 20), floor=None)
    case = short if quick else case
    return case if samples is None else replace(case, samples=samples)


def clothes(samples: int, root: Path) -> tuple[Data, Data]:
    """Of Fashion-MNIST 10,000 images to train on and the first of the test set."""
    found = load("fashion-mnist", root, download=False)
    train, test = found.train[:10_000], found.test[:samples]
    return (train.x, train.y), (test.x, test.y)


def digits(samples: int) -> tuple[Data, Data]:
    """Handwritten digits, drawn with replacement, the attacked ones among the training images."""
    x, y = images("lenet", max(4000, samples), "cpu")
    return (x, y), (x[:samples], y[:samples])


def shapes(samples: int) -> tuple[Data, Data]:
    """Coloured blobs, one kind per class, under noise; another draw of noise to attack."""
    g = torch.Generator().manual_seed(0)
    blobs = 0.5 + 0.6 * (F.interpolate(torch.rand(10, 3, 4, 4, generator=g), size=(32, 32), mode="bilinear") - 0.5)

    def draw(count: int) -> Data:
        y = torch.randint(10, (count,), generator=g)
        return (blobs[y] + 0.1 * torch.randn(count, 3, 32, 32, generator=g)).clamp(0, 1), y

    return draw(320), draw(samples)


def trained(case: Case, data: Data, epochs: int, device: str) -> nn.Module:
    """The network after some epochs of PGD training from a fixed seed, in eval mode."""
    x, y = (part.to(device) for part in data)
    model = nets.build(case.net, shape=tuple(x.shape[1:]), classes=10, seed=0).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3 if case.net == "lenet" else 5e-4)
    steps, batch = (5, 128) if case.net == "lenet" else (1, 32)
    perturb = pgd(case.eps, steps=steps, start="zero", return_point="last")
    for epoch in range(epochs):
        for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(batch):
            adv = perturb(model, x[rows], y[rows]).x
            model.train()
            textbook.train(model, optimizer, F.cross_entropy(model(adv), y[rows]))
    return model.eval()


Stage = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From who is still robust to who is so afterwards, and the points that fooled the others."""


def textbook_stages(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Stage]:
    def stage(name: str) -> Stage:
        return lambda robust: textbook_autoattack.stage(STAGES[name], model, x, y, robust, case.eps, budget=case.budget)

    return {name: stage(name) for name in STAGES}


def parts(case: Case) -> dict[str, Callable[..., AttackResult]]:
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
            rows = robust.nonzero()[:, 0]
            if len(rows) == 0:
                return robust, x
            found = attack(model, x[rows], y[rows], index=rows)
            left, adv = robust.clone(), x.clone()
            left[rows[found.success]] = False
            adv[rows] = found.x
            return left, adv

        return run

    return {name: stage(attack) for name, attack in parts(case).items()}


def still_robust(model: nn.Module, x: Tensor, y: Tensor, adv: Tensor, eps: float) -> Tensor:
    """Looked at once more, in float32: whoever has no misclassified point within the ball and [0, 1]."""
    with torch.no_grad():
        wrong = torch.cat([model(part).argmax(1) for part in adv.split(250)]) != y
    outside = (textbook_autoattack.clip(adv, x, eps, "linf") - adv).abs().flatten(1).amax(1)
    return ~(wrong & (outside <= 1e-6))


def chance(worse: int, better: int) -> float:
    """How likely at least so many of the samples on which two equally good attacks differ go against one of them."""
    differ = worse + better
    return sum(math.comb(differ, k) for k in range(worse, differ + 1)) / 2**differ


def in_turns(
    runs: dict[str, Callable[[], tuple[Tensor, Tensor]]], device: str, repeats: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, list[tuple[float, float]]]]:
    """What each run gives, and its wall and processor seconds in every round."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}

    def keep(name: str) -> None:
        found[name] = runs[name]()

    for repeat in range(repeats):
        for name in sorted(runs, reverse=bool(repeat % 2)):
            times[name].append(timed(partial(keep, name), device))
    return found, times


def measure(case: Case, model: nn.Module, x: Tensor, y: Tensor, device: str, repeats: int) -> dict[str, Any]:
    """Time both stage by stage, each on its own survivors, and compare who is left."""
    sides = {"textbook": textbook_stages(case, model, x, y), "ours": our_stages(case, model, x, y)}
    with torch.no_grad():
        correct = torch.cat([model(part).argmax(1) for part in x.split(250)]) == y
    short = replace(case, budget=Budget(2, 1, 2))
    few = torch.arange(len(x), device=x.device) < 16
    for make in (textbook_stages, our_stages):  # only warms up
        for run in make(short, model, x, y).values():
            run(correct & few)
    robust, adv = ({name: value.clone() for name in sides} for value in (correct, x))
    stages: list[dict[str, Any]] = []
    for stage in STAGES:
        runs = {name: partial(side[stage], robust[name]) for name, side in sides.items()}
        found, times = in_turns(runs, device, repeats)
        for name, (left, points) in found.items():
            fooled = robust[name] & ~left
            adv[name][fooled] = points[fooled]
            robust[name] = left
        stages.append(
            {
                "stage": stage,
                "wall_s": {name: median(wall for wall, _ in times[name]) for name in sides},
                "cpu_s": {name: median(cpu for _, cpu in times[name]) for name in sides},
                "robust_accuracy": {name: float(robust[name].float().mean()) for name in sides},
            }
        )
    left = {name: correct & still_robust(model, x, y, adv[name], case.eps) for name in sides}
    worse, better = (
        int((left[mine] & ~left[other]).sum()) for mine, other in (("ours", "textbook"), ("textbook", "ours"))
    )
    total = {kind: {name: sum(s[kind][name] for s in stages) for name in sides} for kind in ("wall_s", "cpu_s")}
    decisive = "wall_s" if device == "cuda" else "cpu_s"
    ratio = total[decisive]["textbook"] / total[decisive]["ours"] if total[decisive]["ours"] else math.nan
    return {
        **asdict(case),
        "name": case.name,
        "clean_accuracy": float(correct.float().mean()),
        "stages": stages,
        "total": total,
        "decided_by": decisive,
        "ratio": ratio,
        "seconds_per_1000": {name: 1000 * s / len(x) for name, s in total["wall_s"].items()},
        "robust_accuracy": {name: float(rows.float().mean()) for name, rows in left.items()},
        "unconfirmed": {name: int((left[name] & ~robust[name]).sum()) for name in sides},
        "robust_only_against": {"ours": worse, "textbook": better},
        "chance": chance(worse, better),
        "as_strong": chance(worse, better) >= 0.05,
        "passed": None if case.floor is None else ratio >= case.floor,
    }


def described(found: dict[str, Any]) -> str:
    """A case in words."""
    kind = found["decided_by"]
    clock = "wall" if kind == "wall_s" else "processor"

    def row(name: str, seconds: dict[str, float], accuracy: dict[str, float]) -> str:
        ratio = seconds["textbook"] / seconds["ours"] if seconds["ours"] else math.nan
        return (
            f"  {name:8} {seconds['textbook']:9.2f} {seconds['ours']:9.2f} {ratio:7.2f}"
            f" {accuracy['textbook']:16.2%} {accuracy['ours']:9.2%}"
        )

    lines = [found["name"], f"  {clock} s   textbook      ours   ratio   robust textbook      ours"]
    lines.append(f"  {'clean':8} {'':27} {found['clean_accuracy']:16.2%} {found['clean_accuracy']:9.2%}")
    lines += [row(s["stage"], s[kind], s["robust_accuracy"]) for s in found["stages"]]
    verdict = "no floor for a shortened run"
    if found["floor"] is not None:
        verdict = f"{'pass' if found['passed'] else 'FAIL'} (floor {found['floor']:g})"
    lines.append(row("total", found["total"][kind], found["robust_accuracy"]) + f"   {verdict}")
    per = found["seconds_per_1000"]
    lines.append(f"  wall seconds per 1,000 points: textbook {per['textbook']:.1f}, ours {per['ours']:.1f}")
    only, again = found["robust_only_against"], found["unconfirmed"]
    lines.append(
        f"  left standing by one alone: textbook {only['textbook']}, ours {only['ours']}   "
        f"{'pass' if found['as_strong'] else 'FAIL'} (p = {found['chance']:.2g} if ours were as strong, floor 0.05); "
        f"errors not confirmed: textbook {again['textbook']}, "
        f"ours {again['ours']}"
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=("lenet", "preact-resnet18"), default="lenet")
    parser.add_argument("--samples", type=int, help="points to attack (default: 1000 for lenet, 64 for the ResNet)")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32", help="of our search (default: 32)")
    parser.add_argument("--quick", action="store_true", help="fewer points, steps, targets and queries; no floor")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="threads on a CPU (default: torch's)")
    parser.add_argument("--repeats", type=int, default=1, help="timed rounds of each stage (default: 1)")
    parser.add_argument("--epochs", type=int, default=4, help="of the PGD training beforehand (default: 4)")
    parser.add_argument("--data-root", type=Path, help="folder of Fashion-MNIST (default: ../shared/data, else digits)")
    parser.add_argument("--out", type=Path, help="write the results there, as NAME.json and NAME.txt")
    args = parser.parse_args()
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    case = chosen(args.net, args.precision, args.samples, args.quick)
    root = args.data_root or (DATA_ROOT if DATA_ROOT.is_dir() else None)
    if args.net != "lenet":
        source, (train, test) = "coloured blobs", shapes(case.samples)
    elif root is not None:
        source, (train, test) = "Fashion-MNIST", clothes(case.samples, root)
    else:
        source, (train, test) = "digits", digits(case.samples)
    where = machine(device)
    lines = [
        ", ".join(f"{k} {where[k]}" for k in ("device", "processor", "vector_unit", "threads", "date")) + f", {source}"
    ]
    print(lines[0], flush=True)
    model = trained(case, train, args.epochs, device)
    found = measure(case, model, test[0].to(device), test[1].to(device), device, args.repeats)
    lines.append(described(found))
    print(lines[-1], flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        results = {"machine": where, "data": source, "case": found}
        args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        args.out.with_suffix(".txt").write_text("\n".join([f"$ {where['command']}", *lines]) + "\n")
    # A missed floor is printed, and is the machine's as much as ours; a weaker attack is a mistake.
    return int(not found["as_strong"])


if __name__ == "__main__":
    sys.exit(main())
