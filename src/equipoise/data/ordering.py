"""The order of classes and samples: by their names, in which numbers count as numbers; and which are held out."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import numpy as np

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def natural(text: str) -> Any:
    """Return a sort key by which `b2` comes before `b10`: texts and numbers in turn, numbers by length first."""
    words = re.split("([0-9]+)", text)
    numbers = [word.lstrip("0") for word in words[1::2]]
    return *zip(words[::2], [*((len(n), n) for n in numbers), (0, "")], strict=True), text


def natural_path(path: PurePosixPath) -> Any:
    """Return the sort key of a path, folder by folder."""
    return [natural(part) for part in path.parts]


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of classes in natural order, by their values if all of them are numbers."""
    names = set(names)
    if all(_NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (Decimal(name), name)))
    return tuple(sorted(names, key=natural))


def held_out(y: np.ndarray, names: Sequence[str], share: float) -> np.ndarray:
    """Return which samples are held out: of each class about `share`, at least one, and not all.

    They are those of the smallest SHA-256 of their names, so that the choice depends on neither order nor machine, and
    further samples hardly change it.
    """
    keys = np.array([hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest() for name in names])
    chosen = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        chosen[members[np.argsort(keys[members], kind="stable")[:count]]] = True
    return chosen
