"""Run: one search in progress, seen from any side: step by step, by threads or asyncio, or by its end alone."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from nabla_agents.request import Request
from nabla_agents.result import Result
from nabla_agents.types import Doing, Step

if TYPE_CHECKING:
    from nabla_agents.report import View

LISTEN: Final = 0.2  # seconds; a signal that comes just as a wait begins is heard when that ends


class Progress(Protocol):
    """The search behind a run, wherever it runs."""

    @property
    def doing(self) -> Doing | None:
        """What it is at; None where it is between two things, or far away."""
        ...

    def result(self, steps: Sequence[Step], *, ended: bool) -> Result:
        """The best so far."""
        ...

    def cancel(self) -> None:
        """Stops the search soon; from any thread."""
        ...

    def wake(self) -> None:
        """More steps are wanted."""
        ...


class Run(Iterator[Step], AsyncIterator[Step]):
    """A search in progress. Iterate it (`for`, `async for`), await it, or `drain` it; `result` is the best at any time.

    The last step is of kind `commit` and carries the whole text. Steps of kind `token` come between them where nothing
    can revise a text: they are for who iterates, and not in the trace.

    `cancel()` ends the search within one decode step; what is finished by then is judged and kept. A cancelled await
    cancels, and so does leaving a `with` block, or letting go of the run. Ctrl-C in a thread that waits cancels and is
    raised.
    """

    def __init__(self, request: Request, search: Progress, *, on_demand: bool) -> None:
        self.request = request
        self._search: Progress | None = search
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], object]] = []  # called once each, at the next change
        self._done_callbacks: list[Callable[[Run], object]] = []
        self._arrived: deque[Step] = deque()
        self._taken = 0  # without those of kind `token`
        self._trace: list[Step] = []
        self._allowed: float = 0 if on_demand else math.inf  # steps that may be made
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._told = False  # the error, to who iterates
        self._streaming = False
        self.cancelled = False
        """Whether `cancel` was called."""

    # ── for who waits ─────────────────────────────────────────────────────────────────────────────────────────────

    def __next__(self) -> Step:
        self._streaming = True
        return self._next()

    async def __anext__(self) -> Step:
        self._streaming = True
        return await self._anext()

    def rounds(self) -> Iterator[Step]:
        """The steps without those of kind `token`, which are not made then."""
        while True:
            try:
                step = self._next()
            except StopIteration:
                return
            if step.kind != "token":
                yield step

    async def arounds(self) -> AsyncIterator[Step]:
        """As `rounds`."""
        while True:
            try:
                step = await self._anext()
            except StopAsyncIteration:
                return
            if step.kind != "token":
                yield step

    def __await__(self) -> Generator[Any, None, Result]:
        return self._ended().__await__()

    def drain(self, each: Callable[[Step], object] | None = None) -> Result:
        """Waits for the end and returns the result; `each` is called here with every step but those of kind `token`.

        Raises:
            KeyboardInterrupt: it arrived while this waited; the run is cancelled then, and another `drain` returns the
                best so far.
        """
        if each is not None:
            for step in self.rounds():
                each(step)
        with self._changed:
            self._ask(math.inf)
            self._wait(lambda: self.done)
        return self._outcome()

    async def adrain(self, each: Callable[[Step], object]) -> Result:
        """As `drain`; cancelled with the task that awaits it."""
        async for step in self.arounds():
            each(step)
        return await self

    def show(self, view: View | None = None) -> Result:
        """Follows the search before one's eyes and returns the result: in a terminal, a notebook or a pipe, by what
        standard output is. Ctrl-C ends the search, and what was found is shown and returned.
        """
        from nabla_agents.report import view_of

        view = view or view_of(self.request.prompt.question, doing=lambda: self.doing)
        with view:
            try:
                for step in self:
                    view.step(step)
            except KeyboardInterrupt:
                self.cancel()
                self.drain()
        view.end(self.result)
        return self.result

    def cancel(self) -> None:
        """Ends the search within one decode step; from any thread, also before it has begun."""
        self.cancelled = True
        search = self._search
        if search is not None:
            search.cancel()

    def add_done_callback(self, callback: Callable[[Run], object]) -> None:
        """Calls back when the run has ended, on the thread that ended it; at once if it has."""
        with self._changed:
            if not self.done:
                self._done_callbacks.append(callback)
                return
        callback(self)

    @property
    def doing(self) -> Doing | None:
        """What the search is at, for who watches; None where that is not known, and once it has ended."""
        search = self._search
        return None if search is None else search.doing

    @property
    def done(self) -> bool:
        """Whether it has ended, whatever ended it."""
        return self._search is None

    @property
    def result(self) -> Result:
        """The best so far; once the run has ended, its result."""
        with self._changed:
            if self._result is not None:
                return self._result
            assert self._search is not None
            return self._search.result(tuple(self._trace), ended=False)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel()

    async def __aenter__(self) -> Run:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.cancel()

    def __del__(self) -> None:
        if getattr(self, "_search", None) is not None:
            self.cancel()

    # ── for who searches ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def wanted(self) -> bool:
        """Whether another step may be made."""
        return self._allowed > len(self._trace)

    @property
    def streaming(self) -> bool:
        """Whether someone sees steps as they are made."""
        return self._streaming

    def put(self, step: Step) -> None:
        """A step that was made. With one that is done the run has ended, before anyone sees it."""
        with self._changed:
            self._arrived.append(step)
            if step.kind != "token":
                self._trace.append(step)
            callbacks = self._finish(None) if step.done else []
            self._notify()
        for callback in callbacks:
            callback(self)

    def end(self, error: BaseException | None = None) -> None:
        """The search has ended, if it had not before."""
        with self._changed:
            callbacks = self._finish(error)
            self._notify()
        for callback in callbacks:
            callback(self)

    # ── within ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _finish(self, error: BaseException | None) -> list[Callable[[Run], object]]:
        """Keeps the result and lets go of the search; what is to be called then. Requires the lock."""
        if self._search is None:
            return []
        self._result, self._error = self._search.result(tuple(self._trace), ended=True), error
        self._search = None  # and its tensors
        callbacks, self._done_callbacks = self._done_callbacks, []
        return callbacks

    def _next(self) -> Step:
        with self._changed:
            self._ask()
            self._wait(lambda: bool(self._arrived) or self.done)
            return self._take(StopIteration)

    async def _anext(self) -> Step:
        while True:
            with self._changed:
                self._ask()
                if self._arrived or self.done:
                    return self._take(StopAsyncIteration)
                change = self._future()
            await self._unless_cancelled(change)

    def _ask(self, steps: float = 1) -> None:
        """Allows for so many steps more than have been taken. Requires the lock."""
        if self._allowed < self._taken + steps:
            self._allowed = self._taken + steps
            if self._search is not None:
                self._search.wake()

    def _wait(self, until: Callable[[], bool]) -> None:
        try:
            while not self._changed.wait_for(until, LISTEN):
                pass
        except KeyboardInterrupt:
            self.cancel()
            raise

    def _take(self, stop: type[Exception]) -> Step:
        """The next step; at the end the error, once, and then `stop`. Requires the lock."""
        if self._arrived:
            step = self._arrived.popleft()
            self._taken += step.kind != "token"
            return step
        if self._error is not None and not self._told:
            self._told = True
            raise self._error
        raise stop

    async def _ended(self) -> Result:
        with self._changed:
            self._ask(math.inf)
        while True:
            with self._changed:
                if self.done:
                    break
                change = self._future()
            await self._unless_cancelled(change)
        return self._outcome()

    def _outcome(self) -> Result:
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    async def _unless_cancelled(self, change: asyncio.Future[None]) -> None:
        try:
            await change
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _future(self) -> asyncio.Future[None]:
        """Of the running loop, done at the next change. Requires the lock."""
        loop = asyncio.get_running_loop()
        change: asyncio.Future[None] = loop.create_future()

        def happened() -> None:
            if not change.done():
                change.set_result(None)

        self._listeners.append(lambda: loop.call_soon_threadsafe(happened))
        return change

    def _notify(self) -> None:
        """Requires the lock."""
        self._changed.notify_all()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            try:
                listener()
            except RuntimeError:  # its event loop is closed, and who waited is gone
                self.cancel()
