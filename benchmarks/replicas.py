"""Throughput of 1, 2 and 4 Ray replicas of the embedded model on the cores there are.

`.venv/bin/python benchmarks/replicas.py` prints a table: a row for each number of replicas, measured `--rounds` times
with the same questions, and the load of the machine before it began. Needs `nabla-agents[ray]`.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from queue import Empty, SimpleQueue
from typing import Annotated

import httpx
import typer

from nabla_agents import tiny


def main(
    replicas: Annotated[str, typer.Option(help="Comma list.")] = "1,2,4",
    questions: Annotated[int, typer.Option(help="Per round.")] = 64,
    concurrency: Annotated[int, typer.Option(help="Clients that ask at the same time.")] = 16,
    rounds: Annotated[int, typer.Option(help="Per number of replicas.")] = 3,
    rollouts: Annotated[int, typer.Option(help="Budget of a question.")] = 4,
    port: Annotated[int, typer.Option()] = 18_432,
) -> None:
    """Measure answers per second by the number of replicas."""
    cores = len(os.sched_getaffinity(0))
    os.environ.update(RAY_worker_niceness="0", OMP_NUM_THREADS="1")  # Ray's workers else yield to everything
    import ray
    from ray import serve

    from nabla_agents.scale import ReplicaSettings, application, engine_maker
    from nabla_agents.serve import ServeSettings

    ray.init(address="local", num_cpus=max(cores, 8), include_dashboard=False, log_to_driver=False)
    asked = [p.question for p in tiny.problems(questions, seed=0, split="test")]
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        print(f"{cores} cores · {questions} questions · {concurrency} clients · {rollouts} rollouts · seed = question")
        print("| replicas | answers/s, median of rounds | least | most | p50 s | p95 s | load |")
        print("|---|---|---|---|---|---|---|")
        for count in map(int, replicas.split(",")):
            settings = ServeSettings(anonymous=True, max_concurrent=16)
            serve.run(application(engine_maker(), ReplicaSettings(replicas=count, num_cpus=0.1), settings))
            ask_all(
                url, asked[: count * 4], concurrency, rollouts
            )  # every replica has answered before the clock starts
            load = os.getloadavg()[0]
            speeds, seconds = [], []
            for _ in range(rounds):
                began = time.perf_counter()
                seconds += ask_all(url, asked, concurrency, rollouts)
                speeds.append(questions / (time.perf_counter() - began))
            p50, p95 = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
            shown = (statistics.median(speeds), min(speeds), max(speeds), p50, p95, load)
            print(f"| {count} | " + " | ".join(f"{x:.2f}" for x in shown) + " |", flush=True)
            serve.delete("default")
    finally:
        serve.shutdown()
        ray.shutdown()


def ask_all(url: str, questions: list[str], concurrency: int, rollouts: int) -> list[float]:
    """Seconds that each answer took, asked by this many clients at the same time."""
    waiting: SimpleQueue[tuple[int, str]] = SimpleQueue()
    for item in enumerate(questions):
        waiting.put(item)
    seconds: list[float] = []
    errors: list[str] = []

    def client() -> None:
        with httpx.Client(timeout=600) as session:
            while True:
                try:
                    seed, question = waiting.get_nowait()
                except Empty:
                    return
                body = {
                    "model": "tiny",
                    "seed": seed,
                    "messages": [{"role": "user", "content": question}],
                    "nabla": {"budget": {"rollouts": rollouts}},
                }
                began = time.perf_counter()
                response = session.post(url, json=body)
                seconds.append(time.perf_counter() - began)
                if response.status_code != 200:
                    errors.append(response.text)

    threads = [threading.Thread(target=client) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise SystemExit(f"{len(errors)} of {len(questions)} requests failed: {errors[0][:300]}")
    return seconds


if __name__ == "__main__":
    typer.run(main)
