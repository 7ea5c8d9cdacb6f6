"""The threads that torch computes with on a CPU: OpenMP's, of which every thread that calls torch has its own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache

SPINS = 1_000  # how often a thread asks for the others before it sleeps; OpenMP's default is 300,000

_SOFT = 1  # omp_pause_soft: settings stay


def release_threads() -> None:
    """Ends OpenMP's threads of the calling thread, which come back when it next computes: 0.1 ms.

    Where two threads of a process keep some, there are more than there are cores, and OpenMP has them all sleep between
    any two operations: passes of small models take three times as long (`benchmarks/threads.py`). So whoever is done
    lets go of its own. Nothing happens where OpenMP 5 is not there.
    """
    _pause()(_SOFT)


def share_cores() -> None:
    """Has OpenMP's threads, which are not there yet, sleep after `SPINS`. What the environment says goes first.

    It has an effect before torch is loaded. By torch's default two processes on the same two cores take 12 times as
    long as with one thread each; with this 1.2 times, and one that is alone loses 7 % (`benchmarks/threads.py`).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


@cache
def _pause() -> Callable[[int], int]:
    try:
        return ctypes.CDLL(None).omp_pause_resource_all
    except (OSError, TypeError, AttributeError):  # no such library, Windows, an older OpenMP
        return lambda kind: 0
