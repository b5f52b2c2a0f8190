"""How many processors this process may use, and how its threads wait for each other. PyTorch is not imported."""

import math
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))  # of control groups, version 2 and 1


def available_cores(groups: Path = _GROUPS) -> int:
    """Return how many cores this process may use: those of its affinity, and no more than its control group, such as a
    container's, gets processor time for, rounded up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(math.ceil(min(cores, _quota(groups))), 1)


def _quota(groups: Path) -> float:
    """The cores' worth of processor time that a control group gets; infinity without a limit."""
    for names in _QUOTAS:
        try:
            quota, period = " ".join((groups / name).read_text("ascii") for name in names).split()
            return int(quota) / int(period) if int(quota) > 0 else math.inf
        except (OSError, ValueError, ZeroDivisionError):  # none of this version, or `max`
            continue
    return math.inf


def set_thread_defaults(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how the OpenMP threads of PyTorch wait, and their number where it would be more than the cores; what the
    environment says already wins. Without effect once PyTorch is loaded, so that only programs of our own call it.

    Idle threads sleep (`OMP_WAIT_POLICY=passive`). By default they spin for milliseconds at each of PyTorch's
    operations: beside other work, which takes a core from one of them, the others waste theirs.
    """
    if "torch" in sys.modules:
        return
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    if available_cores() < (os.cpu_count() or 1):
        environment.setdefault("OMP_NUM_THREADS", str(available_cores()))
