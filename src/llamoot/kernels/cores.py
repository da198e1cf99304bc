"""How many processors this process may use."""

import os
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")


def usable() -> int:
    """Physical cores within the process's affinity and its cgroup's quota; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = {_core(cpu) for cpu in os.sched_getaffinity(0)}
        count = len(cores)
    else:
        count = os.cpu_count() or 1
    return max(1, min(count, _quota(count)))


def _core(cpu: int) -> str:
    """What the threads of one core have in common."""
    try:
        return (CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota(otherwise: int) -> int:
    """Processors that the cgroup's quota is worth, rounded up."""
    for limit, period in _limits():
        if limit > 0 and period > 0:
            return -(-limit // period)
    return otherwise


def _limits() -> list[tuple[int, int]]:
    found = []
    try:
        limit, period = (CGROUP / "cpu.max").read_text().split()
        if limit != "max":
            found.append((int(limit), int(period)))
    except (OSError, ValueError):
        pass
    try:
        quota = int((CGROUP / "cpu/cpu.cfs_quota_us").read_text())
        found.append((quota, int((CGROUP / "cpu/cpu.cfs_period_us").read_text())))
    except (OSError, ValueError):
        pass
    return found
