"""A score on a page: the number, the margin curve with its band, and the nearest points (F, Figs 3 and 4)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from equipoise.attacks import Nearest
from equipoise.attacks.minimum_norm.nearest import share_won
from equipoise.results.findings import Findings, Images, Lines, Number, Picture, Series
from equipoise.scores.estimate import Estimate
from equipoise.scores.radii import Distances

_NUM_SHOWN = 8
_SHOWN_SETTINGS = ("law", "norm", "method", "samples", "sigma", "manifold")


def described(estimates: Mapping[str, Estimate], classes: Sequence[str]) -> Findings:
    """Return the findings about one model, of its scores by name; the first one is shown in full.

    Scores of one unit, such as an upper and a certified lower bound, share a figure.
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
    """The main settings of a score; the record has every parameter."""
    settings = estimate.score.settings()
    parts = {"R": getattr(estimate.score.robustness, "attack", None) or settings["robustness"]}
    parts |= {name: settings[name] for name in _SHOWN_SETTINGS if name in settings}
    return {name: str(part) for name, part in parts.items()} | {
        "H": settings["H"],
        "G": settings["G"],
        "x": f"from the {settings['over']}",
        "eps": str(estimate.score.radii),
    }


def won(estimate: Estimate) -> dict[str, float]:
    """Return the share of each attack in the nearest points (F, Table 2)."""
    attack = getattr(estimate.score.robustness, "attack", None)
    return share_won(attack, estimate.found) if isinstance(attack, Nearest) and estimate.found is not None else {}


def _meaning(estimate: Estimate) -> str:
    """How the score follows from its curve."""
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
    """Samples from the most to the least fragile, and their nearest adversarial examples."""
    found = estimate.found
    assert found is not None
    samples = found.success.nonzero()[:, 0]
    samples = samples[found.distance[samples].argsort()]
    samples = samples[torch.linspace(0, len(samples) - 1, min(_NUM_SHOWN, len(samples))).round().long()]
    clean, adversarial = estimate.x[samples].cpu(), found.x[samples].cpu()
    move = adversarial - clean
    scale = move.abs().flatten(1).amax(1).clamp_min(1e-9).reshape(-1, 1, 1, 1)
    pixels = torch.stack([clean, adversarial, 0.5 + 0.5 * move / scale]).double().clamp(0, 1).numpy()
    notes = [
        [""] * len(samples),
        [f"{classes[int(found.prediction[i])]}, {float(found.distance[i]):.3g}" for i in samples],
        [""] * len(samples),
    ]
    panel = Images(
        "the nearest points found",
        pixels,
        ["sample", "classified otherwise", "difference, scaled"],
        [""] * len(samples),
        notes,
    )
    return Picture(
        "nearest",
        "The nearest points found that are classified otherwise, with their class and distance (F, Fig 3), from the "
        "most fragile of the samples to the most robust.",
        [panel],
        columns=1,
    )
