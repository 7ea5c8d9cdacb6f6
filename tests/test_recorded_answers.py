"""What the embedded model answers is what was written down: alone, in batches, from threads and from tasks."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nabla_agents import Engine, Result

sys.path.insert(0, str(Path(__file__).with_name("recorded")))
from answers import LIMITS, STRATEGIES, engines, questions, recorded, shared, written

KNOWN = recorded()


def alone(engine: Engine, asked: Sequence[str], strategy: Any) -> list[Result]:
    return [engine.generate(question, seed=i, strategy=strategy, **LIMITS) for i, question in enumerate(asked)]


def in_batches(engine: Engine, asked: Sequence[str], strategy: Any) -> list[Result]:
    return engine.generate_batch(asked, seeds=range(len(asked)), strategy=strategy, max_batch=32, **LIMITS)


def from_threads(engine: Engine, asked: Sequence[str], strategy: Any) -> list[Result]:
    def answer(seed: int) -> Result:
        return engine.generate(asked[seed], seed=seed, strategy=strategy, **LIMITS)

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(answer, range(len(asked))))


def from_tasks(engine: Engine, asked: Sequence[str], strategy: Any) -> list[Result]:
    async def gathered() -> list[Result]:
        requests = [engine.request(q, seed=i, strategy=strategy, **LIMITS) for i, q in enumerate(asked)]
        found: list[Result] = []
        for first in range(0, len(requests), 32):
            found += await asyncio.gather(*(engine.submit(r) for r in requests[first : first + 32]))
        return found

    return asyncio.run(gathered())


WAYS: dict[str, Callable[[Engine, Sequence[str], Any], list[Result]]] = {
    "alone": alone,
    "batches": in_batches,
    "threads": from_threads,
    "tasks": from_tasks,
}


def compared(way: str, count: int, rewards: Sequence[str]) -> None:
    asked = questions(count)
    for reward, engine in engines().items():
        for name, strategy in STRATEGIES.items() if reward in rewards else ():
            results = WAYS[way](engine, asked, strategy)
            for i, result in enumerate(results):
                expected = KNOWN[reward, name, i]
                found = written(result, alone=way == "alone")
                assert found == (expected if way == "alone" else shared(expected)), (reward, name, i)


@pytest.mark.parametrize("way", WAYS)
def test_the_first_answers_are_as_recorded(way: str) -> None:
    compared(way, 2 if way == "alone" else 5, ["process", "calculator", "both"] if way == "alone" else ["both"])


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("way", WAYS)
def test_all_answers_are_as_recorded(way: str) -> None:
    compared(way, 300, ["process", "calculator", "both"])
