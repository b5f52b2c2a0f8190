"""Progress of long computations, reported to whoever listens, and their finished parts, kept by whoever stores them.

A loop deep inside an attack knows how far it has come, but not who wants to know. It calls `report`; whoever started
the attack listens with `listening`. A loop over parts of equal weight wraps them in `parts`, and what is reported
inside counts as a share of that part. In the same way `kept` computes a value, or reads it from the store of `keeping`,
so that an interrupted computation continues where it was. Without a listener or a store both cost one look-up.

Listeners and stores belong to the thread (the context, see `contextvars`) that installed them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

Listener = Callable[[int, int, str], None]
"""Called with how many of how many units are done, and what is being done, such as `apgd-t, step 40 of 100`."""


@runtime_checkable
class Store(Protocol):
    """Where finished parts of a computation are kept."""

    def read(self, path: tuple[str, ...]) -> Any:
        """Return what was kept at `path`, or None."""
        ...

    def write(self, path: tuple[str, ...], value: Any) -> None:
        """Keep a finished value."""
        ...


@dataclass
class _Listening:
    """A listener, and the parts inside which the computation is, outermost first: (number, count, name)."""

    listener: Listener
    inside: list[tuple[int, int, str]] = field(default_factory=list)


@dataclass
class _Keeping:
    """A store, the path of the value being computed, and how many values were asked for inside it."""

    store: Store
    path: tuple[str, ...] = ()
    count: int = 0


_listening: ContextVar[_Listening | None] = ContextVar("_listening", default=None)
_keeping: ContextVar[_Keeping | None] = ContextVar("_keeping", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with whatever the computation inside reports, as a share of the whole."""
    token = _listening.set(_Listening(listener))
    try:
        yield
    finally:
        _listening.reset(token)


def report(done: int, of: int, what: str) -> None:
    """Tell the listener, if there is one, that `done` of `of` units are over. `what` is the unit, such as `step`."""
    now = _listening.get()
    if now is None:
        return
    names = [name for _, _, name in now.inside if name]
    text = ", ".join([*names, f"{what} {done} of {of}"])
    for number, count, _ in reversed(now.inside):
        done, of = number * of + done, count * of
    now.listener(done, of, text)


def parts(items: Sequence[T], names: Sequence[str] = ()) -> Iterator[T]:
    """Yield the items one by one; what is reported meanwhile counts as a share of that item, all being equal."""
    now = _listening.get()
    if now is None:
        yield from items
        return
    depth = len(now.inside)
    try:
        for number, item in enumerate(items):
            # Cut back to our own depth: a loop inside that was left early may have left its place behind.
            now.inside[depth:] = [(number, len(items), names[number] if names else "")]
            yield item
    finally:
        del now.inside[depth:]


@contextmanager
def keeping(store: Store) -> Iterator[None]:
    """Keep what `kept` computes inside in `store`, and read it from there where it is finished."""
    token = _keeping.set(_Keeping(store))
    try:
        yield
    finally:
        _keeping.reset(token)


def kept(name: str, compute: Callable[[], T]) -> T:
    """Return what `compute()` returns, or what it returned when this place of the same computation was first reached.

    A place is known by the names of the values around it and by how many were asked for before it, so that the same
    name may occur again. The computation must be deterministic and must not return None.
    """
    now = _keeping.get()
    if now is None:
        return compute()
    path = (*now.path, f"{now.count}-{name}")
    now.count += 1
    found = now.store.read(path)
    if found is not None:
        return found
    token = _keeping.set(_Keeping(now.store, path))
    try:
        value = compute()
    finally:
        _keeping.reset(token)
    now.store.write(path, value)
    return value
