"""The scores that F names, each a choice of Q, H and G; your own is defined in the same way.

`shape` is that of one input; with it radii reach from 0 to the diameter of the box, as in F.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any, get_args

from torch import Tensor, nn

from equipoise.attacks import AttackLike, nearest, published_margin_attack
from equipoise.core.errors import require, unknown
from equipoise.core.types import Labels, Points, Predictive
from equipoise.generators import Manifold
from equipoise.geometry import NORMS, Box, NormName
from equipoise.scores.estimate import Estimate
from equipoise.scores.laws import OnManifold
from equipoise.scores.radii import Distances, Radii
from equipoise.scores.score import Certified, Method, Sampled, Score, WorstCase, certain, identity, inverse
from equipoise.training.penalties import Radii as RadiiName


def diameter(shape: Sequence[int], norm: str = "l2", box: Box = Box()) -> float:
    """Return the distance of two corners of the box, `(high - low) m^(1/p)` for m coordinates: F's d, sqrt(m) in l2."""
    return (box.high - box.low) * math.prod(shape) ** (1 / NORMS[norm].order)


def _mean_margin(
    shape: Sequence[int], norm: str, attack: AttackLike | None, box: Box, label_aware: bool = False, **options: Any
) -> Score:
    """The mean of the distances that an attack finds, in its norm and box; by default `nearest`."""
    attack = attack or nearest(norm, box=box)
    ball = attack.geometry
    radii = Radii(diameter(shape, ball.norm, ball.box))
    return Score(WorstCase(attack, label_aware), radii, box=ball.box, **options)


def r1(shape: Sequence[int], norm: str = "l2", attack: AttackLike | None = None, box: Box = Box()) -> Score:
    """Return the mean margin of points uniform in the box: how simple the decision regions are (F, Example 1). An
    `attack` brings its own norm and box.
    """
    return _mean_margin(shape, norm, attack, box, over="box", name="R1")


def r2(shape: Sequence[int], norm: str = "l2", attack: AttackLike | None = None, box: Box = Box()) -> Score:
    """Return the mean margin of the data, the area under the margin curve (F, Example 2 and Eq. 11): the mean minimum
    adversarial distance. Bounded from above by the nearest of several attacks' points, or by those of an `attack`,
    which brings its own norm and box.
    """
    return _mean_margin(shape, norm, attack, box, name="R2")


def published_r2(shape: Sequence[int], norm: str = "l2", box: Box = Box()) -> Score:
    """Return R2 as F's numbers suggest it was measured: L2 distances of the nearest of BG's point
    and those of FGSM and PGD in a Linf ball of .3 (`equipoise.attacks.published_margin_attack`). Weaker than `r2`, and
    so 10 to 33 % larger. Raises `EquipoiseError` for another norm.
    """
    require(norm == "l2", f"norm {norm!r}: F measures R2 in l2; take r2 for another norm.")
    return replace(r2(shape, attack=published_margin_attack(box=box)), name="R2 as published")


def label_aware(shape: Sequence[int], norm: str = "l2", attack: AttackLike | None = None, box: Box = Box()) -> Score:
    """Return R2 of points misclassified with respect to the true label: the area under the curve of robust accuracy
    over eps, with labels constant within a ball (F, Example 5).
    """
    return _mean_margin(shape, norm, attack, box, label_aware=True, name="label-aware R2")


def certified_r2(
    shape: Sequence[int],
    norm: NormName = "l2",
    method: Method = "crown",
    box: Box = Box(),
    label_aware: bool = False,
) -> Score:
    """Return a certified lower bound of R2, or of `label_aware` R2, whose curve is certified accuracy over eps."""
    robustness, name = Certified(norm, method, label_aware, box), "label-aware R2" if label_aware else "R2"
    return Score(robustness, Radii(diameter(shape, norm, box)), box=box, name=f"certified {name}")


def on_manifold(
    manifold: Manifold, shape: Sequence[int], samples: int = 200, sigma: float = 0.06, norm: str = "l2", count: int = 64
) -> Score:
    """Return the distance along the data manifold to the nearest point classified otherwise (F, Example 3): `R2` with Q
    the distribution of the data. An upper bound, as only some points are tried.
    """
    law = OnManifold(manifold, samples, sigma, norm)
    return Score(Sampled(law), Radii(diameter(shape, norm), count=count), certain, name="on-manifold worst case")


def r4(
    manifold: Manifold,
    shape: Sequence[int],
    samples: int = 200,
    sigma: float = 0.06,
    norm: str = "l2",
    low: float | None = None,
    count: int = 200,
    radii: RadiiName = "uniform",
) -> Score:
    """Return the probability that two nearby samples of the data are classified alike, nearer ones weighing more:
    `mean over eps of P(f(x') = f(x) | ‖x' - x‖ <= eps) / eps` (F, Example 4 and Eq. 9).

    As R tends to 1 where eps tends to 0, the integral down to 0 diverges. With `radii="uniform"` (F, Sec. 3) it is
    over `count` radii that end at `low`, by default d/200: R4 of a constant classifier is `ln(200)/d · 200/199`, .190
    for 28x28 pixels. With `radii="distances"` the samples' own distances are the radii (F, Sec. 7, as it may be read;
    the size of its .280 and .286 is about what comes out), and that R4 is the mean of 1/distance. Numbers of different
    radii, sigma or manifolds cannot be compared.
    """
    if radii not in get_args(RadiiName):
        raise unknown("radii", radii, get_args(RadiiName))
    require(radii == "uniform" or low is None, "low is the end of uniform radii: leave it out with radii='distances'.")
    high = diameter(shape, norm)
    uniform = Radii(high, high / 200 if low is None else low, count, average=True)
    law = OnManifold(manifold, samples, sigma, norm)
    return Score(Sampled(law), uniform if radii == "uniform" else Distances(), identity, inverse, name="R4")


SCORES: dict[str, Callable[..., Score]] = {
    "r1": r1,
    "r2": r2,
    "published-r2": published_r2,
    "label-aware": label_aware,
    "certified-r2": certified_r2,
}
"""The scores that need nothing but a model and samples."""


def score(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels | None = None,
    of: "str | Score" = "r2",
    *,
    seed: int = 0,
    batch_size: int = 256,
    **options: Any,
) -> Estimate:
    """Estimate a score of a model on samples: one of `SCORES` by its name, with `options` such as `norm="linf"`, or
    your own `Score`. `y` are the true labels, for scores that need them. Raises `EquipoiseError` for an unknown name.
    """
    if isinstance(of, Score):
        require(not options, f"a Score has its options already: leave {', '.join(options)} out.")
        return of(model, x, y, seed=seed, batch_size=batch_size)
    if of not in SCORES:
        raise unknown("score", of, SCORES)
    require(isinstance(x, Tensor) and x.ndim > 1, "x: expected a tensor of samples of shape (batch, ...).")
    known = [name for name in signature(SCORES[of]).parameters if name != "shape"]
    for name in options:
        if name not in known:
            raise unknown(f"option of {of}", name, known)
    return SCORES[of](x.shape[1:], **options)(model, x, y, seed=seed, batch_size=batch_size)
