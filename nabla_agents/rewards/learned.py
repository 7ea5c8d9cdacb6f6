"""Reward models with a score head on a transformer: one score per completion, or one per step."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nabla_agents.errors import ConfigurationError, ModelLoadError
from nabla_agents.functional import wide
from nabla_agents.models.carriers import Carrier, EmbeddingCarrier
from nabla_agents.models.language_model import LanguageModel, tail_states, token_gradient
from nabla_agents.models.loading import TINY, Loading, load
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.models.transformer import Transformer
from nabla_agents.rewards.base import DifferentiableReward, Reward, RewardGradient
from nabla_agents.types import FinishReason, Prompt, Rollout, Score, Span, Usage


class HeadReward(DifferentiableReward):
    """A transformer with a linear score head, read at chosen positions of prompt + completion; scores in fp32.

    The text is the truth: with another vocabulary than the language model's, the completion is tokenised anew, and
    the reward ranks and accepts but does not steer (it has no gradient), which a warning says once.
    """

    auto_class: ClassVar[Any]

    def __init__(self, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str = "") -> None:
        self.label = name or type(module).__name__
        self.head: Any = getattr(module, "score", None) or getattr(module, "classifier", None)
        if not isinstance(self.head, torch.nn.Linear):
            raise ModelLoadError(
                f"{type(module).__name__} has no linear head named `score` or `classifier`; expected a sequence or "
                "token classification model."
            )
        self._check_width(self.head.out_features)
        self.transformer = Transformer(module)
        self.tokenizer = Tokenizer(tokenizer, name=self.label)
        self.vocab_size: int | None = None  # of the language model, once bound to one with the same vocabulary
        self._same_prompt = False  # whether that model's rendered prompts are this one's too

    @classmethod
    def _load(cls, name: str | Path, loading: Mapping[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if str(name) == TINY:
            raise ConfigurationError(f"The embedded reward is an ImplicitReward; {cls.__name__} has no 'tiny' model.")
        return load(name, cls.auto_class, Loading(**loading), tiny_path=Path())

    def bind(self, model: LanguageModel) -> Reward:
        bound: Self = copy.copy(self)
        if self.tokenizer.fingerprint == model.tokenizer.fingerprint:
            bound.vocab_size = model.vocab_size
            bound._same_prompt = self.tokenizer.hf.chat_template == model.tokenizer.hf.chat_template
        else:
            bound.vocab_size = None
            warnings.warn(
                f"{self.name} and {model.name} have different vocabularies: the reward scores and accepts by text, but "
                "its gradient cannot steer decoding.",
                stacklevel=2,
            )
        return bound

    @abstractmethod
    def _check_width(self, width: int) -> None:
        """Raises ConfigurationError for a head of the wrong width."""

    @abstractmethod
    def _judge(self, rollout: Rollout, hidden: Float[Tensor, "time hidden"]) -> tuple[Float[Tensor, ""], Score]:
        """The differentiable value and the score; `hidden[i]` has read completion token i of the reward's own ids."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        own = [self._own_rollout(r) for r in rollouts]
        zeros, none = [0] * len(own), [None] * len(own)
        tails, hidden, _, read, fed = tail_states(
            self.transformer, own, zeros, none, needs_grad=False, include_last=True
        )
        usage = self._usage(read + fed, 0)
        return [
            replace(self._judge(rollout, hidden[i, 1 : len(tail) + 1])[1], usage=usage + Usage(reward_calls=1))
            for i, (rollout, tail) in enumerate(zip(own, tails, strict=True))
        ]

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[Carrier]
    ) -> list[RewardGradient | None]:
        if self.vocab_size is None:
            return [None] * len(rollouts)
        own = [self._own_rollout(r) for r in rollouts]
        tails, hidden, embeddings, read, fed = tail_states(
            self.transformer, own, starts, [None] * len(own), needs_grad=True, include_last=True
        )
        with torch.no_grad():
            before, read_again = self._states_before(own, starts)
        with torch.enable_grad():
            values = [
                self._judge(rollout, torch.cat([before[i], hidden[i, 1 : len(tail) + 1]]))[0]
                for i, (rollout, tail) in enumerate(zip(own, tails, strict=True))
            ]
            (gradient,) = torch.autograd.grad(torch.stack(values).sum(), embeddings)
        usage = self._usage(read + fed + read_again, fed)
        return [
            RewardGradient(
                EmbeddingCarrier(self.transformer, start, token_gradient(gradient[i], len(tail)), self.vocab_size),
                usage,
            )
            for i, (tail, start) in enumerate(zip(tails, starts, strict=True))
        ]

    def _states_before(self, own: Sequence[Rollout], starts: Sequence[int]) -> tuple[list[Tensor], int]:
        """States of the committed tokens, which need no gradient but may end steps; the tokens read for them."""
        if not any(starts):
            width = self.transformer.embedding.weight.shape[1]
            return [torch.zeros(0, width, device=self.transformer.device)] * len(own), 0
        committed = [replace(r, completion_ids=r.completion_ids[:s]) for r, s in zip(own, starts, strict=True)]
        zeros, none = [0] * len(own), [None] * len(own)
        _, hidden, _, read, fed = tail_states(
            self.transformer, committed, zeros, none, needs_grad=False, include_last=True
        )
        return [hidden[i, 1 : start + 1] for i, start in enumerate(starts)], read + fed

    def _own_rollout(self, rollout: Rollout) -> Rollout:
        """Prompt and completion in this model's ids: its own template, one terminal token where the answer ended."""
        prompt, completion = rollout.prompt, rollout.completion_ids
        if not (self._same_prompt and prompt.ids):
            rendered = bool(prompt.messages) and bool(self.tokenizer.hf.chat_template)
            text = self.tokenizer.render(prompt.messages) if rendered else prompt.text
            prompt = Prompt(prompt.messages, text, tuple(self.tokenizer.encode(text)))
        if self.vocab_size is None or not completion:
            eos = self.tokenizer.eos_id
            ended = (eos,) if eos is not None and rollout.finish_reason is FinishReason.STOP else ()
            completion = (*self.tokenizer.encode(rollout.text), *ended)
        return replace(rollout, prompt=prompt, completion_ids=completion)

    def _logits(self, hidden: Float[Tensor, "*n hidden"]) -> Float[Tensor, "*n labels"]:
        bias = None if self.head.bias is None else wide(self.head.bias)
        return torch.nn.functional.linear(wide(hidden), wide(self.head.weight), bias)

    def _usage(self, forward: int, backward: int) -> Usage:
        flops = 2.0 * self.transformer.parameter_count * (forward + backward)
        return Usage(reward_forward_tokens=forward, reward_backward_tokens=backward, flops=flops)


class OutcomeReward(HeadReward):
    """One unbounded score per completion, read at its last token (sequence classification with one label)."""

    auto_class = AutoModelForSequenceClassification

    @classmethod
    def from_pretrained(cls, name: str | Path, **loading: Any) -> OutcomeReward:
        """Loads a sequence classification model with one label; options as in `Loading`."""
        module, tokenizer = cls._load(name, {**loading})
        return cls(module, tokenizer, name=str(name))

    def _check_width(self, width: int) -> None:
        if width != 1:
            raise ConfigurationError(f"OutcomeReward needs a head with one label; {self.label} has {width}.")

    def _judge(self, rollout: Rollout, hidden: Float[Tensor, "time hidden"]) -> tuple[Float[Tensor, ""], Score]:
        if not len(hidden):
            return hidden.sum(), Score.not_judged(f"{self.name} found nothing to judge in an empty completion")
        value = self._logits(hidden[-1])[0]
        return value, Score(float(value.detach()))


Aggregation = Literal["min", "mean", "product", "last"]
_AGGREGATE: dict[str, Callable[[Tensor], Tensor]] = {
    "min": lambda log_p: log_p.min().exp(),
    "mean": lambda log_p: log_p.exp().mean(),
    "product": lambda log_p: log_p.sum().exp(),
    "last": lambda log_p: log_p[-1].exp(),
}


class ProcessReward(HeadReward):
    """A probability in [0, 1] that each step is right, aggregated to one value in [0, 1] (token classification).

    Steps end with `separator` in the completion's text (TRL's convention; the default is a line break) and at its
    end; the score is read at the step's last token: sigmoid of a single label, or softmax label 1 of two. Scores of
    single steps are reported as spans.
    """

    auto_class = AutoModelForTokenClassification

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        separator: str = "\n",
        aggregation: Aggregation = "product",
        name: str = "",
    ) -> None:
        if not separator or aggregation not in _AGGREGATE:
            raise ConfigurationError(
                f"ProcessReward got separator {separator!r} and aggregation {aggregation!r}; expected a non-empty "
                f"separator and one of {', '.join(_AGGREGATE)}."
            )
        self.separator, self.aggregation = separator, aggregation
        super().__init__(module, tokenizer, name=name)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, separator: str = "\n", aggregation: Aggregation = "product", **loading: Any
    ) -> ProcessReward:
        """Loads a token classification model with one or two labels; options as in `Loading`."""
        module, tokenizer = cls._load(name, {**loading})
        return cls(module, tokenizer, separator=separator, aggregation=aggregation, name=str(name))

    def _check_width(self, width: int) -> None:
        if width not in (1, 2):
            raise ConfigurationError(f"ProcessReward needs a head with one or two labels; {self.label} has {width}.")

    def _judge(self, rollout: Rollout, hidden: Float[Tensor, "time hidden"]) -> tuple[Float[Tensor, ""], Score]:
        ends = self._step_ends(rollout)
        if not ends:
            nothing = (hidden * 0).sum()
            return nothing, Score.not_judged(f"{self.name} found no step in an empty completion")
        logits = self._logits(hidden[[token for _, token in ends]])
        log_p = torch.nn.functional.logsigmoid(logits[:, 0]) if logits.shape[-1] == 1 else logits.log_softmax(-1)[:, 1]
        value = _AGGREGATE[self.aggregation](log_p)
        starts = [0, *[end for end, _ in ends[:-1]]]
        spans = tuple(
            Span(start, end, 2 * float(p) - 1, explanation=f"step score {float(p):.3f}", credit=0.0)
            for start, (end, _), p in zip(starts, ends, log_p.detach().exp(), strict=True)
        )
        return value, Score(float(value.detach()), spans=spans)

    def _step_ends(self, rollout: Rollout) -> list[tuple[int, int]]:
        """(end character, last token) of each step."""
        eos = self.tokenizer.eos_id
        ids = rollout.completion_ids
        visible = ids[:-1] if ids and ids[-1] == eos else ids
        offsets, text = self.tokenizer.token_offsets(visible), self.tokenizer.decode(visible)
        ends: list[int] = []
        for at in [*_found(self.separator, text), len(text)]:
            end = min(at + len(self.separator), len(text))
            if text[ends[-1] if ends else 0 : at].strip():  # a doubled separator ends nothing
                ends.append(end)
        return [(end, next(i for i, (_, e) in enumerate(offsets) if e >= end)) for end in ends]


def _found(separator: str, text: str) -> Iterator[int]:
    """Where each separator begins."""
    at = text.find(separator)
    while at >= 0:
        yield at
        at = text.find(separator, at + len(separator))
