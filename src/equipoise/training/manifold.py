"""Training of a data manifold, and its file."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.rng import RunStream, fold
from equipoise.data import Dataset
from equipoise.generators import Manifold, auto_encoder, squared_mmd
from equipoise.training.checkpoint import (
    copy_into,
    load_tensors,
    optimizer_tensors,
    restore_optimizer,
    save_tensors,
    with_prefix,
)
from equipoise.training.recipe import Recipe

MANIFOLD_FILE = "manifold.safetensors"
"""Name of a manifold's file in a run directory."""

_RECIPE = ("epochs", "batch_size", "optimizer", "lr", "momentum", "nesterov", "weight_decay", "schedule", "seed")


@dataclass(frozen=True)
class ManifoldLosses:
    """The losses of an epoch, averaged over its samples."""

    reconstruction: float
    """`‖x - dec(enc(x))‖²`, summed over the pixels."""
    mmd: float
    """The estimate of `MMD²` between codes and the standard normal distribution, which may be negative."""


def fit_manifold(
    manifold: Manifold,
    data: Dataset,
    recipe: Recipe | None = None,
    *,
    weight: float = 10.0,
    out: "Path | str | None" = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[ManifoldLosses]:
    """Train `manifold` in place as a Wasserstein auto-encoder on the training inputs of `data`, and return its losses
    by epoch:

        min  mean ‖x - dec(enc(x))‖² + λ MMD²(enc(x), z),    z ~ N(0, I),  λ = `weight`

    (Tolstikhin et al. 2018, Alg. 2, with their λ for MNIST). Of the recipe it uses epochs (10 by default), batch size,
    optimiser, schedule, seed and device. The file `out` is written after every epoch; if it exists, training resumes
    from it, with the same result as without the interruption. `progress` is called with a description and the share
    that is done, in [0, 1]. Raises `EquipoiseError` for data of another shape, a file of another training, and when
    the loss stops being finite.
    """
    recipe, path = recipe or Recipe(epochs=10), None if out is None else Path(out)
    require(weight >= 0, f"weight = {weight} would drive the codes away from the normal law: expected a number >= 0.")
    require(
        len(data.train) // _num_batches(data.train.x, recipe) >= 2,
        f"MMD compares at least 2 codes: {len(data.train)} samples cannot be cut into batches of at least 2 with "
        f"batch_size = {recipe.batch_size}.",
    )
    device = recipe.pick_device()
    x = data.train.x.to(device)
    manifold.to(device).encode(x[:2])
    settings = {"kind": "manifold", "data": data.sha256, "n": len(x), "net": manifold.options, "weight": weight}
    settings |= {name: getattr(recipe, name) for name in _RECIPE}
    optimizer = recipe.make_optimizer(manifold.requires_grad_(True))
    losses = _resume(path, manifold, optimizer, settings) if path is not None and path.exists() else []
    try:
        for epoch in range(len(losses), recipe.epochs):
            losses.append(_epoch(manifold, optimizer, x, recipe, weight, epoch, progress))
            if path is not None:
                _save(path, manifold, optimizer, settings, losses)
    finally:
        manifold.stand()
    return losses


def _epoch(
    manifold: Manifold,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    recipe: Recipe,
    weight: float,
    epoch: int,
    progress: Callable[[str, float], None] | None,
) -> ManifoldLosses:
    manifold.train()
    generator = torch.Generator().manual_seed(abs(fold(recipe.seed, RunStream.ORDER, epoch)))
    # Batches of nearly one size: MMD² needs two samples of the last one too.
    batches = torch.randperm(len(x), generator=generator).tensor_split(_num_batches(x, recipe))
    totals = torch.zeros(2, dtype=torch.float64, device=x.device)
    prior = torch.Generator().manual_seed(abs(fold(recipe.seed, RunStream.NOISE, epoch)))
    for step, index in enumerate(batches):
        done = (epoch + step / len(batches)) / recipe.epochs
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(done)
        batch = x[index.to(x.device)]
        codes = manifold.encode(batch)
        reconstruction = (manifold.decode(codes) - batch).square().flatten(1).sum(1).mean()
        mmd = squared_mmd(codes, torch.randn(codes.shape, generator=prior).to(codes))
        optimizer.zero_grad()
        (reconstruction + weight * mmd).backward()
        optimizer.step()
        totals += len(index) * torch.stack([reconstruction, mmd]).detach()
        if progress is not None:
            progress(f"epoch {epoch + 1}/{recipe.epochs}", done)
    means = (totals / len(x)).tolist()
    require(
        all(abs(mean) < float("inf") for mean in means),
        f"the manifold's loss is no longer finite in epoch {epoch + 1}: lower lr (now {recipe.lr:g}).",
    )
    return ManifoldLosses(*means)


def _num_batches(x: Tensor, recipe: Recipe) -> int:
    return -(-len(x) // recipe.batch_size)


def load_manifold(path: "Path | str") -> Manifold:
    """Load the manifold of a run directory or of a file that `fit_manifold` wrote, with frozen weights.

    Raises `EquipoiseError` if the file is missing, damaged, of something else, or its training is not finished.
    """
    path = Path(path)
    path = path / MANIFOLD_FILE if path.is_dir() else path
    tensors, state = load_tensors(path)
    settings = _settings(state, path)
    done, epochs, net = len(state["losses"]), settings["epochs"], settings["net"]
    require(done == epochs, f"the manifold in {path} has seen {done} of {epochs} epochs: finish its training first.")
    require(net is not None, f"{path} holds a manifold of your own modules: build it and use load_weights.")
    manifold = auto_encoder(net["shape"], net["codes"], net["width"])
    copy_into(manifold, with_prefix(tensors, "model."), str(path))
    return manifold


def _save(
    path: Path,
    manifold: Manifold,
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    losses: list[ManifoldLosses],
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in manifold.state_dict().items()}
    if len(losses) < settings["epochs"]:
        tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer_tensors(optimizer).items()}
    save_tensors(path, tensors, {"how": settings, "losses": [asdict(loss) for loss in losses]})


def _resume(
    path: Path, manifold: Manifold, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> list[ManifoldLosses]:
    """Restore a manifold and its optimiser from the file, and return the losses of its epochs."""
    tensors, state = load_tensors(path)
    saved = _settings(state, path)
    differ = [f"{key} = {saved.get(key)}" for key, value in settings.items() if saved.get(key) != value]
    require(
        not differ,
        f"the manifold in {path} was trained with {', '.join(differ)}: give the same options, or another place.",
    )
    copy_into(manifold, with_prefix(tensors, "model."), str(path))
    restore_optimizer(optimizer, with_prefix(tensors, "optimizer."))
    return [ManifoldLosses(**loss) for loss in state["losses"]]


def _settings(state: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The settings that a manifold was trained with."""
    settings = state.get("how")
    if isinstance(settings, Mapping) and settings.get("kind") == "manifold" and isinstance(state.get("losses"), list):
        return settings
    raise EquipoiseError(
        f"{path} is not the file of a manifold: expected the {MANIFOLD_FILE} of a run, or one that fit_manifold wrote."
    )
