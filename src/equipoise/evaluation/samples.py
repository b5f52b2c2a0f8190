"""A few images, clean and perturbed, for visual inspection."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from equipoise.attacks import pgd, uta
from equipoise.core.errors import require
from equipoise.core.types import Labels, Points, Predictive
from equipoise.evaluation.confirm import predict
from equipoise.geometry import NormName
from equipoise.models import as_predictive

APPEARANCE_EPS = 0.3


def samples(
    model: "nn.Module | Predictive",
    x: Points,
    y: Labels,
    eps: float = APPEARANCE_EPS,
    n: int = 10,
    *,
    judged: tuple[NormName, float] | None = None,
    steps: int = 40,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return the same `n` images clean, at greatest uncertainty (`udp`) and at greatest loss (`pgd`).

    The images are the first correctly classified ones of each class in turn, so that the classes are balanced (wrongly
    classified ones only if there are too few). Both attacks (gradient ascent on the entropy and the cross-entropy)
    return their best point within `eps` in Linf, which is larger than in training so that the change is visible; with a
    norm and a radius in `judged`, greatest loss within these is a fourth kind of image, of that name.
    The arrays are those of `samples.npz` as `Run` describes them. Raises `EquipoiseError` for input that an attack
    cannot take.
    """
    require(n >= 1, f"n = {n}: expected at least one image.")
    device = next(as_predictive(model).module.parameters()).device
    prediction = torch.cat([predict(model, batch.to(device)).cpu() for batch in x.split(256)])
    chosen = _balanced_order(y.cpu(), prediction == y.cpu())[:n]
    clean, labels = x[chosen.to(x.device)].to(device), y[chosen.to(y.device)].to(device)
    options: dict[str, Any] = {"steps": steps, "start": "zero", "return_point": "best"}
    attacks = {"udp": uta(eps, **options), "pgd": pgd(eps, **options)}
    balls: dict[str, tuple[NormName, float]] = dict.fromkeys(attacks, ("linf", eps))
    if judged is not None:
        attacks["judged"], balls["judged"] = pgd(judged[1], norm=judged[0], **options), judged
    images = {"clean": clean} | {name: attack(model, clean, labels, seed=seed).x for name, attack in attacks.items()}
    arrays = {name: image.cpu().numpy() for name, image in images.items()}
    predictions = {f"{name}_prediction": predict(model, image).cpu().numpy() for name, image in images.items()}
    radii = {f"{name}_norm": np.array(norm) for name, (norm, _) in balls.items()}
    radii |= {f"{name}_eps": np.array(radius) for name, (_, radius) in balls.items()}
    return arrays | {"labels": labels.cpu().numpy()} | predictions | radii


def _balanced_order(y: Labels, correct: Tensor) -> Int[Tensor, " batch"]:
    """All samples, correctly classified ones first; of these the first of each class, then the second of each, ..."""
    counts: dict[tuple[bool, int], int] = {}
    keys = []
    for sample, (label, is_correct) in enumerate(zip(y.tolist(), correct.tolist(), strict=True)):
        rank = counts[is_correct, label] = counts.get((is_correct, label), -1) + 1
        keys.append((not is_correct, rank, label, sample))
    return torch.tensor([key[-1] for key in sorted(keys)])
