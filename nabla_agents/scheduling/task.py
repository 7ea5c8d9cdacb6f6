"""Task: a search that the scheduler drives."""

from __future__ import annotations

import contextvars
import weakref
from collections.abc import Coroutine
from typing import Any, Final

from nabla_agents.errors import ConfigurationError
from nabla_agents.run import Run
from nabla_agents.scheduling.progress import SearchProgress
from nabla_agents.search.operation import Operation, Pause, Writing
from nabla_agents.types import Step

_PATIENCE: Final = 16  # decode steps for which a search waits for company at most

_OWN_SHARE: Final = 8  # ... and no longer than for an eighth of the tokens that were written for it, or for

_LEAST_PATIENCE: Final = 2  # ... so many: a newcomer is not held up by those that write


class Task:
    """A search that the scheduler drives: it is ready to go on, waits for an operation, or is parked until another step
    is wanted. It works in the context of whoever asked for it.
    """

    def __init__(self, run: Run, searching: SearchProgress) -> None:
        self.search = searching.search
        self.searching = searching
        self.waits_for: Operation | Writing | None = None
        self.begun = False  # what it waits for
        self.waited = 0  # decode steps, for that
        self.ready = True
        self.parked = not run.wanted
        self._run = weakref.ref(run)  # who lets go of a run needs no answer
        self._steps = searching.steps()
        self._context = contextvars.copy_context()
        self._moving: Coroutine[Any, Any, Step] | None = None
        self._outcome: Any = None

    @property
    def run(self) -> Run | None:
        return self._run()

    def put(self, step: Step) -> None:
        """A step that was made, for whoever is still there."""
        if (run := self.run) is not None:
            run.put(step)

    def give(self, outcome: Any) -> None:
        """What it waited for; an exception is raised where it waits."""
        self._outcome, self.waits_for, self.begun, self.ready, self.waited = outcome, None, False, True, 0
        self.searching.awaits(None)

    @property
    def patient(self) -> bool:
        """Whether it may still wait for others whose operation would be joined to its own."""
        own = self.search.usage.generated_tokens // _OWN_SHARE
        return self.waited < min(_PATIENCE, max(_LEAST_PATIENCE, own))

    def may_be_left(self, operation: Operation) -> bool:
        """Whether a search that was stopped need not wait for it: it runs elsewhere, or judges nothing finished."""
        return operation.apart if self.begun else not operation.closing

    def advance(self) -> Operation | Writing | Pause | Step | None:
        """Goes on to the next operation, the next pause, the next step, or the end: None."""
        outcome, self._outcome = self._outcome, None
        if self._moving is None:
            moving: Any = self._steps.__anext__()
            self._moving = moving
        assert self._moving is not None
        try:
            if isinstance(outcome, BaseException):
                awaited = self._context.run(self._moving.throw, outcome)
            else:
                awaited = self._context.run(self._moving.send, outcome)
        except StopIteration as e:
            self._moving = None
            return e.value
        except StopAsyncIteration:
            return None
        if isinstance(awaited, Operation | Writing):
            self.waits_for, self.ready = awaited, False
            self.searching.awaits(awaited)
            return awaited
        if isinstance(awaited, Pause):
            return awaited
        self._outcome = ConfigurationError(
            f"A strategy awaits {awaited!r}; expected operations of its search alone, such as search.roll(...)."
        )
        return self.advance()
