"""One engine for all adapter tests, and doubles at the engine's own plug-in points: a backend and a strategy."""

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from nabla_agents import ArithmeticSteps, Budget, Engine, Rollout, Sampling, Step
from nabla_agents.models.decoding import Decoding

TASK: ContextVar[str] = ContextVar("task", default="nobody's")


def main_thread() -> int:
    ident = threading.main_thread().ident
    assert ident is not None
    return ident


class Watched:
    """The model's own greedy rollouts, each computed once, with a record of who asked; slow or broken on demand."""

    def __init__(self, model: Any) -> None:
        self.model, self.lock = model, threading.Lock()
        self.known: dict[Any, Rollout] = {}
        self.reset()

    def reset(self) -> None:
        self.calls, self.inside, self.most_inside = 0, 0, 0
        self.seconds = 0.0
        self.threads: set[int] = set()
        self.error_at: tuple[int, BaseException] | None = None
        self.prompts: list[str] = []

    def rollout(self, jobs: Sequence[Any]) -> list[Rollout]:
        with self.lock:
            self.calls += 1
            self.threads.add(threading.get_ident())
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
            self.prompts += [job.prompt.text for job in jobs]
        try:
            if self.error_at and self.calls == self.error_at[0]:
                if isinstance(self.error_at[1], KeyboardInterrupt):  # as it comes: to the main thread, as a signal
                    signal.pthread_kill(main_thread(), signal.SIGINT)
                else:
                    raise self.error_at[1]
            time.sleep(self.seconds)
            return [self.rolled(job) for job in jobs]
        finally:
            with self.lock:
                self.inside -= 1

    def rolled(self, job: Any) -> Rollout:
        key = job.prompt.ids, job.prefix_ids, job.sampling, job.max_tokens
        if key not in self.known:
            (self.known[key],) = self.model.rollout([job])
        return self.known[key]


class Dripping:
    """Commits one rollout's text a few tokens at a time; every step costs one rollout more."""

    rule = "objective"

    def __init__(self, tokens: int = 2) -> None:
        self.tokens = tokens
        self.active = 0
        self.threads: set[int] = set()
        self.tasks: set[str] = set()

    async def steps(self, search: Any) -> AsyncIterator[Step]:
        self.active += 1
        try:
            async for step in self.committing(search):
                yield step
        finally:
            self.active -= 1

    async def ended(self, seconds: float = 20.0) -> None:
        """Until no search is under way, or is only waiting to be asked on."""
        until = time.monotonic() + seconds
        while self.active and time.monotonic() < until:
            await asyncio.sleep(0.005)

    async def committing(self, search: Any) -> AsyncIterator[Step]:
        for entry in await search.roll([()], temperature=0.0):
            yield Step(kind="rollout", committed_text="")
            ids = entry.rollout.completion_ids
            for n in range(self.tokens, len(ids), self.tokens):
                self.threads.add(threading.get_ident())
                self.tasks.add(TASK.get())
                if not await search.roll([ids[:n]], temperature=0.0):
                    return
                yield Step(kind="refine", committed_text=search.committed_text(entry.rollout, n))

    def select(self, pool: Any) -> Any:
        return next(iter(pool), None)


class Spelling:
    """Commits one rollout's text a few tokens at a time, and asks for nothing more."""

    rule = "objective"

    def __init__(self, tokens: int = 4) -> None:
        self.tokens = tokens

    async def steps(self, search: Any) -> AsyncIterator[Step]:
        for entry in await search.roll([()], temperature=0.0):
            yield Step(kind="rollout", committed_text="")
            for n in range(self.tokens, len(entry.rollout.completion_ids), self.tokens):
                yield Step(kind="refine", committed_text=search.committed_text(entry.rollout, n))

    def select(self, pool: Any) -> Any:
        return next(iter(pool), None)


@pytest.fixture(scope="package")
def spelling() -> Any:
    """A strategy that streams what one rollout says."""
    return Spelling()


@pytest.fixture(scope="package")
def engine() -> Engine:
    """The embedded model with a calculator as its reward, so that answers are refined whatever the weights."""
    return Engine.tiny(reward=ArithmeticSteps(), budget=Budget(rollouts=2))


@pytest.fixture(scope="package")
def _watched(engine: Engine) -> Watched:
    return Watched(engine.model)


@pytest.fixture(scope="package")
def watched_engine(engine: Engine, _watched: Watched) -> Engine:
    """The same model, slowly committing what a backend rolls out that can be watched: see `backend` and `drip`."""
    return Engine(
        model=engine.model,
        reward=ArithmeticSteps(),
        strategy=Dripping(),  # type: ignore[arg-type]
        budget=Budget(rollouts=64),
        rollouts=_watched,
    )


@pytest.fixture
def backend(_watched: Watched) -> Watched:
    """The rollout backend of `watched_engine`, its record empty."""
    _watched.reset()
    return _watched


@pytest.fixture
def drip(watched_engine: Engine) -> Any:
    """The strategy of `watched_engine`, its record empty."""
    strategy: Any = watched_engine.strategy
    strategy.threads.clear()
    strategy.tasks.clear()
    return strategy


@pytest.fixture
def task() -> ContextVar[str]:
    """A variable of the caller's context; `drip.tasks` has its values inside the engine."""
    return TASK


@pytest.fixture(scope="package")
def question() -> str:
    return "Tom has 3 boxes with 4 apples each. He eats 5 apples. How many apples are left?"


@pytest.fixture(scope="package")
def stop_case(engine: Engine, question: str) -> tuple[str, str]:
    """A stop string of three characters from the middle of the greedy answer, and the text before its first place."""
    text = engine.generate(question, budget=Budget(rollouts=1), sampling=Sampling(max_tokens=12)).text
    assert len(text) >= 6, "the model says too little for a test of stop strings"
    stop = text[3:6]
    return stop, text[: text.find(stop)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Counts the calls of a method: the list grows by one for each."""

    def count(owner: Any, name: str) -> list[Any]:
        calls: list[Any] = []
        original = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)
        return calls

    return count


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rollouts begin together, each time that some do."""
    seen: list[int] = []
    original = Decoding.add

    def add(self: Decoding, jobs: Any) -> Any:
        seen.append(len(jobs))
        return original(self, jobs)

    monkeypatch.setattr(Decoding, "add", add)
    return seen


@pytest.fixture
def ticks_during() -> Callable[..., Any]:
    """Awaits something and counts how often the event loop was free meanwhile."""

    async def count(awaitable: Any) -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticker = asyncio.create_task(tick())
        try:
            await awaitable
        finally:
            ticker.cancel()
        return ticks

    return count
