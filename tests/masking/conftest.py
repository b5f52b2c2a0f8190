"""Fixtures of the tests for gradient masking."""

import pytest

from equipoise.data import load


@pytest.fixture(scope="session")
def digits():
    return load("digits")


@pytest.fixture
def brief(monkeypatch):
    """Attacks that are over sooner, where it does not matter what they find."""
    for name, number in {"QUERIES": 50, "DRAWS": 50, "RESTARTS": 2}.items():
        monkeypatch.setattr(f"equipoise.masking.plan.{name}", number)
