"""A score as a page shows it: the number, the margin curve with its band, and the nearest points (F, Figs 3 and 4)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from equipoise.attacks import Nearest
from equipoise.attacks.minimum_norm.nearest import share_won
from equipoise.results.findings import Findings, Images, Lines, Number, Picture, Series
from equipoise.scores.estimate import Estimate
from equipoise.scores.radii import Distances

_SHOWN = 8


def described(estimates: Mapping[str, Estimate], classes: Sequence[str]) -> Findings:
    """What was found of one model: its scores by what they are called, the first of them first.

    Scores of one unit, such as those by an attack and by a certificate, share a figure.
    """
    first = next(iter(estimates.values()))
    numbers = [Number(name, list(estimate.values), unit="samples") for name, estimate in estimates.items()]
    numbers += [
        Number(f"share of the nearest points found by {part}", [share], unit="attack", percent=True)
        for part, share in won(first).items()
    ]
    if (nowhere := _nowhere(first)) > 0:
        what = "share of the samples for which nothing was found, counted with the largest radius"
        numbers.append(Number(what, [nowhere], unit="attack", percent=True))
    pictures = [_curves(estimates)]
    if first.found is not None and first.x.ndim == 4 and bool(first.found.success.any()):
        pictures.append(_nearest(first, classes))
    settings = {name: _brief(estimate) for name, estimate in estimates.items()}
    return Findings(numbers, pictures, settings, "; ".join(str(estimate) for estimate in estimates.values()) + ".")


def _brief(estimate: Estimate) -> dict[str, Any]:
    """The parts of a score; the record has every parameter."""
    found = estimate.score.settings()
    parts = {"R": getattr(estimate.score.robustness, "attack", None) or found["robustness"]}
    parts |= {name: found[name] for name in ("law", "norm", "method", "samples", "sigma", "manifold") if name in found}
    return {name: str(part) for name, part in parts.items()} | {
        "H": found["H"],
        "G": found["G"],
        "x": f"from the {found['over']}",
        "eps": str(estimate.score.radii),
    }


def won(estimate: Estimate) -> dict[str, float]:
    """The share of each attack in the nearest points (F, Table 2)."""
    attack = getattr(estimate.score.robustness, "attack", None)
    return share_won(attack, estimate.found) if isinstance(attack, Nearest) and estimate.found is not None else {}


def _meaning(estimate: Estimate) -> str:
    """What the score is of its curve."""
    g, radii = estimate.score.settings()["G"], estimate.score.radii
    weighed = "" if g == "alike" else f", weighed by G = {g}"
    if isinstance(radii, Distances):
        return f"its mean over the points{weighed}"
    return f"its mean over eps{weighed}" if radii.average else f"the area under it{weighed}"


def _nowhere(estimate: Estimate) -> float:
    """The share of the samples for which an attack found nothing."""
    return 0.0 if estimate.found is None else float((~estimate.found.success).double().mean())


def _curves(estimates: Mapping[str, Estimate]) -> Picture:
    first = next(iter(estimates.values()))
    x, series = first.radii, []
    for name, estimate in estimates.items():
        low, high = estimate.band_at(x)
        series.append(Series(f"{name}, {estimate.value:.3g}", estimate.profile_at(x).mean(0), low, high))
    h = first.score.settings()["H"]
    what = "share of samples with no point classified otherwise" if h == "certain" else f"mean of H(R), H = {h}"
    bracket = " The truth lies between an attack's curve and a certificate's." if len(estimates) > 1 else ""
    return Picture(
        "margin-curve",
        f"{what[0].upper()}{what[1:]} within eps (F, Eq. 6 and Fig 4), with 95 % intervals; in the legend the score, "
        f"which is {_meaning(first)}.{bracket}",
        [Lines("margin curve", x, series, "eps, in pixels of [0, 1]", what)],
        columns=1,
    )


def _nearest(estimate: Estimate, classes: Sequence[str]) -> Picture:
    """Samples spread over the distances, from the nearest to the farthest, and the point found."""
    found = estimate.found
    assert found is not None
    rows = found.success.nonzero()[:, 0]
    rows = rows[found.distance[rows].argsort()]
    rows = rows[torch.linspace(0, len(rows) - 1, min(_SHOWN, len(rows))).round().long()]
    clean, other = estimate.x[rows].cpu(), found.x[rows].cpu()
    move = other - clean
    scale = move.abs().flatten(1).amax(1).clamp_min(1e-9).reshape(-1, 1, 1, 1)
    pixels = torch.stack([clean, other, 0.5 + 0.5 * move / scale]).double().clamp(0, 1).numpy()
    notes = [
        [""] * len(rows),
        [f"{classes[int(found.prediction[row])]}, {float(found.distance[row]):.3g}" for row in rows],
        [""] * len(rows),
    ]
    panel = Images(
        "the nearest points found",
        pixels,
        ["sample", "classified otherwise", "difference, scaled"],
        [""] * len(rows),
        notes,
    )
    return Picture(
        "nearest",
        "The nearest points found that are classified otherwise, with their class and distance (F, Fig 3), from the "
        "most fragile of the samples to the most robust.",
        [panel],
        columns=1,
    )
