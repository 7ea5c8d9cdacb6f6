"""Learned rewards: a transformer with a score head, read where a format says, as score and as gradient."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nabla_agents.errors import ConfigurationError, ContextOverflowError
from nabla_agents.models.carriers import Carrier, EmbeddingCarrier
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.loading import TINY, Loading, load
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.models.transformer import Transformer
from nabla_agents.rewards.base import DifferentiableReward, Reward, RewardGradient
from nabla_agents.rewards.learned.alignment import Alignment
from nabla_agents.rewards.learned.golden import SelfTested
from nabla_agents.rewards.learned.heads import applied
from nabla_agents.rewards.learned.passes import Pass, read_states
from nabla_agents.rewards.learned.reading import Part, Range, Reading, encode
from nabla_agents.types import Coverage, FinishReason, Prompt, Rollout, Score, Usage


@dataclass(frozen=True)
class Script:
    """The text of one reading in parts, of which the first stands before the answer.

    `problem` says why there is nothing to read.
    """

    parts: tuple[Part, ...] = ()
    steps: tuple[Range, ...] = ()
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Binding:
    """What a reward knows of the language model that it is bound to; `counterparts` are on the reward's device."""

    tokenizer: Tokenizer
    eos_ids: frozenset[int]
    vocab_size: int
    alignment: Alignment
    counterparts: Tensor | None
    same_template: bool


class HeadReward(SelfTested, DifferentiableReward):
    """A transformer with a score head, read at chosen positions of prompt + completion; scores in fp32.

    The text is the truth: with another vocabulary than the language model's, or in a format that changes the text, the
    completion is tokenised anew. The gradient then reaches the tokens that are one token in both; where they are fewer
    than `min_coverage` of the language model's vocabulary, or of a completion's tokens, the reward scores and accepts
    but does not steer, which a warning says.

    Cost: one forward per score, one forward and backward per gradient; a prompt that a batch shares is read once.

    Raises:
        ContextOverflowError: from `score`, for a text longer than the model's context or the format's `max_length`.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        head: nn.Module,
        *,
        max_length: int | None,
        min_coverage: float,
        name: str,
    ) -> None:
        if not 0 <= min_coverage <= 1:
            raise ConfigurationError(f"min_coverage is {min_coverage!r}; expected a share from 0 to 1.")
        self.label = name or type(module).__name__
        self.transformer = Transformer(module)
        self.tokenizer = Tokenizer(tokenizer, name=self.label)
        self.head = head
        context = self.transformer.context_length
        self.max_length = min(max_length or context, context)
        self.min_coverage = min_coverage
        self.differentiable = True
        self._bound: Binding | None = None

    @classmethod
    def _load(
        cls, name: str | Path, auto_class: Any, loading: dict[str, Any], check: Any
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if str(name) == TINY:
            raise ConfigurationError(f"The embedded reward is an ImplicitReward; {cls.__name__} has no 'tiny' model.")
        return load(name, auto_class, Loading(**loading), tiny_path=Path(), check=check)

    @property
    def vocab_size(self) -> int | None:
        """Of the language model, once bound to one that this reward can steer."""
        return self._bound.vocab_size if self._bound is not None and self._steers else None

    def bind(self, model: LanguageModel) -> Reward:
        bound: Self = copy.copy(self)
        alignment = Alignment.between(model.tokenizer, self.tokenizer, model.vocab_size)
        same = alignment.counterparts is None
        bound._bound = Binding(
            model.tokenizer,
            model.eos_ids,
            model.vocab_size,
            alignment,
            None if alignment.counterparts is None else alignment.counterparts.to(self.transformer.device),
            same and self.tokenizer.hf.chat_template == model.tokenizer.hf.chat_template,
        )
        if not bound._steers:
            reason = (
                f"{self.label} and {model.name} have different vocabularies, with {alignment.share:.0%} of the "
                f"language model's tokens in both (min_coverage={self.min_coverage:g})"
                if self.differentiable
                else f"the score of {self.label} is not a function of embeddings"
            )
            warnings.warn(
                f"{self.name}: {reason}; the reward scores and accepts by text, but does not steer (no gradient).",
                stacklevel=2,
            )
        return bound

    # ── what a family of models defines ───────────────────────────────────────────────────────────────────────────

    @property
    def _verbatim(self) -> bool:
        """Whether what is read holds the whole completion as it is, followed by one part that closes it."""
        return True

    @abstractmethod
    def _script(self, prompt: Prompt, text: str, *, ended: bool) -> Script:
        """What is read for an answer; `ended` says whether the answer came to its end or was cut."""

    @abstractmethod
    def _value(self, outputs: Float[Tensor, "n labels"], reading: Reading) -> tuple[Float[Tensor, ""], Score]:
        """The differentiable value and the score, from the head's outputs at the reading's positions."""

    def _read_at(self, marks: tuple[int, ...]) -> tuple[int, ...]:
        """The positions that are read for the marked tokens."""
        return marks

    def _check(self, reading: Reading, marks: tuple[int, ...]) -> str:
        """Why a reading is not in the declared format; empty if it is."""
        return ""

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────

    def reading(self, rollout: Rollout) -> Reading:
        """What the model reads for a rollout, and which of its ids stand for which tokens of the language model."""
        visible = self._visible(rollout)
        terminal = rollout.completion_ids[len(visible) :]
        written = visible if self._reads_ids_of(rollout, visible) else None
        ended = bool(terminal) if written is not None else rollout.finish_reason is FinishReason.STOP
        script = self._script(rollout.prompt, rollout.text, ended=ended)
        if script.problem:
            return Reading(problem=f"{self.name} {script.problem}")
        encoded = encode(self.tokenizer, script.parts, written)
        head = encoded.begins[1]
        if written is not None:
            sources = list(range(head, head + len(visible)))
        else:
            sources = self._aligned(visible, encoded.ids, {s: i for i, s in enumerate(encoded.spans) if s is not None})
        closing = encoded.begins[-1] if self._verbatim else len(encoded.ids)
        sources += [self._same_token(t, encoded.ids, closing) for t in terminal]
        at = self._read_at(encoded.marks)
        reading = Reading(encoded.ids, head, at, script.steps, tuple(sources) if self._bound is not None else ())
        problem = self._check(reading, encoded.marks)
        return replace(reading, problem=f"{self.name} {problem}") if problem else reading

    def _visible(self, rollout: Rollout) -> tuple[int, ...]:
        """The completion's ids without the token that ended it."""
        ids = rollout.completion_ids
        ends = frozenset({self.tokenizer.eos_id}) if self._bound is None else self._bound.eos_ids
        return ids[:-1] if ids and ids[-1] in ends else ids

    def _reads_ids_of(self, rollout: Rollout, visible: Sequence[int]) -> bool:
        """Whether the model reads the completion in the very ids in which it was written; else its text anew."""
        same = self._bound is not None and self._bound.alignment.counterparts is None and self._verbatim
        # A stop string is in the ids and not in the text.
        return same and bool(rollout.completion_ids) and self.tokenizer.decode(visible) == rollout.text

    def _aligned(self, visible: Sequence[int], ids: Sequence[int], at: dict[Range, int]) -> list[int]:
        """For each token of the language model the index of the one token that is read in its place."""
        if self._bound is None:
            return []
        offsets = self._bound.tokenizer.token_offsets(visible)
        return [self._same_token(t, ids, at.get(span, len(ids))) for t, span in zip(visible, offsets, strict=True)]

    def _same_token(self, token: int, ids: Sequence[int], index: int) -> int:
        """The index, if the id there is the counterpart of this token of the language model; else -1."""
        if self._bound is None or index >= len(ids):
            return -1
        return index if self._bound.alignment.counterpart(token) == ids[index] else -1

    # ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        readings = [self.reading(r) for r in rollouts]
        for reading in readings:
            if len(reading.ids) > self.max_length:
                raise ContextOverflowError(
                    f"{self.name} would read {len(reading.ids)} tokens, but the limit of {self.label} is "
                    f"{self.max_length}, and a cut text would get another text's score. Lower max_tokens, or choose a "
                    "reward model with a longer context."
                )
        scores = [Score.not_judged(r.problem, Usage(reward_calls=1)) for r in readings]
        readable = [i for i, r in enumerate(readings) if not r.problem]
        if not readable:
            return scores
        with torch.no_grad():
            done = self._run([readings[i] for i in readable], [rollouts[i].prompt for i in readable], None)
            for k, i in enumerate(readable):
                _, score = self._value(done.outputs[k], readings[i])
                usage = self._usage(done.forward[k], 0) + Usage(reward_calls=1)
                scores[i] = replace(score, usage=usage, coverage=self._coverage(readings[i]))
        return scores

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[Carrier]
    ) -> list[RewardGradient | None]:
        gradients: list[RewardGradient | None] = [None] * len(rollouts)
        if self._bound is None or not self._steers:
            return gradients
        readings = [self.reading(r) for r in rollouts]
        steered = [i for i, (r, start) in enumerate(zip(readings, starts, strict=True)) if self._reaches(r, start)]
        if not steered:
            return gradients
        chosen = [readings[i] for i in steered]
        firsts = [min(s for s in readings[i].sources[starts[i] :] if s >= 0) for i in steered]
        done = self._run(chosen, [rollouts[i].prompt for i in steered], firsts)
        with torch.enable_grad():
            values = [self._value(out, reading)[0] for out, reading in zip(done.outputs, chosen, strict=True)]
            by_index = done.gradients(values)
        for k, i in enumerate(steered):
            carrier = self._carrier(readings[i], starts[i], firsts[k], by_index[k], self._bound)
            gradients[i] = RewardGradient(carrier, self._usage(done.forward[k], done.backward[k]))
        return gradients

    def _run(self, readings: Sequence[Reading], prompts: Sequence[Prompt], starts: Sequence[int] | None) -> Pass:
        """The head's outputs at each reading's positions; with starts, as functions of the embeddings from there on."""
        states = read_states(self.transformer, readings, prompts, starts)
        with torch.set_grad_enabled(starts is not None):
            return replace(states, outputs=[applied(self.head, hidden) for hidden in states.outputs])

    def _carrier(
        self, reading: Reading, start: int, first: int, gradient: Float[Tensor, "fed hidden"], bound: Binding
    ) -> EmbeddingCarrier:
        """The gradient moved from ids to the language model's tokens; tokens without an id of their own have none."""
        sources = torch.tensor(reading.sources[start:], device=gradient.device)
        at = (sources - first).clamp_min(0)
        by_token = torch.where(sources[:, None] < 0, 0.0, gradient[at])
        written = None
        if bound.counterparts is not None:
            written = torch.tensor(reading.ids, device=gradient.device)[sources.clamp_min(0)]
        return EmbeddingCarrier(self.transformer, start, by_token, bound.vocab_size, bound.counterparts, written)

    # ── how far the gradient reaches ──────────────────────────────────────────────────────────────────────────────

    @property
    def _steers(self) -> bool:
        enough = self._bound is not None and self._bound.alignment.share >= self.min_coverage
        return enough and self.differentiable

    def _reaches(self, reading: Reading, start: int) -> bool:
        """Whether a gradient is worth its pass; warns of a completion that the reward reads in other tokens."""
        if reading.problem or len(reading.ids) > self.max_length:
            return False
        if not any(0 <= s <= max(reading.read_at) for s in reading.sources[start:]):
            return False  # nothing that is scored comes after a token that may change
        if _share(reading) < self.min_coverage:
            warnings.warn(
                f"{self.name}: fewer of a completion's tokens than min_coverage={self.min_coverage:g} are one token of "
                f"{self.label} too; for such completions the reward accepts, but does not steer.",
                stacklevel=2,
            )
            return False
        return True

    def _coverage(self, reading: Reading) -> tuple[Coverage, ...]:
        if self._bound is None or not reading.sources:
            return ()
        if not self.differentiable:
            return (Coverage(self.label, 0.0, 0.0),)
        return (Coverage(self.label, self._bound.alignment.share, _share(reading)),)

    def _usage(self, forward: int, backward: int) -> Usage:
        flops = self.transformer.flops(forward=forward, backward=backward)
        return Usage(reward_forward_tokens=forward, reward_backward_tokens=backward, flops=flops)


def _share(reading: Reading) -> float:
    """Of the language model's tokens that the gradient reaches."""
    return sum(s >= 0 for s in reading.sources) / max(len(reading.sources), 1)
