"""The arithmetic of training losses: objectives, terms and methods are added up, and weighted by numbers."""

from abc import ABC, abstractmethod
from inspect import isfunction
from numbers import Real
from typing import Any, NoReturn, TypeVar

from equipoise.core.errors import LONGEST, EquipoiseError, kind_of
from equipoise.core.schedules import Scheduled

T = TypeVar("T", bound="Summand")


class Summand(ABC):
    """Base class of what can be added, subtracted and weighted. A wrong operand raises `EquipoiseError`."""

    @abstractmethod
    def weighted(self: T, weight: float) -> T:
        """The same, multiplied by a number."""

    @staticmethod
    @abstractmethod
    def total(first: "Summand", second: "Summand") -> Any:
        """The sum of two, or `NotImplemented` if the class of the other one knows it."""

    def __add__(self, other: object) -> Any:
        if isinstance(other, Scheduled):
            return NotImplemented  # which adds itself
        return self if _is_zero(other) else self.total(self, summand(other))

    def __radd__(self, other: object) -> Any:
        return self if _is_zero(other) else self.total(summand(other), self)

    def __sub__(self, other: object) -> Any:
        if isinstance(other, Scheduled):
            return NotImplemented
        return self if _is_zero(other) else self + -summand(other)

    def __rsub__(self, other: object) -> Any:
        return -self + other if _is_zero(other) else summand(other) + -self

    def __mul__(self, weight: object) -> Any:
        if isinstance(weight, Scheduled):
            return NotImplemented
        return self.weighted(self._number(weight, "*"))

    __rmul__ = __mul__

    def __truediv__(self, weight: object) -> Any:
        if isinstance(weight, Scheduled):
            return NotImplemented
        return self.weighted(1 / self._number(weight, "/"))

    def __neg__(self: T) -> T:
        return self.weighted(-1.0)

    def __matmul__(self, other: object) -> Any:
        if hasattr(other, "__rmatmul__") and not isinstance(other, Summand):
            return NotImplemented  # an ascent makes the term
        _refuse(f"{self} @ {_named(other)}", "expected an ascent on the right, such as pgd(0.1)")

    def __rmatmul__(self, other: object) -> Any:
        _refuse(f"{_named(other)} @ {self}", "expected an objective on the left and an ascent on the right")

    def _number(self, weight: object, sign: str) -> float:
        """A weight. Raises `EquipoiseError` for anything but a number, and for a division by 0."""
        if not isinstance(weight, Real):
            _refuse(f"{self} {sign} {_named(weight)}", "a weight is a number, such as 2 * cross_entropy")
        if sign == "/" and weight == 0:
            _refuse(f"{self} / {weight}", "expected a number other than 0")
        return float(weight)


def summand(value: object) -> Summand:
    """Return `value` itself. Raises `EquipoiseError` if it is no objective, term or method."""
    if isinstance(value, Summand):
        return value
    if isinstance(value, Real):
        _refuse(f"{value} is a number", f"numbers weigh terms, as in {value} * cross_entropy")
    if isfunction(value) and value.__module__.startswith("equipoise."):
        _refuse(f"{value.__name__} is a function", f"write {value.__name__}()")
    if hasattr(value, "__rmatmul__"):
        _refuse(f"{value} is an attack", "write cross_entropy @ attack for the loss at its points")
    hint = "; a penalty is added by method.with_penalty(weight, penalty)" if callable(value) else ""
    expected = "expected an objective such as cross_entropy, a term or a method"
    _refuse(f"{kind_of(value)} is not part of a training method", expected + hint)


def _is_zero(value: object) -> bool:
    """Whether it is the number 0, with which `sum` begins."""
    return isinstance(value, Real) and value == 0


def _named(value: object) -> str:
    return str(value) if isinstance(value, Summand) else getattr(value, "__name__", f"{value!r:.{LONGEST}}")


def _refuse(what: str, hint: str) -> NoReturn:
    raise EquipoiseError(f"{what}: {hint}.")
