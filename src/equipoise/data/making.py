"""From arrays to a dataset: on one scale, split, with its digest, and with warnings of what is probably a mistake."""

import hashlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from equipoise.core.errors import EquipoiseError, EquipoiseWarning, require
from equipoise.core.files import printable
from equipoise.data.dataset import Dataset, Split
from equipoise.data.formats import Arrays, count, some
from equipoise.data.ordering import held_out
from equipoise.data.reading import TEST_SHARE, Reading

_MAX_RATIO = 50  # of the largest values of two splits; beyond it their scales may differ
_KINDS = {"train": "training", "test": "test", "validation": "validation"}
_LONG = 12  # features whose scale is told in full


def make(
    name: str, arrays: Arrays, reading: Reading | None = None, preprocessing: Mapping[str, Any] | None = None
) -> Dataset:
    """Return the dataset of `arrays`, with pixels of 0 to 255 scaled to [0, 1] and the digest of the arrays.

    Where there is no test split, a share of each class is held out (`ordering.held_out`). Bytes of all splits are
    divided by 255; if one split is bytes and another floats in [0, 1], bytes that are all 0 or 1 are taken as they are,
    with a note. Floats are scaled, and their box is chosen, as `reading` says, or as by the `preprocessing` of the data
    that a network was trained on. Warns of what is probably a mistake; of the user's own data, which have a `reading`,
    also of samples that are in the training and the test split. The digest is SHA-256 over the type, shape and
    little-endian values of x and y of all splits and over the names of the classes, so the same samples have the same
    digest in every format.
    """
    name, own = printable(name), reading or Reading()
    arrays = _split(arrays, own.test_share)
    digest = hashlib.sha256("\n".join(arrays.classes).encode())
    for array in (array for split in _KINDS if split in arrays.splits for array in arrays.splits[split]):
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    raw = {split: x for split, (x, _) in arrays.splits.items()}
    scaled, notes, remarks = _scaled(raw)
    remarks = (*arrays.warnings, *remarks, *(_duplicates(arrays) if reading else ()))
    scaled, done, told = _boxed(scaled, raw, arrays.is_table, own, preprocessing)
    notes = (*arrays.notes, *notes, *told, *remarks)
    box = tuple(done.get("box", (0.0, 1.0)))

    def split(kind: str) -> Split:
        labels = torch.from_numpy(arrays.splits[kind][1].astype(np.int64))
        try:
            return Split(torch.from_numpy(np.ascontiguousarray(scaled[kind])), labels, (box[0], box[1]))
        except EquipoiseError as error:
            raise EquipoiseError(f"dataset {name!r}, {_KINDS[kind]} split: {error}") from error

    train, test = split("train"), split("test")
    valid = split("validation") if "validation" in scaled else None
    dataset = Dataset(name, train, test, arrays.classes, digest.hexdigest(), notes, valid=valid, preprocessing=done)
    if remarks:
        warnings.warn(f"dataset {name!r}: {'; '.join(remarks)}.", EquipoiseWarning, stacklevel=4)
    return dataset


def _split(arrays: Arrays, share: float | None) -> Arrays:
    """The arrays with a test split."""
    if "test" in arrays.splits:
        require(share is None, f"test_share = {share}: the data have a test split of their own; leave it out.")
        return arrays
    share = TEST_SHARE if share is None else share
    x, y = arrays.splits["train"]
    names = arrays.names.get("train") or [str(i) for i in range(len(y))]
    small = [arrays.classes[label] for label, n in enumerate(np.bincount(y.astype(np.int64))) if n == 1]
    require(not small, f"class {some(small)} has a single sample: expected one to train on and one to test on.")
    chosen = held_out(y, names, share)
    splits = dict(arrays.splits) | {"train": (x[~chosen], y[~chosen]), "test": (x[chosen], y[chosen])}
    kept = {split: [n for n, out in zip(names, chosen, strict=True) if out == (split == "test")] for split in splits}
    kept |= {"validation": arrays.names.get("validation", [])}
    by = "file name" if "train" in arrays.names else "number"
    note = (
        f"there is no test split: {chosen.sum():,} of {len(y):,} samples, {share:g} of each class by {by}, are for it"
    )
    return replace(arrays, splits=splits, names=kept if arrays.names else {}, notes=(*arrays.notes, note))


def with_validation(dataset: Dataset, arrays: Arrays) -> Dataset:
    """Return the dataset with all samples of `arrays` as its validation samples, prepared as its own were.

    Raises `EquipoiseError` for other classes, another shape, or a dataset that has validation samples already.
    """
    require(dataset.valid is None, f"dataset {dataset.name!r} has validation samples of its own: give no others.")
    parts = [arrays.splits["validation"]] if "validation" in arrays.splits else list(arrays.splits.values())
    strange = sorted(set(arrays.classes) - set(dataset.classes))
    require(not strange, f"the validation data have the class {some(strange)}, which {dataset.name!r} has not.")
    number = np.array([dataset.classes.index(name) for name in arrays.classes])
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    scaled, *_ = _scaled({"validation": x})
    boxed, _, notes = _boxed(scaled, {"validation": x}, arrays.is_table, Reading(), dataset.preprocessing)
    digest = hashlib.sha256(f"{dataset.sha256} {x.dtype.str} {x.shape}".encode() + x.tobytes() + y.tobytes())
    try:
        inputs = torch.from_numpy(np.ascontiguousarray(boxed["validation"]))
        valid = Split(inputs, torch.from_numpy(number[y].astype(np.int64)), dataset.box)
    except EquipoiseError as error:
        raise EquipoiseError(f"validation data: {error}") from error
    notes = (*dataset.notes, *(f"validation data: {note}" for note in (*arrays.notes, *notes)))
    return replace(dataset, valid=valid, sha256=digest.hexdigest(), notes=notes)


def _duplicates(arrays: Arrays) -> tuple[str, ...]:
    """A warning of test samples that are also training samples, to the last bit."""
    x, tested = arrays.splits["train"][0], arrays.splits["test"][0]
    if x.dtype != tested.dtype:
        return ()
    number = {_fingerprint(sample): i for i, sample in reversed(list(enumerate(x)))}
    pairs = [(i, number[key]) for i, sample in enumerate(tested) if (key := _fingerprint(sample)) in number]
    if not pairs:
        return ()
    names = [arrays.names.get(split) for split in ("test", "train")]
    test, train = (
        f"{_KINDS[split]} sample {i}" if known is None else printable(known[i])
        for i, known, split in zip(pairs[0], names, ("test", "train"), strict=True)
    )
    return (
        f"{len(pairs):,} of the {len(tested):,} test samples are training samples as well ({test} is {train}), so they "
        "say nothing about new ones",
    )


def _fingerprint(sample: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(sample).tobytes(), digest_size=16).digest()


def _boxed(
    scaled: Mapping[str, np.ndarray],
    raw: Mapping[str, np.ndarray],
    is_table: bool,
    reading: Reading,
    preprocessing: Mapping[str, Any] | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any], tuple[str, ...]]:
    """The inputs scaled feature by feature, how that was done, and notes of it."""
    given = preprocessing or {}
    done: dict[str, Any] = {} if reading.size is None else {"size": reading.size}
    flat = all(x.ndim == 2 for x in scaled.values())
    asked = [f"--{name.replace('_', '-')}" for name in ("box", "feature_scale") if getattr(reading, name)]
    floats = all(x.dtype.kind == "f" for x in raw.values())
    require(floats or not asked, f"{', '.join(asked)}: bytes are divided by 255, to [0, 1]; that is for other numbers.")
    require(flat or reading.feature_scale is None, "--feature-scale: expected features in columns, not images.")
    if "offset" in given:
        x, done, notes = _as_given(raw, given, done)
    else:
        x, affine, notes = _by_feature(scaled, raw, _scale_of(scaled, is_table, reading, preprocessing))
        done |= affine
    box = reading.box or given.get("box")
    if box is None and ("standard" in notes or reading.feature_scale == "none"):
        low = min(float(part.min(initial=0)) for part in x.values())
        high = max(float(part.max(initial=1)) for part in x.values())
        box = (math.floor(low * 10) / 10, math.ceil(high * 10) / 10)
    texts = tuple(note for note in notes if note != "standard")
    if box is not None and tuple(box) != (0.0, 1.0):
        done["box"] = [float(end) for end in box]
        texts += (f"attacks stay within {box[0]:g} to {box[1]:g} in every feature, and eps is measured on that scale",)
    return x, done, texts


def _scale_of(
    scaled: Mapping[str, np.ndarray], is_table: bool, reading: Reading, preprocessing: Mapping[str, Any] | None
) -> str:
    """How features are scaled: as asked for, or by their bounds if those of a table leave [0, 1] without a box, unless
    they are for a network that was trained on others.
    """
    if reading.feature_scale is not None:
        return reading.feature_scale
    inside = all(x.size and x.min() >= 0 and x.max() <= 1 for x in scaled.values())
    return "none" if not is_table or inside or reading.box or preprocessing is not None else "bounds"


def _by_feature(
    scaled: Mapping[str, np.ndarray], raw: Mapping[str, np.ndarray], scale: str
) -> tuple[dict[str, np.ndarray], dict[str, Any], tuple[str, ...]]:
    """The features scaled by their bounds over all samples, or to mean 0 and deviation 1 over the training samples."""
    if scale == "none":
        return dict(scaled), {}, ()
    if scale == "bounds":
        everything = np.concatenate([x.astype(np.float64) for x in raw.values()])
        offset = everything.min(0)
        width = everything.max(0) - offset
        ranges = [f"{a:g} to {a + b:g}" for a, b in zip(offset, width, strict=True)]
        note = (
            "each feature is scaled to [0, 1] by its own lowest and highest value"
            + (f" ({', '.join(ranges)})" if len(ranges) <= _LONG else "")
            + ", so eps is a share of its range",
        )
    else:
        train = raw["train"].astype(np.float64)
        offset, width = train.mean(0), train.std(0)
        note = ("each feature is standardised by its mean and deviation over the training samples", "standard")
    width = np.where(width > 0, width, 1.0)
    affine = {"offset": offset.tolist(), "scale": width.tolist()}
    return {split: ((x - offset) / width).astype(np.float32) for split, x in raw.items()}, affine, note


def _as_given(
    raw: Mapping[str, np.ndarray], given: Mapping[str, Any], done: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any], tuple[str, ...]]:
    """The features scaled as those that a network was trained on, cut off at the box."""
    offset, width = np.array(given["offset"]), np.array(given["scale"])
    wrong = [x.shape for x in raw.values() if x.shape[1:] != offset.shape]
    require(not wrong, f"samples of shape {wrong[:1]} where the network was trained on {len(offset)} features.")
    low, high = given.get("box", (0.0, 1.0))
    x = {split: ((part - offset) / width).astype(np.float32) for split, part in raw.items()}
    beyond = sum(int(((part < low) | (part > high)).any(1).sum()) for part in x.values())
    notes = ("the features are scaled as those that the network was trained on",)
    if beyond:
        notes += (f"{count(beyond, ('sample', ''))} outside the valid range, moved to its edge",)
    return (
        {split: part.clip(low, high) for split, part in x.items()},
        {**done, "offset": given["offset"], "scale": given["scale"]},
        notes,
    )


def _scaled(raw: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...], tuple[str, ...]]:
    """All splits as float32 on one scale, with notes and warnings about it."""
    highest = {split: float(x.max()) if x.size else 0.0 for split, x in raw.items()}
    of_bytes = [split for split, x in raw.items() if x.dtype == np.uint8]
    mixed = 0 < len(of_bytes) < len(raw)
    divided = [split for split in of_bytes if not mixed or highest[split] > 1]
    notes = tuple(
        f"the {_KINDS[split]} samples are {'bytes' if split in of_bytes else 'floats'}, "
        + ("divided by 255" if split in divided else "taken as they are")
        for split in raw
        if mixed
    )
    dark = [_KINDS[split] for split in divided if highest[split] <= 1]
    doubts = (
        f"no byte of the {' and '.join(dark)} samples is above 1: divided by 255 they are nearly black; give floats if "
        "1 stands for white",
    ) * bool(dark)
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large for float32 is refused as infinite
        scaled = {
            split: np.divide(x, 255, dtype=np.float32) if split in divided else np.array(x, np.float32)
            for split, x in raw.items()
        }
    levels = sorted(highest[split] / (255 if split in divided else 1) for split in raw)
    if 0 < levels[0] < levels[-1] / _MAX_RATIO and not doubts:
        doubts = (
            f"the largest value of one split is {levels[0]:g} and of another {levels[-1]:g}: they may have two scales",
        )
    return scaled, notes, doubts
