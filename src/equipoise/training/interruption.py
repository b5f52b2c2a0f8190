"""SIGINT and SIGTERM while something trains: asked for at any moment, granted where a checkpoint can be written."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_GRACE = 2.0  # seconds that a step may take to its end after a signal, before it is broken off
_TWICE = 1.0  # a second signal breaks off at once, but not the copy that a shell or a scheduler sends with the first


class Interrupted(KeyboardInterrupt):
    """Work was ended by a signal, after what had been done was kept. The command line exits with 128 + `signal`."""

    def __init__(self, number: int, kept: bool = True) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.signal = number
        self.kept = kept
        """Whether there is something to continue."""


class Stop:
    """Whether somebody asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal = 0
        self._asked_at = 0.0
        self._timer: threading.Timer | None = None

    def ask(self, number: int = signal.SIGTERM) -> None:
        """Ask to stop where it suits."""
        self.signal = self.signal or number

    def grant(self) -> None:
        """Raise `Interrupted`. From now on nothing breaks off any more."""
        self.settle()
        raise Interrupted(self.signal)

    def settle(self) -> None:
        """Break nothing off any more."""
        if self._timer is not None:
            self._timer.cancel()

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """As a signal handler: ask; break off after a grace period, or when asked again."""
        now = time.monotonic()
        if self.signal and now - self._asked_at > _TWICE:
            raise Interrupted(self.signal)
        if not self.signal:
            self._asked_at = now
            main = threading.main_thread().ident
            self._timer = threading.Timer(_GRACE, lambda: signal.pthread_kill(main or 0, number))
            self._timer.daemon = True
            self._timer.start()
        self.ask(number)


@contextmanager
def listening(stop: Stop | None) -> Iterator[None]:
    """Let `stop` hear SIGINT and SIGTERM; with None, both raise `Interrupted` where they arrive.

    Handlers of the caller's own are left alone, and outside the main thread nothing is done: Python handles signals
    there only.
    """
    handle = _raise if stop is None else stop.handle
    before = {}
    if threading.current_thread() is threading.main_thread():
        usual = (signal.SIG_DFL, signal.default_int_handler, _raise)
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) in usual}
    for number in before:
        signal.signal(number, handle)
    _heard.clear()
    try:
        yield
    except KeyboardInterrupt as error:
        if isinstance(error, Interrupted) or not _heard:
            raise
        raise Interrupted(_heard[0]) from error  # Ray raises a plain one in its place
    finally:
        if stop is not None:
            stop.settle()
        for number, handler in before.items():
            signal.signal(number, handler)


_heard: list[int] = []


def _raise(number: int, frame: FrameType | None) -> None:
    _heard.append(number)
    raise Interrupted(number)
