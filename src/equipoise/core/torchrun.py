"""The processes of distributed training, as torchrun describes them in the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from equipoise.core.errors import require

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_ADVICE = "start the training by torchrun, or unset WORLD_SIZE."
_MAX_DIGITS = 18  # of numbers of processes and ports


@dataclass(frozen=True)
class World:
    """This process among the `size` processes of a training; a single process by default."""

    rank: int = 0  # of this process, from 0
    size: int = 1
    local_rank: int = 0  # of this process on its machine
    local_size: int = 1
    address: str = "127.0.0.1"  # where the first process listens, at the port
    port: int = 0

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> "World | None":
        """Return what torchrun has set; None if it did not start this process, or only some of its variables are set.

        Raises `EquipoiseError` if the variables say that there are several processes but not which one this is, or are
        not numbers.
        """
        size = variables.get("WORLD_SIZE", "1")
        count = _number("WORLD_SIZE", size)
        missing = [name for name in _TORCHRUN if name not in variables]
        if missing:
            require(count <= 1, f"the environment has WORLD_SIZE={size} but no {' and no '.join(missing)}: {_ADVICE}")
            return None
        rank, local, local_size, port = (
            _number(name, variables.get(name, size))
            for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
        )
        require(rank < count, f"the environment has RANK={rank} but WORLD_SIZE={size}: {_ADVICE}")
        return cls(rank, count, local, local_size, variables["MASTER_ADDR"], port)


def is_main_process() -> bool:
    """Return whether this process prints and writes: it is the only one, or the first that torchrun started."""
    return any(name not in os.environ for name in _TORCHRUN) or os.environ["RANK"] == "0"


def _number(name: str, text: str) -> int:
    is_number = text.isdecimal() and len(text) <= _MAX_DIGITS
    require(is_number, f"the environment has {name}={text:.80}, expected a whole number: {_ADVICE}")
    return int(text)
