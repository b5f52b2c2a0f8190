"""A kill; `make chaos` has a hundred."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from chaos import JOBS, chaos

pytestmark = [pytest.mark.chaos, pytest.mark.unchecked, pytest.mark.timeout(900)]


def test_a_killed_training_is_continued_to_the_same_end(tmp_path):
    jobs = [job for job in JOBS if job.name == "training"]
    assert chaos(tmp_path, 1, 0, jobs, ["SIGKILL"]) == []
