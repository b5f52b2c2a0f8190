"""How often the audit for masked gradients is right: on defences that were published and broken, and on honest models,
by the number of samples that it attacks, beside the warnings of AutoAttack. See README.md.

Every line of the record is one model. A second run with the same --out goes on where the first one stopped.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # runs from a checkout that is not installed

from scipy.stats import beta

from equipoise.attacks import apgd, apgd_t, cw, pgd, square, transfer
from equipoise.attacks.attack import AttackLike
from equipoise.core.errors import NoGradient
from equipoise.core.types import Predictive
from equipoise.data import Dataset, load
from equipoise.losses.objectives import dlr
from equipoise.masking.investigate import investigate
from equipoise.masking.zoo import BROKEN, HONEST, Defence
from equipoise.models import as_predictive
from equipoise.results.provenance import provenance

Model = nn.Module | Predictive
SAMPLES = (80, 320)
"""Numbers of test samples given to the audit: its budgets, in a unit that no machine changes."""
COMPARED = 100
"""Test samples of which the naive and the adaptive accuracy are taken."""
GAP = 0.05
"""A defence misleads attacks at this size if the adaptive attack takes this much more accuracy than the naive one."""


def accuracy(model: Model, x: Tensor, y: Tensor, attack: AttackLike, of: Model | None = None) -> float:
    """The accuracy under an attack on `of`, by default the model itself; 1 where there is no gradient to follow."""
    try:
        result = attack(model, x, y) if of is None else transfer(of, attack, "stand-in")(model, x, y)
    except NoGradient:
        return 1.0
    return 1 - float(result.error_rate.mean())


def naive(model: Model, x: Tensor, y: Tensor, eps: float) -> float:
    """The accuracy under PGD as papers of that time ran it: ten steps on the cross-entropy of the model, which
    is drawn anew at every step if it is random.
    """
    return accuracy(model, x, y, pgd(eps, eps / 4, 10, start="uniform", resample=True))


def adaptive(model: Defence, x: Tensor, y: Tensor, eps: float) -> float:
    """The lowest accuracy under attacks on loss and margin of the stand-in."""
    attacks = (attack(eps, None, 40, return_point="best") for attack in (pgd, cw))
    return min(accuracy(model, x, y, attack, model.stand_in()) for attack in attacks)


def autoattack_flags(model: Model, x: Tensor, y: Tensor, eps: float) -> list[str]:
    """What AutoAttack warns of, restated from its flags_doc.md (github.com/fra31/auto-attack): outputs that change from
    call to call, that are a distribution, a gradient of exactly 0 of the DLR at any sample, gradients computed while
    predicting, and Square finding more than its white-box attacks, here APGD-CE and APGD-T.
    """
    calls: list[Any] = []
    grad = torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return grad(*args, **kwargs)

    def outputs() -> Tensor:
        return as_predictive(model).draw(None)(x).scores.detach()

    torch.autograd.grad = counted
    try:
        first = outputs()
    finally:
        torch.autograd.grad = grad
    flags = ["optimisation at inference"] if calls else []
    scaled = [z / (z.norm(dim=1, keepdim=True) + 1e-10) for z in (first, *(outputs() for _ in range(4)))]
    random = max(float((a - b).norm(dim=1).max()) for a in scaled for b in scaled) > 1e-4
    flags += ["randomised"] if random else []
    if first.min() > -1e-5 and first.max() < 1 + 1e-5 and bool(((first.sum(1) - 1).abs() < 1e-5).all()):
        flags.append("softmax")
    try:
        step = apgd(eps, steps=1, objective=dlr)(model, x, y)
    except NoGradient:
        return [*flags, "zero gradient"]  # its gradient is taken of the output, and fails
    flags += ["zero gradient"] if bool((step.zero_gradients > 0).any()) else []
    white = apgd(eps)(model, x, y).success | apgd_t(eps)(model, x, y).success
    black = square(eps)(model, x[~white], y[~white]).success if bool((~white).any()) else white[:0]
    return [*flags, "Square"] if float(black.sum()) / len(x) > 0.002 else flags


def measured(kind: str, name: str, seed: int, data: Dataset, eps: float, samples: Sequence[int]) -> dict[str, Any]:
    start = time.process_time()
    model = BROKEN[name].build(data, seed) if kind == "broken" else HONEST[name](data, seed)
    x, y = data.test.x[: max(samples)], data.test.y[: max(samples)]
    line: dict[str, Any] = {"kind": kind, "name": name, "seed": seed, "audits": {}}
    for n in samples:
        report = investigate(model, x[:n], y[:n], eps, minutes=None, seed=seed)
        verdict = "masked" if report.masked else "undecided" if report.undecided else "no indicator"
        raised = [test.name for test in report.tests if test.raised]
        line["audits"][str(n)] = {"n": report.n, "verdict": verdict, "raised": raised}
        line |= {"clean": report.clean, "audited": report.robust}
    line["flags"] = autoattack_flags(model, x[:80], y[:80], eps)
    if isinstance(model, Defence):
        few = x[:COMPARED], y[:COMPARED]
        line |= {"naive": naive(model, *few, eps), "adaptive": adaptive(model, *few, eps)}
    return line | {"seconds": round(time.process_time() - start, 1)}


def models(broken: int, honest: int, select: str) -> Iterator[tuple[str, str, int]]:
    """Seed after seed of every broken defence, and `honest` models of all kinds in turn."""
    yield from (("broken", name, seed) for seed in range(broken) for name in BROKEN if select in name)
    kinds = [name for name in HONEST if select in name]
    yield from (("honest", kinds[k % len(kinds)], k // len(kinds)) for k in range(honest if kinds else 0))


def interval(count: int, n: int) -> tuple[float, float]:
    """The 95 % interval of Clopper and Pearson (1934)."""
    low = float(beta.ppf(0.025, count, n - count + 1)) if count else 0.0
    return low, float(beta.ppf(0.975, count + 1, n - count)) if count < n else 1.0


def share(lines: Sequence[Any], which: Callable[[Any], bool]) -> str:
    count = sum(map(which, lines))
    low, high = interval(count, len(lines))
    return f"{count} of {len(lines)} ({low:.1%} to {high:.1%})"


def summary(lines: Sequence[dict[str, Any]], samples: Sequence[int]) -> Iterator[str]:
    """The confusion matrix, defence by defence, then power by budget and false positives."""
    broken, honest = ([line for line in lines if line["kind"] == kind] for kind in ("broken", "honest"))
    yield f"{'accuracy, %':20} {'clean':>6} {'naive':>6} {'adapt.':>6} {'masked':>9} {'flagged':>9}  raised; flags"
    for name in dict.fromkeys(line["name"] for line in broken):
        rows = [line for line in broken if line["name"] == name]
        means = [sum(100 * row[key] for row in rows) / len(rows) for key in ("clean", "naive", "adaptive")]
        counts = [f"{sum(map(which, rows))} of {len(rows)}" for which in (masked_at(max(samples)), is_flagged)]
        raised = dict.fromkeys(test for row in rows for test in row["audits"][str(max(samples))]["raised"])
        words = ", ".join(raised) + "; " + ", ".join(dict.fromkeys(flag for row in rows for flag in row["flags"]))
        yield f"{name:20}" + "".join(f"{m:7.1f}" for m in means) + "".join(f"{c:>10}" for c in counts) + f"  {words}"
    misleading = [line for line in broken if line["naive"] - line["adaptive"] >= GAP]
    judges = {f"audit of {n} samples": masked_at(n) for n in samples} | {"flags of AutoAttack": is_flagged}
    for title, group in (
        (f"defences whose adaptive accuracy is at least {GAP:.0%} below the naive one", misleading),
        ("other defences of the zoo, which mislead nobody at this size", [b for b in broken if b not in misleading]),
        ("honest models, of which none should be found", honest),
    ):
        if group:
            yield f"\n{title}: found masked, or flagged"
            yield from (f"  {judge:20} {share(group, which)}" for judge, which in judges.items())
    yield "\nhonest models found: " + (", ".join(_accused(honest, samples)) or "none")


def _accused(honest: Sequence[dict[str, Any]], samples: Sequence[int]) -> Iterator[str]:
    for line in honest:
        found = [str(n) for n in samples if masked_at(n)(line)]
        if found:
            yield f"{line['name']} of seed {line['seed']} ({', '.join(line['audits'][found[-1]]['raised'])})"


def masked_at(n: int) -> Callable[[dict[str, Any]], bool]:
    return lambda line: line["audits"][str(n)]["verdict"] == "masked"


def is_flagged(line: dict[str, Any]) -> bool:
    return bool(line["flags"])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--train", type=int, default=6000, help="training samples, at most")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--broken", type=int, default=3, metavar="N", help="seeds of every broken defence")
    parser.add_argument("--honest", type=int, default=54, metavar="N", help="honest models, of all kinds in turn")
    parser.add_argument("--samples", type=int, nargs="+", default=list(SAMPLES))
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no model after this time")
    parser.add_argument("--out", type=Path, help="path of the record, without .json: goes on where one is")
    options = parser.parse_args(words)
    data = load(options.data)
    data = Dataset(data.name, data.train.limit(options.train), data.test, data.classes, data.sha256)
    request = {"data": data.name, "train": len(data.train), "eps": options.eps, "samples": options.samples}
    path = None if options.out is None else options.out.with_suffix(".json")
    record = json.loads(path.read_text()) if path is not None and path.exists() else {**request, "models": []}
    if any(record[key] != value for key, value in request.items()):
        sys.exit(f"{path} answers another request: choose another --out.")
    lines, end = record["models"], time.monotonic() + 60 * options.minutes
    done = {(line["kind"], line["name"], line["seed"]) for line in lines}
    for model in models(options.broken, options.honest, options.only):
        if model in done or time.monotonic() > end:
            continue
        lines.append(measured(*model, data, options.eps, options.samples))
        print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
        if path is not None:
            origin = vars(
                provenance(0, torch.device("cpu"), "python benchmarks/masking_zoo.py " + " ".join(sys.argv[1:]))
            )
            path.write_text(json.dumps({**request, "models": lines, "provenance": origin}, indent=1) + "\n")
    text = "\n".join(summary(lines, options.samples))
    print(text)
    if path is not None:
        path.with_suffix(".txt").write_text(text + "\n")


if __name__ == "__main__":
    main()
