"""Service: the engines behind a server, and the searches that run on them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from nabla_agents.config import Settings
from nabla_agents.engine import Engine
from nabla_agents.errors import ConfigurationError
from nabla_agents.named import replaced
from nabla_agents.request import PromptLike, Request
from nabla_agents.result import Result
from nabla_agents.rewards import Reward
from nabla_agents.run import Run
from nabla_agents.search import Strategy
from nabla_agents.serve.admission import Admission, Ticket
from nabla_agents.serve.errors import Refusal, shutting_down
from nabla_agents.serve.keys import ApiKey
from nabla_agents.serve.metrics import Metrics
from nabla_agents.serve.settings import ServeSettings
from nabla_agents.types import Budget, FinishReason, Prompt, Step

ResultT = TypeVar("ResultT")

OFFERED: Final = ("nabla", "nabla-parallel", "greedy", "best-of-n", "self-consistency")
"""The strategies that requests may name unless the server's owner says otherwise."""


@dataclass(frozen=True)
class Served:
    """An engine under the name of its model and, where the request chose one, its reward."""

    model: str
    reward: str | None
    engine: Engine


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted: everything is checked and rendered, nothing is computed."""

    served: Served
    request: Request
    logprobs: bool = False
    """Whether the answer is to have log-probabilities."""


class Service:
    """Engines by model and reward, and what runs on them."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        settings: ServeSettings,
        *,
        rewards: Mapping[str, Reward],
        strategies: Mapping[str, Strategy],
        metrics: Metrics,
    ) -> None:
        self.settings, self.strategies, self.metrics = settings, strategies, metrics
        self.admission = Admission(concurrent=settings.max_concurrent, queued=settings.max_queued)
        self.draining = self._closed = False
        self.created = int(time.time())
        self._served = {
            (model, name): Served(model, name, engine if name is None else engine.with_reward(rewards[name]))
            for model, engine in engines.items()
            for name in (None, *rewards)
        }
        self.models, self.rewards = list(engines), list(rewards)
        self._searches: set[Searching] = set()
        self._readers = ThreadPoolExecutor(2, "nabla-read")
        self._idle: asyncio.Event | None = None

    # ── what a request may name ───────────────────────────────────────────────────────────────────────────────────

    def served(self, model: str, reward: str | None = None) -> Served:
        if model not in self.models:
            known = ", ".join(map(repr, self.models))
            raise Refusal(
                404,
                f"The model {model!r} does not exist here; this server has {known}.",
                code="model_not_found",
                param="model",
            )
        if reward is not None and reward not in self.rewards:
            known = ", ".join(map(repr, self.rewards)) or "none"
            raise Refusal(
                400,
                f"The reward {reward!r} is not offered here; this server has {known}.",
                code="reward_not_found",
                param="nabla.reward",
            )
        return self._served[model, reward]

    def strategy(self, name: str | None, changes: Mapping[str, Any]) -> Strategy | None:
        """The strategy of this name with some of its settings changed; None for the engine's own."""
        if name is None:
            return None
        param = "nabla.strategy"
        if name not in self.strategies:
            known = ", ".join(map(repr, self.strategies))
            message = f"The strategy {name!r} is not offered here; this server has {known}."
            raise Refusal(400, message, code="strategy_not_found", param=param)
        strategy = self.strategies[name]
        if not changes:
            return strategy
        if not isinstance(strategy, Settings):
            raise Refusal(400, f"The strategy {name!r} has no settings to change.", code="invalid_value", param=param)
        most = self.settings.max_rollouts
        if isinstance(n := changes.get("n"), int) and n > most:
            raise Refusal(400, f"n of the strategy is {n}; at most {most}.", code="budget_above_cap", param=param)
        try:
            return replaced(strategy, changes)
        except ConfigurationError as e:
            raise Refusal(400, str(e), code="invalid_value", param=param) from e

    def budget(self, engine: Engine, asked: Mapping[str, Any], key: ApiKey | None) -> Budget:
        """The engine's budget with what a request asks for, within the caps of the server and the key.

        Raises:
            Refusal: more than a cap is asked for.
        """
        caps = {name: cap for name, cap in vars(self.settings.budget_caps).items() if cap is not None}
        if key is not None and key.rollouts is not None:
            caps["rollouts"] = min(caps["rollouts"], key.rollouts)
        own = vars(engine.budget)
        found = {name: min((x for x in (own[name], caps.get(name)) if x is not None), default=None) for name in own}
        for name, wanted in asked.items():
            if wanted is None:
                continue
            if name in caps and wanted > caps[name]:
                message = f"nabla.budget.{name} is {wanted:g}; at most {caps[name]:g} is allowed here."
                raise Refusal(400, message, code="budget_above_cap", param=f"nabla.budget.{name}")
            found[name] = wanted
        try:
            return Budget(**found)
        except ConfigurationError as e:
            raise Refusal(400, str(e), code="invalid_value", param="nabla.budget") from e

    async def reading(self, function: Callable[[], ResultT]) -> ResultT:
        """The function's result, off the event loop: templates, tokenizers, grammars.

        Raises:
            Refusal: 503 after `close`; and what the function raises.
        """
        if self._closed:
            raise shutting_down()
        return await asyncio.get_running_loop().run_in_executor(self._readers, function)

    async def prompt(self, served: Served, prompt: PromptLike, **options: Any) -> Prompt:
        return await self.reading(lambda: served.engine.prompt(prompt, **options))

    # ── what runs ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def load(self) -> int:
        """Answers that are searched or wait."""
        return self.admission.running + self.admission.waiting

    @property
    def ready(self) -> bool:
        return not self.draining

    def searches(self, asks: Sequence[Ask], caller: str, key: ApiKey | None) -> list[Searching]:
        """The asked searches, in the queue.

        Raises:
            Refusal: 429, or 503 while the server shuts down.
        """
        if self.draining:
            raise shutting_down()
        tickets = self.admission.enter(caller, len(asks), key)
        found = [Searching(self, ask, ticket) for ask, ticket in zip(asks, tickets, strict=True)]
        self._searches.update(found)
        return found

    def ended(self, search: Searching) -> None:
        self.admission.leave(search.ticket)
        self._searches.discard(search)
        if not self._searches and self._idle is not None:
            self._idle.set()

    async def drain(self, seconds: float) -> None:
        """Refuses what comes from now on, and waits for what runs; cancels what has not ended in time."""
        self.draining = True
        if not await self._emptied(seconds):
            for search in list(self._searches):
                search.cancel()
            await self._emptied(10.0)

    async def _emptied(self, seconds: float) -> bool:
        self._idle = asyncio.Event()
        try:
            if self._searches:
                await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Cancels what runs and ends the threads that read."""
        self.draining = self._closed = True
        for search in list(self._searches):
            search.cancel()
        self._readers.shutdown(wait=True, cancel_futures=True)


class Searching:
    """One answer in the making: waits for its turn, is searched, and hands its steps to whoever asked."""

    def __init__(self, service: Service, ask: Ask, ticket: Ticket) -> None:
        self.ask, self.ticket = ask, ticket
        self.queued_seconds = 0.0
        self._service = service
        self._run: Run | None = None
        self._cancelled = self._left = False

    async def steps(self) -> AsyncIterator[Step | Result]:
        """The steps as they are made, and the result. Left early, the search ends within one decode step.

        Raises:
            Refusal: 503 where the server's shutdown has cut the search off.
            BaseException: what the search itself raises.
        """
        try:
            async for step in await self._started():
                yield step
            yield await self._ended()
        finally:
            self.cancel()

    async def result(self) -> Result:
        """The result, without the steps; raises as `steps` does."""
        try:
            await self._started()
            return await self._ended()
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Ends the search within one decode step, or takes it from the queue."""
        self._cancelled = True
        if self._run is not None:
            self._run.cancel()
            return
        if not self.ticket.granted.done():
            self.ticket.granted.set_exception(shutting_down())
            self.ticket.granted.exception()  # seen: whoever waits for it may be gone
        self._leave()

    async def _started(self) -> Run:
        await self.ticket.granted
        self.queued_seconds = time.monotonic() - self.ticket.came
        self._service.metrics.queued(self.queued_seconds)
        engine, request, loop = self.ask.served.engine, self.ask.request, asyncio.get_running_loop()
        run = self._run = await self._service.reading(lambda: engine.submit(request))  # tokenizes a draft
        run.add_done_callback(lambda _: _tell(loop, self._leave))
        if self._cancelled:
            run.cancel()
        return run

    async def _ended(self) -> Result:
        assert self._run is not None
        result = await self._run
        if result.finish_reason is FinishReason.INTERRUPTED:
            raise shutting_down()
        self._service.metrics.answered(self.ask.served.model, result)
        return result

    def _leave(self) -> None:
        """Makes room for another, once."""
        if not self._left:
            self._left = True
            self._service.ended(self)


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the event loop is gone, and so is everyone who waited
        loop.call_soon_threadsafe(function)
