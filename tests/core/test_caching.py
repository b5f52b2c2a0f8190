"""Finished values, as an interrupted computation stores and reads them."""

from typing import Any

import pytest

from equipoise.core.caching import cached, caching


class _Memory(dict[tuple[str, ...], Any]):
    def read(self, path: tuple[str, ...]) -> Any:
        return self.get(path)

    def write(self, path: tuple[str, ...], value: Any) -> None:
        self[path] = value


def test_what_is_finished_is_not_computed_again_and_same_names_stay_apart() -> None:
    calls: list[str] = []

    def leaf(name: str) -> str:
        calls.append(name)
        if name == "d" and len(calls) < 6:
            raise KeyboardInterrupt
        return name

    def inner(names: str) -> str:
        return "".join(cached("leaf", lambda name=name: leaf(name)) for name in names)

    def whole() -> str:
        return cached("x", lambda: inner("ab")) + cached("x", lambda: inner("cde"))

    store = _Memory()
    with pytest.raises(KeyboardInterrupt), caching(store):
        whole()
    assert calls == ["a", "b", "c", "d"]
    calls.extend(["", ""])
    with caching(store):
        assert whole() == "abcde"
    assert calls[6:] == ["d", "e"]
    assert whole() == "abcde" and len(calls) == 13, "without a store everything is computed"
