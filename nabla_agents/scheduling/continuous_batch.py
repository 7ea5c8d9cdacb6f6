"""ContinuousBatch: rollouts of many searches in one batch that stays full: jobs join it as others finish."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import torch

from nabla_agents.models.decoding import Decoding
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.memory import after_failure, in_halves
from nabla_agents.models.rows import RolloutJob, Row
from nabla_agents.search.operation import Writing, Written
from nabla_agents.types import Rollout, Usage

OwnerT = TypeVar("OwnerT", bound=Hashable)

_JOIN_SHARE: Final = 0.25  # of the batch is free before others join: each time costs a prefill and a copy of the cache

_SOON: Final = 4  # steps after which a newcomer is given a row, also where the batch is full

_MOST_JOINED: Final = 2.0  # batches before a step is due: jobs that end with their first token keep out no other


@dataclass(eq=False)
class _Sequence(Generic[OwnerT]):
    """One job: waiting while it has no row, written while it has, ended with a rollout."""

    owner: OwnerT
    job: RolloutJob
    decoding: Decoding | None = None
    row: Row | None = None
    rollout: Rollout | None = None

    @property
    def written(self) -> int:
        """Tokens, without those that were given."""
        ids = self.rollout.completion_ids if self.rollout else self.row.ids if self.row else self.job.prefix_ids
        return len(ids) - len(self.job.prefix_ids)


class ContinuousBatch(Generic[OwnerT]):
    """Jobs of owners on one model, each owner of which gets its rollouts when all of them are there.

    At most `max_batch` rows are written at a time, but for the first of each of as many owners: it joins within a few
    steps, however long the others have still to go.
    """

    def __init__(self, model: LanguageModel, *, max_batch: int) -> None:
        self._model, self._max_batch = model, max_batch
        self._decodings: deque[Decoding] = deque()  # one; several where rows cannot join: within a sliding window
        self._owners: dict[OwnerT, tuple[Writing, list[_Sequence[OwnerT]]]] = {}
        self._joined = 0  # since the last step
        self._steps = 0  # since the last time that some joined

    def __len__(self) -> int:
        """How many owners have not left."""
        return len(self._owners)

    def __contains__(self, owner: OwnerT) -> bool:
        return owner in self._owners

    @property
    def writing(self) -> bool:
        """Whether some rollout has begun and not ended."""
        return any(self._decodings)

    def add(self, owner: OwnerT, writing: Writing) -> None:
        sequences = [_Sequence(owner, job) for job in writing.jobs]
        writing.tokens = lambda: sum(s.written for s in sequences)
        self._owners[owner] = writing, sequences

    def usage(self, owner: OwnerT) -> Usage:
        """What an owner's rollouts have cost so far."""
        _, sequences = self._owners[owner]
        ended = [s.rollout.usage for s in sequences if s.rollout is not None]
        return sum([*ended, *(s.row.usage(self._model) for s in sequences if s.row is not None)], Usage())

    def withdraw(self, owner: OwnerT) -> Written:
        """Ends an owner's rollouts where they are, and frees their rows."""
        _, sequences = self._owners.pop(owner)
        return Written([s.rollout for s in sequences if s.rollout is not None], _dropped(sequences))

    def advance(self) -> dict[OwnerT, Written | Exception]:
        """Joins what waits where there is room, or makes one decode step. Returns the owners that have all their
        rollouts now, or an error; they have left.

        What does not fit into memory is written anew in halves, which `usage.out_of_memory` counts.
        """
        joining = self._joining()
        self._joined, self._steps = (self._joined + len(joining), 0) if joining else (0, self._steps + 1)
        failed = self._step(self._place() if joining else self._next(), joining)
        for writing, [first, *_] in [own for own in self._owners.values() if own[0].watch is not None and own[1]]:
            if writing.watch is not None and first.row is not None:
                writing.watch(first.row.ids)
        written: dict[OwnerT, Written | Exception] = {}
        for owner, (_, sequences) in list(self._owners.items()):
            ended = [s.rollout for s in sequences if s.rollout is not None]
            if owner in failed or len(ended) == len(sequences):
                written[owner] = failed.get(owner) or Written(ended, [])
                del self._owners[owner]
        return written

    def _joining(self) -> list[_Sequence[OwnerT]]:
        """What joins before the next step: as much as there is room for, in the order of its coming; and in time the
        first of each newcomer, though the batch is full of those of others.
        """
        waiting, newcomers, writing = list[_Sequence[OwnerT]](), list[_Sequence[OwnerT]](), 0
        for _, own in self._owners.values():
            idle = [s for s in own if s.row is None and s.rollout is None]
            waiting += idle
            newcomers += idle[: len(idle) == len(own)]
            writing += any(s.row is not None for s in own)
        rows = sum(map(len, self._decodings))
        room = self._max_batch - rows
        enough = room >= _JOIN_SHARE * self._max_batch and self._joined < _MOST_JOINED * self._max_batch
        joinable = all(decoding.joinable for decoding in self._decodings)
        if not rows or (enough and joinable):
            return waiting[:room]
        return newcomers[: self._max_batch - writing] if self._steps >= _SOON else []

    def _place(self) -> Decoding:
        """The decoding that rows may join now."""
        if not (self._decodings and self._decodings[0].joinable):
            self._decodings.appendleft(self._model.decoding())
        return self._decodings[0]

    def _next(self) -> Decoding | None:
        """The decoding whose turn it is; None where nothing is written."""
        self._decodings = deque(decoding for decoding in self._decodings if decoding)
        self._decodings.rotate(-1)
        return self._decodings[-1] if self._decodings else None

    def _step(self, decoding: Decoding | None, joining: Sequence[_Sequence[OwnerT]]) -> dict[OwnerT, Exception]:
        if decoding is None:
            return {}
        every = [s for _, own in self._owners.values() for s in own if s.row is not None]
        written = [s for s in every if s.decoding is decoding]
        try:
            if joining:
                for sequence, row in zip(joining, decoding.add([s.job for s in joining]), strict=True):
                    sequence.row, sequence.decoding = row, decoding
            else:
                decoding.step()
        except torch.OutOfMemoryError:
            affected, no_room = [*every, *joining], True
        except Exception:
            affected, no_room = list(joining or written), False
        else:
            rows = ((s, s.row) for s in (*written, *joining) if s.row is not None)
            ended = [(s, row) for s, row in rows if row.finish is not None]
            _end([s for s, _ in ended], [decoding.finished(row) for _, row in ended])
            failed: dict[OwnerT, Exception] = {s.owner: row.error for s, row in ended if row.error is not None}
            for owner in failed:
                _dropped(self._owners[owner][1])
            return failed
        # Only here has the failed attempt let go of its tensors: a handled exception holds the frames it came through.
        if no_room:
            self._decodings.clear()
        elif not joining:
            self._decodings.remove(decoding)
        for sequence in affected:
            sequence.decoding = None
        del decoding
        if no_room:
            try:
                _end(affected, after_failure(self._model.rollout, [s.job for s in affected]))
            except Exception:
                return self._alone(affected)
            return {}
        return self._alone(affected)

    def _alone(self, sequences: Sequence[_Sequence[OwnerT]]) -> dict[OwnerT, Exception]:
        """Each owner's jobs by themselves, so that an error reaches only the owner that causes it."""
        failed: dict[OwnerT, Exception] = {}
        for owner in dict.fromkeys(s.owner for s in sequences):
            own = [s for s in sequences if s.owner is owner]
            try:
                _end(own, in_halves(self._model.rollout, [s.job for s in own]))
            except Exception as e:
                failed[owner] = e
        return failed


def _end(sequences: Sequence[_Sequence[OwnerT]], rollouts: Sequence[Rollout]) -> None:
    for sequence, rollout in zip(sequences, rollouts, strict=True):
        sequence.decoding, sequence.row, sequence.rollout = None, None, rollout


def _dropped(sequences: Sequence[_Sequence[OwnerT]]) -> list[Rollout]:
    """What was written of those that are being written; their rows are free."""
    rows: dict[Decoding, list[Row]] = {}
    for sequence in sequences:
        if sequence.row is not None and sequence.decoding is not None:
            rows.setdefault(sequence.decoding, []).append(sequence.row)
    return [rollout for decoding, own in rows.items() for rollout in decoding.drop(own)]
