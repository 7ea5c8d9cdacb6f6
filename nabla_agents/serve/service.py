"""Service: the engines behind a server, and what runs on them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from starlette.requests import Request as HttpRequest

from nabla_agents.engine import Engine
from nabla_agents.request import Request
from nabla_agents.result import Result
from nabla_agents.rewards import Reward
from nabla_agents.run import Run
from nabla_agents.search import Strategy
from nabla_agents.serialization import NablaField
from nabla_agents.serve.admission import Admission, Ticket
from nabla_agents.serve.changes import changed
from nabla_agents.serve.errors import Refusal, invalid, shutting_down
from nabla_agents.serve.keys import ApiKey
from nabla_agents.serve.readers import Readers
from nabla_agents.serve.settings import ServeSettings
from nabla_agents.serve.telemetry import Metrics
from nabla_agents.types import Budget, FinishReason, Step

OFFERED: Final = ("nabla", "nabla-parallel", "greedy", "best-of-n", "self-consistency", "refine", "power-sampling")
"""The strategies that requests may name unless the server's owner says otherwise."""


_SHARE: Final = 0.75  # of the places that one key has at most, where there are several keys

CANCEL_SECONDS: Final = 5.0
"""In which answers that were cancelled end, and are told so."""


@dataclass(frozen=True)
class Served:
    """An engine under the name of its model and, where the request chose one, its reward."""

    model: str
    reward: str | None
    engine: Engine


class Pending(Protocol):
    """What is under way for a client: it can be ended, and tells that it has."""

    left: asyncio.Future[None]

    def cancel(self) -> None: ...


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
        self.admission = admission_of(settings, settings.max_concurrent)
        self.readers = Readers(seconds=settings.read_seconds)
        self.draining = False
        self.created = int(time.time())
        self._drained_by = math.inf
        self._served = {
            (model, name): Served(model, name, engine if name is None else engine.with_reward(rewards[name]))
            for model, engine in engines.items()
            for name in (None, *rewards)
        }
        self.models, self.rewards = list(engines), list(rewards)
        self.runs: set[Pending] = set()

    @staticmethod
    def of(request: HttpRequest) -> Service:
        return request.app.state.service

    # ── what a request may name ───────────────────────────────────────────────────────────────────────────────────

    def served(self, model: str, reward: str | None = None) -> Served:
        if model not in self.models:
            known = ", ".join(map(repr, self.models))
            message = f"The model {model!r} does not exist here; this server has {known}."
            raise Refusal(404, message, code="model_not_found", param="model")
        if reward is not None and reward not in self.rewards:
            raise _not_offered("reward", reward, self.rewards, code="reward_not_found")
        return self._served[model, reward]

    def search(self, served: Served, wish: NablaField, key: ApiKey | None) -> dict[str, Any]:
        """How a request is searched: its strategy, budget and draft."""
        return {
            "strategy": self._strategy(*wish.chosen, key),
            "budget": self.budget(served.engine, wish.limits, key),
            "draft": wish.draft,
            "draft_cut": wish.draft_cut,
        }

    def _strategy(self, name: str | None, changes: Mapping[str, Any], key: ApiKey | None) -> Strategy | None:
        """The strategy of this name with some of its settings changed; None for the engine's own."""
        if name is None:
            return None
        if name not in self.strategies:
            raise _not_offered("strategy", name, self.strategies, code="strategy_not_found")
        return changed(name, self.strategies[name], changes, most_rollouts=self._most_rollouts(key))

    def budget(self, engine: Engine, wanted: Mapping[str, Any], key: ApiKey | None) -> Budget:
        """The engine's budget with what a request asks for, within the caps of the server and the key.

        Raises:
            Refusal: more than a cap is asked for.
        """
        caps = {name: cap for name, cap in vars(self.settings.budget_caps).items() if cap is not None}
        caps["rollouts"] = self._most_rollouts(key)
        for name, limit in wanted.items():
            if name in caps and limit > caps[name]:
                message = f"nabla.budget.{name} is {limit:g}; at most {caps[name]:g} is allowed here."
                raise invalid(message, f"nabla.budget.{name}", code="budget_above_cap")
        own = {name: limit for name, limit in vars(engine.budget).items() if limit is not None}
        within = {name: min(own.get(name, cap), cap) for name, cap in caps.items()}
        return Budget(**{"rollouts": None, **own, **within, **wanted})

    def _most_rollouts(self, key: ApiKey | None) -> int:
        own = None if key is None else key.rollouts
        return self.settings.max_rollouts if own is None else min(self.settings.max_rollouts, own)

    def max_tokens(self, name: str, wanted: int | None) -> int:
        """The wanted tokens of an answer, or the server's limit.

        Raises:
            Refusal: more than that.
        """
        most = self.settings.max_tokens
        if wanted is not None and wanted > most:
            raise invalid(f"{name} is {wanted}; at most {most} tokens are allowed.", name, code="budget_above_cap")
        return most if wanted is None else wanted

    # ── what runs ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def load(self) -> int:
        """Answers that are searched or wait."""
        return self.admission.running + self.admission.waiting

    @property
    def idle(self) -> bool:
        """Whether no thread is at work for a request."""
        return not (self.runs or self.readers.busy)

    @property
    def ready(self) -> bool:
        return not self.draining

    @property
    def stalled(self) -> bool:
        """Whether the thread that computes has not moved for longer than its longest allowed step."""
        busy = max(self._served[model, None].engine.busy_seconds for model in self.models)
        return busy > self.settings.stall_seconds

    def submit(self, served: Served, requests: Sequence[Request], caller: str, key: ApiKey | None) -> list[QueuedRun]:
        """The requests, in the queue.

        Raises:
            Refusal: 429, or 503 while the server shuts down.
        """
        if self.draining:
            raise shutting_down()
        tickets = self.admission.enter(caller, len(requests), key)
        runs = [QueuedRun(self, served, request, ticket) for request, ticket in zip(requests, tickets, strict=True)]
        self.runs.update(runs)
        return runs

    def leave(self, run: QueuedRun) -> None:
        """The run makes room for another; may be said more than once."""
        self.admission.leave(run.ticket)
        self.runs.discard(run)
        if not run.left.done():
            run.left.set_result(None)

    async def drain(self, seconds: float) -> None:
        """Refuses what comes from now on, and waits for what runs; cancels what has not ended in time, and does not
        wait for what does not heed that. The first call's time is that of all.
        """
        self.draining = True
        now = time.monotonic()
        self._drained_by = min(now + seconds, self._drained_by)
        for end in (self._drained_by, self._drained_by + CANCEL_SECONDS):
            if self.runs:
                await asyncio.wait([run.left for run in self.runs], timeout=max(0.0, end - time.monotonic()))
            self._cancel()

    def _cancel(self) -> None:
        for run in list(self.runs):
            run.cancel()

    def close(self) -> None:
        """Cancels what runs and ends the threads that read."""
        self.draining = True
        self._cancel()
        self.readers.close()


class QueuedRun:
    """A run that waits for its turn first. Whoever has it cancels it in the end, whatever came of it."""

    def __init__(self, service: Service, served: Served, request: Request, ticket: Ticket) -> None:
        self.ticket = ticket
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queued_seconds = 0.0
        self._service, self._served, self._request = service, served, request
        self._run: Run | None = None
        self._cancelled = False

    async def steps(self) -> AsyncIterator[Step | Result]:
        """The steps as they are made, and the result.

        Raises:
            Refusal: 503 where the server's shutdown has cut the search off.
            BaseException: what the search itself raises.
        """
        run = await self._started()
        async for step in run:
            yield step
        yield await self._ended(run)

    async def result(self) -> Result:
        """The result, without the steps; raises as `steps` does."""
        return await self._ended(await self._started())

    def cancel(self) -> None:
        """Ends the search within one decode step, or takes it from the queue."""
        self._cancelled = True
        if self._run is not None:
            self._run.cancel()
            return
        if not self.ticket.granted.done():
            self.ticket.granted.set_exception(shutting_down())
            self.ticket.granted.exception()  # seen: whoever waits for it may be gone
        self._service.leave(self)

    async def _started(self) -> Run:
        await self.ticket.granted
        self.queued_seconds = time.monotonic() - self.ticket.came
        self._service.metrics.queued(self.queued_seconds)
        loop = asyncio.get_running_loop()
        submit = partial(self._served.engine.submit, self._request)  # tokenizes a draft
        run = await self._service.readers.read(self.ticket.caller, submit)
        self._run = run
        run.add_done_callback(lambda _: _tell(loop, self._service.leave, self))
        if self._cancelled:
            run.cancel()
        return run

    async def _ended(self, run: Run) -> Result:
        result = await run
        if result.finish_reason is FinishReason.INTERRUPTED:
            raise shutting_down()
        self._service.metrics.answered(self._served.model, result, draft=self._request.draft)
        return result


def admission_of(settings: ServeSettings, places: int) -> Admission:
    """To so many places at a time, of which one key has its share."""
    share = math.ceil(_SHARE * places) if len(settings.keys) > 1 else places
    return Admission(concurrent=places, queued=settings.max_queued, share=share)


def _not_offered(kind: str, name: str, offered: Sequence[str] | Mapping[str, Any], *, code: str) -> Refusal:
    known = ", ".join(map(repr, offered)) or "none"
    message = f"The {kind} {name!r} is not offered here; this server has {known}."
    return invalid(message, f"nabla.{kind}", code=code)


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[[QueuedRun], None], run: QueuedRun) -> None:
    with suppress(RuntimeError):  # the event loop is gone, and so is everyone who waited
        loop.call_soon_threadsafe(function, run)
