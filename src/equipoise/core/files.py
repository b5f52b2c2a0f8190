"""The disk: where files are kept between runs, and what to do when a place cannot be written."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
