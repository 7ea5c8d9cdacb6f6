"""A transformer with a score: what it reads of an answer, how it runs, what its outputs mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nabla_agents.errors import ConfigurationError, ContextOverflowError
from nabla_agents.models.loading import TINY, Loading, LoadingOptions, load
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.models.transformer import Transformer
from nabla_agents.rewards.learned.passes import Pass
from nabla_agents.rewards.learned.reading import Range, Reading, Script, read
from nabla_agents.types import FinishReason, Prompt, Rollout, Score, Usage


class Scoring(Protocol):
    """What differs between kinds of reward models: how an answer is laid out, and what the outputs for it mean."""

    @property
    def verbatim(self) -> bool:
        """Whether what is read holds the whole completion as it is, followed by one part that closes it."""
        ...

    def script(self, prompt: Prompt, text: str, *, ended: bool, same_template: bool) -> Script:
        """What is read for an answer.

        `ended` says whether the answer came to its end or was cut, `same_template` whether the language model renders
        conversations alike.
        """
        ...

    def value(self, outputs: Float[Tensor, "n labels"], steps: Sequence[Range]) -> tuple[Float[Tensor, ""], Score]:
        """The differentiable value and the score, from the outputs at the positions that are read."""
        ...


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class RewardModel:
    """A reward model on its own: it knows texts, and no language model. `kind` is the reward's name in messages.

    `max_length` in tokens goes before a longer context. Scores are in fp32.
    """

    kind: str
    name: str
    transformer: Transformer
    tokenizer: Tokenizer
    scoring: Scoring
    runs: Pass
    max_length: int | None = None
    min_coverage: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.min_coverage <= 1:
            raise ConfigurationError(f"min_coverage is {self.min_coverage!r}; expected a share from 0 to 1.")

    @property
    def limit(self) -> int:
        """Tokens that it may read."""
        context = self.transformer.context_length
        return min(self.max_length or context, context)

    def reading(self, rollout: Rollout) -> Reading:
        """What is read for a rollout's text."""
        return self.read(rollout, ended=rollout.finish_reason is FinishReason.STOP)

    def read(
        self, rollout: Rollout, *, ended: bool, same_template: bool = False, written: Sequence[int] | None = None
    ) -> Reading:
        """What is read for a rollout: its text, or the ids in which it was written, where the scoring is verbatim."""
        script = self.scoring.script(rollout.prompt, rollout.text, ended=ended, same_template=same_template)
        reading = read(self.tokenizer, script, written)
        return replace(reading, problem=f"{self.kind} {reading.problem}") if reading.problem else reading

    @torch.no_grad()
    def score(self, rollouts: Sequence[Rollout], readings: Sequence[Reading]) -> list[Score]:
        """One score per reading, in one pass.

        Raises:
            ContextOverflowError: a text is longer than the model's context or the format's `max_length`.
        """
        for reading in readings:
            if len(reading.ids) > self.limit:
                raise ContextOverflowError(
                    f"{self.kind} would read {len(reading.ids)} tokens, but the limit of {self.name} is "
                    f"{self.limit}, and a cut text would get another text's score. Lower max_tokens, or choose a "
                    "reward model with a longer context."
                )
        scores = [Score.not_judged(r.problem, Usage(reward_calls=1)) for r in readings]
        readable = [i for i, r in enumerate(readings) if not r.problem]
        if not readable:
            return scores
        outputs = self.runs.run([readings[i] for i in readable], [rollouts[i].prompt for i in readable])
        for i, output, forward in zip(readable, outputs.scores, outputs.forward, strict=True):
            _, score = self.scoring.value(output, readings[i].steps)
            scores[i] = replace(score, usage=self._usage(forward, 0) + Usage(reward_calls=1))
        return scores

    def gradients(
        self, rollouts: Sequence[Rollout], readings: Sequence[Reading], starts: Sequence[int]
    ) -> list[tuple[Float[Tensor, "fed hidden"], Usage]]:
        """∂ value / ∂ embeddings of each reading from an index of its ids on, and what it cost."""
        outputs = self.runs.run(readings, [r.prompt for r in rollouts], starts)
        with torch.enable_grad():
            values = [self.scoring.value(o, r.steps)[0] for o, r in zip(outputs.scores, readings, strict=True)]
            gradients = outputs.gradients(values)
        usages = [self._usage(f, b) for f, b in zip(outputs.forward, outputs.backward, strict=True)]
        return list(zip(gradients, usages, strict=True))

    def _usage(self, forward: int, backward: int) -> Usage:
        flops = self.transformer.flops(forward=forward, backward=backward)
        return Usage(reward_forward_tokens=forward, reward_backward_tokens=backward, flops=flops)


def load_reward_model(
    kind: str, name: str | Path, auto_class: Any, loading: LoadingOptions, check: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """See `load`; there is no embedded one."""
    if str(name) == TINY:
        raise ConfigurationError(f"The embedded reward is an ImplicitReward; {kind} has no 'tiny' model.")
    return load(name, auto_class, Loading(**loading), tiny_path=Path(), check=check)
