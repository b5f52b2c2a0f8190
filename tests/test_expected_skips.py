"""Under continuous integration a test is skipped only where `expected_skips.txt` lists it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TESTS = {
    "test_some.py": """
import pytest

def test_runs(): pass

@pytest.mark.skip(reason="no luck")
def test_listed(): pass

@pytest.mark.skipif(True, reason="no compiler")
def test_by_a_mark(): pass

def test_by_an_import(): pytest.importorskip("a_package_that_is_not_there")

@pytest.mark.xfail(strict=True, reason="known")
def test_known(): assert False
""",
    "test_whole_file.py": """import pytest

pytest.importorskip("a_package_that_is_not_there")

def test_never_seen(): pass
""",
}


@pytest.mark.parametrize("ci", ["true", ""])
def test_an_unexpected_skip_fails(ci, tmp_path):
    for name, text in TESTS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    shutil.copy(HERE / "conftest.py", tmp_path)
    (tmp_path / "expected_skips.txt").write_text("# a comment\n\ntest_some.py::test_listed needs luck\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    run = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "CI": ci}, capture_output=True, text=True, check=False
    )
    if ci:
        assert "1 failed, 1 passed, 1 skipped, 1 xfailed, 2 errors" in run.stdout, run.stdout + run.stderr
        assert "test_some.py::test_by_a_mark was not run (Skipped: no compiler), and tests/expected" in run.stdout
        assert "test_whole_file.py was not run" in run.stdout
    else:
        assert "1 passed, 4 skipped, 1 xfailed" in run.stdout, run.stdout + run.stderr
    assert (run.returncode == 0) == (ci == "")


def test_what_is_listed_exists_and_has_a_reason():
    for line in (HERE / "expected_skips.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern, _, reason = line.partition(" ")
            assert any(HERE.parent.glob(pattern.split("::")[0])) and len(reason.split()) > 2
