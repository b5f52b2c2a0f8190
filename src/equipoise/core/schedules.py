"""Numbers that change over a training, and what is made of them.

    methods.pgd_at(eps=ramp(0, 8 / 255, until=0.3), steps=10)
    cross_entropy + ramp(0, 6) * (kl() @ attacks.trades(eps=0.1))

A schedule is a function of the share of the training that is done. Calling a training method or an attack with one, or
weighting a term by one, gives an expression that is computed anew at every step: `expression.at(done)`.
"""

import operator
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, wraps
from inspect import signature
from typing import Any, TypeVar, cast, get_args, get_type_hints

from equipoise.core.checks import check_fields, checked_call
from equipoise.core.errors import require

F = TypeVar("F", bound=Callable[..., Any])


class Scheduled(ABC):
    """Base class of what depends on the share of the training that is done."""

    @abstractmethod
    def at(self, done: float) -> Any:
        """The number, attack or method after the share `done` in [0, 1] of the training."""

    @abstractmethod
    def turns(self) -> Iterator[float]:
        """The shares at which a schedule in it bends or jumps."""

    def __add__(self, other: object) -> "Scheduled":
        return Expression(operator.add, (self, other))

    def __radd__(self, other: object) -> "Scheduled":
        return Expression(operator.add, (other, self))

    def __sub__(self, other: object) -> "Scheduled":
        return Expression(operator.sub, (self, other))

    def __rsub__(self, other: object) -> "Scheduled":
        return Expression(operator.sub, (other, self))

    def __mul__(self, other: object) -> "Scheduled":
        return Expression(operator.mul, (self, other))

    def __rmul__(self, other: object) -> "Scheduled":
        return Expression(operator.mul, (other, self))

    def __truediv__(self, other: object) -> "Scheduled":
        return Expression(operator.truediv, (self, other))

    def __neg__(self) -> "Scheduled":
        return Expression(operator.neg, (self,))

    def __matmul__(self, other: object) -> "Scheduled":
        return Expression(operator.matmul, (self, other))

    def __rmatmul__(self, other: object) -> "Scheduled":
        return Expression(operator.matmul, (other, self))

    def __getattr__(self, name: str) -> Any:
        hint = f"take it at a moment of the training, as in .at(1.0).{name}"
        raise AttributeError(f"{type(self).__name__} has no {name}: {hint}")


@dataclass(frozen=True)
class Schedule(Scheduled):
    """A number that is linear between points `(share of the training, value)`; constant before and after them.

    Two points at one share make a jump, to the second. As text, in records and on the command line, `0..0.1@0.3` rises
    from 0 to 0.1 over the first 0.3 of the training, and `0@0,0.1@0.3,0.05@1` lists points. Where a function takes an
    integer, such as a number of steps, the number is rounded to the nearest one.
    """

    points: tuple[tuple[float, float], ...]
    """The points, in the order of their shares, which lie in [0, 1]."""

    def __post_init__(self) -> None:
        check_fields(self)
        shares = [share for share, _ in self.points]
        require(
            len(shares) > 0 and shares == sorted(shares) and all(0 <= share <= 1 for share in shares),
            f"a schedule at the shares {', '.join(f'{share:g}' for share in shares) or 'none'}: expected one or more "
            "shares of the training in [0, 1], in rising order.",
        )

    def at(self, done: float) -> float:
        """The value after the share `done` of the training."""
        after = bisect_right(self.points, done, key=lambda point: point[0])
        if after == 0 or after == len(self.points):
            return self.points[max(after - 1, 0)][1]
        (start, low), (end, high) = self.points[after - 1], self.points[after]
        return low + (high - low) * (done - start) / (end - start)

    def turns(self) -> Iterator[float]:
        """The shares of its points."""
        yield from (share for share, _ in self.points)

    def __str__(self) -> str:
        if len(self.points) == 2 and self.points[0][0] == 0:
            (_, start), (until, end) = self.points
            return f"{start:.12g}..{end:.12g}" + ("" if until == 1 else f"@{until:.12g}")
        return ",".join(f"{value:.12g}@{share:.12g}" for share, value in self.points)


@checked_call()
def ramp(start: float, end: float, until: float = 1.0, after: float = 0.0) -> Schedule:
    """A number that goes linearly from `start` to `end` between the shares `after` and `until` of the training, such as
    the warm-up of a radius: `ramp(0, 0.1, until=0.3)`.
    """
    return Schedule(((after, start), (until, end)))


def piecewise(*points: tuple[float, float]) -> Schedule:
    """A number that is linear between `(share of the training, value)`: `piecewise((0, 5), (0.5, 5), (0.5, 10))`."""
    return Schedule(points)


@dataclass(frozen=True, repr=False)
class Expression(Scheduled):
    """A function of arguments some of which are scheduled. Raises what the function raises at any turn of them."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for done in {0.0, 1.0, *self.turns()}:
            self.at(done)

    def at(self, done: float) -> Any:
        """What the function returns at that moment."""
        whole = _integers(self.function)
        args = (_at(value, done, number in whole) for number, value in enumerate(self.args))
        return self.function(*args, **{name: _at(value, done, name in whole) for name, value in self.options})

    def turns(self) -> Iterator[float]:
        """The turns of all arguments."""
        for value in (*self.args, *dict(self.options).values()):
            if isinstance(value, Scheduled):
                yield from value.turns()

    def __str__(self) -> str:
        sign, words = _SIGNS.get(self.function), [str(value) for value in self.args]
        if sign is None:
            named = (f"{name}={value}" for name, value in self.options)
            return f"{self.function.__name__}({', '.join([*words, *named])})"
        return f"({sign.join(words)})" if len(words) > 1 else f"({sign.strip()}{words[0]})"

    __repr__ = __str__


def schedulable(function: F) -> F:
    """Decorate a function so that it also takes schedules, and then returns an `Expression`."""

    @wraps(function)
    def deferring(*args: Any, **options: Any) -> Any:
        if any(isinstance(value, Scheduled) for value in (*args, *options.values())):
            return Expression(function, args, tuple(options.items()))
        return function(*args, **options)

    return cast(F, deferring)


def parse_schedule(text: str, number: Callable[[str], float] = float) -> Schedule:
    """The schedule that a text such as `0..0.1@0.3` or `0@0,0.1@0.3` stands for; `number` reads its values. Raises
    `ValueError` if it stands for none, and `EquipoiseError` for shares out of range.
    """
    start, dots, rest = text.partition("..")
    if dots:
        end, at, until = rest.partition("@")
        return ramp(number(start), number(end), until=float(until) if at else 1.0)
    points = [word.partition("@") for word in text.split(",")]
    return Schedule(tuple((float(share), number(value)) for value, _, share in points))


_SIGNS = {
    operator.add: " + ",
    operator.sub: " - ",
    operator.mul: " * ",
    operator.truediv: " / ",
    operator.matmul: " @ ",
    operator.neg: " -",
}


@cache
def _integers(function: Callable[..., Any]) -> frozenset[int | str]:
    """The parameters of a function that are integers, by name and by number."""
    hints = get_type_hints(function)
    names = list(signature(function).parameters)
    whole = [name for name in names if int in (hints.get(name), *get_args(hints.get(name)))]
    return frozenset([*whole, *map(names.index, whole)])


def _at(value: Any, done: float, integer: bool) -> Any:
    if not isinstance(value, Scheduled):
        return value
    now = value.at(done)
    return round(now) if integer and isinstance(now, float) else now
