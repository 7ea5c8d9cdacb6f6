"""Rollouts of many searches in one batch that stays full: jobs join it as others finish."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from nabla_agents.models.decoding import Decoding
from nabla_agents.models.memory import after_failure
from nabla_agents.models.rows import RolloutJob, Row
from nabla_agents.strategies.search import Worker
from nabla_agents.types import Rollout

OwnerT = TypeVar("OwnerT", bound=Hashable)

_JOIN_SHARE = 0.25  # of the batch is free before others join: each time costs a prefill and a copy of the cache

_MOST_JOINED = 2.0  # batches before a step is due: jobs that end with their first token keep out no other


@dataclass(eq=False)
class _Flight(Generic[OwnerT]):
    """One job: waiting while it has no row, written while it has, landed with a rollout."""

    owner: OwnerT
    job: RolloutJob
    row: Row | None = None
    rollout: Rollout | None = None


class Flights(Generic[OwnerT]):
    """Jobs of owners, each of which gets its rollouts when all of them are there.

    Where the worker's backend has no batch that further jobs can join, it gets all that wait, `max_batch` at a time.
    """

    def __init__(self, worker: Worker, *, max_batch: int) -> None:
        self._worker, self._max_batch = worker, max_batch
        self._decoding: Decoding | None = worker.decoding()
        self._flights: dict[OwnerT, list[_Flight[OwnerT]]] = {}
        self._joined = 0  # since the last step

    def __len__(self) -> int:
        """How many owners have not left."""
        return len(self._flights)

    @property
    def writing(self) -> bool:
        """Whether some rollout has begun and not ended."""
        return bool(self._decoding)

    def add(self, owner: OwnerT, jobs: Sequence[RolloutJob]) -> None:
        self._flights[owner] = [_Flight(owner, job) for job in jobs]

    def remove(self, owner: OwnerT) -> None:
        del self._flights[owner]

    def clear(self) -> list[OwnerT]:
        """Drops everything; returns the owners that had not left."""
        owners = list(self._flights)
        self._flights.clear()
        self._decoding = self._worker.decoding()
        return owners

    def advance(self) -> dict[OwnerT, list[Rollout] | Exception]:
        """Joins what waits where there is room, or makes one decode step. Returns the owners that have all their
        rollouts now, or an error; they stay until they are removed.

        What does not fit into memory is written anew in halves, which `usage.out_of_memory` counts.
        """
        waiting = [f for flights in self._flights.values() for f in flights if f.row is None and f.rollout is None]
        if self._decoding is None:
            failed = self._at_once(waiting)
        else:
            room = self._max_batch - len(self._decoding)
            enough = room >= _JOIN_SHARE * self._max_batch and self._joined < _MOST_JOINED * self._max_batch
            joining = waiting[:room] if enough or not self._decoding else []
            self._joined = self._joined + len(joining) if joining else 0
            failed = self._step(self._decoding, joining)
        landed = {o: [f.rollout for f in found if f.rollout is not None] for o, found in self._flights.items()}
        return {
            o: failed.get(o, done) for o, done in landed.items() if o in failed or len(done) == len(self._flights[o])
        }

    def _at_once(self, waiting: Sequence[_Flight[OwnerT]]) -> dict[OwnerT, Exception]:
        try:
            for first in range(0, len(waiting), self._max_batch):
                some = waiting[first : first + self._max_batch]
                _land(some, self._worker.rollout([f.job for f in some]))
        except Exception:
            return self._alone([f for f in waiting if f.rollout is None])
        return {}

    def _step(self, decoding: Decoding, joining: Sequence[_Flight[OwnerT]]) -> dict[OwnerT, Exception]:
        written = [f for flights in self._flights.values() for f in flights if f.row is not None]
        try:
            if joining:
                for flight, row in zip(joining, decoding.add([f.job for f in joining]), strict=True):
                    flight.row = row
            else:
                decoding.step()
        except torch.OutOfMemoryError:
            affected, no_room = [*written, *joining], True
        except Exception:
            affected, no_room = list(joining or written), False
        else:
            rows = ((f, f.row) for f in (*written, *joining) if f.row is not None)
            ended = [(f, row) for f, row in rows if row.finish is not None]
            _land([f for f, _ in ended], [decoding.finished(row) for _, row in ended])
            return {}
        # Only here has the failed attempt let go of its tensors: a handled exception holds the frames it came through.
        del decoding
        if no_room or not joining:
            self._decoding = self._worker.decoding()
        if no_room:
            try:
                _land(affected, after_failure(self._worker.rollout, [f.job for f in affected]))
            except Exception:
                return self._alone(affected)
            return {}
        return self._alone(affected)

    def _alone(self, flights: Sequence[_Flight[OwnerT]]) -> dict[OwnerT, Exception]:
        """Each owner's jobs by themselves, so that an error reaches only the owner that causes it."""
        failed: dict[OwnerT, Exception] = {}
        for owner in dict.fromkeys(f.owner for f in flights):
            own = [f for f in flights if f.owner is owner]
            try:
                _land(own, self._worker.rollout([f.job for f in own]))
            except Exception as e:
                failed[owner] = e
        return failed


def _land(flights: Sequence[_Flight[OwnerT]], rollouts: Sequence[Rollout]) -> None:
    for flight, rollout in zip(flights, rollouts, strict=True):
        flight.row, flight.rollout = None, rollout
