"""Datasets as tensors in [0, 1]: the published ones by name, the user's own by path, and augmentation of batches."""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy_names

if TYPE_CHECKING:
    from equipoise.data.adapting import from_any, inputs_and_labels
    from equipoise.data.augment import crop_and_flip
    from equipoise.data.dataset import Dataset, Split
    from equipoise.data.finding import load, load_as
    from equipoise.data.published import available, names
    from equipoise.data.reading import Reading

__all__ = [
    "Dataset",
    "Reading",
    "Split",
    "available",
    "crop_and_flip",
    "from_any",
    "inputs_and_labels",
    "load",
    "load_as",
    "names",
]
_HOMES = {
    "Dataset": "dataset:Dataset",
    "Reading": "reading:Reading",
    "Split": "dataset:Split",
    "available": "published:available",
    "crop_and_flip": "augment:crop_and_flip",
    "from_any": "adapting:from_any",
    "inputs_and_labels": "adapting:inputs_and_labels",
    "load": "finding:load",
    "load_as": "finding:load_as",
    "names": "published:names",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
