"""Stand-ins for the published datasets: synthetic images of the same shape and number of classes, to try things out.

They prove nothing about the papers' numbers. Their names begin with `synthetic-`, in every record too.
"""

import io
from pathlib import Path

import numpy as np

from equipoise.core.errors import unknown
from equipoise.core.files import write_atomically
from equipoise.reproduce.tasks import KINDS

PREFIX = "synthetic-"
"""How the name of every stand-in begins."""
_NOISE = 0.15  # deviation around a class's prototype: two classes touch, a network learns to tell them in a few epochs


def stand_in(name: str, folder: Path, train: int = 200, test: int = 100, seed: int = 0) -> Path:
    """Write a stand-in for the dataset of that name as `.npz`, unless it is there, and return its path.

    Every class has a smooth prototype with pixels in [0.2, 0.8]; samples are prototypes plus Gaussian noise, as bytes.
    There are `train` and `test` samples, or three and two of each class if that is more, classes in turn. Raises
    `EquipoiseError` for an unknown name.
    """
    if name not in KINDS:
        raise unknown("dataset", name, KINDS)
    path = folder / f"{PREFIX}{name}.npz"
    if path.exists():
        return path
    kind, rng = KINDS[name], np.random.default_rng(seed)
    channels, height, width = kind.shape
    coarse = rng.uniform(0.2, 0.8, (kind.classes, channels, 4, 4))
    prototypes = np.kron(coarse, np.ones((1, 1, -(-height // 4), -(-width // 4))))[..., :height, :width]
    arrays = {}
    for split, count in (("train", max(train, 3 * kind.classes)), ("test", max(test, 2 * kind.classes))):
        y = np.arange(count) % kind.classes
        x = prototypes[y] + rng.normal(0, _NOISE, (count, *kind.shape))
        arrays |= {f"x_{split}": np.uint8(np.clip(x, 0, 1) * 255), f"y_{split}": y}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return write_atomically(path, buffer.getvalue())
