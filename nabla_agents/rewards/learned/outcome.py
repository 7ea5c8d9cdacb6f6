"""Outcome reward models: one score for a whole answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nabla_agents.errors import ConfigurationError
from nabla_agents.models.gradients import GradientRows
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.loading import LoadingOptions
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.models.transformer import Transformer
from nabla_agents.rewards.base import DifferentiableReward, RewardGradient
from nabla_agents.rewards.learned.bound import BoundReward
from nabla_agents.rewards.learned.formats import SEQUENCE_CLASSIFICATION, OutcomeFormat
from nabla_agents.rewards.learned.framing import framed
from nabla_agents.rewards.learned.golden import SelfTested
from nabla_agents.rewards.learned.heads import check_head, loader, score_head, width_of
from nabla_agents.rewards.learned.passes import HeadPass, OwnPass, Pass
from nabla_agents.rewards.learned.reading import Part, Range, Reading, Script, read
from nabla_agents.rewards.learned.reward_model import RewardModel, load_reward_model
from nabla_agents.types import Message, Prompt, Rollout, Score


class OutcomeReward(SelfTested, DifferentiableReward):
    """One unbounded score per completion, read at the conversation's last token in the model's own chat template.

    Where `format.output` names another attribute than `logits`, the score is read from the model's own forward pass;
    then there is a gradient only if that pass takes embeddings in place of ids, which is tried once on construction.
    The gradient begins with `bind`, which an engine calls: see `BoundReward` for its cost and how far it reaches.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        format: OutcomeFormat = SEQUENCE_CLASSIFICATION,
        min_coverage: float = 0.5,
        name: str = "",
    ) -> None:
        self.format, self.label = _format(format), name or type(module).__name__
        self.tokenizer = Tokenizer(tokenizer, name=self.label)
        scoring = OutcomeScoring(format, self.tokenizer)
        self.transformer, runs = _runs(module, scoring, self.label)
        self.model = RewardModel(
            kind=self.name,
            name=self.label,
            transformer=self.transformer,
            tokenizer=self.tokenizer,
            scoring=scoring,
            runs=runs,
            max_length=format.max_length,
            min_coverage=min_coverage,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        format: OutcomeFormat = SEQUENCE_CLASSIFICATION,
        min_coverage: float = 0.5,
        **loading: Unpack[LoadingOptions],
    ) -> OutcomeReward:
        """Loads a sequence classification model with one label, or what `format` declares; options as in `Loading`.

        Raises:
            ConfigurationError, ModelLoadError: before any weight is loaded where possible.
        """
        _format(format)

        def check(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
            declared = config.num_labels
            if (format.head, format.output, declared == 1) == ("linear", "logits", False):
                raise ConfigurationError(_width_error(str(name), declared))

        module, tokenizer = load_reward_model(cls.__name__, name, loader(format), loading, check)
        return cls(module, tokenizer, format=format, min_coverage=min_coverage, name=str(name))

    def reading(self, rollout: Rollout) -> Reading:
        """What the model reads for a rollout's text."""
        return self.model.reading(rollout)

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return self.model.score(rollouts, [self.reading(r) for r in rollouts])

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[GradientRows]
    ) -> list[RewardGradient | None]:
        return [None] * len(rollouts)

    def bind(self, model: LanguageModel) -> BoundReward:
        return BoundReward(self.model, model)


@dataclass(frozen=True, eq=False)
class OutcomeScoring:
    """The whole conversation as its template closes it, and one number at its end."""

    format: OutcomeFormat
    tokenizer: Tokenizer
    verbatim: bool = True

    def script(self, prompt: Prompt, text: str, *, ended: bool, same_template: bool) -> Script:
        head, closing = framed(self.tokenizer, prompt, system=self.format.system, as_written=same_template)
        closing = closing if ended else ""
        if not (text or closing):
            return Script(problem="found nothing to judge in an empty completion")
        answer = Part(text, 0, marked=not closing)
        return Script((Part(head), answer, Part(closing, marked=bool(closing))))

    def value(self, outputs: Float[Tensor, "n labels"], steps: Sequence[Range]) -> tuple[Float[Tensor, ""], Score]:
        value = outputs[-1, 0]
        return value, Score(float(value.detach()))


def _runs(module: PreTrainedModel, scoring: OutcomeScoring, label: str) -> tuple[Transformer, Pass]:
    """The model's body, and how it gives the score that the format names."""
    if scoring.format.output != "logits":
        transformer, prompt = Transformer(module), Prompt((Message("user", "1 + 1 = ?"),), "", ())
        sample = read(scoring.tokenizer, scoring.script(prompt, "2", ended=True, same_template=False)).ids
        return transformer, OwnPass(transformer, output=scoring.format.output, name=label, sample=sample)
    head = score_head(module)
    if width_of(head) != 1:
        raise ConfigurationError(_width_error(label, width_of(head)))
    transformer = Transformer(module)
    check_head(transformer, head)
    return transformer, HeadPass(transformer, head)


def _format(format: object) -> OutcomeFormat:
    if not isinstance(format, OutcomeFormat):
        raise ConfigurationError(f"OutcomeReward got format {format!r}; expected an OutcomeFormat, or a preset of it.")
    return format


def _width_error(name: str, width: int) -> str:
    return (
        f"OutcomeReward needs a head with one label; {name} has {width}. Choose a reward model, or a ProcessReward for "
        "one that scores steps."
    )
