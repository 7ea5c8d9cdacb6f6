"""By how much a search overruns its limits, on a model of 135 M parameters: seconds, FLOPs, and four ways to stop it.

    python benchmarks/limits.py

The shape is that of SmolLM2-135M with random weights; the reward is a second model of the same shape. Exits with 1
where a limit is overrun by more than two decode steps of eight rows and one batch of scoring, which are measured first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nabla_agents import (
    BestOfN,
    Budget,
    Engine,
    Greedy,
    ImplicitReward,
    LanguageModel,
    Nabla,
    Result,
    Rollout,
    Sampling,
)
from nabla_agents.testing import byte_tokenizer, random_model

SHAPE: dict[str, Any] = {
    "layers": 30,
    "width": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49_152,
    "context_length": 2048,
}
QUESTION = "How many apples are left? " * 4
LONG = Sampling(max_tokens=1024)
STRATEGIES = {"greedy": Greedy(), "best of 8": BestOfN(n=8), "nabla": Nabla()}
SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=SHAPE["layers"], help="fewer, to try this script")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with Console(stderr=True).status("making two models"):
        model, other = (model_of(seed, arguments.layers) for seed in (0, 1))
    engine = Engine(model=model, reward=ImplicitReward(other))
    step, scoring = costs(engine)
    parameters = sum(p.numel() for p in model.transformer.module.parameters())
    table, worst = Table("limit", "search", "over by", "decode steps", "rollouts", "cut", "why it ended"), 0.0
    for limit, strategy, over, result in cases(engine):
        worst = max(worst, over)
        row = (limit, strategy, f"{1000 * over:.0f} ms", f"{over / step:.1f}", str(result.usage.rollouts))
        table.add_row(*row, "yes" if result.truncated else "no", f"{result.finish_reason}: {result.detail}")
    table.title = (
        f"{parameters / 1e6:.0f} M parameters, {arguments.threads} threads: one decode step of 8 rows "
        f"{1000 * step:.0f} ms, scoring 8 texts of 100 tokens {1000 * scoring:.0f} ms"
    )
    Console(width=120).print(table)
    sys.exit(1 if worst > 2 * step + scoring else 0)


def model_of(seed: int, layers: int) -> LanguageModel:
    return random_model("llama", tokenizer=byte_tokenizer(), seed=seed, scale=0.5, **{**SHAPE, "layers": layers})


def costs(engine: Engine) -> tuple[float, float]:
    """Seconds of one decode step of eight rows, and of scoring eight texts of a hundred tokens."""
    seconds: dict[int, float] = {}
    for tokens in (4, 104):
        began = time.perf_counter()
        result = engine.with_reward(None).generate(
            QUESTION, strategy=BestOfN(n=8), sampling=Sampling(max_tokens=tokens), budget=Budget(rollouts=8)
        )
        seconds[tokens] = _since(began)
    prompt = engine.prompt(QUESTION)
    rollouts = [Rollout(prompt, result.token_ids, result.text)] * 8
    began = time.perf_counter()
    engine.objective.score(rollouts)
    return (seconds[104] - seconds[4]) / 100, _since(began)


def cases(engine: Engine) -> Any:
    """(limit, strategy, seconds over it, result), one after another."""
    for name, strategy in STRATEGIES.items():
        began = time.perf_counter()
        result = engine.generate(QUESTION, strategy=strategy, sampling=LONG, budget=Budget(seconds=SECONDS))
        yield f"{SECONDS} seconds", name, time.perf_counter() - began - SECONDS, result
    for name, strategy in STRATEGIES.items():
        limit = 2e11
        result = engine.generate(QUESTION, strategy=strategy, sampling=LONG, budget=Budget(flops=limit))
        over = (result.usage.flops - limit) / result.usage.flops * result.usage.seconds
        yield f"{limit:g} FLOPs", name, over, result
    ways: dict[str, Callable[[Engine, Any], tuple[float, Result]]] = {
        "cancel() of a thread": cancelled,
        "a cancelled task": task_cancelled,
        "Ctrl-C": interrupted,
    }
    for way, stop in ways.items():
        for name, strategy in STRATEGIES.items():
            over, result = stop(engine, strategy)
            yield way, name, over, result
    yield from closed(engine)


def cancelled(engine: Engine, strategy: Any) -> tuple[float, Result]:
    run = engine.submit(engine.request(QUESTION, strategy=strategy, sampling=LONG))
    time.sleep(SECONDS)
    began = time.perf_counter()
    run.cancel()
    result = run.drain()
    return _since(began), result


def task_cancelled(engine: Engine, strategy: Any) -> tuple[float, Result]:
    async def stopped() -> tuple[float, Result]:
        run = engine.submit(engine.request(QUESTION, strategy=strategy, sampling=LONG))
        task = asyncio.ensure_future(run)
        await asyncio.sleep(SECONDS)
        began = time.perf_counter()
        task.cancel()
        result = await asyncio.to_thread(run.drain)
        return _since(began), result

    return asyncio.run(stopped())


def interrupted(engine: Engine, strategy: Any) -> tuple[float, Result]:
    main, pressed = threading.main_thread().ident, list[float]()
    assert main is not None

    def press() -> None:
        time.sleep(SECONDS)
        pressed.append(time.perf_counter())
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=press).start()
    result = engine.generate(QUESTION, strategy=strategy, sampling=LONG)
    return _since(pressed[0]), result


def closed(engine: Engine) -> Any:
    """A client of the server that hangs up: the time until nothing is searched any more."""
    from nabla_agents.serve import Server, ServeSettings, create_app

    settings = ServeSettings(port=0)
    app = create_app(engine, settings)
    server = Server(app, settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.port:
        time.sleep(0.01)
    for name in ("greedy", "best-of-n", "nabla"):
        body = json.dumps(
            {
                "model": engine.model.name,
                "messages": [{"role": "user", "content": QUESTION}],
                "nabla": {"strategy": name},
            }
        ).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        service = app.state.service
        while not service.admission.running:
            time.sleep(0.005)
        time.sleep(SECONDS)
        [search] = service._searches
        run = search._run
        began = time.perf_counter()
        connection.close()
        result = run.drain()
        yield "a closed connection", name, _since(began), result
    server.should_exit = True
    thread.join(10)


def _since(began: float) -> float:
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
