"""Several workers, killed or on a cluster, find what one process finds."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweeps import evaluated, plan, read, records, toy, training

from equipoise.core.errors import EquipoiseError
from equipoise.reproduce import (
    Call,
    MeasureTask,
    Setting,
    sweep,
    workers,
)

pytestmark = [
    pytest.mark.unchecked,
    pytest.mark.usefixtures("often"),
    pytest.mark.filterwarnings("ignore::equipoise.core.errors.EquipoiseWarning"),  # so little trains nothing
]

LONG = plan(2, epochs=6, samples=1400)
DRIVER = """
import sys
from pathlib import Path
from equipoise.reproduce import Setting, sweep
sys.path.insert(0, sys.argv[2])
import test_workers
if __name__ == "__main__":
    outcome = sweep.sweep(test_workers.LONG, Setting(Path(sys.argv[1])), workers=2)
    print(len(outcome.finished), *outcome.failed.values())
"""


def begun(folder: Path, since: set[int]) -> int:
    """The process of a running task that is not among those of `since`."""
    for state in folder.glob("*/progress.json"):
        try:
            pid = read(state)["pid"]
        except (OSError, ValueError):
            continue
        if pid not in since:
            return pid
    return 0


@pytest.mark.timeout(300)
def test_killed_workers_change_nothing(tmp_path):
    folder, dead, rng = tmp_path / "out", set(), random.Random(0)
    env = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), str(Path(__file__).parent)],
        env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while len(dead) < 3:
        assert driver.poll() is None, driver.communicate()
        if pid := begun(folder, dead):
            time.sleep(rng.uniform(0, 0.5))
            dead.add(pid)
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    out, err = driver.communicate(timeout=200)
    assert (driver.returncode, out) == (0, "4\n"), err
    here = Setting(folder)
    assert sum(read(here.folder_of(task) / "done.json")["sittings"] for task in LONG.tasks()) > 4
    alone = Setting(tmp_path / "alone")
    sweep.sweep(LONG, alone, workers=1)
    assert records(LONG, here) == records(LONG, alone)


def test_a_task_that_always_loses_its_worker_fails_and_stops_no_other(here, tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text("import os, signal\ndef now(*_): os.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(workers, "RETRIES", 1)
    dying = MeasureTask(Call("dying:now"), [training()], "Does it work?")
    outcome = sweep.sweep(toy(evaluated(), evaluated(1), dying).plan(), here, workers=2)
    assert list(outcome.failed) == [here.folder_of(dying)] and len(outcome.finished) == 4
    assert "its worker was lost 2 times (killed or out of memory)" in outcome.failed[here.folder_of(dying)]
    assert read(here.folder_of(dying) / "progress.json")["sittings"] == 2


CLUSTER = """
import subprocess, sys
import ray
ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=80 << 20)
address = ray.get_runtime_context().gcs_address
sys.exit(subprocess.run([sys.executable, "-c", sys.argv[1], *sys.argv[2:], address]).returncode)
"""
ON_A_CLUSTER = """
import sys
from pathlib import Path
from equipoise.reproduce import Setting, sweep
sys.path.insert(0, sys.argv[2])
import sweeps
outcome = sweep.sweep(sweeps.plan(), Setting(Path(sys.argv[1])), address=sys.argv[3])
print(len(outcome.finished), *outcome.failed.values())
"""


@pytest.mark.timeout(300)
def test_a_ray_cluster_finds_what_one_process_finds(tmp_path):
    pytest.importorskip("ray", reason="a cluster needs Ray")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    there, alone = Setting(tmp_path / "out"), Setting(tmp_path / "alone")
    words = [sys.executable, "-c", CLUSTER, ON_A_CLUSTER, str(there.folder), str(Path(__file__).parent)]
    driver = subprocess.run(words, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert driver.stdout.splitlines()[-1:] == ["4"], driver.stdout + driver.stderr
    sweep.sweep(plan(), alone, workers=1)
    assert records(plan(), there) == records(plan(), alone)


def test_a_cluster_that_is_not_there_is_refused(here):
    pytest.importorskip("ray", reason="a cluster needs Ray")
    with pytest.raises(EquipoiseError, match=r"there is no Ray cluster at nowhere \(.*leave out --address"):
        sweep.sweep(plan(), here, address="nowhere")
    assert read(here.folder / "experiment.json")["status"] == "interrupted"
