"""Progress, as a long computation reports it from deep inside."""

import threading
from typing import Any

import pytest

from equipoise.core.progress import listening, report, shares


def _steps(n: int) -> None:
    for step in range(n):
        report(step, n, "step")


def test_without_a_listener_nothing_happens() -> None:
    _steps(3)
    assert list(shares([1, 2])) == [1, 2]


def test_a_listener_hears_what_is_reported_and_only_inside() -> None:
    heard: list[Any] = []
    with listening(lambda *now: heard.append(now)):
        _steps(2)
    _steps(2)
    assert heard == [(0, 2, "step 0 of 2"), (1, 2, "step 1 of 2")]


def test_items_are_shares_of_the_whole() -> None:
    heard: list[Any] = []
    with listening(lambda *now: heard.append(now)):
        for n in shares([2, 4], ["first", "second"]):
            for _ in shares(range(2)):
                _steps(n)
    assert [done / of for done, of, _ in heard] == [0, 1 / 8, 2 / 8, 3 / 8, *(0.5 + k / 16 for k in range(8))]
    assert [what for *_, what in heard][-1] == "second, step 3 of 4"


def test_a_loop_that_is_left_early_leaves_no_place_behind() -> None:
    heard: list[Any] = []
    with listening(lambda *now: heard.append(now)):
        for _ in shares(range(3)):
            left_open = shares(range(7))
            next(left_open)
        with pytest.raises(ValueError, match="stop"):
            for _ in shares(range(5), list("abcde")):
                raise ValueError("stop")
        report(1, 2, "step")
    assert heard == [(1, 2, "step 1 of 2")]


def test_another_thread_has_listeners_of_its_own() -> None:
    heard: list[Any] = []
    with listening(lambda *now: heard.append(now)):
        thread = threading.Thread(target=_steps, args=(3,))
        thread.start()
        thread.join()
    assert heard == []
