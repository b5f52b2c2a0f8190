"""How many cores there are, and what threads are told before PyTorch is loaded."""

import os
import subprocess
import sys

import pytest

from equipoise.core.processors import available_cores, set_thread_defaults


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "1600000 100000\n"}, 8),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_a_container_may_have_fewer_cores_than_the_machine(files, cores, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cores(tmp_path) == cores


def test_affinity_limits_the_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert available_cores(tmp_path) == 2


def test_defaults_are_set_before_pytorch_is_loaded_and_what_is_set_wins(monkeypatch):
    environment = {}
    set_thread_defaults(environment)  # in this process PyTorch is loaded: too late
    assert environment == {}
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr("equipoise.core.processors.available_cores", lambda: 3)
    set_thread_defaults(environment)
    assert environment == {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "3"}
    chosen = {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "7"}
    set_thread_defaults(environment := dict(chosen))
    assert environment == chosen


def test_the_command_line_lets_idle_threads_sleep():
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    words = [sys.executable, "-m", "equipoise", "doctor"]
    environment |= {"COLUMNS": "300", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
    assert "OMP_WAIT_POLICY=passive" in said
