"""Public names of a package that are imported the first time they are used, so that importing it costs nothing."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and the `__dir__` of a package whose names live in `homes`: each in a module below the
    package, or as `module:name` in one. Modules below it that are no homes are found too.
    """

    def find(name: str) -> Any:
        module, _, member = homes.get(name, name).partition(":")
        if name not in homes and (name.startswith("_") or "." in name or find_spec(f"{package}.{name}") is None):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = import_module(f"{package}.{module}")
        found = getattr(found, member) if member else found
        setattr(sys.modules[package], name, found)
        return found

    def listed() -> list[str]:
        own = vars(sys.modules[package])
        return sorted({*own["__all__"], *(name for name in own if name.startswith("__"))})

    return find, listed
