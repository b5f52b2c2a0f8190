"""Exclusive use of a file or folder: two commands must not write to one place at the same time.

The lock is the operating system's, on a file beside the place. It is released when the process ends, however that
happens, so that a process that was killed holds nothing.
"""

import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.core.files import folder_made, plain_json

_ATTEMPTS = 8  # how often the file is found to have been removed by its last holder while we waited for it


@contextmanager
def locked(place: "Path | str", patience: float = 0.0) -> Iterator[None]:
    """Hold `place`, a file or folder which need not exist yet, against all other processes that ask for it here.

    A holder has `patience` seconds to let go. Two files lie beside it meanwhile, `.NAME.lock` and `.NAME.owner`;
    folders that were made for them and stay empty are removed. Not reentrant. Raises `EquipoiseError` if another
    process holds the place, naming it, or if nothing can be written beside the place. A file system without locks is
    said in a warning.
    """
    real = Path(place).resolve()
    lock_file, owner_file = (real.with_name(f".{real.name}.{kind}") for kind in ("lock", "owner"))
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_made(real.parent))
            lock = _acquired(lock_file, patience)
            if lock is None:
                raise EquipoiseError(
                    f"{place} is in use by {_owner(owner_file)}: wait until it has ended, end it, or choose another "
                    "place with --out."
                )
        except OSError as error:
            raise EquipoiseError(
                f"cannot write into {real.parent}: {error.strerror}; choose another place with --out."
            ) from error
        except NotImplementedError:
            warnings.warn(
                f"the file system of {real.parent} has no locks: see to it that nothing else writes to {place} "
                "meanwhile.",
                EquipoiseWarning,
                stacklevel=3,
            )
            yield
            return
        try:
            with suppress(OSError):  # the owner is only told to others
                owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat()[:19]}
                owner_file.write_text(json.dumps(owner))
            yield
        finally:
            for file in (owner_file, lock_file):  # while the lock is held
                with suppress(OSError):
                    file.unlink()
            lock.release()


def _acquired(file: Path, patience: float) -> FileLock | None:
    """The lock on the file that has this name now, or None if somebody else holds it.

    A holder removes the file before it lets go, so that a lock can be acquired on a file without a name, which keeps
    nobody out. Then a second lock by the same name succeeds; otherwise it fails, because the first one is in its way.
    """
    for _ in range(_ATTEMPTS):
        lock, again = FileLock(file, is_singleton=False), FileLock(file, is_singleton=False)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            return None
        try:
            again.acquire(timeout=0)
        except Timeout:
            return lock
        again.release()
        lock.release()
    return None


def _owner(file: Path) -> str:
    """The process that holds a lock, in words."""
    try:
        found = plain_json(file)
        return f"process {found['pid']} on {found['host']} since {found['since']} UTC"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
