"""The place of a process among those that train together, as torchrun tells it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from equipoise.core.errors import require

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_ADVICE = "start the training by torchrun, or unset WORLD_SIZE."
_DIGITS = 19  # a number of so many is none of processes or ports


@dataclass(frozen=True)
class World:
    """One of `size` processes; a process alone by default."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Number of this process on its machine."""
    local_size: int = 1
    """Number of processes on its machine."""
    address: str = "127.0.0.1"
    """Where the first process listens."""
    port: int = 0
    """The port there."""

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> "World | None":
        """What torchrun set, or None if it did not start this process.

        A part of its variables, left behind by something else, does not count. Raises `EquipoiseError` if they say that
        there are several processes but not which one this is, or are no numbers.
        """
        size = variables.get("WORLD_SIZE", "1")
        _require_number("WORLD_SIZE", size)
        missing = [name for name in _TORCHRUN if name not in variables]
        if missing:
            require(
                int(size) <= 1, f"the environment has WORLD_SIZE={size} but no {' and no '.join(missing)}: {_ADVICE}"
            )
            return None
        numbers = {
            name: variables.get(name, size) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
        }
        for name, text in numbers.items():
            _require_number(name, text)
        rank, local, local_size, port = map(int, numbers.values())
        require(rank < int(size), f"the environment has RANK={rank} but WORLD_SIZE={size}: {_ADVICE}")
        return cls(rank, int(size), local, local_size, variables["MASTER_ADDR"], port)


def is_main_process() -> bool:
    """Whether this is the process that prints and writes: the only one, or the first of those that torchrun started."""
    return any(name not in os.environ for name in _TORCHRUN) or os.environ["RANK"] == "0"


def _require_number(name: str, text: str) -> None:
    number = text.isdecimal() and len(text) < _DIGITS
    require(number, f"the environment has {name}={text:.80}, expected a whole number: {_ADVICE}")
