"""What a server does under load, on loopback, with the embedded model: latency, throughput, fairness, memory, faults.

    python benchmarks/serve.py                      about 3 minutes on 2 CPU cores
    python benchmarks/serve.py --minutes 30         memory over half an hour
    python benchmarks/serve.py --quick              a check of this script in seconds

The server is a process of its own, `nabla serve`; clients are threads of this one. Questions are test problems of the
embedded model, each with its index as seed; every answer is compared with what the engine says in this process. Clients
retry as `RemoteEngine` does only in the part about faults, where every outcome that a client sees is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from nabla_agents import BestOfN, Budget, Engine, Greedy, NablaError, RemoteEngine, tiny
from nabla_agents.serve import digest, new_key

CHAT = "/v1/chat/completions"
KEYS = {name: new_key() for name in ("many", "few")}


@dataclass(frozen=True)
class Part:
    """One part's figures, by name."""

    part: str
    figures: dict[str, float | int | str] = field(default_factory=dict[str, Any])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", default="1,2,4,8,16,32,64", help="a comma list of clients")
    parser.add_argument("--requests", type=int, default=96, help="per concurrency")
    parser.add_argument("--strategy", default="nabla", help="what the server searches by")
    parser.add_argument("--minutes", type=float, default=0.5, help="of constant load, for memory over time")
    parser.add_argument("--quick", action="store_true", help="as little as shows that it works")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.concurrency, arguments.requests, arguments.minutes = "1,4", 8, 0.05
    questions = [problem.question for problem in tiny.problems(arguments.requests, seed=0, split="test")]
    console, parts = Console(), list[Part]()

    def took(part: Part) -> None:
        parts.append(part)
        table = Table(title=part.part, title_justify="left")
        for name in part.figures:
            table.add_column(name, justify="right")
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in part.figures.values()))
        console.print(table)

    console.print(f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}, strategy {arguments.strategy}")
    with served("--strategy", arguments.strategy) as server:
        took(one_process(questions, arguments.strategy))
        for clients in map(int, arguments.concurrency.split(",")):
            took(load(server, questions, clients))
        took(overhead(server, questions[: max(8, arguments.requests // 4)]))
        took(fairness(server, questions))
        took(memory(server, questions, arguments.minutes))
    for part in faults(questions[: max(8, arguments.requests // 4)]):
        took(part)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(part) for part in parts], indent=1))


# ── the server ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Served:
    """A server's process and where it listens."""

    process: subprocess.Popen[bytes]
    port: int

    def client(self, key: str = "many") -> httpx.Client:
        headers = {"Authorization": f"Bearer {KEYS[key]}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=300)

    @property
    def memory_mb(self) -> float:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def served(*options: str, **environment: str) -> Iterator[Served]:
    """`nabla serve` on a free port, ready; stopped by SIGTERM at the end."""
    port = free_port()
    config = Path(f"/tmp/nabla-serve-benchmark-{os.getpid()}.toml")
    config.write_text("".join(f'[[keys]]\nid = "{n}"\nsha256 = "{digest(k)}"\n' for n, k in KEYS.items()))
    command = [sys.executable, "-c", "from nabla_agents.cli import main; main()", "serve", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--config", str(config), *options],
        env={**os.environ, "NABLA_SERVE_LOG_LEVEL": "warning", "NABLA_SERVE_MAX_QUEUED": "256", **environment},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_ready(port, process)
        yield Served(process, port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        config.unlink(missing_ok=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")


def body(question: str, seed: int, **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": question}], "seed": seed, **fields}


def in_threads(clients: int, work: Sequence[Callable[[], Any]]) -> tuple[float, list[Any]]:
    """Seconds that `clients` threads take for all of the work, and what it gave."""
    with ThreadPoolExecutor(clients) as threads:
        started = time.perf_counter()
        found = list(threads.map(lambda one: one(), work))
        return time.perf_counter() - started, found


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 99
    return {"p50 s": cuts[49], "p95 s": cuts[94], "p99 s": cuts[98]}


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def one_process(questions: Sequence[str], strategy: str) -> Part:
    """The engine itself in this process, one question after another: what a server is compared with."""
    engine = Engine.tiny()
    asked = questions[: max(4, len(questions) // 4)]
    seconds: list[float] = []
    for seed, question in enumerate(asked):
        started = time.perf_counter()
        engine.generate(question, seed=seed, **({} if strategy == "nabla" else {"strategy": Greedy()}))
        seconds.append(time.perf_counter() - started)
    return Part("engine in one process, no server", {"answers/s": len(seconds) / sum(seconds), **percentiles(seconds)})


def load(server: Served, questions: Sequence[str], clients: int) -> Part:
    """All questions by so many clients that always wait for one answer each."""
    seconds: list[float] = []

    def ask(client: httpx.Client, seed: int, question: str) -> None:
        started = time.perf_counter()
        client.post(CHAT, json=body(question, seed)).raise_for_status()
        seconds.append(time.perf_counter() - started)

    with server.client() as client:
        asked = [lambda i=i, q=q: ask(client, i, q) for i, q in enumerate(questions)]
        total, _ = in_threads(clients, asked)
    return Part(f"{clients} clients", {"clients": clients, "answers/s": len(questions) / total, **percentiles(seconds)})


def overhead(server: Served, questions: Sequence[str]) -> Part:
    """What HTTP adds to an answer: seconds of the request less those of the search, and of a request without one."""
    extra: list[float] = []
    with server.client() as client:
        for seed, question in enumerate(questions):
            started = time.perf_counter()
            answer = client.post(CHAT, json=body(question, seed, nabla={"strategy": "greedy"})).json()
            extra.append(time.perf_counter() - started - answer["choices"][0]["nabla"]["usage"]["seconds"])
        empty = [timed(lambda: client.get("/v1/models")) for _ in range(50)]
    figures = {"median ms of a request beside its search": 1e3 * statistics.median(extra)}
    return Part("HTTP overhead", {**figures, "median ms of GET /v1/models": 1e3 * statistics.median(empty)})


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def fairness(server: Served, questions: Sequence[str]) -> Part:
    """One key with 48 requests at a time, another one with a single one: how long each waits for an answer."""
    stop, waited = threading.Event(), dict[str, list[float]](many=[], few=[])

    def keep_asking(key: str, start: int) -> None:
        with server.client(key) as client:
            for seed in range(start, start + 10**6):
                if stop.is_set():
                    return
                question = questions[seed % len(questions)]
                waited[key].append(timed(lambda q=question, s=seed: client.post(CHAT, json=body(q, s))))

    threads = [threading.Thread(target=keep_asking, args=("many", 1000 * i)) for i in range(48)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    with server.client("few") as client:
        for seed, question in enumerate(questions[:12]):
            waited["few"].append(timed(lambda q=question, s=seed: client.post(CHAT, json=body(q, s))))
    stop.set()
    for thread in threads:
        thread.join()
    medians = {f"median s, key with {who}": statistics.median(waited[key]) for key, who in (("many", 48), ("few", 1))}
    return Part("fairness between two keys", medians)


def memory(server: Served, questions: Sequence[str], minutes: float) -> Part:
    """Resident memory of the server over time under 8 clients, every tenth of which leaves early."""
    stop, answers, samples = threading.Event(), Counter[str](), list[float]()

    def keep_asking(start: int) -> None:
        with server.client() as client:
            for seed in range(start, start + 10**6):
                if stop.is_set():
                    return
                asked = body(questions[seed % len(questions)], seed, stream=seed % 2 == 0)
                try:
                    client.post(CHAT, json=asked, timeout=0.05 if seed % 10 == 0 else 300)
                    answers["answered"] += 1
                except httpx.TransportError:
                    answers["left"] += 1

    threads = [threading.Thread(target=keep_asking, args=(10_000 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        time.sleep(max(0.2, 60 * minutes / 60))
        samples.append(server.memory_mb)
    stop.set()
    for thread in threads:
        thread.join()
    half = samples[len(samples) // 2 :]
    slope = (
        statistics.linear_regression(range(len(half)), half).slope * len(half) / minutes * 2 if len(half) > 1 else 0.0
    )
    figures = {"minutes": minutes, "first MB": samples[0], "last MB": samples[-1], "MB/min, second half": slope}
    return Part("memory", {**figures, **answers})


def faults(questions: Sequence[str]) -> Iterator[Part]:
    """What clients see when the server is too small, when it is killed and comes back, and when it is stopped."""
    engine = Engine.tiny()
    options: dict[str, Any] = {"strategy": BestOfN(n=4), "budget": Budget(rollouts=4)}
    expected = [engine.generate(question, seed=seed, **options).text for seed, question in enumerate(questions)]

    with served("--strategy", "nabla", NABLA_SERVE_MAX_QUEUED="2", NABLA_SERVE_MAX_CONCURRENT="2") as server:
        statuses: Counter[str] = Counter()
        with server.client() as client:
            asked = [lambda i=i, q=q: client.post(CHAT, json=body(q, i)).status_code for i, q in enumerate(questions)]
            for status in in_threads(16, asked)[1]:
                statuses[str(status)] += 1
        yield Part("16 clients of a server with 2 places and 2 to wait, no retries", dict(statuses))
        remote = RemoteEngine(f"http://127.0.0.1:{server.port}", api_key=KEYS["many"], attempts=8)
        yield Part("the same by RemoteEngine", outcomes(remote, questions, expected, options))

    with served() as server:
        remote = RemoteEngine(f"http://127.0.0.1:{server.port}", api_key=KEYS["many"], attempts=3)
        killer = threading.Timer(1.0, lambda: server.process.kill())
        killer.start()
        seen = outcomes(remote, questions, expected, options, rounds=4)
        killer.join()
        yield Part("SIGKILL after 1 s under load, RemoteEngine", seen)

    with served(NABLA_SERVE_SHUTDOWN_SECONDS="30") as server:
        remote = RemoteEngine(f"http://127.0.0.1:{server.port}", api_key=KEYS["many"], attempts=1)
        stopper = threading.Timer(1.0, lambda: server.process.send_signal(signal.SIGTERM))
        stopper.start()
        seen = outcomes(remote, questions, expected, options, rounds=4)
        stopper.join()
        yield Part("SIGTERM after 1 s under load, no retries", seen)


def outcomes(
    remote: RemoteEngine, questions: Sequence[str], expected: Sequence[str], options: dict[str, Any], *, rounds: int = 1
) -> dict[str, float | int | str]:
    """How many answers were right, how many wrong, and which errors the others got."""
    found: Counter[str] = Counter()

    def ask(seed: int) -> None:
        try:
            result = remote.generate(questions[seed], seed=seed, **options)
            found["as the engine says" if result.text == expected[seed] else "WRONG"] += 1
        except NablaError as e:
            found[f"{type(e).__name__}: {re.sub(r'http[^ ]*', 'server', str(e))[:40]}"] += 1

    in_threads(16, [lambda i=i: ask(i) for i in range(len(questions))] * rounds)
    remote.close()
    return dict(found)


if __name__ == "__main__":
    main()
