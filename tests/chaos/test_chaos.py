"""A few kills; `make chaos` has a hundred."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from chaos import JOBS, chaos

pytestmark = [pytest.mark.chaos, pytest.mark.unchecked, pytest.mark.timeout(900)]


@pytest.mark.parametrize(("job", "blow"), [("training", "full disk"), ("evaluation by two processes", "SIGTERM")])
def test_a_killed_command_is_continued_to_the_same_end(job, blow, tmp_path):
    assert chaos(tmp_path, 1, 0, [one for one in JOBS if one.name == job], [blow]) == []
