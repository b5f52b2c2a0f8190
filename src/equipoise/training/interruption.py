"""SIGINT and SIGTERM during a training: requested at any moment, obeyed where a checkpoint can be written."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_GRACE = 2.0  # seconds that a step may take after a signal, before it is interrupted
_DUPLICATE = 1.0  # a second signal interrupts at once, unless it comes so soon: shells and schedulers send copies


class Interrupted(KeyboardInterrupt):
    """A signal ended the work, after its state was saved. The command line exits with 128 + `signal`."""

    def __init__(self, number: int, kept: bool = True) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.signal = number
        self.kept = kept
        """Whether the work can be resumed."""


class Stop:
    """A request to stop: the number of the signal, or 0."""

    def __init__(self) -> None:
        self.signal = 0
        self._asked_at = 0.0
        self._timer: threading.Timer | None = None

    def ask(self, number: int = signal.SIGTERM) -> None:
        """Request a stop at the next opportunity."""
        self.signal = self.signal or number

    def settle(self) -> None:
        """Cancel the interruption after the grace period."""
        if self._timer is not None:
            self._timer.cancel()

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal: request a stop, and interrupt after a grace period or at the next signal."""
        now = time.monotonic()
        if self.signal and now - self._asked_at > _DUPLICATE:
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
    """Let `stop` handle SIGINT and SIGTERM; with None, both raise `Interrupted` at once.

    Handlers of the caller's are not replaced, and outside the main thread, where Python handles no signals, nothing is
    done.
    """
    handle = _raise if stop is None else stop.handle
    before = {}
    if threading.current_thread() is threading.main_thread():
        defaults = (signal.SIG_DFL, signal.default_int_handler, _raise)
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) in defaults}
    for number in before:
        signal.signal(number, handle)
    _received.clear()
    try:
        yield
    except KeyboardInterrupt as error:
        if isinstance(error, Interrupted) or not _received:
            raise
        raise Interrupted(_received[0]) from error  # Ray raises a plain one in its place
    finally:
        if stop is not None:
            stop.settle()
        for number, handler in before.items():
            signal.signal(number, handler)


_received: list[int] = []


def _raise(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    raise Interrupted(number)
