"""Every rollout a search has scored: the best one is returned, and all of them may vote."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from nabla_agents.final_answer import extract_answer
from nabla_agents.types import Rollout, Score

AcceptanceRule = Literal["objective", "reward"]


@dataclass(frozen=True, eq=False)
class Scored:
    """A rollout with its score (None without a reward) and its objective J (NaN: could not be judged)."""

    rollout: Rollout
    score: Score | None
    objective: float

    @property
    def verified(self) -> bool:
        return self.score is not None and self.score.judged and self.score.verified is True

    def rank(self, rule: AcceptanceRule) -> tuple[float, ...]:
        """Larger is better: what is whole above what a limit cut off, what was judged above what could not be. An empty
        text that could not be judged is below both.

        objective: verified first, then the better tool verdict, then J. reward: the reward's value alone; without a
        reward, J.
        """
        judged = self.score is None or self.score.judged
        whole = float(not self.rollout.cut and (judged or self.rollout.text != ""))
        if judged and rule == "reward" and self.score is not None:
            return (whole, self.score.value, 0.0, 0.0)
        if not judged or math.isnan(self.objective):
            return (whole, -math.inf, -math.inf, -math.inf)
        verdict = 0.0 if self.score is None or self.score.verdict is None else self.score.verdict
        return (whole, float(self.verified), verdict, self.objective)

    def mends(self, draft: Scored, noise: float = 0.0) -> bool:
        """Whether it is better than an answer from elsewhere: by what the reward says of the two, since the language
        model finds its own words likelier than any others.

        A tool's better verdict is enough, or fewer objections beside an equal one; a learned score has to rise
        together with J, by more than the noise. For a draft that could not be judged, a tool has to vouch.
        """
        new, old = self.score, draft.score
        if new is None or old is None:  # without a reward, by the likelihood
            return _above(self.rank("objective"), draft.rank("objective"), noise)
        if draft.rollout.cut != self.rollout.cut or not new.judged:
            return draft.rollout.cut and not self.rollout.cut
        if not old.judged:
            return self.verified or new.verdict is None
        by_tools = [(s.verified is True, s.verdict or 0.0, -s.objections) for s in (new, old)]
        if by_tools[0] != by_tools[1]:
            return by_tools[0] > by_tools[1]
        return new.value > old.value and self.objective > draft.objective + noise


class Pool:
    """Scored rollouts in the order they came; ties keep the earlier one. With `drafted` the first came from elsewhere,
    and has to be mended to be replaced. Values of J that differ by no more than `noise` nats are a tie.
    """

    def __init__(self, rule: AcceptanceRule = "objective", *, drafted: bool = False, noise: float = 0.0) -> None:
        self.rule: AcceptanceRule = rule
        self._drafted, self._noise = drafted, noise
        self._entries: list[Scored] = []

    def add(self, entry: Scored) -> None:
        self._entries.append(entry)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Scored]:
        return iter(self._entries)

    @property
    def newest(self) -> Scored | None:
        return self._entries[-1] if self._entries else None

    def better(self, proposal: Scored, incumbent: Scored) -> bool:
        """Strictly better under the rule; one that could not be judged never is, unless it alone is whole."""
        if self._drafted:
            return proposal.mends(incumbent, self._noise)
        return _above(proposal.rank(self.rule), incumbent.rank(self.rule), self._noise)

    def best(self) -> Scored | None:
        """The best entry seen; with nothing judged, the first."""
        best: Scored | None = None
        for entry in self._entries:
            if best is None or self.better(entry, best):
                best = entry
        return best

    def vote(self, weighting: Literal["majority", "reward"] = "majority") -> Scored | None:
        """The best entry among those with the winning answer.

        majority: one vote each. reward: votes weighted by softmax of the reward over the pool, so that rewards of any
        range and sign count alike. Entries without an answer, cut off, or unjudged under `reward`, do not vote.
        """
        votes: defaultdict[str, float] = defaultdict(float)
        weights = self._softmax_rewards() if weighting == "reward" else [1.0] * len(self._entries)
        answers = [None if e.rollout.cut else extract_answer(e.rollout.text) for e in self._entries]
        for answer, weight in zip(answers, weights, strict=True):
            if answer is not None and weight > 0:
                votes[answer] += weight
        if not votes:
            return self.best()
        winner = max(votes, key=lambda a: votes[a])  # dicts keep order: ties go to the answer seen first
        members = Pool(self.rule, noise=self._noise)
        for entry, answer in zip(self._entries, answers, strict=True):
            if answer == winner:
                members.add(entry)
        return members.best()

    def log_probs(self, prefix: Sequence[int]) -> Tensor | None:
        """log π of as many of the prefix's first tokens as a completion here begins with, in nats; None for none."""
        known: Tensor | None = None
        for rollout in (e.rollout for e in self._entries if e.rollout.log_probs is not None):
            pairs = enumerate(zip(rollout.completion_ids, prefix, strict=False))
            same = next((i for i, (a, b) in pairs if a != b), min(len(rollout.completion_ids), len(prefix)))
            if same > (0 if known is None else len(known)) and rollout.log_probs is not None:
                known = rollout.log_probs[:same]
        return known

    def _softmax_rewards(self) -> list[float]:
        values = [e.score.value if e.score is not None else 0.0 for e in self._entries]
        known = [v for v in values if not math.isnan(v)]
        top = max(known, default=0.0)
        return [0.0 if math.isnan(v) else math.exp(v - top) for v in values]


def _above(new: tuple[float, ...], old: tuple[float, ...], noise: float) -> bool:
    """Whether a rank is higher than another, by more than the noise where J alone decides."""
    return new > old and not (new[:-1] == old[:-1] and new[-1] - old[-1] <= noise)
