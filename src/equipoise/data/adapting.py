"""Data as other libraries hold them: NumPy arrays, tensors, PyTorch's datasets and loaders, Hugging Face datasets."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data import Dataset as TorchDataset

from equipoise.core.errors import EquipoiseError, EquipoiseWarning, kind_of, require
from equipoise.core.types import Labels, Points
from equipoise.data.array_files import as_samples, numbered
from equipoise.data.dataset import Dataset, Split
from equipoise.data.decoding import plain_image
from equipoise.data.formats import Arrays, Samples, checked_labels, count, some
from equipoise.data.making import make
from equipoise.data.reading import SPLITS, Reading, role_of

_EXPECTED = (
    "expected a pair (x, y) of arrays or tensors, a torch Dataset or DataLoader, a Hugging Face dataset, or an "
    "equipoise.data.Dataset, as equipoise.data.load returns"
)
_BATCH = 256


@dataclass(frozen=True, eq=False)
class _Collected:
    """The samples of one split, in their order."""

    x: np.ndarray
    """Images (n, c, h, w) or features (n, d): bytes, or floats."""
    y: np.ndarray
    """Labels (n,)."""
    classes: tuple[str, ...] | None = None
    """Names of the classes, if the data know them."""
    notes: tuple[str, ...] = ()


def from_any(
    data: Any,
    *,
    name: str = "data",
    classes: Sequence[str] | None = None,
    columns: tuple[str, str] | None = None,
    test_share: float | None = None,
    box: tuple[float, float] | None = None,
) -> Dataset:
    """Return a dataset of whatever holds inputs and labels.

    `data` is a pair `(x, y)` of NumPy arrays or tensors, `((x, y), (x_test, y_test))`, a dictionary of arrays or of
    splits, a torch `Dataset` or `DataLoader`, or a Hugging Face dataset with a column of images and one of classes, or
    with those that `columns` names. They are read once, in their order and into memory, so random transforms are
    applied once. Bytes are divided by 255; floats lie in [0, 1], or in `box`. Without a test split a share of each
    class is held out, `test_share`; with `test_share=0` none is, and `test` is `train`. Raises `EquipoiseError` for
    what cannot be read so, and whatever `Split` and `Dataset` refuse.
    """
    if isinstance(data, Dataset):
        return data
    parts = {split: _collected(part, columns) for split, part in _splits(data).items()}
    named = tuple(classes) if classes is not None else next((p.classes for p in parts.values() if p.classes), None)
    labels, names = numbered({split: part.y for split, part in parts.items()}, named, "the data")
    splits: dict[str, Samples] = {}
    for split, part in parts.items():
        splits[split] = part.x, checked_labels(labels[split], "the data", len(part.x), len(names))
    _require_in_box(splits, box)
    whole = test_share == 0 and "test" not in splits
    if whole:
        splits["test"] = splits["train"]
    notes = tuple(dict.fromkeys(note for part in parts.values() for note in part.notes))
    given = {} if box is None else {"box": list(box)}
    made = make(name, Arrays(splits, names, notes), None if whole else Reading(test_share=test_share or None), given)
    return replace(made, test=made.train, notes=(*made.notes, "no test samples were given")) if whole else made


def inputs_and_labels(data: Any) -> tuple[Points, Labels]:
    """Return the inputs, as float32, and labels of whatever `from_any` takes; of several splits those for testing.

    Bytes are divided by 255; floats may have any range.
    """
    if isinstance(data, Dataset | Split):
        split = data.test if isinstance(data, Dataset) else data
        return split.x, split.y
    splits = _splits(data)
    split = "test" if "test" in splits else "train"
    part = _collected(splits[split], None)
    y = {split: part.y}
    if part.y.dtype.kind in "US" and part.classes is None:  # their numbers are those among the names of all splits
        y |= {other: _collected(given, None).y for other, given in splits.items() if other != split}
    labels, names = numbered(y, part.classes, "the data")
    y = checked_labels(labels[split], "the data", len(part.x), len(names))
    x = np.divide(part.x, 255, dtype=np.float32) if part.x.dtype == np.uint8 else part.x.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y)


def _splits(data: Any) -> dict[str, Any]:
    """The data by split; those without one count as for training."""
    if isinstance(data, Mapping):
        named = {SPLITS[key]: part for key, part in data.items() if isinstance(key, str) and key in SPLITS}
        if "train" in named or "test" in named:
            return named
        roles = {role: value for key, value in data.items() if (role := role_of(str(key)))}
        if "x_train" in roles:
            suffixes = [s for s in ("train", "test", "validation") if {f"x_{s}", f"y_{s}"} <= roles.keys()]
            return {suffix: (roles[f"x_{suffix}"], roles[f"y_{suffix}"]) for suffix in suffixes}
        require({"x", "y"} <= roles.keys(), f"the data have {some([str(key) for key in data])}; {_EXPECTED}.")
        return {"train": (roles["x"], roles["y"])}
    if isinstance(data, tuple | list) and len(data) == 2 and all(map(_is_pair, data)):
        return {"train": data[0], "test": data[1]}
    return {"train": data}


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and _is_array(value[0])


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor)


def _collected(data: Any, columns: tuple[str, str] | None) -> _Collected:
    """The samples of one split."""
    if isinstance(data, Split):
        return _Collected(data.x.numpy(), data.y.numpy())
    if _is_pair(data):
        return _Collected(_inputs(data[0]), _labels(data[1]))
    if type(data).__module__.split(".")[0] == "datasets":
        return _of_rows(data, columns)
    if isinstance(data, DataLoader | TorchDataset):
        return _of_batches(data)
    known = isinstance(data, Iterable) and not isinstance(data, str | bytes | np.ndarray | Tensor | Mapping)
    require(known, f"data is {kind_of(data)}: {_EXPECTED}.")
    return _joined(_pair(batch) for batch in data)


def _inputs(x: Any) -> np.ndarray:
    """Inputs as an array; of tensors the channels come first, of arrays first or last, as in an `.npz` file."""
    if isinstance(x, Tensor):
        array = x.detach().cpu()
        array = (array.float() if array.dtype in (torch.bfloat16, torch.float16) else array).numpy()
        if array.ndim == 4 and array.dtype in (np.uint8, np.float32, np.float64):
            return array
        return as_samples(array, "x")
    return as_samples(np.asarray(x), "x")


def _labels(y: Any) -> np.ndarray:
    labels = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    require(
        labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1),
        f"y has shape {labels.shape}: expected one class number for each sample"
        + (", as y.argmax(1) of shares." if labels.ndim == 2 else "."),
    )
    return np.ravel(labels)


def _of_batches(data: "DataLoader[Any] | TorchDataset[Any]") -> _Collected:
    """The samples of a torch dataset or loader. A loader that shuffles all of a dataset is read in the dataset's order,
    so that what is held out or evaluated does not depend on the draw.
    """
    source = data.dataset if isinstance(data, DataLoader) else data
    collate: Callable[[list[Any]], Any] = _collate
    loader: Iterable[Any]
    if isinstance(data, DataLoader):
        usual = type(data.sampler) in (RandomSampler, SequentialSampler) and type(data.batch_sampler) is BatchSampler
        plain = usual and getattr(data.sampler, "data_source", None) is source and not _draws_again(data.sampler)
        collate = data.collate_fn if data.collate_fn is not torch.utils.data.default_collate else _collate
        loader = data if not plain else DataLoader(source, _BATCH, num_workers=data.num_workers, collate_fn=collate)
    else:
        sized = isinstance(data, IterableDataset) or hasattr(data, "__len__")
        require(sized, f"data is {kind_of(data)} without a length: {_EXPECTED}.")
        loader = DataLoader(data, _BATCH, collate_fn=collate)
    if "Random" in repr(getattr(source, "transform", "")):
        text = "the data have random transforms, which are applied once: leave them out, and use Recipe(augment=...)."
        warnings.warn(text, EquipoiseWarning, stacklevel=2)
    found = _joined(_pair(batch) for batch in loader)
    names = getattr(source, "classes", None)
    known = isinstance(names, tuple | list) and all(isinstance(name, str) for name in names)
    return replace(found, classes=tuple(names) if known and names else None)


def _draws_again(sampler: Any) -> bool:
    """Whether a sampler draws a part of the data, or samples twice."""
    return isinstance(sampler, RandomSampler) and (sampler.replacement or len(sampler) != len(sampler.data_source))


def _collate(items: list[Any]) -> Any:
    """A batch of items, of which an image may be one of Pillow's."""
    pairs = [_pair(item) for item in items]
    remarks: list[str] = []
    return _stacked([_pixels(x, remarks) for x, _ in pairs]), np.array([_number(y) for _, y in pairs])


def _pair(batch: Any) -> tuple[Any, Any]:
    """The inputs and labels of a batch or sample: a pair, or a dictionary with usual names."""
    if isinstance(batch, Mapping):
        roles = {role_of(str(key)) or str(key): value for key, value in batch.items()}
        x = roles.get("x", roles.get("pixel_values"))
        require(
            x is not None and "y" in roles,
            f"a sample has {some([str(key) for key in batch])}: expected an image or features, and a label.",
        )
        return x, roles["y"]
    require(
        isinstance(batch, tuple | list) and len(batch) == 2,
        f"a sample is {kind_of(batch)}{f' of {len(batch)}' if isinstance(batch, tuple | list) else ''}: expected a "
        "pair of inputs and label.",
    )
    return batch[0], batch[1]


def _number(label: Any) -> Any:
    return label.item() if isinstance(label, Tensor | np.generic) and getattr(label, "ndim", 0) == 0 else label


def _pixels(x: Any, remarks: list[str]) -> Any:
    """One input as an array; an image of Pillow's as bytes (c, h, w)."""
    if isinstance(x, Image.Image):
        pixels = np.asarray(plain_image(x, remarks))
        return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _stacked(samples: Sequence[np.ndarray]) -> np.ndarray:
    channels = max((len(x) for x in samples if x.ndim == 3), default=0)
    if channels == 3:  # grey images among coloured ones
        samples = [np.repeat(x, 3, 0) if x.ndim == 3 and len(x) == 1 else x for x in samples]
    shapes = list(dict.fromkeys(x.shape for x in samples))
    require(
        len(shapes) == 1,
        f"the samples have different shapes, such as {' and '.join(map(str, shapes[:2]))}: resize them to one.",
    )
    return np.stack(samples)


def _joined(pairs: Iterator[tuple[Any, Any]]) -> _Collected:
    """The batches in one."""
    batches = [(_batch(x), _labels(y)) for x, y in pairs]
    require(len(batches) > 0, "there are no samples in the data.")
    shapes = list(dict.fromkeys(x.shape[1:] for x, _ in batches))
    require(len(shapes) == 1, f"the batches have samples of different shapes, {some(list(map(str, shapes)))}.")
    x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return _Collected(x, y)


def _batch(x: Any) -> np.ndarray:
    """A batch whose channels come first, as those of torch do."""
    require(_is_array(x), f"the inputs of a batch are {kind_of(x)}: expected a tensor or an array.")
    return _inputs(torch.from_numpy(x) if isinstance(x, np.ndarray) and x.dtype.kind in "fu" else x)


def _of_rows(data: Any, columns: tuple[str, str] | None) -> _Collected:
    """The samples of a Hugging Face dataset, whose images are Pillow's."""
    features = dict(data.features or {})
    require(bool(features), "the Hugging Face dataset does not say which columns it has: give it features.")
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [n for n, kind in kinds.items() if kind == "Image"] or [n for n in features if role_of(n) == "x"]
    labels = [n for n, kind in kinds.items() if kind == "ClassLabel"] or [n for n in features if role_of(n) == "y"]
    if columns is not None:
        images, labels = [columns[0]], [columns[1]]
        absent = [name for name in columns if name not in features]
        require(not absent, f"the dataset has no column {some(absent)}, but {some(list(features))}.")
    require(
        len(images) == len(labels) == 1,
        f"the dataset has the columns {', '.join(f'{n} ({k})' for n, k in kinds.items())}: say which hold the images "
        "and the labels, as equipoise.data.from_any(data, columns=('image', 'label')).",
    )
    remarks: list[str] = []
    dtype = getattr(features[images[0]], "dtype", None) if kinds[images[0]].startswith("Array") else None
    rows = [(np.asarray(_pixels(row[images[0]], remarks), dtype), row[labels[0]]) for row in data]
    require(len(rows) > 0, "there are no samples in the data.")
    x = _stacked([pixels for pixels, _ in rows])
    counts = {text: remarks.count(text) for text in dict.fromkeys(remarks)}
    notes = tuple(f"{count(n, ('image', ''))} {text}" for text, n in counts.items())
    names = getattr(features[labels[0]], "names", None)
    array = _inputs(torch.from_numpy(x)) if kinds[images[0]] == "Image" else as_samples(x, images[0])
    return _Collected(array, _labels([label for _, label in rows]), tuple(names) if names else None, notes)


def _require_in_box(splits: Mapping[str, Samples], box: tuple[float, float] | None) -> None:
    """Raise `EquipoiseError` for negative inputs without a box, which a `Normalize` of a transform usually makes."""
    floats = [x for x, _ in splits.values() if x.dtype.kind == "f" and x.size]
    if box is not None or not floats:
        return
    low, high = min(float(x.min()) for x in floats), max(float(x.max()) for x in floats)
    if low < 0 or 1 < high < 100:
        raise EquipoiseError(
            f"the inputs range over {low:.4g} to {high:.4g}: expected [0, 1]. Leave Normalize out of the transforms "
            "and make it the first layer of the network, or say which inputs are valid, as "
            f"equipoise.data.from_any(data, box=({low:.4g}, {high:.4g}))."
        )
