"""Where files are kept between runs, and what is said where a place cannot be written."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from equipoise.core.errors import EquipoiseError
from equipoise.core.files import (
    advice,
    cache_folder,
    ensured_folder,
    read_bytes,
    read_json,
    reason,
    require_writable,
    write_atomically,
)
from equipoise.core.locks import locked
from equipoise.data import available, load
from equipoise.data.finding import published
from equipoise.data.published import SOURCES


@pytest.fixture
def homeless(monkeypatch):
    """No home folder, as for a user that the system does not know."""
    for name in ("EQUIPOISE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


def test_the_folder_is_the_chosen_one_or_in_the_users_cache_or_none(homeless, monkeypatch):
    assert cache_folder() is None
    monkeypatch.setattr(os.path, "expanduser", lambda path: str(path).replace("~", "/home/me"))
    assert cache_folder() == Path("/home/me/.cache/equipoise")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert cache_folder() == Path("/var/cache/me/equipoise")
    monkeypatch.setenv("EQUIPOISE_CACHE", "/big/disk")
    assert cache_folder() == Path("/big/disk")


def test_without_a_home_datasets_on_disk_are_read_and_a_download_is_refused_with_a_remedy(homeless, tmp_path):
    assert load("digits").classes[0] == "0"
    assert not available("mnist", tmp_path)
    with pytest.raises(EquipoiseError, match="no home folder to download it to: set EQUIPOISE_CACHE"):
        published("mnist", SOURCES["mnist"], tmp_path)


def test_finding_the_folder_needs_no_heavy_library():
    code = "import sys; from equipoise.core.files import cache_folder; cache_folder(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_folders_that_stay_empty_are_removed_and_no_others(tmp_path):
    (tmp_path / "there").mkdir()
    with ensured_folder(tmp_path / "there" / "a" / "b"):
        assert (tmp_path / "there" / "a" / "b").is_dir()
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    with ensured_folder(tmp_path / "new" / "deep"):
        (tmp_path / "new" / "kept.txt").write_text("kept")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["kept.txt", "new", "there"]
    with pytest.raises(OSError, match="Not a directory"), ensured_folder(tmp_path / "new" / "kept.txt" / "x"):
        pass
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["kept.txt", "new", "there"]


def test_what_cannot_be_written_leaves_no_folder(tmp_path):
    require_writable(tmp_path / "a" / "b")
    with locked(tmp_path / "c" / "d" / "x.json"):
        assert (tmp_path / "c" / "d").is_dir()
    with pytest.raises(EquipoiseError, match="cannot write"):
        write_atomically(tmp_path / "e" / ("x" * 300), b"")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "free some space or choose another place with --out"),
        (errno.EDQUOT, "free some space or choose another place with --out"),
        (errno.EROFS, "choose another place with --out"),
        (errno.EACCES, "choose another place with --out"),
    ],
)
def test_only_a_full_disk_is_to_be_emptied(number, said):
    assert advice(OSError(number, os.strerror(number))) == said


def test_the_reason_is_never_empty():
    assert reason(OSError(errno.EROFS, "Read-only file system")) == "Read-only file system"
    assert reason(OSError("odd")) == "odd"
    assert reason(OSError()) == "OSError"


def test_a_device_or_a_pipe_is_not_read_because_it_may_never_end(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for endless in ("/dev/zero", tmp_path / "pipe"):
        with pytest.raises(OSError, match="it is not a plain file"):
            read_bytes(endless)
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)


def test_json_that_is_nested_too_deeply_is_none(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="recursion"):
        read_json(tmp_path / "deep.json")
