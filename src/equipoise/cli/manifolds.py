"""The data manifold of a run: named, trained first, or found in the run's folder."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from equipoise.cli.console import moving, say
from equipoise.cli.display import share_progress
from equipoise.core.errors import require
from equipoise.core.files import write_atomically
from equipoise.core.rng import Streams
from equipoise.core.torchrun import is_main_process
from equipoise.data import Dataset
from equipoise.generators import Manifold, auto_encoder
from equipoise.training import MANIFOLD_FILE, Recipe, fit_manifold, load_manifold

PICTURE = "manifold.png"
"""What the picture of a manifold is called in a run directory."""

_ROWS, _SAMPLES, _SIDE = 8, 6, 56


def named_manifold(method: Mapping[str, Any], data: Dataset) -> bytes | None:
    """The file of the manifold that the options of a method name, if they do, once it is seen to be one of such data.
    Raises `EquipoiseError` if it is not, or the one to be trained cannot be made.
    """
    if method["manifold"] is None:
        auto_encoder(data.shape, method["codes"])
        Recipe(epochs=method["manifold_epochs"])
        return None
    path = Path(method["manifold"])
    load_manifold(path).encode(data.train.x[:1])
    return (path / MANIFOLD_FILE if path.is_dir() else path).read_bytes()


def manifold_of_run(
    method: Mapping[str, Any], named: bytes | None, data: Dataset, recipe: Recipe, out: Path
) -> Manifold:
    """The manifold of the run in `out`, which keeps it there: the named one, or one trained on the run's own data, that
    is loaded if it is there already and continued if its training was interrupted.
    """
    path = out / MANIFOLD_FILE
    if named is not None:
        require(
            not path.exists() or path.read_bytes() == named,
            f"{path} is another manifold than --manifold {method['manifold']}: leave that flag out, or choose another "
            "place with --out.",
        )
        write_atomically(path, named)
        manifold = load_manifold(path)
    else:
        manifold = auto_encoder(data.shape, method["codes"], seed=recipe.seed)
        how = Recipe(epochs=method["manifold_epochs"], seed=recipe.seed, device=recipe.device)
        losses = fit_manifold(manifold, data, how, out=path, progress=share_progress("learning the manifold"))
        moving("")
        pixels = losses[-1].reconstruction / data.train.x[0].numel()
        say(f"manifold: {method['codes']} numbers a code, squared error {pixels:.2g} a pixel; kept as {path}")
    if is_main_process() and len(data.shape) == 3 and data.shape[0] in (1, 3):
        x = data.test.x[:_ROWS].to(recipe.pick_device())
        streams = Streams.of(recipe.seed, torch.arange(len(x), device=x.device))
        drawn = tiled(manifold.gallery(x, _SAMPLES, method.get("sigma", 0.06), streams).cpu().numpy())
        write_atomically(out / PICTURE, drawn)
    return manifold


def tiled(images: np.ndarray) -> bytes:
    """Images (rows, columns, channels, height, width) in [0, 1] as one PNG, small ones enlarged, with white seams."""
    factor = max(1, _SIDE // images.shape[-1])
    seam = ((0, 0), (0, 0), (0, 0), (0, 2), (0, 2))
    large = np.pad(images.repeat(factor, 3).repeat(factor, 4), seam, constant_values=1.0)
    levels = np.rint(255 * large.transpose(0, 3, 1, 4, 2)).astype(np.uint8)
    rows, height, columns, width, channels = levels.shape
    sheet = levels.reshape(rows * height, columns * width, channels)
    buffer = io.BytesIO()
    Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
