"""Operation: what a search waits for, so that the operations of many searches run as one batch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.rows import RolloutJob
from nabla_agents.types import Rollout

# Cheap operations first, so that those that gain most from a wide batch wait for the others.
PREFILL, SCORE, SCORE_PREFIXES, STATES, GRADIENT, ROLLOUTS = range(6)
DOING = ("reading the prompt", "judging", "judging", "reading the answer", "taking a gradient", "writing")


class Cancelled(Exception):
    """The caller stopped the search; strategies let it pass."""


@dataclass(eq=False)
class Operation:
    """A function of columns of equal length that has one result per row; awaited within a search.

    Operations of equal functions are joined: their rows run as one batch, and each search gets its own.

    Args:
        rank: among the operations that wait, those of the least rank go first.
        apart: it needs no device, so it runs on a thread of its own, and holds up no other search.
        alone: no two calls of the function run at a time; meanwhile others wait, and are joined.
        closing: it is run although its search was stopped meanwhile, because it judges what is finished.
    """

    function: Callable[..., list[Any]]
    columns: tuple[Sequence[Any], ...]
    rank: int
    apart: bool = False
    alone: bool = False
    closing: bool = False

    def __await__(self) -> Generator[Operation, Any, Any]:
        return (yield self)

    @property
    def rows(self) -> int:
        return len(self.columns[0])


@dataclass(eq=False)
class Written:
    """What became of rollouts: those that ended, in the order of their jobs, and what was written of those that were
    given up because the search had to end.
    """

    ended: list[Rollout]
    given_up: list[Rollout]


@dataclass(eq=False)
class Writing:
    """Rollouts of a local model, token by token, in one batch with those of other searches; has a `Written`.

    `watch` is told the tokens of the first job after each step; `tokens()` of all jobs are written by now.
    """

    model: LanguageModel
    jobs: Sequence[RolloutJob]
    watch: Callable[[Sequence[int]], None] | None = None
    tokens: Callable[[], int] = lambda: 0

    def __await__(self) -> Generator[Writing, Any, Written]:
        return (yield self)


class Pause:
    """Lets the other searches make a step first; awaited amid long work of a search's own."""

    def __await__(self) -> Generator[Pause, Any, None]:
        yield self
