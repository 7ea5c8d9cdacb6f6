"""What the LangChain adapter costs: per call, to the first committed token, and after a cancellation.

    python benchmarks/langchain_adapter.py [CALLS]

Overhead is the processor time of `invoke` less that of the engine's own call with the same answer, in turns, on a model
that says at once what a script tells it: other work on the machine does not change it. First token and cancellation are
measured by the clock, on the embedded model.
"""

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from langchain_nabla import ChatNabla, NablaLLM
from nabla_agents import ArithmeticSteps, Budget, Engine, Greedy, Sampling
from nabla_agents.scripted import scripted_model

NUMBERS = ((3, 4), (7, 8), (9, 6))
QUESTIONS = [f"Tom has {a} boxes with {b} apples each. He eats 5. How many are left?" for a, b in NUMBERS]
BASE = {"ChatNabla.invoke": "engine", "ChatNabla.stream": "engine", "NablaLLM.invoke": "engine, batch"}
WARM_UP = 10


def main(calls: int = 200) -> None:
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, medians")
    overhead(calls)
    engine = Engine.tiny(reward=ArithmeticSteps(), budget=Budget(rollouts=8))
    llm = ChatNabla(engine=engine, max_tokens=100)
    llm.invoke(QUESTIONS[0])
    first_token(llm)
    asyncio.run(cancellation(llm))


def overhead(calls: int) -> None:
    engine = Engine(model=scripted_model(lambda prompt: "Yes."), strategy=Greedy())
    chat, llm = ChatNabla(engine=engine), NablaLLM(engine=engine)
    arms: dict[str, Callable[[], Any]] = {
        "engine": lambda: engine.generate("Well?", sampling=Sampling()),
        "ChatNabla.invoke": lambda: chat.invoke("Well?"),
        "ChatNabla.stream": lambda: list(chat.stream("Well?")),
        "engine, batch": lambda: engine.generate_batch(["Well?"], sampling=Sampling()),
        "NablaLLM.invoke": lambda: llm.invoke("Well?"),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(WARM_UP + calls):
        for name, call in arms.items():
            seconds = timed(call)
            if i >= WARM_UP:
                times[name].append(seconds)
    median = {name: statistics.median(measured) for name, measured in times.items()}
    for name, base in BASE.items():
        added = 1000 * (median[name] - median[base])
        print(f"{name:18} {1000 * median[name]:7.2f} ms, of which {added:5.2f} ms beyond the engine's own call")


def first_token(llm: ChatNabla) -> None:
    for question in QUESTIONS:
        started, first = time.perf_counter(), None
        for chunk in llm.stream(question):
            if first is None and chunk.text:
                first = time.perf_counter() - started
        whole = time.perf_counter() - started
        print(f"first committed text after {1000 * (first or whole):.0f} ms of {1000 * whole:.0f}: {question[:30]}...")


async def cancellation(llm: ChatNabla) -> None:
    """From the cancellation of a task until the engine is free for somebody else's shortest call."""
    waits: list[float] = []
    for i in range(9):
        task = asyncio.create_task(llm.ainvoke(QUESTIONS[i % 3]))
        await asyncio.sleep(0.05)
        task.cancel()
        started = time.perf_counter()
        await asyncio.gather(task, return_exceptions=True)
        await llm.ainvoke("1", max_tokens=1, rollouts=1)
        waits.append(time.perf_counter() - started)
    median, longest = statistics.median(waits), max(waits)
    print(f"engine free {1000 * median:.0f} ms after a cancellation (at most {1000 * longest:.0f} ms)")


def timed(call: Callable[[], Any]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
