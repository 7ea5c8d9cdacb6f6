"""What processes that answer questions on the same CPU cores cost each other, by how OpenMP's threads wait.

    python benchmarks/processes.py

Each process answers test problems of the embedded model, with a thread for each core; all begin at the same time, and
go on for `--seconds`. Threads wait for each other by asking again and again (spinning) before they sleep; while a
thread of another process has the core of one that is waited for, nothing gets on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

WAYS = {
    "as torch waits": {},
    "as `nabla` waits": {"GOMP_SPINCOUNT": "20000"},
    "sleeps at once": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2", help="a comma list")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--answer", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer is not None:
        return answer(arguments.answer)
    counts = [int(count) for count in arguments.processes.split(",")]
    table = Table("threads", *(f"s / question, {n} at once" for n in counts))
    found = {
        (way, n): together(n, WAYS[way], arguments.seconds)
        for way, n in track([(way, n) for way in WAYS for n in counts], "measuring", console=Console(stderr=True))
    }
    for way in WAYS:
        table.add_row(way, *(f"{found[way, n]:.3f}" for n in counts))
    Console().print(table)


def together(count: int, way: dict[str, str], seconds: float) -> float:
    """Seconds per question, of the median process."""
    threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    command = [sys.executable, __file__, "--answer", str(seconds)]
    started: list[Any] = [
        subprocess.Popen(command, env={**os.environ, **threads, **way}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    with contextlib.ExitStack() as running:
        for process in started:
            running.enter_context(process)
        for process in started:
            process.stdout.readline()  # it is loaded
        for process in started:
            process.stdin.close()
        return statistics.median(float(process.stdout.read()) for process in started)


def answer(seconds: float) -> None:
    """One process: says that it is ready, waits for its turn, and prints its seconds per question."""
    from nabla_agents import Engine
    from nabla_agents.tiny import problems

    engine, asked = Engine.tiny(), [p.question for p in problems(64, seed=0, split="test")]
    engine.generate(asked[0])
    print(flush=True)
    sys.stdin.read()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        engine.generate(asked[done % len(asked)], seed=done)
        done += 1
    print((time.perf_counter() - began) / done)


if __name__ == "__main__":
    main()
