"""A few images, clean and perturbed, to look at."""

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
    """The same `n` images clean, at greatest uncertainty (`udp`) and at greatest loss (`pgd`).

    The images are the first correctly classified ones of each class in turn, so that the classes are balanced (wrongly
    classified ones only if the others do not suffice). Both climbs (of the entropy and of the cross-entropy, all
    steps) keep their best point within `eps` in Linf, which is larger than in training so that the eye sees a change;
    with a norm and a radius in `judged`, greatest loss within these is a fourth kind of image, of that name.
    Returns the arrays of `samples.npz` as `Run` describes them. Raises `EquipoiseError` for input that an attack
    cannot take.
    """
    require(n >= 1, f"n = {n}: expected at least one image.")
    device = next(as_predictive(model).module.parameters()).device
    prediction = torch.cat([predict(model, part.to(device)).cpu() for part in x.split(256)])
    rows = _in_turn(y.cpu(), prediction == y.cpu())[:n]
    clean, labels = x[rows.to(x.device)].to(device), y[rows.to(y.device)].to(device)
    how: dict[str, Any] = {"steps": steps, "start": "zero", "return_point": "best"}
    attacks = {"udp": uta(eps, **how), "pgd": pgd(eps, **how)}
    balls: dict[str, tuple[NormName, float]] = dict.fromkeys(attacks, ("linf", eps))
    if judged is not None:
        attacks["judged"], balls["judged"] = pgd(judged[1], norm=judged[0], **how), judged
    images = {"clean": clean} | {name: attack(model, clean, labels, seed=seed).x for name, attack in attacks.items()}
    arrays = {name: image.cpu().numpy() for name, image in images.items()}
    predictions = {f"{name}_prediction": predict(model, image).cpu().numpy() for name, image in images.items()}
    radii = {f"{name}_norm": np.array(norm) for name, (norm, _) in balls.items()}
    radii |= {f"{name}_eps": np.array(radius) for name, (_, radius) in balls.items()}
    return arrays | {"labels": labels.cpu().numpy()} | predictions | radii


def _in_turn(y: Labels, right: Tensor) -> Int[Tensor, " batch"]:
    """All rows: the right ones first; among these the first of each class, then the second of each, and so on."""
    seen: dict[tuple[bool, int], int] = {}
    keys = []
    for row, (label, good) in enumerate(zip(y.tolist(), right.tolist(), strict=True)):
        turn = seen[good, label] = seen.get((good, label), -1) + 1
        keys.append((not good, turn, label, row))
    return torch.tensor([key[-1] for key in sorted(keys)])
