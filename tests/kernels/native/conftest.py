import pytest


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Whatever the environment says: these tests are about them."""
    monkeypatch.delenv("EQUIPOISE_NATIVE", raising=False)
