"""Datasets as tensors in [0, 1]: the published ones by name, the user's own by path, and augmentation of batches."""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy_names

if TYPE_CHECKING:
    from equipoise.data.augment import crop_and_flip
    from equipoise.data.dataset import Dataset, Split
    from equipoise.data.finding import load
    from equipoise.data.published import available, names

__all__ = ["Dataset", "Split", "available", "crop_and_flip", "load", "names"]
_HOMES = {
    "Dataset": "dataset:Dataset",
    "Split": "dataset:Split",
    "available": "published:available",
    "crop_and_flip": "augment:crop_and_flip",
    "load": "finding:load",
    "names": "published:names",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
