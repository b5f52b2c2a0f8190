from pathlib import Path

import pytest

from equipoise.reproduce import Setting, workers


@pytest.fixture
def here(tmp_path: Path) -> Setting:
    """An empty folder of results."""
    return Setting(tmp_path / "out", command="a test")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is looked at after every step."""
    monkeypatch.setattr(workers, "_INTERVAL", 0.0)
