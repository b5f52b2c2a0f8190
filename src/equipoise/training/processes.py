"""The processes of a distributed training: started by torchrun, or by this process."""

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
Child = tuple[BaseProcess, Connection]

_GRACE = 3.0  # seconds for the processes to end by themselves, so that all have ended within five


def fabric_of(world: World, kind: str, precision: Any) -> Fabric:
    """The Fabric of this process in `world`, whatever the environment variables of a cluster say."""
    environment = _GivenEnvironment(world)
    if world.size == 1:
        return Fabric(accelerator=kind, devices=1, precision=precision, plugins=[environment])
    # Gradients are averaged over processes; a network may have parameters that its outputs do not use.
    strategy = DDPStrategy(cluster_environment=environment, find_unused_parameters=True)
    nodes = world.size // world.local_size
    fabric = Fabric(accelerator=kind, strategy=strategy, devices=world.local_size, num_nodes=nodes, precision=precision)
    fabric.launch()
    return fabric


class _GivenEnvironment(ClusterEnvironment):
    """A cluster environment that is given, not read from variables."""

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
    """A training process ended early without reporting why."""


Report = Callable[[str, Any], None]
"""Takes the kind of a message and its content."""
Work = Callable[[World, Stop, Report], Any]
"""What each process does, given its place, its request to stop, and how to report to the parent."""


def run_processes(count: int, work: Work, report: Report) -> Any:
    """Run `work` in `count` new processes, pass on to `report` what the first one reports, and return its result.

    They end with this process, whatever ends it. After a signal they are asked to stop, and killed if they do not in
    time. Raises `EquipoiseError` if a process raises it or is killed, and `Interrupted` after a signal.
    """
    require(
        not getattr(multiprocessing.current_process(), "_inheriting", False),
        "a training process tried to train: a script that trains on several devices needs "
        "`if __name__ == '__main__':` before what it does.",
    )
    port = _free_port()
    children: list[Child] = []
    try:
        for rank in range(count):
            children.append(_start(World(rank, count, rank, count, port=port), work))
        return _collect(children, report)
    except BaseException as error:
        if not isinstance(error, ProcessLost):  # the others wait for the lost one
            _ask_to_end(children)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(getattr(error, "signal", signal.SIGINT)) from None
        raise
    finally:
        for process, pipe in children:
            if process.is_alive():
                process.kill()
            process.join()
            pipe.close()


def _start(world: World, work: Work) -> Child:
    context = multiprocessing.get_context("spawn")
    pipe, child_pipe = context.Pipe()
    settings = (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    process = context.Process(target=_main, args=(world, work, child_pipe, settings), daemon=True)
    level = os.environ.get(_LOG_LEVEL)
    os.environ.setdefault(_LOG_LEVEL, "ERROR")  # torch warns when a search for unused parameters finds none
    # Ctrl-C reaches all processes of a terminal: blocked in the children, it is passed on by the parent.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if level is None:
            del os.environ[_LOG_LEVEL]
        child_pipe.close()
    return process, pipe


def _collect(children: list[Child], report: Report) -> Any:
    """Wait for the first process's result. Raises `EquipoiseError` as soon as one process cannot go on."""
    running = {pipe: process for process, pipe in children}
    result = None
    while running:
        for pipe in cast(list[Connection], wait(list(running))):
            process = running[pipe]
            try:
                kind, content = pipe.recv()
            except (EOFError, ConnectionResetError):
                process.join()
                if process.exitcode != 0:
                    raise _lost(process, len(children)) from None
                del running[pipe]
                continue
            match kind:
                case "error":
                    raise EquipoiseError(content)
                case "crash":  # perhaps because another one was killed
                    for other, _ in children:
                        other.join(0.5)
                        if (other.exitcode or 0) < 0:
                            raise _lost(other, len(children))
                    raise RuntimeError(f"a training process failed:\n{content}")
                case "interrupted":
                    raise Interrupted(content)
                case "result":
                    result = content if process is children[0][0] else result
                case _:
                    report(kind, content)
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


def _ask_to_end(children: list[Child]) -> None:
    """Ask the processes to end, and read their messages for a while, so that none blocks on a full pipe."""
    open_pipes = [pipe for _, pipe in children]
    for pipe in open_pipes:
        with suppress(OSError):  # it has ended
            pipe.send("stop")
    deadline = time.monotonic() + _GRACE
    while open_pipes and (remaining := deadline - time.monotonic()) > 0:
        for pipe in cast(list[Connection], wait(open_pipes.copy(), remaining)):
            try:
                pipe.recv()
            except (EOFError, OSError):
                open_pipes.remove(pipe)


def _main(world: World, work: Work, pipe: Connection, settings: tuple[bool, bool]) -> None:
    """The main function of a new process."""
    torch.use_deterministic_algorithms(settings[0])
    torch.backends.cudnn.benchmark = settings[1]
    stop, show_warning = Stop(), warnings.showwarning

    def report(kind: str, content: Any) -> None:
        pipe.send((kind, content))

    def listen() -> None:
        try:
            pipe.recv()
            stop.ask(signal.SIGINT)
            pipe.recv()
        except (EOFError, OSError):  # the parent has ended, and its lock on the folder with it: write nothing more
            os._exit(1)

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, EquipoiseWarning):
            report("warning", str(message))
        else:
            show_warning(message, category, *rest, **more)

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces every process group
    warnings.showwarning = show
    warnings.simplefilter("always", EquipoiseWarning)
    signal.signal(signal.SIGTERM, lambda number, _: stop.ask(number))
    threading.Thread(target=listen, daemon=True).start()
    try:
        report("result", work(world, stop, report))
    except EquipoiseError as error:
        report("error", str(error))
    except Interrupted as error:
        report("interrupted", error.signal)
    except BaseException:
        report("crash", traceback.format_exc())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # a regular exit would take seconds


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
