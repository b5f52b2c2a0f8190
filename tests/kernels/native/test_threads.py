"""The pool of threads: every sample once, whatever becomes of a chunk, of a thread or of the process."""

import os
import subprocess
import sys
import threading
import time

import pytest

from equipoise.core.errors import EquipoiseError
from equipoise.kernels.native import threads as native_threads
from equipoise.kernels.native.build import run_threaded
from equipoise.kernels.native.threads import chunks, run_chunks


@pytest.mark.parametrize("samples", [0, 1, 15, 16, 17, 100, 4097])
@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("most", [None, 1, 40])
def test_chunks_are_all_samples_in_multiples_of_a_block(samples, block, threads, most):
    found = list(chunks(samples, block, threads, most))
    assert [i for first, count in found for i in range(first, first + count)] == list(range(samples))
    assert all(first % block == 0 and count > 0 for first, count in found)
    assert most is None or all(count <= max(most, block) for _, count in found)
    if threads > 1 and most is None and samples >= 4096:
        largest, last = max(count for _, count in found), found[-1][1]
        assert largest < samples / threads and last <= samples / threads / 4 and len(found) <= 12 * threads


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_every_sample_is_computed_once(threads):
    seen = [0] * 1000

    def kernel(first: int, count: int) -> int:
        for i in range(first, first + count):
            seen[i] += 1
        return 0

    for _ in range(50):
        assert run_chunks(1000, 16, kernel, threads)
    assert seen == [50] * 1000


def test_a_thread_that_is_held_up_holds_up_its_chunk_only():
    me, others, blocked = threading.get_ident(), [], threading.Event()

    def kernel(first: int, count: int) -> int:
        if threading.get_ident() == me:
            assert blocked.wait(60)  # until the other thread has done all the rest
        else:
            others.append((first, count))
            if sum(size for _, size in others) >= 64 - 16:
                blocked.set()
        return 0

    assert run_chunks(64, 1, kernel, 2)
    assert len(others) > 4


def test_threads_are_kept():
    def threads() -> set[int]:
        found, met = set(), threading.Barrier(3)

        def kernel(first: int, count: int) -> int:
            met.wait(60)  # three chunks at a time: each thread gets one
            found.add(threading.get_ident())
            return 0

        assert run_chunks(3, 1, kernel, 3)
        return found

    threads()
    before = threading.active_count()
    assert all(len(threads()) == 3 for _ in range(20)) and threading.active_count() == before


@pytest.mark.parametrize("where", ["caller", "helper"])
def test_an_exception_reaches_the_caller_after_all_have_ended(where):
    me, met, running = threading.get_ident(), threading.Barrier(2), []

    def kernel(first: int, count: int) -> int:
        running.append(first)
        if len(running) <= 2:
            met.wait(60)
        if (threading.get_ident() == me) == (where == "caller"):
            raise ZeroDivisionError("of a chunk")
        time.sleep(0.1)
        running.append(-1)  # ended
        return 0

    with pytest.raises(ZeroDivisionError, match="of a chunk"):
        run_chunks(100, 1, kernel, 2)
    assert running.count(-1) == 1  # the one that ran meanwhile; no other was begun
    assert run_chunks(100, 1, lambda first, count: 0, 2)


def test_without_memory_the_rest_is_left():
    begun = []
    with pytest.raises(EquipoiseError, match="no memory is left for the work on 50 samples"):
        run_threaded(50, 1, lambda first, count: begun.append(first) or 1, most=1)
    assert begun == [0]


def test_calls_within_a_chunk_and_from_several_threads_end():
    total, lock = [0], threading.Lock()

    def add(first: int, count: int) -> int:
        with lock:
            total[0] += count
        return 0

    def outer(first: int, count: int) -> int:
        return int(not run_chunks(count, 1, add, 3))

    callers = [threading.Thread(target=run_chunks, args=(100, 1, outer, 3), daemon=True) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not any(caller.is_alive() for caller in callers) and total == [400]


_FORK = """
import os, signal, threading
from equipoise.kernels.native.threads import run_chunks

def idents():
    found, met = set(), threading.Barrier(2)
    def kernel(first, count):
        met.wait(30)
        found.add(threading.get_ident())
        return 0
    assert run_chunks(2, 1, kernel, 2)
    return found

assert len(idents()) == 2
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if len(idents()) == 2 else 1)
assert os.waitpid(child, 0)[1] == 0
print("both", len(idents()))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_forked_process_has_threads_of_its_own_and_both_end():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = [sys.executable, "-W", "ignore", "-c", _FORK]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "both 2\n"), done.stderr


def test_where_no_thread_can_start_the_caller_does_all_the_work(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(native_threads, "_pool", native_threads._Pool())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = []
    assert run_chunks(100, 8, lambda first, count: done.extend(range(first, first + count)) or 0, 4)
    assert sorted(done) == list(range(100))
