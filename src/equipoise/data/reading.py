"""How the user's own data are read: the choices that a path alone does not settle."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from equipoise.core.checks import check_fields
from equipoise.core.documentation import show_attributes
from equipoise.core.errors import require

FeatureScale = Literal["bounds", "standard", "none"]
TEST_SHARE = 0.2
"""Share of the samples that is held out for testing where no split is given."""
_LARGEST_SIDE = 8192


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the user's own data are read; the published datasets leave nothing to choose."""

    size: str | None = None
    """Size of the images, as 64 or WIDTHxHEIGHT. They are resized until they just cover it, and cropped about the
    centre."""
    test_share: float | None = None
    """Share of each class that is held out for testing where the data have no test split; by default 0.2."""
    validation_data: Path | None = None
    """File or folder of validation samples, read like the data; without it they are held out of the training data."""
    skip_unreadable: bool = False
    """Leave out images and rows that cannot be read, and say how many, instead of refusing the data."""
    keys: tuple[str, ...] = ()
    """Which arrays are which, as x=images y=labels, or x_train=a y_train=b x_test=c y_test=d."""
    label_column: str | None = None
    """Column of a table that names the class; by default the last, or one that is called label or class."""
    feature_scale: FeatureScale | None = None
    """How the features of a table are scaled. By their bounds to [0, 1], to mean 0 and deviation 1 over the training
    samples, or not; by default by their bounds if they leave [0, 1] and no --box is given."""
    box: tuple[float, ...] = ()
    """Lowest and highest valid value of an input, such as 0 255, in which attacks stay; by default 0 1."""

    def __post_init__(self) -> None:
        if type(self) is Reading:
            check_fields(self)
        if self.size is not None:
            self.pixels()
        share = self.test_share
        require(
            share is None or 0 < share < 1,
            f"test_share = {share}: expected a share between 0 and 1, such as 0.2.",
        )
        require(
            not self.box or (len(self.box) == 2 and self.box[0] < self.box[1]),
            f"box = {' '.join(f'{end:g}' for end in self.box)}: expected two numbers, the lower one first.",
        )
        self.roles()

    @staticmethod
    def of(options: Mapping[str, Any]) -> "Reading":
        """Return the choices given as arguments in Python: a size may be a number, keys a dictionary."""
        given = dict(options)
        if isinstance(given.get("size"), int):
            given["size"] = str(given["size"])
        if isinstance(given.get("keys"), Mapping):
            given["keys"] = tuple(f"{role}={key}" for role, key in given["keys"].items())
        for name in ("keys", "box"):
            given[name] = tuple(given.get(name) or ())
        if given.get("validation_data") is not None:
            given["validation_data"] = Path(given["validation_data"])
        return Reading(**given)

    @property
    def reading(self) -> "Reading":
        """These choices alone, also of a request that has them among others."""
        return Reading(**{field.name: getattr(self, field.name) for field in fields(Reading)})

    def pixels(self) -> tuple[int, int]:
        """Width and height of `size`. Raises `EquipoiseError` for anything else than one or two numbers."""
        match = re.fullmatch("([0-9]{1,5})(?:x([0-9]{1,5}))?", str(self.size))
        sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        require(
            min(sides) >= 1 and max(sides) <= _LARGEST_SIDE,
            f"size = {self.size!r:.80}: expected pixels from 1 to {_LARGEST_SIDE}, as 64 or WIDTHxHEIGHT.",
        )
        return sides

    def roles(self) -> dict[str, str]:
        """The role of each array in `keys`. Raises `EquipoiseError` for what is no pair of a role and a name."""
        roles: dict[str, str] = {}
        for pair in ",".join(self.keys).split(",") if self.keys else ():
            role, equals, key = pair.partition("=")
            require(
                bool(equals and key) and role in ROLES and role not in roles.values(),
                f"keys: {pair!r:.80} does not say what an array is: expected ROLE=NAME, each role once, "
                f"of {', '.join(ROLES)}.",
            )
            roles[key] = role
        return roles


ROLES = ("x", "y", *(f"{kind}_{split}" for split in ("train", "test", "validation") for kind in "xy"))
"""What an array can hold: inputs or labels, of all samples or of one split."""
SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
}
"""The splits by the names, in lower case, that folders, files and arrays have."""
_INPUTS = ("x", "data", "image", "images", "img", "imgs", "inputs", "features", "samples")
_LABELS = ("y", "label", "labels", "target", "targets", "class", "classes")
_KINDS = dict.fromkeys(_INPUTS, "x") | dict.fromkeys(_LABELS, "y")
_NEUTRAL = ("set",)


def role_of(name: str) -> str | None:
    """Return the role of an array by its usual names, such as `x_train` for `X_train` or `train_images`."""
    words = [word for word in re.split("[^a-z0-9]+", name.lower()) if word not in _NEUTRAL]
    kinds = [_KINDS[word] for word in words if word in _KINDS]
    splits = [SPLITS[word] for word in words if word in SPLITS]
    if len(kinds) != 1 or len(splits) > 1 or len(kinds) + len(splits) != len(words) or words == ["classes"]:
        return None
    return "_".join([*kinds, *splits])


show_attributes(__name__)
