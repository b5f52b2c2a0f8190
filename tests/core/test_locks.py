"""Two processes must not write to one place, and one that was killed must not keep others out."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.core.locks import locked

HOLD = """
import sys, time
from equipoise.core.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(place: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_place_is_held_by_one_process_until_it_dies(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "aa.json"
    with holder(place) as process:
        try:
            told = rf"aa.json is in use by process {process.pid} on .* since .* UTC: "
            with pytest.raises(EquipoiseError, match=told), locked(place):
                pass
        finally:
            os.kill(process.pid, signal.SIGKILL)
    with locked(place):
        pass
    assert list(place.parent.iterdir()) == [], "nothing is left behind"


def test_other_places_and_other_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    again = tmp_path / "x" / ".." / "run"
    with locked("run"), locked("run.json"), pytest.raises(EquipoiseError, match="in use"), locked(again):
        pass
    with pytest.raises(KeyError), locked("run"):
        raise KeyError
    with locked("run"):
        pass


def test_many_who_come_and_go_are_never_two(tmp_path: Path) -> None:
    inside, most, entered = [0], [0], [0]
    guard = threading.Lock()

    def come_and_go() -> None:
        for _ in range(100):
            try:
                with locked(tmp_path / "aa.json"):
                    with guard:
                        inside[0] += 1
                        entered[0] += 1
                        most[0] = max(most[0], inside[0])
                    with guard:
                        inside[0] -= 1
            except EquipoiseError:
                continue

    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and entered[0] > 8


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(EquipoiseError, match=r"cannot write into .*file: .*; choose another place"),
        locked(tmp_path / "file" / "aa.json"),
    ):
        pass


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(self: object, timeout: float) -> None:
        raise NotImplementedError

    monkeypatch.setattr("equipoise.core.locks.FileLock.acquire", without)
    with (
        pytest.warns(EquipoiseWarning, match="has no locks: see to it that nothing else writes"),
        locked(tmp_path / "a"),
    ):
        pass
