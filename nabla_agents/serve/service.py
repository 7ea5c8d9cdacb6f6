"""Service: the engines behind a server, and the searches that run on them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from nabla_agents.batching import OpenBatch
from nabla_agents.config import Sampling, Settings
from nabla_agents.engine import Engine, PromptLike
from nabla_agents.errors import ConfigurationError
from nabla_agents.result import Result
from nabla_agents.rewards import Reward
from nabla_agents.run import Run
from nabla_agents.serve.admission import Admission, Ticket
from nabla_agents.serve.errors import Refusal, shutting_down
from nabla_agents.serve.keys import ApiKey
from nabla_agents.serve.metrics import Metrics
from nabla_agents.serve.settings import ServeSettings
from nabla_agents.strategies import BestOfN, Greedy, Nabla, NablaParallel, SelfConsistency, Strategy
from nabla_agents.types import Budget, FinishReason, Prompt, Step

ResultT = TypeVar("ResultT")

STRATEGIES: Final[Mapping[str, Strategy]] = {
    "nabla": Nabla(),
    "nabla-parallel": NablaParallel(),
    "greedy": Greedy(),
    "best-of-n": BestOfN(),
    "self-consistency": SelfConsistency(),
}


@dataclass(frozen=True)
class Served:
    """An engine under the name of its model and, where the request chose one, its reward; with its open batch."""

    model: str
    reward: str | None
    engine: Engine
    batch: OpenBatch


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted: everything is checked and rendered, nothing is computed."""

    served: Served
    prompt: Prompt
    seed: int
    sampling: Sampling
    budget: Budget
    strategy: Strategy | None = None
    draft: str | None = None
    top_logprobs: int | None = None
    """How many other tokens are wanted at each place of the answer."""

    def start(self) -> Run:
        return self.served.engine.steps(
            self.prompt,
            seed=self.seed,
            sampling=self.sampling,
            budget=self.budget,
            strategy=self.strategy,
            draft=self.draft,
            worker=self.served.batch,
        )


class Service:
    """Engines by model and reward, one batch each, one turn at a time; and what runs on them."""

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
        self._device = threading.Lock()
        self._served = {
            (model, name): self._one(model, name, engine if name is None else engine.with_reward(rewards[name]))
            for model, engine in engines.items()
            for name in (None, *rewards)
        }
        self.models, self.rewards = list(engines), list(rewards)
        self._searches: set[Searching] = set()
        self._threads = ThreadPoolExecutor(settings.max_concurrent, "nabla-search")
        self._readers = ThreadPoolExecutor(2, "nabla-read")
        self._idle: asyncio.Event | None = None

    def _one(self, model: str, reward: str | None, engine: Engine) -> Served:
        batch = OpenBatch(engine.worker, max_batch=max(self.settings.max_concurrent, 1), turn=self._device)
        return Served(model, reward, engine, batch)

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
            changed: Any = strategy.replace(**changes)
        except ConfigurationError as e:
            raise Refusal(400, str(e), code="invalid_value", param=param) from e
        return changed

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

    def submit(self, function: Callable[[], None]) -> None:
        self._threads.submit(function)

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
        """Cancels what runs and ends the threads."""
        self.draining = self._closed = True
        for search in list(self._searches):
            search.cancel()
        for served in self._served.values():
            served.batch.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._readers.shutdown(wait=True, cancel_futures=True)


class Searching:
    """One search: waits for its turn, runs on a thread, and hands its steps to the event loop."""

    def __init__(self, service: Service, ask: Ask, ticket: Ticket) -> None:
        self.ask, self.ticket = ask, ticket
        self.queued_seconds = 0.0
        self.alternatives: list[list[tuple[int, float]]] = []
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Step | Result | BaseException] = asyncio.Queue()
        self._run: Run | None = None
        self._cancelled = self._submitted = False

    async def steps(self) -> AsyncIterator[Step | Result]:
        """The steps as they are made, and the result. Left early, the search ends before its next operation.

        Raises:
            Refusal: 503 where the server's shutdown has cut the search off.
            BaseException: what the search itself raises.
        """
        try:
            await self.ticket.granted
            self.queued_seconds = time.monotonic() - self.ticket.came
            self._service.metrics.queued(self.queued_seconds)
            self._submitted = True
            self._service.submit(self._work)
            while True:
                item = await self._arrived.get()
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, Result):
                    if item.finish_reason is FinishReason.INTERRUPTED:
                        raise shutting_down()
                    self._service.metrics.answered(self.ask.served.model, item)
                    yield item
                    return
                yield item
        finally:
            self.cancel()

    async def result(self) -> Result:
        """The result, without the steps."""
        async for item in self.steps():
            if isinstance(item, Result):
                return item
        raise shutting_down()

    def cancel(self) -> None:
        """Ends the search before its next operation, or takes it from the queue."""
        self._cancelled = True
        if self._run is not None:
            self._run.cancel()
        if not self._submitted and self in self._service._searches:
            self._submitted = True
            if not self.ticket.granted.done():
                self.ticket.granted.set_exception(shutting_down())
                self.ticket.granted.exception()  # seen: whoever waits for it may be gone
            self._service.ended(self)

    def _work(self) -> None:
        """On a thread of its own, within the batch."""
        outcome: Result | BaseException
        try:
            with self.ask.served.batch.joining():
                self._run = self.ask.start()
                if self._cancelled:
                    self._run.cancel()
                for step in self._run:
                    self._tell(self._arrived.put_nowait, step)
                outcome = self._run.result
                if (top := self.ask.top_logprobs) and not self._cancelled:
                    served = self.ask.served
                    found = served.engine.alternatives(self.ask.prompt, outcome, top=top, worker=served.batch)
                    self.alternatives, outcome = found[0], outcome.with_usage(outcome.usage + found[1])
        except BaseException as e:
            outcome = e
        self._tell(self._service.ended, self)
        self._tell(self._arrived.put_nowait, outcome)

    def _tell(self, function: Callable[[Any], Any], argument: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:
            self._cancelled = True  # the event loop is gone, and so is everyone who waited
