"""A Ray cluster, whose machines see the same folders as this one."""

import logging
import os
import platform
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from equipoise.core.errors import EquipoiseError

RETRIES = 5
"""How often a task may lose its worker."""


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield Ray, connected to the cluster at this address; one that was connected before stays so.

    Raises `EquipoiseError` if Ray is not installed or there is no cluster.
    """
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise EquipoiseError(
            "a cluster needs Ray, which is not installed: pip install 'equipoise[sweeps]', or leave out --address to "
            "work on this machine."
        ) from error
    own = not ray.is_initialized()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _signals_as_they_were():
                if own:
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise EquipoiseError(
                f"there is no Ray cluster at {address} ({str(error).strip().splitlines()[0]}): give the address of a "
                "running one, or leave out --address to work on this machine."
            ) from error
        try:
            yield ray
        finally:
            if own:
                ray.shutdown()


def go_to(folder: str) -> None:
    """Make a folder of the machine that asked the current one of this machine. Raises `EquipoiseError` if it cannot."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise EquipoiseError(
            f"{platform.node()} does not see the folder {folder}: all machines of a cluster need the same folders."
        ) from error


def lost(why: object, attempts: int = RETRIES + 1) -> str:
    """Return why a task was lost, with how often it was tried."""
    reason = (str(why).strip() or type(why).__name__).splitlines()[0]
    return f"its worker was lost {attempts} times ({reason})"


@contextmanager
def _signals_as_they_were() -> Iterator[None]:
    """Leave SIGINT and SIGTERM to whoever handled them: Ray takes SIGTERM, and prints its native stack at one."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
