"""Datasets as tensors in [0, 1]: the published ones by name, the user's own by path, and augmentation of batches."""

from equipoise.core.documentation import show_attributes
from equipoise.data.augment import crop_and_flip
from equipoise.data.dataset import Dataset, Split
from equipoise.data.load import available, load, names

__all__ = ["Dataset", "Split", "available", "crop_and_flip", "load", "names"]

show_attributes(__name__)
