"""The networks of a study, shared out among processes."""

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from equipoise.reproduce.studies.options import ReportProgress

Task = TypeVar("Task")
Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads; results then do not depend on their number either."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_all(
    work: Callable[[Task], Result], tasks: Sequence[Task], tell: Callable[[int], None], processes: int = 1
) -> list[Result]:
    """`work` of each task, in their order, shared by several processes; `tell` is called with how many are done.

    Each process gets its own copy of what `work` holds. (Tensors that are sent to a process as they are move into
    shared memory, and whoever looked at their numbers through NumPy looks at freed memory from then on.)
    """
    results = []
    if processes == 1 or len(tasks) == 1:
        with one_thread():
            for task in tasks:
                results.append(work(task))
                tell(len(results))
        return results
    spawn, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, spawn, _begin, (pickle.dumps(work),)) as pool:
        futures = [pool.submit(_do, task) for task in tasks]
        try:
            for future in futures:
                results.append(future.result())
                tell(len(results))
        except BaseException:  # an interruption, or a task that failed: nobody waits for the networks under way
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise
    return results


_own: dict[str, Callable[[Any], Any]] = {}  # of a process that works for another: what it does


def _begin(work: bytes) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    torch.set_num_threads(1)
    _own["work"] = pickle.loads(work)


def _end_with_the_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(task: Any) -> Any:
    return _own["work"](task)


def share(tell: ReportProgress, what: str, total: int, begin: float = 0.0, end: float = 1.0) -> Callable[[int], None]:
    """Tells of a part of a study, from share `begin` to `end` of it, by how many of `total` are done."""
    return lambda done: tell(f"{what} {done}/{total}", begin + (end - begin) * done / total)
