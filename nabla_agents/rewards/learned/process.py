"""Process reward models: one score per step, aggregated to one value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nabla_agents.errors import ConfigurationError
from nabla_agents.models.gradients import GradientRows
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.loading import LoadingOptions
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.models.transformer import Transformer
from nabla_agents.rewards.base import DifferentiableReward, RewardGradient
from nabla_agents.rewards.learned.aggregation import AGGREGATIONS, Aggregation
from nabla_agents.rewards.learned.aggregation import aggregation as aggregation_of
from nabla_agents.rewards.learned.bound import BoundReward
from nabla_agents.rewards.learned.formats import TRL_PRM, StepFormat, StepTokens, step_tokens
from nabla_agents.rewards.learned.golden import SelfTested
from nabla_agents.rewards.learned.heads import VocabularyHead, check_head, loader, score_head, width_of
from nabla_agents.rewards.learned.passes import HeadPass
from nabla_agents.rewards.learned.reading import Reading
from nabla_agents.rewards.learned.reward_model import RewardModel, load_reward_model
from nabla_agents.rewards.learned.steps import StepScoring
from nabla_agents.types import Rollout, Score


class ProcessReward(SelfTested, DifferentiableReward):
    """A probability in [0, 1] that each step is right, aggregated to one value (in [0, 1], but for `log-product`).

    `format` declares what the model reads and where; the default is TRL's token classification, for which `separator`
    is short for `TRL_PRM.replace(split=separator)`. `aggregation` is a name, a `SoftMin`, or any function of the steps'
    log-probabilities [steps] that returns one number; the default is the format's. Scores of single steps are reported
    as spans with value 2p - 1.

    The gradient begins with `bind`, which an engine calls: see `BoundReward` for its cost and how far it reaches.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        format: StepFormat | None = None,
        separator: str | None = None,
        aggregation: Aggregation | None = None,
        min_coverage: float = 0.5,
        name: str = "",
    ) -> None:
        self.format, self.aggregation = _settings(format, separator, aggregation)
        self.label = name or type(module).__name__
        self.tokenizer = Tokenizer(tokenizer, name=self.label)
        tokens = step_tokens(self.format, self.tokenizer)
        head = _head(module, self.format, tokens, self.label)
        self.transformer = Transformer(module)
        check_head(self.transformer, head, tokens.classes)
        self.model = RewardModel(
            kind=self.name,
            name=self.label,
            transformer=self.transformer,
            tokenizer=self.tokenizer,
            scoring=StepScoring(self.format, tokens, self.tokenizer, aggregation_of(self.aggregation)),
            runs=HeadPass(self.transformer, head),
            max_length=self.format.max_length,
            min_coverage=min_coverage,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        format: StepFormat | None = None,
        separator: str | None = None,
        aggregation: Aggregation | None = None,
        min_coverage: float = 0.5,
        **loading: Unpack[LoadingOptions],
    ) -> ProcessReward:
        """Loads a model by its format: token classification with one or two labels unless another is given.

        Further options are those of `Loading`. The presets' models need no `trust_remote_code`.

        Raises:
            ConfigurationError: a token of the format that is not one, or a head of the wrong width; before weights.
            ModelLoadError: nothing to load, another kind of model, or code of its own without consent.
        """
        format, aggregation = _settings(format, separator, aggregation)

        def check(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
            step_tokens(format, Tokenizer(tokenizer, name=str(name)))
            if format.head == "classes" and config.num_labels not in (1, 2):
                raise ConfigurationError(_width_error(str(name), config.num_labels))

        module, tokenizer = load_reward_model(cls.__name__, name, loader(format), loading, check)
        return cls(module, tokenizer, format=format, aggregation=aggregation, min_coverage=min_coverage, name=str(name))

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


def _head(module: PreTrainedModel, format: StepFormat, tokens: StepTokens, label: str) -> nn.Module:
    if tokens.classes is not None:
        return VocabularyHead(module, tokens.classes)
    head = score_head(module)
    if width_of(head) not in (1, 2):
        raise ConfigurationError(_width_error(label, width_of(head)))
    return head


def _settings(
    format: StepFormat | None, separator: str | None, aggregation: Aggregation | None
) -> tuple[StepFormat, Aggregation]:
    if not isinstance(format, StepFormat | None):
        raise ConfigurationError(f"ProcessReward got format {format!r}; expected a StepFormat, or a preset of it.")
    if format is not None and separator is not None:
        raise ConfigurationError("ProcessReward got a format and a separator; the format declares where steps end.")
    if separator == "" or not (aggregation is None or callable(aggregation) or aggregation in AGGREGATIONS):
        raise ConfigurationError(
            f"ProcessReward got separator {separator!r} and aggregation {aggregation!r}; expected a non-empty "
            f"separator and one of {', '.join(AGGREGATIONS)}, or a function."
        )
    format = format or (TRL_PRM if separator is None else TRL_PRM.replace(split=separator))
    return format, format.aggregation if aggregation is None else aggregation


def _width_error(name: str, width: int) -> str:
    return (
        f"ProcessReward needs a head with one or two labels; {name} has {width}. Choose a process reward model, or "
        "declare how its steps are scored in a StepFormat."
    )
