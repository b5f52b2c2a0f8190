"""Progress of long computations.

A loop deep inside an attack calls `report`; the caller of the attack receives the reports with `listening`. A loop
over equal shares of the work iterates over `shares(items)`, and what is reported inside counts as part of that share.
Without a listener both cost one look-up.

A listener belongs to the thread (the context, see `contextvars`) that installed it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

Listener = Callable[[int, int, str], None]
"""Called with the number of finished units, the total, and a description such as `apgd-t, step 40 of 100`."""


@dataclass
class _Progress:
    """A listener, and the shares that the computation is in, outermost first: (number, count, name)."""

    listener: Listener
    shares: list[tuple[int, int, str]] = field(default_factory=list)


_current: ContextVar[_Progress | None] = ContextVar("_current", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with what the computation inside reports, as a share of the whole."""
    token = _current.set(_Progress(listener))
    try:
        yield
    finally:
        _current.reset(token)


def report(done: int, of: int, unit: str) -> None:
    """Report to the listener, if there is one, that `done` of `of` units are finished; `unit` is their name, such as
    `step`.
    """
    progress = _current.get()
    if progress is None:
        return
    names = [name for _, _, name in progress.shares if name]
    text = ", ".join([*names, f"{unit} {done} of {of}"])
    for number, count, _ in reversed(progress.shares):
        done, of = number * of + done, count * of
    progress.listener(done, of, text)


def shares(items: Sequence[T], names: Sequence[str] = ()) -> Iterator[T]:
    """Yield the items one by one; what is reported meanwhile counts as part of that item, all being equal."""
    progress = _current.get()
    if progress is None:
        yield from items
        return
    depth = len(progress.shares)
    try:
        for number, item in enumerate(items):
            # Cut back to our own depth: an inner loop that was left early may not have removed its entry.
            progress.shares[depth:] = [(number, len(items), names[number] if names else "")]
            yield item
    finally:
        del progress.shares[depth:]
