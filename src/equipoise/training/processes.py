"""The processes that train together: those that torchrun started, or those that this one starts."""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy

from equipoise.core.errors import EquipoiseError, EquipoiseWarning, require
from equipoise.core.torchrun import World
from equipoise.training.interruption import Interrupted, Stop

_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"
Connection = Any  # of multiprocessing, whose type differs between systems

_GRACE = 3.0  # seconds for the processes to end by themselves, so that all have within five


def fabric_of(world: World, kind: str, precision: Any) -> Fabric:
    """The process as a part of this world, whatever a cluster's variables say."""
    here = _Told(world)
    if world.size == 1:
        return Fabric(accelerator=kind, devices=1, precision=precision, plugins=[here])
    # Gradients averaged over processes; a network may have parameters that its outputs do not use.
    strategy = DDPStrategy(cluster_environment=here, find_unused_parameters=True)
    nodes = world.size // world.local_size
    fabric = Fabric(accelerator=kind, strategy=strategy, devices=world.local_size, num_nodes=nodes, precision=precision)
    fabric.launch()
    return fabric


class _Told(ClusterEnvironment):
    """A cluster environment that is told everything and looks at no variables."""

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._world.address

    @property
    def main_port(self) -> int:
        return self._world.port

    @staticmethod
    def detect() -> bool:
        return True

    def world_size(self) -> int:
        return self._world.size

    def set_world_size(self, size: int) -> None: ...

    def global_rank(self) -> int:
        return self._world.rank

    def set_global_rank(self, rank: int) -> None: ...

    def local_rank(self) -> int:
        return self._world.local_rank

    def node_rank(self) -> int:
        return self._world.rank // self._world.local_size


class ProcessLost(EquipoiseError):
    """A training process ended before its time, and could not say why."""


Work = Callable[[World, Stop, Callable[[str, Any], None]], Any]
"""What each process does: it is given its place, is told to stop there, and tells the parent what happens."""


def run_processes(count: int, work: Work, tell: Callable[[str, Any], None]) -> Any:
    """Run `work` in `count` new processes, hand on to `tell` what the first one tells, and return its result.

    They end with this process, whatever ends it. After a signal here they are asked to stop, and killed if they do not
    in time. Raises `EquipoiseError` if one does, or one is killed, and `Interrupted` after a signal.
    """
    require(
        not getattr(multiprocessing.current_process(), "_inheriting", False),
        "a training process tried to train: a script that trains on several devices needs "
        "`if __name__ == '__main__':` before what it does.",
    )
    port = _free_port()
    worlds = [World(rank, count, rank, count, port=port) for rank in range(count)]
    began: list[tuple[BaseProcess, Connection]] = []
    try:
        for world in worlds:
            began.append(_start(world, work))
        return _follow(began, tell)
    except BaseException as error:
        if not isinstance(error, ProcessLost):  # the others wait for it
            _ask_to_end(began)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(getattr(error, "signal", signal.SIGINT)) from None
        raise
    finally:
        for process, pipe in began:
            if process.is_alive():
                process.kill()
            process.join()
            pipe.close()


def _start(world: World, work: Work) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    state = (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    process = context.Process(target=_main, args=(world, work, there, state), daemon=True)
    level = os.environ.get(_LOG_LEVEL)
    os.environ.setdefault(_LOG_LEVEL, "ERROR")  # it warns of looking for unused parameters where there are none
    # Ctrl-C goes to all processes of a terminal. Where it is blocked they never see it: the parent passes it on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if level is None:
            del os.environ[_LOG_LEVEL]
        there.close()
    return process, here


def _follow(began: list[tuple[BaseProcess, Connection]], tell: Callable[[str, Any], None]) -> Any:
    """Wait for the first process's result. Raises `EquipoiseError` as soon as one process cannot go on."""
    running = {pipe: process for process, pipe in began}
    result = None
    while running:
        for pipe in cast(list[Connection], wait(list(running))):
            process = running[pipe]
            try:
                what, content = pipe.recv()
            except (EOFError, ConnectionResetError):
                process.join()
                if process.exitcode != 0:
                    raise _lost(process, len(began)) from None
                del running[pipe]
                continue
            if what == "error":
                raise EquipoiseError(content)
            if what == "crash":  # which may be because another one was killed
                for other, _ in began:
                    other.join(0.5)
                    if (other.exitcode or 0) < 0:
                        raise _lost(other, len(began))
                raise RuntimeError(f"a training process failed:\n{content}")
            if what == "interrupted":
                raise Interrupted(content)
            if what == "result":
                result = content if process is began[0][0] else result
            else:
                tell(what, content)
    return result


def _lost(process: BaseProcess, count: int) -> ProcessLost:
    code = process.exitcode or 0
    if code < 0:
        return ProcessLost(
            f"one of the {count} training processes was killed ({signal.Signals(-code).name}), perhaps for want of "
            "memory; the last checkpoint is kept: continue with --resume."
        )
    return ProcessLost(
        f"one of the {count} training processes ended with exit code {code}: what it printed says why; a script that "
        "trains on several devices needs `if __name__ == '__main__':`."
    )


def _ask_to_end(began: list[tuple[BaseProcess, Connection]]) -> None:
    """Ask the processes to end, and read on until they have, so that none waits for a reader; but not for long."""
    for _, pipe in began:
        with suppress(OSError):  # it has ended
            pipe.send("stop")
    open_pipes = [pipe for _, pipe in began]
    deadline = time.monotonic() + _GRACE
    while open_pipes and (left := deadline - time.monotonic()) > 0:
        for pipe in cast(list[Connection], wait(open_pipes, left)):
            try:
                pipe.recv()
            except (EOFError, OSError):
                open_pipes.remove(pipe)


def _main(world: World, work: Work, pipe: Connection, state: tuple[bool, bool]) -> None:
    """What a started process does."""
    torch.use_deterministic_algorithms(state[0])
    torch.backends.cudnn.benchmark = state[1]
    stop, usual = Stop(), warnings.showwarning

    def tell(what: str, content: Any) -> None:
        pipe.send((what, content))

    def listen() -> None:
        try:
            pipe.recv()
            stop.ask(signal.SIGINT)
            pipe.recv()
        except (EOFError, OSError):  # the parent is gone, and so is its hold on the folder: write nothing more
            os._exit(1)

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, EquipoiseWarning):
            tell("warning", str(message))
        else:
            usual(message, category, *rest, **more)

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # which announces every process group
    warnings.showwarning = show
    warnings.simplefilter("always", EquipoiseWarning)
    signal.signal(signal.SIGTERM, lambda number, _: stop.ask(number))
    threading.Thread(target=listen, daemon=True).start()
    try:
        tell("result", work(world, stop, tell))
    except EquipoiseError as error:
        tell("error", str(error))
    except Interrupted as error:
        tell("interrupted", error.signal)
    except BaseException:
        tell("crash", traceback.format_exc())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # to take everything down takes seconds, in which nothing more is done


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
