"""Several searches, one batch: threads run the searches, and their operations are joined and run by one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nabla_agents.flights import Flights
from nabla_agents.models.language_model import LikelihoodGradient
from nabla_agents.models.prompt_caches import PrefixCache
from nabla_agents.models.rows import RolloutJob
from nabla_agents.models.threads import release_threads
from nabla_agents.objective import ObjectiveGradient
from nabla_agents.strategies.search import Cancelled, Worker
from nabla_agents.types import Prompt, Rollout, Score, Usage

ResultT = TypeVar("ResultT")

_ROLLOUT = "rollout"

_MOST_WAIT = 3  # searches that wait for another operation, for each whose rollouts are written meanwhile

_MOMENT = 0.05  # seconds that searches wait for a tool before they go on without those that it judges

# Cheap kinds first, so that those that gain most from a wide batch wait for the others.
_KINDS = ("compute", "prefill", "score", "score_prefixes", "states", "gradient")


@dataclass(eq=False)
class _Request:
    """One operation of one search: columns of equal length, and later one result per row."""

    kind: str
    columns: tuple[Sequence[Any], ...]
    results: list[Any] | None = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Coalescer:
    """A `Worker` for many threads at once. An operation waits until every running search waits for one; what happens
    next happens on the thread that called `run`.

    Rollouts are written together, a token at a time; searches join and leave the batch when they are in need of it. As
    soon as three quarters of the searches wait for something else, or nothing is being written, the operations of one
    kind run as one batch: they gain more by a wide batch than rollouts do.

    Tools judge on a thread of their own. Who waits for a slow one holds up no other search. Tensors are computed on one
    thread only: each further one would bring threads of its own for them, and on a CPU those get in each other's way.
    """

    def __init__(self, worker: Worker, *, max_batch: int) -> None:
        self._worker, self._max_batch = worker, max_batch
        self._changed = threading.Condition()
        self._running = 0
        self._waiting: list[_Request] = []
        self._judged: list[_Request] = []  # by tools, at this moment
        self._cancelled = False
        self._flights: Flights[_Request] = Flights(worker, max_batch=max_batch)

    @property
    def tools_judge(self) -> bool:
        return self._worker.tools_judge

    def prefill(self, prompts: Sequence[Prompt]) -> list[tuple[PrefixCache, Usage]]:
        return self._submit("prefill", prompts)

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]:
        return self._submit(_ROLLOUT, jobs)

    def decoding(self) -> None:
        """None: who asks for rollouts here gets them whole."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Score | None]:
        return self._submit("score", rollouts)

    def score_prefixes(self, rollouts: Sequence[Rollout]) -> list[Score | None]:
        return self._submit("score_prefixes", rollouts)

    def states(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], caches: Sequence[PrefixCache | None]
    ) -> list[LikelihoodGradient]:
        return self._submit("states", rollouts, starts, caches)

    def gradient(
        self,
        rollouts: Sequence[Rollout],
        scores: Sequence[Score | None],
        starts: Sequence[int],
        caches: Sequence[PrefixCache | None],
    ) -> list[ObjectiveGradient]:
        return self._submit("gradient", rollouts, scores, starts, caches)

    def compute(self, task: Callable[[], ResultT]) -> ResultT:
        [result] = self._submit("compute", [task])
        return result

    def run(self, searches: Sequence[Callable[[], ResultT]]) -> list[ResultT]:
        """Runs all searches to their end, at most `max_batch` at a time. The first error is raised when all have
        ended; an interrupt cancels them, and each returns what it has.
        """
        results: list[Any] = [None] * len(searches)
        errors: list[BaseException] = []
        queue = iter(enumerate(searches))

        def work() -> None:
            while True:
                with self._changed:
                    item = next(queue, None)
                    if item is None:
                        self._running -= 1
                        self._changed.notify_all()
                        return
                index, search = item
                try:
                    results[index] = search()
                except BaseException as e:
                    errors.append(e)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self._max_batch, len(searches)))]
        self._running = len(threads)
        for thread in threads:
            thread.start()
        while self._serve_interruptibly():
            pass
        release_threads()
        if errors:
            raise errors[0]
        return results

    def _serve_interruptibly(self) -> bool:
        try:
            return self._serve_once()
        except KeyboardInterrupt:
            with self._changed:
                self._cancel()
            return True

    def _submit(self, kind: str, *columns: Sequence[Any]) -> list[Any]:
        request = _Request(kind, columns)
        with self._changed:
            if self._cancelled:
                raise Cancelled
            self._waiting.append(request)
            self._changed.notify_all()
        request.done.wait()
        if request.error is not None:
            raise request.error
        return request.results or []

    def _serve_once(self) -> bool:
        """Waits until every running search waits, and does what comes next; False when none runs any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0 or self._can_go_on)
            if self._running == 0:
                return False
            others = self._chosen()
        self._go_on(others)
        return True

    @property
    def _can_go_on(self) -> bool:
        """Whether every running search waits, and one of them for more than a tool. Requires the lock."""
        here = len(self._waiting) + len(self._flights)
        return here > 0 and here + len(self._judged) == self._running

    def _chosen(self) -> list[_Request]:
        """The operations of one kind that are next; none where rollouts go on. Requires the lock."""
        for request in [r for r in self._waiting if r.kind == _ROLLOUT]:
            self._flights.add(request, request.columns[0])
            self._waiting.remove(request)
        kind = min((r.kind for r in self._waiting), key=_KINDS.index, default="")
        if kind != "compute" and self._flights.writing and len(self._waiting) < _MOST_WAIT * len(self._flights):
            return []
        return [r for r in self._waiting if r.kind == kind]

    def _go_on(self, others: Sequence[_Request]) -> None:
        """Runs these operations as one batch, or a step of the rollouts."""
        if not others:
            for request, found in self._flights.advance().items():
                request.results, request.error = ([], found) if isinstance(found, Exception) else (found, None)
                request.done.set()
                self._flights.remove(request)
            return
        kind = others[0].kind
        if kind == "score" and self.tools_judge:
            self._judge(others)
            return
        self._execute(kind, others)
        for request in others:  # before they leave the list, where an interrupt finds what still waits
            request.done.set()
        with self._changed:
            self._waiting = [r for r in self._waiting if r not in others]

    def _judge(self, requests: Sequence[_Request]) -> None:
        """Has tools score, and waits a moment for them, so that those that a fast one judges stay together."""

        def judge() -> None:
            try:
                self._execute("score", requests)
            except BaseException as e:  # an interrupt, or a tool that exits: no search may wait for it for ever
                for request in requests:
                    request.error = e
            with self._changed:
                self._judged = [r for r in self._judged if r not in requests]
                self._changed.notify_all()
            for request in requests:
                request.done.set()

        with self._changed:
            self._waiting = [r for r in self._waiting if r not in requests]
            self._judged += requests
        thread = threading.Thread(target=judge, name="nabla-judge", daemon=True)
        thread.start()
        thread.join(_MOMENT)

    def _cancel(self) -> None:
        """Cancels every search that waits. Requires the lock."""
        self._cancelled = True
        for request in (*self._waiting, *self._judged, *self._flights.clear()):
            request.error = Cancelled()
            request.done.set()
        self._waiting.clear()
        self._judged.clear()

    def _execute(self, kind: str, batch: Sequence[_Request]) -> None:
        """Gives each request its results. Where a batch fails, each of its requests is run alone, so that an error
        reaches only the search that causes it.
        """
        if kind == "compute":
            for request in batch:
                try:
                    request.results = [self._worker.compute(task) for task in request.columns[0]]
                except Exception as e:
                    request.error = e
            return
        columns = [[x for r in batch for x in r.columns[c]] for c in range(len(batch[0].columns))]
        operation: Callable[..., list[Any]] = getattr(self._worker, kind)
        try:
            results: list[Any] = []
            for first in range(0, len(columns[0]), self._max_batch):
                results += operation(*(column[first : first + self._max_batch] for column in columns))
        except Exception as e:
            if len(batch) == 1:
                batch[0].error = e
                return
            for request in batch:
                self._execute(kind, [request])
            return
        for request in batch:
            count = len(request.columns[0])
            request.results, results = results[:count], results[count:]


class OpenBatch(Coalescer):
    """A `Worker` for searches that come and go: each runs on a thread of its own within `joining()`, and one thread,
    which starts with the first of them, runs what they all wait for. `turn` is held for each joined operation, so that
    the batches of one device do not compete for it.
    """

    def __init__(self, worker: Worker, *, max_batch: int, turn: AbstractContextManager[Any] | None = None) -> None:
        super().__init__(worker, max_batch=max_batch)
        self._turn: AbstractContextManager[Any] = nullcontext() if turn is None else turn
        self._thread: threading.Thread | None = None

    @contextmanager
    def joining(self) -> Iterator[None]:
        """The calling thread's search is one of the batch within; operations wait for it from here on."""
        with self._changed:
            self._running += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="nabla-batch", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread after its operation; searches that still run are cancelled, and so is what comes later."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._cancelled or (self._can_go_on))
                if self._cancelled:
                    break
                others = self._chosen()
            with self._turn:
                self._go_on(others)
        with self._changed:
            self._cancel()
