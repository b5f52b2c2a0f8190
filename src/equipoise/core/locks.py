"""Exclusive use of a file or folder, so that two commands never write to the same place at once.

The lock is the operating system's, on a file beside the path. It is released when the process ends, even if it is
killed.
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
from equipoise.core.files import ensured_folder, read_json

_ATTEMPTS = 8  # times that the lock file may have been removed by its last holder while we waited for it


@contextmanager
def locked(path: "Path | str", timeout: float = 0.0) -> Iterator[None]:
    """Hold a lock on `path`, a file or folder which need not exist yet, against all other processes that call this.

    Waits up to `timeout` seconds for the current holder. Meanwhile two files lie beside it, `.NAME.lock` and
    `.NAME.owner`; folders that were created for them and stay empty are removed. Not reentrant. Raises `EquipoiseError`
    if another process holds the lock, naming it, or if nothing can be written beside the path. Warns if the file system
    has no locks.
    """
    target = Path(path).resolve()
    lock_file, owner_file = (target.with_name(f".{target.name}.{kind}") for kind in ("lock", "owner"))
    with ExitStack() as stack:
        try:
            stack.enter_context(ensured_folder(target.parent))
            lock = _acquired(lock_file, timeout)
            if lock is None:
                raise EquipoiseError(
                    f"{path} is in use by {_owner(owner_file)}: wait until it has ended, end it, or choose another "
                    "place with --out."
                )
        except OSError as error:
            raise EquipoiseError(
                f"cannot write into {target.parent}: {error.strerror}; choose another place with --out."
            ) from error
        except NotImplementedError:
            warnings.warn(
                f"the file system of {target.parent} has no locks: see to it that nothing else writes to {path} "
                "meanwhile.",
                EquipoiseWarning,
                stacklevel=3,
            )
            yield
            return
        try:
            with suppress(OSError):  # the owner file only serves the message to others
                owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat()[:19]}
                owner_file.write_text(json.dumps(owner))
            yield
        finally:
            for file in (owner_file, lock_file):  # while the lock is held
                with suppress(OSError):
                    file.unlink()
            lock.release()


def _acquired(file: Path, timeout: float) -> FileLock | None:
    """A lock on the file that has this name now, or None if another process holds it.

    A holder removes the file before it releases the lock, so we may acquire a lock on a file that no longer has this
    name, which excludes nobody. Then a second lock by the same name succeeds; otherwise the first one blocks it.
    """
    for _ in range(_ATTEMPTS):
        lock, probe = FileLock(file, is_singleton=False), FileLock(file, is_singleton=False)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            return None
        try:
            probe.acquire(timeout=0)
        except Timeout:
            return lock
        probe.release()
        lock.release()
    return None


def _owner(file: Path) -> str:
    """The process that holds a lock, for messages."""
    try:
        owner = read_json(file)
        return f"process {owner['pid']} on {owner['host']} since {owner['since']} UTC"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
