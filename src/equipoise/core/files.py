"""The disk: where files are kept between runs, and what to do when a place cannot be written."""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cache_folder() -> Path | None:
    """Return the folder that keeps downloads, decoded archives and compiled kernels from one run to the next.

    It is `$EQUIPOISE_CACHE`, or else `equipoise` in `$XDG_CACHE_HOME` or `~/.cache`; None for a user without a home
    folder. The folder need not exist, and it may be one that can only be read: a writer has to expect an `OSError`.
    """
    if chosen := os.environ.get("EQUIPOISE_CACHE"):
        return Path(chosen)
    if users := os.environ.get("XDG_CACHE_HOME"):
        return Path(users, "equipoise")
    try:
        return Path.home() / ".cache" / "equipoise"
    except RuntimeError:  # no $HOME, and a user that the system does not know
        return None


@contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """Within the context `folder` is there, with its parents; those that were not, and are empty at the end, go again.

    Raises `OSError` if it cannot be made.
    """
    made = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]  # the innermost first
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for place in made:
            try:
                place.rmdir()
            except OSError:  # it holds something, or was never made
                continue


def plain_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return what a file holds. Raises `OSError` if it cannot be read, also for one that may never end: a device or a
    pipe.
    """
    kind = os.stat(path).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # that of a folder, the system says itself
        raise OSError(errno.EINVAL, "it is not a plain file", os.fspath(path))
    return Path(path).read_bytes()


def plain_json(path: str | os.PathLike[str]) -> Any:
    """Return the data in a file of JSON. Raises `OSError` as `plain_bytes`, and `ValueError` if it is something else,
    also if it is nested too deeply to be read.
    """
    try:
        return json.loads(plain_bytes(path))
    except RecursionError as error:
        raise ValueError(str(error)) from error


def printable(text: object) -> str:
    """Return the text with control characters and bytes that are not UTF-8 escaped, so that it is one line."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def reason(error: OSError) -> str:
    """Return why the system refused, without a full stop, such as `No space left on device`."""
    return error.strerror or str(error) or type(error).__name__


def advice(error: OSError, option: str = "--out") -> str:
    """Return what helps against a file that could not be written: space where there is none, else another place."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"free some space or choose another place with {option}" if full else f"choose another place with {option}"
