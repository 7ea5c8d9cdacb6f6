"""What the adapters cost: per call, to the first committed text, and after a cancellation; all by the clock.

    python benchmarks/adapters.py [ROUNDS]

Overhead is what a call takes beyond the engine's own with the same answer, on a model that says at once what a script
tells it. Every round makes each call once, in a random order; the table has the median of the differences within a
round, with its 95 % interval (bootstrap, seed 0). One thread computes (torch), so that calls do not wait for others'.
The rest is measured on the embedded model.
"""

import asyncio
import os
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import torch
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableLambda
from llama_index.core.llms import ChatMessage

from langchain_nabla import ChatNabla, NablaLLM
from llama_index.llms.nabla import NablaLLM as LlamaIndexNablaLLM
from nabla_agents import ArithmeticSteps, Budget, Engine, Greedy, Sampling
from nabla_agents.testing import scripted_model

QUESTIONS = {
    "one step": "Tom has 7 boxes with 8 apples each. He eats 5. How many are left?",
    "five steps": "What is 12 * 3 - 17 + 4 * 9 - 8 + 25?",
}
WARM_UP = 20


def main(rounds: int = 300) -> None:
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before, {rounds} rounds")
    asyncio.run(overhead(rounds))
    engine = Engine.tiny(budget=Budget(rollouts=8))
    chat = ChatNabla(engine=engine, max_tokens=120)
    first_text(chat)
    asyncio.run(cancellation(ChatNabla(engine=Engine.tiny(reward=ArithmeticSteps(), budget=Budget(rollouts=8)))))
    print(f"load {os.getloadavg()[0]:.1f} after")


async def overhead(rounds: int) -> None:
    engine = Engine(model=scripted_model(lambda prompt: "Yes."), strategy=Greedy())
    chat, llm = ChatNabla(engine=engine, max_tokens=64), NablaLLM(engine=engine, max_tokens=64)
    index, messages = LlamaIndexNablaLLM(engine=engine, max_tokens=64), [ChatMessage(role="user", content="Well?")]
    arms: dict[str, Callable[[], Awaitable[Any]]] = {
        "engine": plain(lambda: engine.generate("Well?", sampling=Sampling(max_tokens=64))),
        "langchain: ChatNabla.invoke": plain(lambda: chat.invoke("Well?")),
        "langchain: ChatNabla.ainvoke": lambda: chat.ainvoke("Well?"),
        "langchain: ChatNabla.stream": plain(lambda: list(chat.stream("Well?"))),
        "langchain: NablaLLM.invoke": plain(lambda: llm.invoke("Well?")),
        "llama_index: NablaLLM.chat": plain(lambda: index.chat(messages)),
        "llama_index: NablaLLM.achat": lambda: index.achat(messages),
        "llama_index: NablaLLM.stream_chat": plain(lambda: list(index.stream_chat(messages))),
        "llama_index: NablaLLM.complete": plain(lambda: index.complete("Well?")),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    order = random.Random(0)
    for i in range(WARM_UP + rounds):
        for name in order.sample(list(arms), len(arms)):
            started = time.perf_counter()
            await arms[name]()
            if i >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - started))
    print(f"{'engine':34} {statistics.median(times['engine']):6.2f} ms")
    for name in list(arms)[1:]:
        added = [mine - base for mine, base in zip(times[name], times["engine"], strict=True)]
        low, high = interval(added)
        print(f"{name:34} {statistics.median(added):+6.2f} ms [{low:.2f}, {high:.2f}] beyond the engine's own call")


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of the median."""
    source = random.Random(0)
    medians = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(1000))
    return medians[25], medians[974]


def plain(call: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
    """A blocking call in the place of one that is awaited."""

    async def run() -> Any:
        return call()

    return run


def first_text(llm: ChatNabla, times: int = 15) -> None:
    for name, question in QUESTIONS.items():
        llm.invoke(question)
        firsts, wholes, pieces = [], [], 0
        for _ in range(times):
            started, heard = time.perf_counter(), []
            for chunk in llm.stream(question):
                if chunk.text:
                    heard.append(1000 * (time.perf_counter() - started))
            wholes.append(1000 * (time.perf_counter() - started))
            firsts.append(heard[0] if heard else wholes[-1])
            pieces = len(heard)
        shares = [first / whole for first, whole in zip(firsts, wholes, strict=True)]
        shown = f"{statistics.median(firsts):.0f} ms of {statistics.median(wholes):.0f}, {pieces} pieces"
        print(f"first committed text, {name}: {shown}, {100 * statistics.median(shares):.0f} % of the time")


async def cancellation(llm: ChatNabla) -> None:
    """From the cancellation of a task until the engine is free for somebody else's shortest call."""
    question = QUESTIONS["one step"]
    await llm.ainvoke(question)
    steps: list[float] = []
    await chain(llm, steps).ainvoke(question)
    waits: list[float] = []
    for i in range(15):
        task = asyncio.create_task(llm.ainvoke(question))
        await asyncio.sleep(0.02 + 0.005 * i)
        task.cancel()
        started = time.perf_counter()
        await asyncio.gather(task, return_exceptions=True)
        await llm.ainvoke("1", max_tokens=1, rollouts=1)
        waits.append(1000 * (time.perf_counter() - started))
    print(f"engine free {statistics.median(waits):.0f} ms after a cancellation (at most {max(waits):.0f} ms)")
    print(f"one step takes {statistics.median(steps):.0f} ms (at most {max(steps):.0f} ms)")


def chain(llm: ChatNabla, steps: list[float]) -> Any:
    """The model in a chain, with the milliseconds of each step of its search."""
    before = time.perf_counter()

    class Steps(BaseCallbackHandler):
        def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
            nonlocal before
            steps.append(1000 * (time.perf_counter() - before))
            before = time.perf_counter()

    return (RunnableLambda(lambda question: question) | llm).with_config(callbacks=[Steps()])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
