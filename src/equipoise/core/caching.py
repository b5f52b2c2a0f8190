"""Finished values of a long computation, cached so that it continues where it was interrupted.

`cached` computes a value, or reads it from the store of `caching`. Without a store it costs one look-up. A store
belongs to the thread (the context, see `contextvars`) that installed it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Store(Protocol):
    """Holds finished values of a computation."""

    def read(self, path: tuple[str, ...]) -> Any:
        """Return the value at `path`, or None."""
        ...

    def write(self, path: tuple[str, ...], value: Any) -> None:
        """Store a finished value."""
        ...


@dataclass
class _Cache:
    """A store, the path of the value being computed, and the number of values requested inside it."""

    store: Store
    path: tuple[str, ...] = ()
    count: int = 0


_current: ContextVar[_Cache | None] = ContextVar("_current", default=None)


@contextmanager
def caching(store: Store) -> Iterator[None]:
    """Store what `cached` computes inside in `store`, and read what is finished from there."""
    token = _current.set(_Cache(store))
    try:
        yield
    finally:
        _current.reset(token)


def cached(name: str, compute: Callable[[], T]) -> T:
    """Return `compute()`, or the stored result of the same call in an earlier run of the same computation.

    A call is identified by the names of the values around it and by the number of calls before it, so that names may
    repeat. The computation must be deterministic and must not return None.
    """
    cache = _current.get()
    if cache is None:
        return compute()
    path = (*cache.path, f"{cache.count}-{name}")
    cache.count += 1
    stored = cache.store.read(path)
    if stored is not None:
        return stored
    token = _current.set(_Cache(cache.store, path))
    try:
        value = compute()
    finally:
        _current.reset(token)
    cache.store.write(path, value)
    return value
