"""What threads of torch that share CPU cores cost each other: those of two processes, and those of one.

    python benchmarks/threads.py

Each process answers test problems of the embedded model for `--seconds`, with a thread for each core; all begin at the
same time. OpenMP's threads ask for each other again and again (spin) before they sleep; while a thread of another
process has the core of one that is waited for, nothing gets on. Where two threads of one process keep OpenMP's threads,
there are more than cores, and they do not spin at all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from nabla_agents.models.threads import SPINS

WAYS: dict[str, dict[str, str]] = {
    "as torch waits": {"GOMP_SPINCOUNT": "300000"},
    "as `nabla` waits": {"GOMP_SPINCOUNT": str(SPINS)},
    "sleeps at once": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2", help="a comma list")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--spins", default="", help="further numbers of GOMP_SPINCOUNT, a comma list")
    parser.add_argument("--answer", choices=("main", "released", "kept"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        return answer(arguments.answer, arguments.seconds)
    counts = [int(count) for count in arguments.processes.split(",")]
    ways = {**WAYS, **{f"after {spins}": {"GOMP_SPINCOUNT": spins} for spins in arguments.spins.split(",") if spins}}
    runs = [("main", n, way) for way in ways.values() for n in counts] + [("released", 1, {}), ("kept", 1, {})]
    bar = track(runs, "measuring", console=Console(stderr=True))
    found = iter([f"{together(mode, n, way, arguments.seconds):.3f}" for mode, n, way in bar])
    processes = Table("threads of a process", *(f"s / question, {n} at once" for n in counts))
    for way in ways:
        processes.add_row(way, *(next(found) for _ in counts))
    threads = Table("asked by a second thread, while the main thread", "s / question")
    for main_thread in ("has let go of its own", "keeps its own"):
        threads.add_row(main_thread, next(found))
    Console().print(processes, threads)


def together(mode: str, count: int, way: dict[str, str], seconds: float) -> float:
    """Seconds per question, of the median process."""
    threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, __file__, "--answer", mode, "--seconds", str(seconds)]
    started: list[Any] = [
        subprocess.Popen(command, env={**clean, **threads, **way}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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


def answer(mode: str, seconds: float) -> None:
    """One process: says that it is ready, waits for its turn, and prints its seconds per question."""
    import torch

    from nabla_agents import Engine
    from nabla_agents.tiny import problems

    engine, asked = Engine.tiny(), [p.question for p in problems(64, seed=0, split="test")]
    engine.generate(asked[0])
    if mode == "kept":
        torch.ones(1 << 20).exp()  # computes with OpenMP's threads, which stay
    print(flush=True)
    sys.stdin.read()

    def go_on() -> None:
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            engine.generate(asked[done % len(asked)], seed=done)
            done += 1
        print((time.perf_counter() - began) / done)

    if mode == "main":
        return go_on()
    second = threading.Thread(target=go_on)
    second.start()
    second.join()


if __name__ == "__main__":
    main()
