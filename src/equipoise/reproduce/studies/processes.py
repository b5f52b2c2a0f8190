"""The networks of a study, distributed over processes."""

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Context manager: PyTorch computes on one thread, on which networks this small are faster; results then do not
    depend on the number of threads either.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_all(
    work: Callable[[Task], Result], tasks: Sequence[Task], report_done: Callable[[int], None], processes: int = 1
) -> list[Result]:
    """Return `work(task)` of each task, in their order, computed by several processes; `report_done` is called with the
    number of finished tasks.

    Each process gets a pickled copy of `work`. (Tensors sent to a process through its queue move into shared memory,
    and NumPy arrays that shared theirs would then look at freed memory.)
    """
    results = []
    if processes == 1 or len(tasks) == 1:
        with one_thread():
            for task in tasks:
                results.append(work(task))
                report_done(len(results))
        return results
    spawn, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, spawn, _begin, (pickle.dumps(work),)) as pool:
        futures = [pool.submit(_do, task) for task in tasks]
        try:
            for future in futures:
                results.append(future.result())
                report_done(len(results))
        except BaseException:  # an interruption or a failed task: do not wait for the networks in training
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise
    return results


def exit_with_parent() -> None:
    """End this process, from a thread of its own, when its parent is killed: it would wait for work for ever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


_own: dict[str, Callable[[Any], Any]] = {}  # in a worker process: its copy of `work`


def _begin(work: bytes) -> None:
    exit_with_parent()
    torch.set_num_threads(1)
    _own["work"] = pickle.loads(work)


def _do(task: Any) -> Any:
    return _own["work"](task)
