"""Pickles of arrays read without running them: nothing that a pickle names is imported or called."""

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from equipoise.core.errors import EquipoiseError, require
from equipoise.data.files import reason

_PLAIN = re.compile("b1|[iuf][1248]")


class _DType:
    """Stands in for `numpy.dtype` in a pickle: plain numbers only."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]

    def real(self) -> np.dtype[Any]:
        require(bool(_PLAIN.fullmatch(self.code)), f"dtype {self.code} is not a plain number")
        return np.dtype(self.order + self.code if self.order in ("<", ">") else self.code)


class _Array:
    """Stands in for `numpy.ndarray` in a pickle, and becomes a real array in `value`."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: _DType, shape: tuple[int, ...], order: Any) -> "_Array":
        require(isinstance(raw, bytes | bytearray), "the content of an array is not bytes")
        self.value = np.frombuffer(raw, dtype.real()).reshape(shape, order=order)
        return self


class _Call:
    """Stands in for a function in a pickle, which can call it and do nothing else with it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        raise EquipoiseError("it sets the state of a function")


def _encoded(text: str, encoding: str) -> bytes:
    require(encoding == "latin1", f"it encodes text as {encoding}")
    return text.encode("latin-1")  # how protocols 0 to 2 write bytes


def _scalar(dtype: _DType, raw: bytes) -> int | float:
    return np.frombuffer(raw, dtype.real())[0].item()


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Call(_DType),
    ("numpy", "ndarray"): _Call(_Array),
    ("_codecs", "encode"): _Call(_encoded),
    ("builtins", "bytes"): _Call(lambda: b""),
    ("__builtin__", "bytes"): _Call(lambda: b""),
} | {
    (f"numpy.{core}.{module}", name): call
    for core in ("core", "_core")
    for module, name, call in (
        ("multiarray", "_reconstruct", _Call(lambda *_: _Array())),
        ("multiarray", "scalar", _Call(_scalar)),
        ("numeric", "_frombuffer", _Call(lambda *args: _Array().fill(*args))),
    )
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        require((module, name) in _ALLOWED, f"it asks for {module}.{name}, which may run code")
        return _ALLOWED[module, name]


def unpickle(data: bytes, where: str) -> dict[str, Any]:
    """Return the dictionary in a pickle of basic types and numeric arrays, of any protocol; byte keys become text.

    Arrays are built by stand-ins. Raises `EquipoiseError` naming `where` for a pickle that asks for anything else, is
    truncated, or is not a dictionary.
    """
    try:
        for code, value, _ in pickletools.genops(data):  # sizes that are declared are not yet allocated here
            require(not code.name.endswith("PUT") or int(value or 0) <= len(data), f"it stores {value} objects")
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        require(isinstance(content, dict), "it is not a dictionary")
        return {
            key.decode() if isinstance(key, bytes) else str(key): value.value if isinstance(value, _Array) else value
            for key, value in content.items()
        }
    except Exception as error:  # a damaged pickle can raise anything
        raise EquipoiseError(f"{where} is not a readable batch of arrays: {reason(error)}; get it again.") from error
