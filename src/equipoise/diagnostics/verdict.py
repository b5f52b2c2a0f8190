"""Is it robust, or are its gradients masked? A budgeted set of attacks and tests, and the signs they show."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.attacks import Square, adaptive, cw, pgd, random_search, transfer
from equipoise.attacks.attack import Attack
from equipoise.diagnostics.curves import Curve, lines
from equipoise.diagnostics.masking import FEW, LEVEL, MANY, SOME, Broken, beaten, decided, gained, present, rising
from equipoise.diagnostics.surfaces import surface
from equipoise.errors import require
from equipoise.evaluation import probe
from equipoise.findings import Lines, Picture
from equipoise.geometry import Ball, Box
from equipoise.perturbed import MODEL_STREAM, Perturbed
from equipoise.predictive import as_predictive, predict
from equipoise.rng import Streams
from equipoise.steps import Uniform
from equipoise.types import Labels, Points, Predictive
from equipoise.verdicts import Sign, Verdict

Progress = Callable[[str, float], None]
"""Called with what is being done and which share of the whole is over."""

STEPS, RESTARTS, QUERIES, DRAWS, SURFACES = 40, 10, 1000, 1000, 32
_COST = 2200  # gradients that all attacks together cost per sample, about
_FEWEST, _MOST = 100, 1000
HOLES = 0.5
"""Share of samples with a fall on the ray along the gradient's sign that honest, curved losses show too."""
_WIDE = {"linf": 150 / 255, "l2": 0.3, "l1": 0.3}  # radius at which nothing is left: of a coordinate, √d, d
_BLACK = "R, Sec. 5.2.1; Athalye et al. 2018"
_ADVICE = "Carlini et al. 2019"
_MASKING = ("randomised model", "vanishing gradients", "non-differentiable model", "looping model")


@dataclass
class _Case:
    """The samples that are right, and what has been tried on them."""

    predictive: Predictive
    x: Points
    y: Labels
    ball: Ball
    seed: int
    progress: Progress | None
    done: float = 0.0

    def attack(self, what: str, share: float, attack: Attack) -> Perturbed:
        """Run an attack that is that share of the whole."""
        if self.progress is not None:
            self.progress(what, self.done)
        self.done += share
        return attack(self.predictive, self.x, self.y, seed=self.seed, batch_size=len(self.x))

    def broken(self, what: str, share: float, attack: Attack) -> Broken:
        """Which samples it broke."""
        return self.attack(what, share, attack).success.cpu().numpy()

    def pgd(self, steps: int = STEPS, eps: float | None = None, **options: Any) -> Attack:
        """PGD on the cross-entropy from the sample itself, stopped at the first success."""
        eps = self.ball.eps if eps is None else eps
        size = max(2.5 * eps / steps, eps / 100)
        return pgd(eps, size, steps, self.ball.norm, self.ball.box, **{"keep": "first_success"} | options)


def investigate(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    eps: float,
    norm: str = "linf",
    *,
    box: Box = Box(),
    proxy: "nn.Module | Predictive | None" = None,
    minutes: float = 5.0,
    seed: int = 0,
    target: str = "model",
    progress: Progress | None = None,
) -> Verdict:
    """Look for signs that `model` owes its robustness at `eps` to gradients that mislead attacks (R, Sec. 5.2).

    As many of the samples `x` with labels `y` as `minutes` allow (100 to 1000) are attacked in ways that know more and
    less. `proxy` is another model of the same task, for transferred attacks. The verdict names every sign with its
    figure and its threshold; an honest model is accused with probability 0.05 at most, by signs that are tests.
    Raises `EquipoiseError` for input that cannot be attacked, no radius, and fewer than 20 samples that are right.
    """
    require(0 < eps < float("inf"), f"eps = {eps}: give the radius at which the model is said to be robust.")
    require(minutes > 0, f"minutes = {minutes}: expected a number > 0.")
    begin, predictive = time.monotonic(), as_predictive(model)
    flags = probe(predictive, x[:256], y[:256], box=box, seed=seed)
    right, clean = _right(predictive, x, y, seed)
    require(
        len(right) >= 20,
        f"only {len(right)} of {len(x)} samples are classified right: give at least 20, or another model.",
    )
    case = _Case(predictive, x[right], y[right], Ball(norm, eps, box), seed, progress)
    case = _affordable(case, minutes)
    n = len(case.x)

    white_box = case.attack("PGD", 0.02, case.pgd())
    white = white_box.success.cpu().numpy()
    margin = case.broken("PGD on the margin", 0.02, cw(eps, None, STEPS, norm, box, keep="first_success"))
    by_steps = {STEPS: white} | {k: case.broken(f"{k} steps", k / 2000, case.pgd(k)) for k in (5, 10, 20, 80, 160)}
    once = case.broken("one random start", 0.02, case.pgd(start=Uniform()))
    often = case.broken("many random starts", 0.15, case.pgd(start=Uniform(), restarts=RESTARTS))
    by_eps = {eps: white} | {
        r: case.broken(f"eps {r:.3g}", 0.03, case.pgd(100 if r > 4 * eps else STEPS, r)) for r in _radii(case)
    }
    black = case.broken("Square", 0.2, Square(case.ball, QUERIES))
    randomly = case.broken("random search", 0.1, random_search(eps, norm, DRAWS, box))
    smoothed = case.broken("adaptive", 0.1, adaptive(eps, norm, 20, restarts=1, box=box))
    ground = surface(predictive, case.x[:SURFACES], case.y[:SURFACES], reach=eps, points=21, seed=seed)

    plain = (f"PGD-{STEPS}", white)
    either = (f"PGD-{STEPS} on loss or margin", white | margin)
    largest = max(by_eps)
    signs = [
        beaten("black box beats white box", either, (f"Square-{QUERIES}", black), _BLACK),
        present(
            "random search succeeds where gradients fail",
            f"random search finds in {DRAWS} draws what {plain[0]} does not",
            randomly[~white],
            "R, App. C.1; Athalye et al. 2018",
        ),
        present("accuracy does not reach 0", f"right at eps {largest:.3g}", ~by_eps[largest], "R, Sec. 5.2.2"),
        rising("a larger ball breaks fewer", by_eps, "R, Sec. 5.2.2"),
        gained("more steps go on helping", _steps(by_steps, 80), _steps(by_steps, 160), "R, Sec. 5.2.2", FEW),
        gained("restarts go on helping", ("1 start", once), (f"{RESTARTS} starts", often), _ADVICE),
        gained("the margin breaks what the loss does not", plain, ("PGD on the margin", margin), _ADVICE, MANY),
        gained("an adaptive loss breaks more", plain, ("PGD on smoothed labels", smoothed), "R, Sec. 5.2.2", MANY),
        present(
            "gradients vanish",
            "no gradient, or none that is finite, at some step",
            ((white_box.zero_gradients + white_box.nan_gradients) > 0).cpu().numpy(),
            "Athalye et al. 2018",
        ),
        present(
            "holes in the loss surface",
            "the loss falls on the way along the gradient's sign",
            ground.stuck,
            "R, App. C.2",
            HOLES,
        ),
    ]
    known = [Sign(flag.name, flag.figure, "none", 0.0, "probe") for flag in flags if flag.name in _MASKING]
    everything = white | margin | often | black | randomly | smoothed | by_steps[160]
    skipped = []
    if proxy is None:
        skipped.append("transferred attacks: no proxy was given.")
    else:
        moved = case.broken("transfer", 0.05, transfer(proxy, case.pgd(keep="best"), name="proxy"))
        everything = everything | moved
        signs.append(beaten("transfer beats white box", either, ("the proxy's points", moved), _BLACK))
    return Verdict(
        target=target,
        norm=norm,
        eps=eps,
        n=n,
        clean=clean,
        robust=clean * float((~everything).mean()),
        signs=decided([*signs, *known]),
        level=LEVEL,
        settings={
            "steps": STEPS,
            "restarts": RESTARTS,
            "queries": QUERIES,
            "draws": DRAWS,
            "radii": sorted(by_eps),
            "slack": [FEW, SOME, MANY],
            "minutes": minutes,
            "seed": seed,
        },
        skipped=skipped,
        seconds=time.monotonic() - begin,
        pictures=[_curves(by_eps, by_steps), ground.picture()],
    )


def _right(predictive: Predictive, x: Points, y: Labels, seed: int) -> tuple[Tensor, float]:
    """The samples that are right without an attack, and their share."""
    streams = Streams.of(seed, torch.arange(len(x), device=x.device)).fold(MODEL_STREAM)
    parts = torch.arange(len(x), device=x.device).split(256)
    labels = torch.cat([predict(predictive, x[part], streams[part]).labels for part in parts])
    right = labels == y
    return right.nonzero()[:, 0], float(right.double().mean())


def _steps(by_steps: dict[int, Broken], steps: int) -> tuple[str, Broken]:
    return f"PGD-{steps}", by_steps[steps]


def _affordable(case: _Case, minutes: float) -> _Case:
    """As many of the samples as the time allows, by the time of a short climb."""
    few = slice(0, min(64, len(case.x)))
    begin = time.monotonic()
    case.pgd(5, keep="best")(case.predictive, case.x[few], case.y[few], seed=case.seed)
    each = (time.monotonic() - begin) / 5 / (few.stop or 1)
    n = int(min(max(60 * minutes / (_COST * each), _FEWEST), _MOST, len(case.x)))
    return replace(case, x=case.x[:n], y=case.y[:n])


def _radii(case: _Case) -> list[float]:
    """Twice the radius, and again, up to one at which no image is left."""
    eps, box = case.ball.eps, case.ball.box
    features = case.x[0].numel()
    wide = (
        _WIDE[case.ball.norm] * (box.high - box.low) * {"linf": 1, "l2": features**0.5, "l1": features}[case.ball.norm]
    )
    last = max(wide, 4 * eps) if np.isfinite(wide) else 64 * eps
    inner = [eps / 2, *(eps * 2**i for i in range(1, 12) if eps * 2**i < 0.75 * last)]
    return [*inner, last]


def _curves(by_eps: dict[float, Broken], by_steps: dict[int, Broken]) -> Picture:
    """Accuracy against the radius and against the number of steps."""

    def line(broken: Mapping[Any, Broken], x_name: str) -> Lines:
        places = sorted(broken)
        correct = np.stack([~broken[place] for place in places])
        curve = Curve(np.array(places, dtype=float), correct, np.ones(correct.shape[1], dtype=bool), x_name)
        return lines({"PGD": curve}, f"accuracy against {x_name}", log_x=True)

    return Picture(
        "curves",
        "Samples that PGD leaves right, of those that are right without it, against the radius and against the number "
        "of steps, with 95 % intervals: honest curves fall to 0 and level off.",
        [line(by_eps, "eps"), line(by_steps, "steps")],
        columns=2,
    )
