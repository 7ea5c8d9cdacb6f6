"""When the first text of an answer comes, and the last: transformers' streamer and every way to stream here.

    python benchmarks/streaming.py

A model of SmolLM2-135M's shape with random weights, 64 tokens, greedy; medians of rounds in which all ways take turns.
Exits with 1 where the engine's own stream has its first text later than 1.2 times transformers'.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import TextIteratorStreamer

from langchain_nabla import ChatNabla, NablaLLM
from llama_index.llms.nabla import NablaLLM as LlamaIndexLLM
from nabla_agents import Budget, Engine, Greedy, LanguageModel, Sampling
from nabla_agents.testing import random_model

SHAPE: dict[str, Any] = {
    "layers": 30,
    "width": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "context_length": 2048,
}
WORDS = [f" w{i:03}" for i in range(999)]
QUESTION = "".join(WORDS[:100])
TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=SHAPE["layers"], help="fewer, to try this script")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = random_model("llama", vocabulary=WORDS, **{**SHAPE, "layers": arguments.layers})
    model.transformer.module.generation_config.eos_token_id = None
    model.eos_ids = frozenset()
    ways = ways_of(model)
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
    for name in track([*ways] * (arguments.rounds + 1), "measuring", console=Console(stderr=True)):
        found[name].append(timed(ways[name]))
    table = Table("way", "first text", "×", "all of it", "×", "pieces")
    medians = {n: [statistics.median(column) for column in zip(*rows[1:], strict=True)] for n, rows in found.items()}
    first, whole, _ = medians["transformers"]
    for name, (a, b, pieces) in medians.items():
        table.add_row(name, f"{a:.3f} s", f"{a / first:.2f}", f"{b:.3f} s", f"{b / whole:.2f}", str(round(pieces)))
    Console(width=100).print(table)
    sys.exit(1 if medians["Engine.steps"][0] > 1.2 * first else 0)


def ways_of(model: LanguageModel) -> dict[str, Callable[[], Iterator[Any]]]:
    """Each gives the pieces of one answer as they come."""
    engine = Engine(model=model, strategy=Greedy(), budget=Budget(rollouts=1))
    sampling, options = Sampling(max_tokens=TOKENS), {"engine": engine, "max_tokens": TOKENS}
    llama_index = LlamaIndexLLM(**options)
    return {
        "transformers": lambda: streamed(model),
        "Engine.steps": lambda: (s for s in engine.steps(QUESTION, sampling=sampling) if s.committed_text),
        "async for": lambda: driven(engine.steps(QUESTION, sampling=sampling)),
        "LangChain NablaLLM.stream": lambda: NablaLLM(**options).stream(QUESTION),
        "LangChain ChatNabla.stream": lambda: ChatNabla(**options).stream(QUESTION),
        "LangChain ChatNabla.astream": lambda: driven(ChatNabla(**options).astream(QUESTION)),
        "LlamaIndex stream_complete": lambda: iter(llama_index.stream_complete(QUESTION)),
    }


def streamed(model: LanguageModel) -> Iterator[str]:
    tokenizer: Any = model.tokenizer.hf
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    ids = torch.tensor([model.prompt(QUESTION).ids])
    options = {"max_new_tokens": TOKENS, "do_sample": False, "streamer": streamer, "pad_token_id": 0}
    module: Any = model.transformer.module
    thread = threading.Thread(target=module.generate, args=(ids,), kwargs=options)
    thread.start()
    yield from (text for text in streamer if text)
    thread.join()


def driven(pieces: AsyncIterator[Any]) -> Iterator[Any]:
    """An asynchronous stream, one piece after another."""
    loop = asyncio.new_event_loop()
    try:
        while True:
            try:
                yield loop.run_until_complete(anext(pieces))
            except StopAsyncIteration:
                return
    finally:
        loop.close()


def timed(way: Callable[[], Iterator[Any]]) -> tuple[float, float, int]:
    """Seconds to the first piece and to the last, and how many there are."""
    began = time.perf_counter()
    pieces = way()
    next(pieces)
    first, count = time.perf_counter() - began, 1 + sum(1 for _ in pieces)
    return first, time.perf_counter() - began, count


if __name__ == "__main__":
    main()
