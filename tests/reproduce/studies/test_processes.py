"""The processes of a study."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from equipoise.reproduce.studies.processes import run_all

SCRIPT = """
import os, sys, time
from pathlib import Path
from equipoise.reproduce.studies.processes import run_all

def work(task):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    run_all(work, [0, 1], lambda done: None, processes=2)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_they_end_with_a_parent_that_is_killed(tmp_path):
    script, marks = tmp_path / "study.py", tmp_path / "processes"
    script.write_text(SCRIPT)
    marks.mkdir()
    parent = subprocess.Popen([sys.executable, script, marks])
    try:
        assert until(lambda: len(list(marks.iterdir())) == 2, 120), "both processes work"
    finally:
        parent.kill()
        parent.wait()
    children = [int(mark.name) for mark in marks.iterdir()]
    assert until(lambda: not any(map(alive, children)), 20), "nobody waits for their results any more"


def test_an_interruption_waits_for_no_network_under_way():
    def interrupted(done: int) -> None:
        raise KeyboardInterrupt

    began, before = time.monotonic(), set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        run_all(time.sleep, [0.0, 100.0, 100.0], interrupted, processes=2)
    assert time.monotonic() - began < 60 and set(multiprocessing.active_children()) <= before
