"""Errors for users: one sentence each, saying what is wrong, where, what was expected and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real

LONGEST = 200  # characters of a name in a message


class EquipoiseError(ValueError):
    """Unusable input. The message is one sentence for the user; the command line prints it and exits with code 2."""


class NoGradient(EquipoiseError):
    """A model's output has no gradient with respect to its input: the graph does not reach it."""


class EquipoiseWarning(UserWarning):
    """Something works but is probably not intended."""


def require(condition: bool, message: str) -> None:
    """Raise `EquipoiseError(message)` unless `condition` holds."""
    if not condition:
        raise EquipoiseError(message)


def require_integer(name: str, value: object, low: int = -(2**63), high: int = 2**63 - 1) -> None:
    """Raise `EquipoiseError` unless `value`, the argument `name`, is an integer from `low` to `high`; a bool is not.

    By default any 64-bit integer is accepted, such as a seed.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        expected = f" >= {low}" if high >= 2**63 - 1 > low > -(2**63) else f" from {low} to {high}"
        hint = f", as int({value})" if isinstance(value, Integral) and not isinstance(value, int) else ""
        raise EquipoiseError(f"{name} = {value!r:.{LONGEST}}: expected an integer{expected}{hint}.")


def require_number(name: str, value: object) -> None:
    """Raise `EquipoiseError` unless `value`, the argument `name`, is a real number; a bool is not."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise EquipoiseError(f"{name} = {value!r:.{LONGEST}} is {kind_of(value)}: expected a number.")


def kind_of(value: object) -> str:
    """Return the type of `value` with its article, such as `an int`."""
    return article(type(value).__name__)


def article(noun: str) -> str:
    """Return `noun` after its indefinite article."""
    return f"{'an' if noun[0] in 'AEIOaeio' else 'a'} {noun}"


def unknown(kind: str, name: object, options: Iterable[str]) -> EquipoiseError:
    """Return the error for a name that is not one of `options`, suggesting the nearest one."""
    options = sorted(options)
    shown = repr(name) if len(repr(name)) <= LONGEST else f"{repr(name)[:LONGEST]}..."
    near = get_close_matches(str(name).lower(), options, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? Choose" if near else "choose"
    return EquipoiseError(f"unknown {kind} {shown}: {hint} one of {', '.join(options)}.")
