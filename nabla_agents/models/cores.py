"""The cores that this process may use: those of its affinity, and what the quota of its cgroups pays for."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

_ROOT = Path("/")


@dataclass(frozen=True)
class Cores:
    """The cores of a process's affinity, and how many of them the quota of its cgroups pays for; None without one."""

    affinity: int
    quota: float | None = None

    @classmethod
    def of_process(cls) -> Cores:
        """Of this one, as it is now."""
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(count, min(_quotas(_ROOT), default=None))

    @property
    def usable(self) -> int:
        """How many may compute at a time; part of one counts as one."""
        return self.affinity if self.quota is None else min(self.affinity, max(1, math.ceil(self.quota)))


def keep_to_quota() -> None:
    """Has torch compute with no more threads than a quota pays for. By default it has one for each core of the
    affinity, and where a quota pays for fewer, all are stopped for part of the time. What the environment says goes
    first.
    """
    cores = Cores.of_process()
    if cores.quota is not None and "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores.usable:
        torch.set_num_threads(cores.usable)


def _quotas(root: Path) -> list[float]:
    """In cores, those of the process's cgroups, of version 1 and 2, and of what these are in."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return []
    found: list[float] = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        home = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        for group in (Path(path), *Path(path).parents):
            found += _quota(home / str(group).lstrip("/"))
    return found


def _quota(group: Path) -> list[float]:
    """A cgroup's, if it has one: microseconds of each period, of all cores together."""
    try:
        if (both := group / "cpu.max").exists():
            quota, period = both.read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return [int(quota) / int(period)] if int(quota) > 0 else []
    except (OSError, ValueError):  # none there, `max`
        return []
