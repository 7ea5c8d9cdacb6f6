"""A completion being written: its tokens so far, how far its draft is right, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from nabla_agents.config import Sampling
from nabla_agents.errors import GrammarError
from nabla_agents.models.causal_model import CausalModel
from nabla_agents.models.constraint import Constraint, Mask
from nabla_agents.types import FinishReason, Prompt, Rollout, Usage

FIRST_WINDOW, LARGEST_WINDOW = 4, 64  # guesses read at a time; doubled as long as all of them are right
_ENDLESS = 256  # constrained tokens that repeat one piece of text are not going to end
_LONGEST_PIECE = 32  # tokens
_ROOMY = 256  # tokens, which every call that is worth making ends within
_SET_OFF = 2  # tokens of a call, such as a comma, in which the first one differs from others
MOST_MISSES = 3  # rounds in a row without a right guess, after which a draft is given up


@dataclass(frozen=True, eq=False)
class RolloutJob:
    """One completion to sample: `prefix_ids` of it are given, up to `max_tokens` (prefix included) may be.

    `uniforms` [max_tokens] are the job's own random numbers in [0, 1), the i-th for completion token i, so its text
    does not depend on what shares the batch. `draft` guesses the
    tokens after the prefix, place by place: right guesses save decode steps, wrong ones change nothing. `known` are
    log π of the first prefix tokens as this backend once gave them, for one that does not read the prefix itself.
    """

    prompt: Prompt
    prefix_ids: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    uniforms: Tensor
    draft: tuple[int, ...] = ()
    known: Float[Tensor, "time"] | None = None


@dataclass(eq=False)
class Row:
    """What has been written of a job."""

    job: RolloutJob
    ids: list[int]
    log_probs: list[float] = field(default_factory=list[float])
    constraint: Constraint | None = None
    computed_tokens: int = 0
    computed_rows: int = 0  # of logits
    prefilled_tokens: int = 0
    finish: FinishReason | None = None
    error: GrammarError | None = None  # why it cannot go on
    text: str | None = None
    window: int = FIRST_WINDOW
    misses: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    begun: list[int] = field(default_factory=list[int])  # the places at which further tool calls begin

    def __post_init__(self) -> None:
        self.uniforms: list[float] = self.job.uniforms.tolist()

    def guess(self) -> tuple[int, ...]:
        """What the draft has at the next places; one token more than the guess always fits."""
        if self.misses >= MOST_MISSES:
            return ()
        at, room = len(self.ids) - len(self.job.prefix_ids), self.job.max_tokens - len(self.ids) - 1
        return self.job.draft[at : at + min(self.window, room)]

    def judge(self, guess: Sequence[int], accepted: int) -> None:
        """Reads more at a time while guesses are right, and less, in the end nothing, while they are wrong."""
        self.draft_tokens += len(guess)
        self.accepted_draft_tokens += accepted
        self.misses = 0 if accepted else self.misses + 1
        self.window = min(2 * self.window, LARGEST_WINDOW) if accepted == len(guess) else FIRST_WINDOW

    def follow(self, token: int, mask: Mask | None = None) -> None:
        """Has its grammar follow the newest token. What it cannot follow ends the row, and no other. So does the
        beginning of a further call that has no room to end, or that comes behind one made twice; it is not begun.
        `mask` is what the grammar had at the token's place, where that is known.
        """
        if self.constraint is None:
            return
        room, grammar = self.job.max_tokens - len(self.ids), self.job.sampling.grammar
        several = grammar is not None and grammar.calls and grammar.parallel
        settled = several and (self.constraint.settled if mask is None else self.constraint.settles(mask))
        try:
            self.constraint.take([token])
            if not settled or self.constraint.whole:
                return
            twice = self._called_twice()
            if not twice and (room > _ROOMY or self.constraint.can_end(room)):
                return
        except GrammarError as e:
            self.error, self.finish = e, FinishReason.LENGTH
            return
        self.ids.pop()
        self.log_probs.pop()
        self.finish = FinishReason.STOP if twice else FinishReason.LENGTH

    def _called_twice(self) -> bool:
        """Whether the call before the newest token is the same as the one before it, but for how it is set off."""
        before, begun = self.begun, len(self.ids) - 1
        self.begun = [*before, begun]
        if not before:
            return False
        last, other = self.ids[before[-1] : begun], self.ids[before[-2] if len(before) > 1 else 0 : before[-1]]
        same = min(len(last), len(other)) - _SET_OFF
        return same > 0 and last[-same:] == other[-same:]

    def close_if_finished(self, model: CausalModel) -> None:
        """A terminal token, a stop string, the end of its grammar or the length ends a row, in this order. A special
        token that is a stop string has no text, but ends it too.
        """
        if self.finish is not None:
            return
        newest, stop = self.ids[-1], self.job.sampling.stop
        if newest in model.eos_ids or (stop and model.tokenizer.special_tokens.get(newest) in stop):
            self.finish = FinishReason.STOP
        elif stop and (text := before_stop(model, stop, self.ids)) is not None:
            self.finish, self.text = FinishReason.STOP, text
        elif self.constraint is not None and self.constraint.complete:
            self.finish = FinishReason.STOP
        elif len(self.ids) >= self.job.max_tokens or (self.constraint is not None and _endless(self.ids)):
            self.finish = FinishReason.LENGTH

    def usage(self, model: CausalModel) -> Usage:
        """What it has cost so far, as the model computed it."""
        forward = self.computed_tokens - self.prefilled_tokens
        return model.usage(prefill=self.prefilled_tokens, forward=forward, rows=self.computed_rows)

    def rollout(self, model: CausalModel) -> Rollout:
        """The finished completion."""
        ids = tuple(self.ids)
        visible = ids[:-1] if ids and ids[-1] in model.eos_ids else ids
        return Rollout(
            prompt=self.job.prompt,
            completion_ids=ids,
            text=self.text if self.text is not None else model.tokenizer.decode(visible),
            log_probs=torch.tensor(self.log_probs, dtype=torch.float64),
            finish_reason=self.finish or FinishReason.STOP,
            usage=self.usage(model)
            + Usage(
                rollouts=1,
                generated_tokens=len(ids) - len(self.job.prefix_ids),
                draft_tokens=self.draft_tokens,
                accepted_draft_tokens=self.accepted_draft_tokens,
            ),
        )


def _endless(ids: Sequence[int]) -> bool:
    """Whether the newest tokens are one piece again and again; looked at now and then."""
    if len(ids) < _ENDLESS or len(ids) % _LONGEST_PIECE:
        return False
    newest = ids[-_ENDLESS:]
    return any(newest[piece:] == newest[:-piece] for piece in range(1, _LONGEST_PIECE + 1))


def before_stop(model: CausalModel, stop: Sequence[str], ids: Sequence[int]) -> str | None:
    """The text before the first stop string, or None if the newest tokens complete none: only they are decoded."""
    window = max(len(s.encode()) for s in stop) + 8  # a token is at least one byte; margin for merged characters
    recent = model.tokenizer.decode(ids[-window:])
    if not any(s in recent for s in stop):
        return None
    text = model.tokenizer.decode(ids)
    ends = [text.find(s) for s in stop if s in text]
    return text[: min(ends)] if ends else None
