"""Checks per second of each sandbox, beside a plain Python process per check, all in one run.

    python benchmarks/sandbox.py [CHECKS]

The programs are the short ones of the tests' coverage corpus, one worker, one after the other. Wall-clock depends on
what else the machine does; the ratio to the plain process, measured in turn with the others, depends on it less, and
the processor time of host, worker and program together hardly.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nabla_agents.errors import SandboxError
from nabla_agents.sandbox import Program, Status, backends
from nabla_agents.sandbox.fork import ForkWorker
from nabla_agents.sandbox.workers import Worker

CORPUS = Path(__file__).parent.parent / "tests" / "data" / "sandbox" / "coverage.jsonl"
CATEGORY = "word-problem"
WARM_UP = 20
ROUNDS = 10  # the arms take turns, so that a busy moment hits all of them
ARMS: dict[str, Callable[[], Worker]] = {**backends.BACKENDS, "fork, standard library": lambda: ForkWorker(packages=())}


def main(checks: int = 500) -> None:
    lines = map(json.loads, CORPUS.read_text().splitlines())
    programs = [Program(line["code"]) for line in lines if line["category"] == CATEGORY]
    arms: dict[str, Callable[[Program], object]] = {"plain process": plainly}
    workers: dict[str, int] = {}
    for name, worker in ARMS.items():
        try:
            pool = backends.proven(worker, workers=1)
            arms[name], workers[name] = pool.run, pool._idle[0]._process.pid
        except SandboxError as e:
            print(f"{name}: {e}")
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    used = dict.fromkeys(arms, 0.0)
    for run in arms.values():
        for i in range(WARM_UP):
            run(programs[i % len(programs)])
    for _ in range(ROUNDS):
        for name, run in arms.items():
            used[name] -= processor_seconds(workers.get(name))
            for i in range(checks // ROUNDS):
                started = time.perf_counter()
                done = run(programs[i % len(programs)])
                seconds[name].append(time.perf_counter() - started)
                assert getattr(done, "status", Status.OK) is Status.OK, done
            used[name] += processor_seconds(workers.get(name))
    print(f"{checks} checks each, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print(f"{'':24}{'checks/s':>10}{'p50 ms':>10}{'p95 ms':>10}{'x plain':>10}{'CPU ms':>10}")
    for name, times in seconds.items():
        rate, plain = len(times) / sum(times), len(times) / sum(seconds["plain process"])
        p50, p95 = (1000 * sorted(times)[int(len(times) * share)] for share in (0.5, 0.95))
        print(f"{name:24}{rate:10.0f}{p50:10.1f}{p95:10.1f}{rate / plain:10.2f}{1000 * used[name] / len(times):10.1f}")


def processor_seconds(worker: int | None) -> float:
    """Of this process, its worker, and of the children that either has waited for."""
    own = os.times()
    if worker is None:
        return sum(own[:4])
    fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
    return own.user + own.system + sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def plainly(program: Program) -> None:
    subprocess.run([sys.executable, "-I", "-c", program.code], capture_output=True, check=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
