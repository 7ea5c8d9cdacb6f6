"""Scheduler: many searches, one thread, full batches."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import torch

from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.memory import in_halves
from nabla_agents.models.threads import release_threads
from nabla_agents.run import Run
from nabla_agents.scheduling.continuous_batch import ContinuousBatch
from nabla_agents.scheduling.progress import SearchProgress
from nabla_agents.scheduling.task import Task
from nabla_agents.search.operation import Cancelled, Operation, Pause, Writing
from nabla_agents.search.search import STOPPED
from nabla_agents.types import Rollout, Step

MAX_BATCH: Final = 32  # searches that run at a time, and rows of one batch

_MOST_WAIT: Final = 3  # searches that wait for another operation, for each whose rollouts are written meanwhile

_PIECE: Final = 1.0  # seconds that one batch of an operation may take by the pace of the last one, if it is of several

_FIRST_PIECE: Final = 2048  # tokens, while no pace is known

_LONG: Final = 0.25  # seconds of an operation after which others have as long, unless they want nothing

_LIGHT: Final = 1024  # tokens of an operation that does not wait for that

_MOMENT: Final = 0.05  # seconds that searches wait for a tool before they go on without those that it judges


class Scheduler:
    """Drives searches on one thread, which is the only one that computes tensors: each further one would bring threads
    of its own for them, and on a CPU those get in each other's way.

    Rollouts are written together, a token at a time; searches join and leave the batch when they are in need of it.
    Operations of one kind run as one batch, since they gain more by a wide one than rollouts do: as soon as three
    quarters of the searches wait for something else than rollouts, or one has waited for some steps, the fewer the less
    was written for it, or nothing is being written. An operation that took long is followed by as long for
    the others. Tools judge on threads of their own.

    Between any two steps it looks whether a search was stopped or has reached a limit, and then ends its rollouts.
    `busy_seconds` is its heartbeat.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._coming: deque[Task] = deque()
        self._answers: deque[tuple[Task, Operation, Any]] = deque()  # of what was computed apart
        self._news = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._tasks: list[Task] = []
        self._batches: dict[LanguageModel, ContinuousBatch[Task]] = {}
        self._rests_until = 0.0  # from heavy operations
        self._pace = 0.0  # seconds for each token of the last heavy one
        self._moved: float | None = None  # when the piece of work began that the thread is at; None while it waits

    @staticmethod
    def of(device: torch.device) -> Scheduler:
        """The one of a device, which every engine there shares."""
        with _lock:
            if str(device) not in _schedulers:
                _schedulers[str(device)] = Scheduler()
            return _schedulers[str(device)]

    def add(self, run: Run, searching: SearchProgress) -> None:
        """From now on drives a search; from any thread."""
        task = Task(run, searching)
        with self._changed:
            self._coming.append(task)
            self._news = True
            self._changed.notify_all()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="nabla-scheduler", daemon=True)
                self._thread.start()

    @property
    def busy_seconds(self) -> float:
        """For how long the thread has been at one piece of work: a batch, a decode step, or what a search does between
        two operations; 0 while it waits for work. From any thread.
        """
        moved = self._moved
        return 0.0 if moved is None else time.monotonic() - moved

    def held(self) -> AbstractContextManager[Any]:
        """Within it, searches that are added wait, so that they begin as one batch; what runs goes on for a step."""
        return self._changed

    def wake(self) -> None:
        """Something is to be looked at: a search was stopped, or more of its steps are wanted."""
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stops every search, and ends the thread."""
        with self._changed:
            self._closed = self._news = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10.0)

    def step(self) -> bool:
        """One batch of one kind, or one token of all rollouts; False where there is nothing to do until news come."""
        self._moved = time.monotonic()
        self._take_in()
        self._heed()
        ready = [task for task in self._tasks if task.ready and not task.parked]
        for task in ready:
            self._advance(task)
            self._moved = time.monotonic()
        if chosen := self._chosen():
            self._execute(chosen)
            return True
        return self._write() or bool(ready)  # where some have ended, others may come

    # ── what comes in ─────────────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        while not self._closed:
            try:
                busy = self.step()
            except BaseException as e:  # a defect of ours: nobody may wait for ever
                for task in list(self._tasks):
                    self._end(task, e)
                self._batches.clear()
                continue
            if not busy:
                self._moved = None
                release_threads()
                with self._changed:
                    self._changed.wait_for(lambda: self._news or self._closed)
        self._moved = None
        for task in [*self._tasks, *self._coming]:
            task.search.ended = STOPPED
            self._end(task, None)

    def _take_in(self) -> None:
        """Searches that come, as long as there is room, and answers of tools."""
        with self._changed:
            self._news = False
            active = sum(not task.parked for task in self._tasks)
            while self._coming and active < MAX_BATCH:
                self._tasks.append(self._coming.popleft())
                active += 1
            answers, self._answers = self._answers, deque()
        for task, operation, answer in answers:
            if task in self._tasks and task.waits_for is operation:
                task.give(answer)

    def _heed(self) -> None:
        """Looks at what is wanted of each search, and whether it may go on."""
        for task in self._tasks:
            run = task.run
            if run is None:
                task.search.cancel()
            if task.parked and (run is None or run.wanted or task.search.cancelled):
                task.parked = False
            task.search.tell = task.put if run is not None and run.streaming else None
            waits_for = task.waits_for
            if isinstance(waits_for, Writing):
                batch = self._batches[waits_for.model]
                if task.search.overdrawn(lambda batch=batch, task=task: batch.usage(task)):
                    task.give(batch.withdraw(task))
            elif waits_for is not None and task.search.cancelled and task.may_be_left(waits_for):
                task.give(Cancelled())

    # ── what searches do ──────────────────────────────────────────────────────────────────────────────────────────

    def _advance(self, task: Task) -> None:
        """Lets a search go on until it waits, has made all the steps that are wanted, or ends."""
        while True:
            try:
                reached = task.advance()
            except BaseException as e:
                task.searching.failed(e)
                self._end(task, e)
                return
            if isinstance(reached, Writing):
                batch = self._batches.setdefault(reached.model, ContinuousBatch(reached.model, max_batch=MAX_BATCH))
                batch.add(task, reached)
            if isinstance(reached, Operation | Writing | Pause):
                return
            if reached is None or reached.done:
                self._end(task, reached)
                return
            task.put(reached)
            if (run := task.run) is not None and not run.wanted:
                task.parked = True
                return

    def _end(self, task: Task, last: Step | BaseException | None) -> None:
        """With the last step, or with an error."""
        if task in self._tasks:
            self._tasks.remove(task)
        run = task.run
        vars(task).clear()  # with its tensors, before anyone hears of the end
        if run is None:
            return
        if isinstance(last, Step):
            run.put(last)
        else:
            run.end(last)

    # ── what runs ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _chosen(self) -> list[Task]:
        """Those whose operations are one kind, and next; none where rollouts go on."""
        wanted = [(t, t.waits_for) for t in self._tasks if isinstance(t.waits_for, Operation)]
        busy = [o.function for t, o in wanted if t.begun and o.alone]
        waiting = [(t, o) for t, o in wanted if not t.begun and o.function not in busy]
        writers = sum(len(batch) for batch in self._batches.values())
        writing = any(batch.writing for batch in self._batches.values())
        if writers and time.monotonic() < self._rests_until:
            waiting = [(t, o) for t, o in waiting if o.apart or _tokens(o) <= _LIGHT]
        patient = all(task.patient for task, _ in waiting)
        if writing and patient and len(waiting) < _MOST_WAIT * writers:
            for task, _ in waiting:
                task.waited += 1
            return []
        _, first = min(waiting, key=lambda pair: pair[1].rank, default=(None, None))
        return [] if first is None else self._piece([(t, o) for t, o in waiting if o.function == first.function])

    def _piece(self, wanted: Sequence[tuple[Task, Operation]]) -> list[Task]:
        """Those of equal operations that are run as one batch: as many as do not hold up others for long, or one."""
        most = _FIRST_PIECE if self._pace == 0 else _PIECE / self._pace
        tasks, tokens = list[Task](), 0
        for task, operation in wanted:
            tokens += 0 if operation.apart else _tokens(operation)
            if tasks and tokens > most:
                break
            tasks.append(task)
        return tasks

    def _write(self) -> bool:
        """A step of the rollouts of one model, of each in its turn; False where none are asked for."""
        self._batches = {model: batch for model, batch in self._batches.items() if batch}
        if not self._batches:
            return False
        model, batch = next(iter(self._batches.items()))
        for task, written in batch.advance().items():
            task.give(written)
        del self._batches[model]
        if batch:
            self._batches[model] = batch  # behind the others
        return True

    def _execute(self, tasks: Sequence[Task]) -> None:
        """Gives each search the results of its operation, from one batch."""
        pairs = [(task, task.waits_for) for task in tasks]
        operations = [operation for _, operation in pairs if isinstance(operation, Operation)]
        for task in tasks:
            task.begun = True
        if not operations[0].apart:
            began = time.monotonic()
            for task, outcome in zip(tasks, outcomes(operations), strict=True):
                task.give(outcome)
            took = time.monotonic() - began
            if (tokens := sum(map(_tokens, operations))) > _LIGHT:
                self._pace = took / tokens
            if took > _LONG:
                self._rests_until = began + 2 * took
            return

        def compute() -> None:
            answers = outcomes(operations)
            with self._changed:
                self._answers.extend(zip(tasks, operations, answers, strict=True))
                self._news = True
                self._changed.notify_all()

        thread = threading.Thread(target=compute, name="nabla-apart", daemon=True)
        thread.start()
        thread.join(_MOMENT)  # so that those that a fast tool judges stay together


def _tokens(operation: Operation) -> int:
    """That an operation on completions reads; 0 for one on something else."""
    rollouts = (row for row in operation.columns[0] if isinstance(row, Rollout))
    return sum(len(rollout.prompt.ids) + len(rollout.completion_ids) for rollout in rollouts)


def outcomes(operations: Sequence[Operation]) -> list[Any]:
    """The results of each operation, from one batch, or what it raises. Where the batch fails, each operation is run
    alone, so that an error reaches only the search that causes it.
    """
    columns = [[x for o in operations for x in o.columns[c]] for c in range(len(operations[0].columns))]
    function: Callable[..., list[Any]] = operations[0].function
    results: list[Any] = []
    most = max(1, len(columns[0])) if operations[0].apart else MAX_BATCH
    try:
        for first in range(0, len(columns[0]), most):
            results += in_halves(function, *(column[first : first + most] for column in columns))
    except BaseException as e:  # also an interrupt, or a tool that exits: no search may wait for it for ever
        if len(operations) == 1 or isinstance(e, KeyboardInterrupt):
            return [e] * len(operations)
        return [outcome for one in operations for outcome in outcomes([one])]
    ends = [sum(o.rows for o in operations[: i + 1]) for i in range(len(operations))]
    if len(results) != ends[-1] and len(operations) == 1:
        return [results]  # whoever asked says what is wrong with it
    return [results[end - o.rows : end] for o, end in zip(operations, ends, strict=True)]


_lock = threading.Lock()
_schedulers: dict[str, Scheduler] = {}


@atexit.register
def _close_all() -> None:
    """Before the interpreter ends: a thread that computes beyond that crashes the process."""
    for scheduler in list(_schedulers.values()):
        scheduler.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_schedulers.clear)  # their threads are the parent's
