"""The threads that share the work of the kernels: one pool for the whole process, whose threads sleep when idle.

The work is split into more chunks than threads, each of which takes the next one when it has finished the last, so that
a thread that the system has stopped, for other work on the machine, holds up one chunk only. The caller takes chunks
too and needs nobody: calls from several threads, and calls within a chunk, cannot wait for each other.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue

Kernel = Callable[[int, int], int]
"""Called with the first sample and how many there are; returns 0, or a number if it had no memory."""

_SMALLEST = 8  # chunks per thread in the smallest size: starting a chunk costs some microseconds


def chunks(samples: int, block: int, threads: int, most: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield the first sample and the size of each chunk: a share of what is left, so that the last ones are small
    (Polychronopoulos & Kuck 1987, "Guided self-scheduling"), in multiples of `block` but for the last, and none larger
    than `most` samples. A single thread takes as much as it may.
    """
    blocks = -(-samples // block)
    shares, least = (1, 1) if threads == 1 else (2 * threads, -(-blocks // (_SMALLEST * threads)))
    largest = blocks if most is None else max(most // block, 1)
    first = 0
    while first < blocks:
        count = min(max((blocks - first) // shares, least), largest, blocks - first)
        yield first * block, min(count * block, samples - first * block)
        first += count


class _Job:
    """Chunks that several threads take one after the other until none is left, or one has failed."""

    def __init__(self, waiting: deque[tuple[int, int]], kernel: Kernel) -> None:
        self._waiting, self._kernel = waiting, kernel
        self._changed = threading.Condition()
        self._helpers = 0
        self._error: BaseException | None = None
        self._has_failed = False

    def run(self) -> bool:
        """Compute it in the thread that wants it. Returns whether all chunks had memory; raises what a chunk raised."""
        try:
            self._work()
        finally:
            self._waiting.clear()
            with self._changed:  # an interrupted caller waits too: the others write to its tensors
                self._changed.wait_for(lambda: self._helpers == 0)
        if self._error is not None:
            raise self._error
        return not self._has_failed

    def help(self) -> None:
        """Compute chunks of it in another thread."""
        with self._changed:
            self._helpers += 1
        try:
            self._work()
        except BaseException as error:  # the caller's
            self._error = error
        with self._changed:
            self._helpers -= 1
            self._changed.notify_all()

    def _work(self) -> None:
        try:
            while (chunk := self._next()) is not None:
                if self._kernel(*chunk):
                    self._has_failed = True
                    self._waiting.clear()
        except BaseException:
            self._waiting.clear()
            raise

    def _next(self) -> tuple[int, int] | None:
        try:
            return self._waiting.popleft()
        except IndexError:
            return None


class _Pool:
    """Threads that help with jobs, as many as any job has wanted so far; a program may end while they sleep."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._growing = threading.Lock()
        self._size = 0

    def ask(self, job: _Job, helpers: int) -> None:
        """Let up to so many threads help with a job as soon as they are free: the caller works too, and alone where the
        system lets no thread start.
        """
        with self._growing, suppress(RuntimeError):
            while self._size < helpers:
                threading.Thread(target=self._serve, name="equipoise-kernels", daemon=True).start()
                self._size += 1
        for _ in range(min(helpers, self._size)):
            self._jobs.put(job)

    def _serve(self) -> None:
        while True:
            self._jobs.get().help()


_pool = _Pool()


def _start_anew() -> None:
    """A forked process has none of its parent's threads, and perhaps their locks."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def run_chunks(samples: int, block: int, kernel: Kernel, threads: int, most: int | None = None) -> bool:
    """Call `kernel(first, count)` on all samples in chunks (`chunks`), on up to `threads` threads, this one included.
    Returns whether all calls had memory; raises what one of them raised, after all have ended.
    """
    waiting = deque(chunks(samples, block, threads, most))
    job, helpers = _Job(waiting, kernel), min(threads, len(waiting)) - 1
    if helpers > 0:
        _pool.ask(job, helpers)
    return job.run()
