"""TextReward: a tool that judges each completion by its text alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from nabla_agents.rewards.base import Reward
from nabla_agents.types import Rollout, Score, Usage


class TextReward(Reward):
    """A reward that is one function of the text; a completion that is no text is not judged."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [self.judge(r.text) if isinstance(r.text, str) else not_text(r.text) for r in rollouts]

    @abstractmethod
    def judge(self, text: str) -> Score:
        """The verdict on one text."""


def not_text(value: object) -> Score:
    """The score of a completion that is no text."""
    return Score.not_judged(f"the completion is {type(value).__name__}; expected text", Usage(reward_calls=1))
