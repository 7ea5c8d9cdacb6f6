"""Admission: whose answer is searched next, how many wait, and who is asked to come back later."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Final

from nabla_agents.serve.errors import Refusal
from nabla_agents.serve.keys import ApiKey

_LONGEST_RETRY: Final = 60.0  # seconds that a client is asked to stay away at most


class Ticket:
    """One answer's place: `granted` once its search may begin."""

    def __init__(self, caller: str, most: int | None) -> None:
        self.caller, self.most = caller, most
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.came = time.monotonic()
        self.began: float | None = None


class Admission:
    """A queue per caller and turns between callers, so that one with many requests does not keep out one with few.

    Of the `concurrent` places one caller has at most `share`, so that others find some free. Used on the event loop
    alone.
    """

    def __init__(
        self,
        *,
        concurrent: int,
        queued: int,
        share: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._concurrent, self._queued, self._clock = concurrent, queued, clock
        self._share = concurrent if share is None else share
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._running: Counter[str] = Counter()
        self._seconds = 1.0  # that an answer takes, lately

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        return self._running.total()

    def enter(self, caller: str, count: int, key: ApiKey | None = None) -> list[Ticket]:
        """A ticket for each answer of a request, all or none.

        One caller has at most half of the queue, unless nobody else waits.

        Raises:
            Refusal: 429 with Retry-After: too many wait.
        """
        free = max(0, self._concurrent - self.running) if not self.waiting else 0
        mine, others = len(self._waiting.get(caller, ())), self.waiting - len(self._waiting.get(caller, ()))
        room = self._queued + free - self.waiting
        if others:
            room = min(room, (self._queued + 1) // 2 - mine)
        if count > room:
            raise Refusal(
                429,
                f"The server is busy: {self.waiting} answers wait already. Come back later.",
                code="overloaded",
                retry_after=self.retry_after,
            )
        tickets = [Ticket(caller, None if key is None else key.concurrent) for _ in range(count)]
        self._waiting.setdefault(caller, deque()).extend(tickets)
        self._grant()
        return tickets

    def leave(self, ticket: Ticket) -> None:
        """The ticket's search has ended, or is no longer wanted."""
        if ticket.began is not None:
            self._running[ticket.caller] -= 1
            self._running += Counter()  # forgets callers with none
            self._seconds += 0.1 * (self._clock() - ticket.began - self._seconds)
            ticket.began = None
        elif ticket in self._waiting.get(ticket.caller, ()):
            self._waiting[ticket.caller].remove(ticket)
            if not self._waiting[ticket.caller]:
                del self._waiting[ticket.caller]
        ticket.granted.cancel()
        self._grant()

    @property
    def retry_after(self) -> float:
        """Seconds until there may be room."""
        return min(_LONGEST_RETRY, max(1.0, self._seconds * (self.waiting + 1) / self._concurrent))

    def _grant(self) -> None:
        while self.running < self._concurrent:
            caller = next((c for c, queue in self._waiting.items() if self._may_run(queue[0])), None)
            if caller is None:
                return
            queue = self._waiting.pop(caller)
            ticket = queue.popleft()
            if queue:
                self._waiting[caller] = queue  # behind the others
            ticket.began = self._clock()
            self._running[caller] += 1
            if not ticket.granted.done():
                ticket.granted.set_result(None)

    def _may_run(self, ticket: Ticket) -> bool:
        most = self._share if ticket.most is None else min(ticket.most, self._share)
        return self._running[ticket.caller] < most
