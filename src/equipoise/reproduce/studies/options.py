"""The options of a study."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from equipoise.core.errors import require_integer

ReportProgress = Callable[[str, float], None]
"""Called with what is being computed and the share of the study that is done."""


@dataclass(frozen=True)
class Options:
    """The options of a study."""

    quick: bool = False
    """A small version that takes seconds: it shows that the study works but proves nothing."""
    seeds: int | None = None
    """Number of independent repeats; None for the study's own number."""
    seed: int = 0
    """Seed of the first repeat; the others follow."""
    data: str | None = None
    """Dataset, for the studies that run on any; None for the study's own."""
    data_root: Path | None = None
    """Folder in which the files of a dataset are looked for."""
    limit: int | None = None
    """Maximum number of training samples."""
    widths: tuple[int, ...] = ()
    """Widths of the networks of the capacity study; empty for its own."""
    processes: int = 1
    """Number of processes that train the networks; the results do not depend on it."""

    def repeats(self, usual: int = 3, quick: int = 2) -> list[int]:
        """Return the seeds of the repeats: `seeds` of them, by default `usual`, and `quick` in the quick version.

        Raises `EquipoiseError` for fewer than one.
        """
        count = self.seeds if self.seeds is not None else quick if self.quick else usual
        require_integer("seeds", count, 1)
        return [self.seed + i for i in range(count)]
