"""A dataset as tensors: images in [0, 1] and labels, a training and a test split, checked once when they are made."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equipoise.core.documentation import show_attributes
from equipoise.core.errors import EquipoiseError, require, require_integer

_MAX_NAMED = 20  # classes in a summary


def stratified_order(y: Int[Tensor, " n"], seed: int) -> Int[Tensor, " n"]:
    """Return a seeded permutation of the samples in which every prefix has nearly the class shares of the whole.

    The k-th sample drawn of a class with m samples has key `k/m`, k = 0, ..., m-1; samples are sorted by key, ties at
    random. So the first samples show every class once, and balanced classes alternate.
    """
    require_integer("seed", seed)
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    labels = y.cpu()[shuffled]
    counts = torch.bincount(labels)
    grouped = torch.argsort(labels, stable=True)
    rank = torch.arange(len(y)) - (counts.cumsum(0) - counts)[labels[grouped]]
    key = torch.empty(len(y), dtype=torch.float64)
    key[grouped] = rank.double() / counts[labels[grouped]]
    return shuffled[torch.argsort(key, stable=True)]


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their labels.

    Raises `EquipoiseError` unless there is at least one sample, one label per sample, floats that are finite and in
    the box, and int64 labels that are not negative.
    """

    x: Float[Tensor, "n c h w"] | Float[Tensor, "n d"]
    """Images, or vectors of features, in the box."""
    y: Int[Tensor, " n"]
    """Class of each sample, int64."""
    box: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest valid value of a coordinate."""

    def __post_init__(self) -> None:
        shape, labels = tuple(self.x.shape), tuple(self.y.shape)
        require(
            self.x.ndim in (2, 4),
            f"x has shape {shape}; expected images (n, channels, height, width) or features (n, d).",
        )
        require(labels == shape[:1], f"x has shape {shape} and y has shape {labels}; expected one label per sample.")
        require(self.x.numel() > 0, f"there are no samples (x has shape {shape}); expected at least one.")
        valid = f"[{self.box[0]:g}, {self.box[1]:g}]"
        require(self.x.is_floating_point(), f"x has dtype {self.x.dtype}; expected floats in {valid}.")
        require(self.y.dtype == torch.int64, f"y has dtype {self.y.dtype}; expected int64 class numbers.")
        low, high = (float(v) for v in torch.aminmax(self.x))
        require(not math.isnan(low), f"x holds NaN; expected finite values in {valid}.")
        remedy = (
            "divide pixels of 0 to 255 by 255" if high > 2 else "scale them, or cut off rounding errors with clip(0, 1)"
        )
        remedy = f" ({remedy}; or give their own range as box)" if self.box == (0, 1) else ""
        require(
            low >= self.box[0] and high <= self.box[1],
            f"x has values from {low:.9g} to {high:.9g}; expected {valid}{remedy}.",
        )
        require(int(self.y.min()) >= 0, f"y holds the label {int(self.y.min())}; expected class numbers from 0 on.")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: slice | Int[Tensor, " k"]) -> "Split":
        """Select samples by a slice or a tensor of indices; at least one."""
        return Split(self.x[index], self.y[index], self.box)

    def to(self, device: torch.device | str) -> "Split":
        """Return the same samples on `device`."""
        return Split(self.x.to(device), self.y.to(device), self.box)

    def limit(self, n: int, seed: int = 0) -> "Split":
        """Return the first `n` samples of a seeded stratified permutation, or all if there are no more than `n`.

        The samples of a smaller `n` are the first of those of a larger `n`. Raises `EquipoiseError` for `n < 1`.
        """
        require(n >= 1, f"limit = {n}; expected at least one sample.")
        return self if n >= len(self) else self[stratified_order(self.y, seed)[:n].to(self.y.device)]

    def beyond(self, n: int, seed: int = 0) -> "Split":
        """The samples that `limit` leaves out. Raises `EquipoiseError` if it leaves none."""
        require(n < len(self), f"the first {n} of {len(self)} samples leave none: take fewer.")
        return self[stratified_order(self.y, seed)[n:].to(self.y.device)]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split with the same classes and the same shape of sample.

    Raises `EquipoiseError` unless there are at least two classes, every label names one of them, every class has
    samples in both splits, the names of the classes differ, and all samples have one shape.
    """

    name: str
    """Name of the dataset in results."""
    train: Split
    """Training samples, from which `split_validation` takes the validation samples."""
    test: Split
    """Test samples, for final results only."""
    classes: tuple[str, ...]
    """Name of each class, in the order of the labels."""
    sha256: str
    """Digest of all decoded content as it was loaded; `limit` does not change it."""
    notes: tuple[str, ...] = ()
    """Remarks on how it was read, each a phrase: what was passed over and why, and how it was scaled."""
    validation: float = 0.1
    """Share of the training samples that is usually held out for validation."""
    valid: Split | None = None
    """Validation samples of their own, if there are some."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """How images and features became inputs, JSON-ready, by which further ones are read in the same way: `size`, the
    `offset` and `scale` of each feature (subtracted, then divided by), and `box`."""

    def __post_init__(self) -> None:
        where = f"dataset {self.name!r}"
        require(len(self.classes) >= 2, f"{where} has {len(self.classes)} class; expected at least two to tell apart.")
        twice = [name for name, n in Counter(self.classes).items() if n > 1]
        require(not twice, f"{where} has several classes of the name {''.join(twice[:1])!r}; expected different names.")
        a, b = self.shape, tuple(self.test.x.shape[1:])
        require(a == b, f"{where} has training samples of shape {a} and test samples of shape {b}; expected one shape.")
        for name, split in (("training", self.train), ("test", self.test), *self._validation()):
            require(
                split.box == self.train.box and tuple(split.x.shape[1:]) == a,
                f"{where} has {name} samples of shape {tuple(split.x.shape[1:])} in the box {split.box}; expected {a} "
                f"and {self.train.box}, as of the training samples.",
            )
            highest = int(split.y.max())
            require(
                highest < len(self.classes),
                f"{where} has the label {highest} in its {name} split; expected 0 to {len(self.classes) - 1}.",
            )
            absent = torch.bincount(split.y, minlength=len(self.classes)).eq(0).nonzero().flatten().tolist()
            if absent and split is not self.valid:
                names = ", ".join(repr(self.classes[c]) for c in absent[:5]) + (", ..." if len(absent) > 5 else "")
                raise EquipoiseError(
                    f"{where} has no {name} samples of class {names}; expected every class in both splits."
                )

    def _validation(self) -> list[tuple[str, Split]]:
        return [] if self.valid is None else [("validation", self.valid)]

    @property
    def box(self) -> tuple[float, float]:
        """Lowest and highest valid value of an input."""
        return self.train.box

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: `(channels, height, width)`, or `(d,)`."""
        return tuple(self.train.x.shape[1:])

    @property
    def summary(self) -> str:
        """A few lines about the samples, their shape, the classes in their order, and the notes."""
        kind = "images" if self.train.x.ndim == 4 else "samples"
        n, shape = len(self.classes), " x ".join(map(str, self.shape))
        shown = self.classes if n <= _MAX_NAMED else (*self.classes[: _MAX_NAMED - 1], "...", self.classes[-1])
        middle = f", {len(self.valid):,} validation" if self.valid is not None else ""
        splits = f"{len(self.train):,} training{middle} and {len(self.test):,}"
        return "\n".join(
            (
                f"{self.name}: {splits} test {kind} of shape {shape}; {n:,} classes, in this order: {', '.join(shown)}",
                *self.notes,
            )
        )

    def to(self, device: torch.device | str) -> "Dataset":
        """Return the same dataset on `device`."""
        valid = None if self.valid is None else self.valid.to(device)
        return replace(self, train=self.train.to(device), test=self.test.to(device), valid=valid)

    def limit(self, n: int, seed: int = 0) -> "Dataset":
        """Return the dataset with at most `n` training samples (`Split.limit`); the test split stays whole.

        Raises `EquipoiseError` if `n` is below the number of classes.
        """
        classes = len(self.classes)
        require(
            n >= classes, f"limit = {n} is below the {classes} classes of {self.name!r}; expected at least one of each."
        )
        return replace(self, train=self.train.limit(n, seed))

    def split_validation(self, size: int | float | None = None, seed: int = 0) -> tuple[Split, Split]:
        """Return a training and a validation split, disjoint; `test` is not used.

        Without a `size` the validation split is `valid` if the dataset has it. Otherwise both are taken from `train`.

        `size` is a number of samples (int) or a share in (0, 1) (float), by default `validation`. The validation split
        is the end of the stratified permutation from whose start `limit` takes its samples: deterministic, with the
        class shares of the whole. Raises `EquipoiseError` if a split would be empty or a class lack training samples.
        """
        if size is None and self.valid is not None:
            return self.train, self.valid
        n = len(self.train)
        size = self.validation if size is None else size
        require(
            isinstance(size, int) or 0 < size < 1,
            f"validation share = {size}; expected a share between 0 and 1, or a whole number of samples.",
        )
        count = size if isinstance(size, int) else round(size * n)
        largest = n - len(self.classes)
        require(
            1 <= count <= largest,
            f"validation size {size} takes {count} of the {n} training samples of {self.name!r}; "
            + (
                f"expected 1 to {largest}, so that"
                if largest > 0
                else f"{len(self.classes)} classes need more samples, where"
            )
            + " every class keeps one to train on.",
        )
        order = stratified_order(self.train.y, seed).to(self.train.y.device)
        return self.train[order[: n - count]], self.train[order[n - count :]]


show_attributes(__name__)
