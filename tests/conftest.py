"""Settings of every test: one thread, property tests that repeat, annotation checks, and which tests may be skipped."""

import os
import signal
from collections.abc import Generator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=20)
settings.register_profile("fuzz", deadline=None, max_examples=200, print_blob=True)
settings.load_profile("repeatable")
# A shell that puts a job in the background has it ignore Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

EXPECTED_SKIPS = [
    line.split()[0]
    for line in (Path(__file__).parent / "expected_skips.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Check annotations, except in tests marked `unchecked` and what is set up for them."""
    jaxtyping.config.update("jaxtyping_disable", item.get_closest_marker("unchecked") is not None)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that is skipped although `expected_skips.txt` does not list it."""
    return failed_if_unexpectedly_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a file that is skipped as a whole although `expected_skips.txt` does not list it."""
    return failed_if_unexpectedly_skipped((yield))


def failed_if_unexpectedly_skipped(report: Any) -> Any:
    """Turn an unexpected skip into a failure. Only under continuous integration, where everything is installed."""
    skipped = report.skipped and not hasattr(report, "wasxfail")
    expected = any(fnmatchcase(report.nodeid, pattern) for pattern in EXPECTED_SKIPS)
    if skipped and not expected and os.environ.get("CI") == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was not run ({reason}), and tests/expected_skips.txt does not list it."
    return report


@pytest.fixture(scope="session")
def small_digits():
    """Three hundred training samples of the digits; imported late, so that annotations are checked."""
    from equipoise.data import load

    return load("digits").limit(300)
