"""Settings of every test: one thread, property tests that repeat, and which tests check annotations."""

import signal
from collections.abc import Generator

import jaxtyping
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("repeatable")
# A shell that puts a job in the background has it ignore Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Check annotations, except where a test is about what users get, who run without the check: one named "refus...",
    or marked `unchecked` because it runs whole attacks whose parts are checked elsewhere.
    """
    unchecked = "refus" in item.name.partition("[")[0] or item.get_closest_marker("unchecked") is not None
    jaxtyping.config.update("jaxtyping_disable", unchecked)
    return (yield)


@pytest.fixture(scope="session")
def small_digits():
    """Three hundred training samples of the digits; imported late, so that annotations are checked."""
    from equipoise.data import load

    return load("digits").limit(300)
