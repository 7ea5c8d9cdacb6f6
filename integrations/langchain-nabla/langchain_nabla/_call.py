"""Call: one call of a chat or text model, from its requests to what is written of their results."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from langchain_nabla._progress import report
from nabla_agents import Request, Result, Step

if TYPE_CHECKING:
    from nabla_agents import Engine

ChunkT = TypeVar("ChunkT", covariant=True)


class Writer(Protocol[ChunkT]):
    """How a stream is written."""

    def grown(self, step: Step) -> Iterable[ChunkT]:
        """What a step commits, if anything; the last one leaves all to `end`."""
        ...

    def end(self, result: Result) -> Iterable[ChunkT]:
        """What is left, with usage and metadata."""
        ...


class Call(Generic[ChunkT]):
    """The searches of one call, which run side by side: `n` for each prompt."""

    def __init__(self, engine: Engine, requests: Sequence[Request], writer: Writer[ChunkT], *, n: int) -> None:
        self._engine, self._requests, self._writer, self._n = engine, requests, writer, n

    def results(self) -> list[list[Result]]:
        """Those of each prompt, best first. Each step is reported."""
        runs = [self._engine.submit(request) for request in self._requests]
        return self._by_prompt([run.drain(report) for run in runs])

    async def aresults(self) -> list[list[Result]]:
        """As `results`, in one batch with what else is searched; cancelled with the task that awaits it."""
        runs = [self._engine.submit(request) for request in self._requests]
        return self._by_prompt(await asyncio.gather(*(run.adrain(report) for run in runs)))

    def chunks(self) -> Iterator[ChunkT]:
        """The stream of a call with one prompt. With `n` > 1 it is the best answer: only whole ones compare."""
        if self._n > 1:
            [[best, *_]] = self.results()
            yield from self._writer.end(best)
            return
        with self._engine.submit(self._requests[0], on_demand=True) as run:
            for step in run:
                report(step)
                yield from self._writer.grown(step)
            yield from self._writer.end(run.result)

    async def achunks(self) -> AsyncGenerator[ChunkT, None]:
        """As `chunks`. The next step is computed when it is asked for, so an abandoned stream costs nothing more."""
        if self._n > 1:
            [[best, *_]] = await self.aresults()
            for chunk in self._writer.end(best):
                yield chunk
            return
        async with self._engine.submit(self._requests[0], on_demand=True) as run:
            async for step in run:
                report(step)
                for chunk in self._writer.grown(step):
                    yield chunk
            for chunk in self._writer.end(run.result):
                yield chunk

    def _by_prompt(self, results: Sequence[Result]) -> list[list[Result]]:
        return [best_first(results[i : i + self._n]) for i in range(0, len(results), self._n)]


def best_first(results: Sequence[Result]) -> list[Result]:
    """Highest reward first, or highest likelihood where there is no reward; what could not be judged comes last."""

    def rank(result: Result) -> float:
        value = result.log_likelihood if result.score is None else result.score.value
        return -math.inf if math.isnan(value) else value

    return sorted(results, key=rank, reverse=True)


def summed(results: Iterable[Result], model: str) -> dict[str, Any]:
    """The `llm_output` of several results: the tokens of prompts and returned answers together."""
    usages = [result.token_usage for result in results]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {"token_usage": {name: sum(usage[name] for usage in usages) for name in names}, "model_name": model}
