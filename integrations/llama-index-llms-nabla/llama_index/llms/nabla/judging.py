"""What judges answers: a reward as an evaluator (NablaEvaluator)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.evaluation import BaseEvaluator, EvaluationResult
from llama_index.core.prompts.mixin import PromptDictType

from nabla_agents import ConfigurationError, Rollout, Score

if TYPE_CHECKING:
    from nabla_agents import Engine, Reward


class NablaEvaluator(BaseEvaluator):
    """Judges responses by a reward that steers a search elsewhere, so that one object is reward, evaluator and gate.

    A response passes where a tool vouches for it; where no tool says yes or no, if its score reaches `threshold`. What
    could not be judged is invalid, with the reason, and does not pass.
    """

    def __init__(self, reward: Reward, *, threshold: float = 0.5) -> None:
        if isinstance(reward, type) or not callable(getattr(reward, "score", None)):
            raise ConfigurationError(f"NablaEvaluator got {reward!r}; expected a reward such as ArithmeticSteps().")
        self.reward, self.threshold = reward, threshold

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts_dict: PromptDictType) -> None: ...

    async def aevaluate(
        self,
        query: str | None = None,
        response: str | None = None,
        contexts: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> EvaluationResult:
        """The reward's judgement, computed off the event loop.

        Raises:
            ValueError: no response.
        """
        if response is None:
            raise ValueError("NablaEvaluator got no response; expected the text that is to be judged.")
        score = await asyncio.to_thread(judged, self.reward, query or "", response)
        return EvaluationResult(
            query=query,
            response=response,
            contexts=contexts,
            passing=self.passes(score),
            score=float(score.value) if score.judged else None,
            feedback=score.explanation,
            invalid_result=not score.judged,
            invalid_reason=None if score.judged else score.explanation or "not judged",
        )

    def passes(self, score: Score) -> bool:
        """Whether a judgement is good enough."""
        if not score.judged:
            return False
        return score.value >= self.threshold if score.verified is None else bool(score.verified)


def judged(reward: Reward, question: str, answer: str) -> Score:
    """The reward's score of one text; one that raises has not judged, and says why."""
    try:
        [score] = reward.score([Rollout.from_text(question, answer)])
    except Exception as e:  # a broken tool must not end a run of evaluations
        return Score.not_judged(f"{reward.name} raised {type(e).__name__}: {e}")
    return score


def own_reward(engine: Engine) -> Reward | None:
    """What the engine judges by, where that is in this process."""
    return engine.objective.reward if hasattr(engine, "objective") else None
