"""The frozen records that travel between the parts. Facts are stored once; what follows from them is a property."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal

from nabla_agents.errors import ConfigurationError, PromptError, RewardError

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["system", "user", "assistant", "tool"]
LEAST_LIMITS: Final[Mapping[str, int]] = {"rollouts": 1, "generated_tokens": 1}
"""The smallest limits that a budget may have; 0 for the others."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `extra` holds what a chat template may read besides: name, tool_calls, ..."""

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if self.role not in ("system", "user", "assistant", "tool"):
            raise PromptError(f"Message role is {self.role!r}; expected system, user, assistant or tool.")
        if not isinstance(self.content, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PromptError(f"Content of the {self.role} message is {self.content!r}; expected text.")

    def as_template_input(self) -> dict[str, Any]:
        return {**self.extra, "role": self.role, "content": self.content}


@dataclass(frozen=True)
class Prompt:
    """A conversation and the token ids the language model reads for it; never refined."""

    messages: tuple[Message, ...]
    text: str
    ids: tuple[int, ...]

    @property
    def question(self) -> str:
        """Content of the last user turn, or the whole text of a prompt that was given as plain text."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), self.text)


class Brief:
    """Is shown by the fields that say something: those that have another value than their default."""

    def __repr__(self) -> str:
        shown = [f for f in fields(self) if f.repr]  # type: ignore[arg-type]
        written = ((f.name, repr(getattr(self, f.name)), repr(f.default)) for f in shown)
        return f"{type(self).__name__}({', '.join(f'{name}={it}' for name, it, default in written if it != default)})"


@dataclass(frozen=True, repr=False)
class Usage(Brief):
    """What was spent. Tokens are counted as computed, padding included, so that they equal what the modules saw.

    `prefill_tokens` are those of `lm_forward_tokens` that were read as known text, not one by one.
    `flops` is 2·N per token forward and 2·N more per token backward (frozen weights), N being the parameters of the
    matrices of the body that ran, without embeddings and head, and 2·hidden·vocab for each row over the vocabulary: of
    logits where they are made, and of a gradient where it is built. Attention's own products, 4·hidden per token and
    token before it, and a reward's score head are left out; activation checkpointing computes what is differentiated
    once more, 2·N per token backward. `out_of_memory` batches did not fit into memory and were run again in halves.
    `seconds` is wall-clock; `peak_memory_bytes` does not add, it is a maximum. `draft_tokens` were guessed from an
    earlier completion; each of the `accepted_draft_tokens` saved one sequential decode step.
    """

    rollouts: int = 0
    generated_tokens: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    prefill_tokens: int = 0
    lm_forward_tokens: int = 0
    lm_backward_tokens: int = 0
    reward_forward_tokens: int = 0
    reward_backward_tokens: int = 0
    gradient_passes: int = 0
    reward_calls: int = 0
    out_of_memory: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    peak_memory_bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        summed = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Usage(**{**summed, "peak_memory_bytes": max(self.peak_memory_bytes, other.peak_memory_bytes)})

    def as_dict(self) -> dict[str, int | float]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Budget:
    """What may be spent on one prompt; None means no limit. Field names equal those of `Usage`.

    An operation is refused once a limit that it spends is reached; one that was started is finished, so `flops`,
    `seconds` and `reward_calls` are overrun by at most one operation, the others never. With 0 gradient passes a
    search goes on without gradient steps.
    """

    rollouts: int | None = 8
    generated_tokens: int | None = None
    gradient_passes: int | None = None
    reward_calls: int | None = None
    flops: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            limit = getattr(self, f.name)
            counted, least = f.name not in ("flops", "seconds"), LEAST_LIMITS.get(f.name, 0)
            if limit is not None and not _is_number(limit, least, whole=counted):
                kind = "whole number" if counted else "number"
                raise ConfigurationError(
                    f"Budget.{f.name} is {limit!r}; expected None (no limit) or a {kind} of at least {least}"
                    + (": one completion needs one rollout of one token." if least else ".")
                )

    def exhausted(self, usage: Usage, spending: Collection[str]) -> str | None:
        """Which limit among the fields that the next operation spends is reached, as `name spent/allowed`, or None."""
        for name in spending:
            limit = getattr(self, name)
            if limit is not None and getattr(usage, name) >= limit:
                return f"{name} {_shown(getattr(usage, name))}/{_shown(limit)}"
        return None


def _is_number(value: Any, least: int | float, *, whole: bool) -> bool:
    try:
        return not isinstance(value, bool) and bool((operator.index(value) if whole else value) >= least)
    except TypeError:
        return False


def _shown(amount: int | float) -> str:
    return str(amount) if isinstance(amount, int) else f"{amount:g}"


class FinishReason(StrEnum):
    """Why a search ended."""

    STOP = "stop"  # nothing promising was left, and the answer ended by itself
    LENGTH = "length"  # nothing promising was left, and the answer was cut by max_tokens or the context
    VERIFIED = "verified"  # a tool vouches for the answer, as far as it can see
    BUDGET = "budget"  # a limit of the budget was reached
    INTERRUPTED = "interrupted"  # the caller stopped it; the best answer so far is returned


@dataclass(frozen=True)
class Span:
    """A located verdict on the characters start:end of a completion's text.

    `value` in [-1, 1]: -1 wrong, 1 right. `expected` is the right text for the range where the tool knows it.
    `credit` is the verdict's strength in nats in the objective's gradient.

    Raises:
        RewardError: whole numbers 0 ≤ start ≤ end, a value in [-1, 1] and a finite credit are not what was given.
    """

    start: int
    end: int
    value: float
    expected: str | None = None
    explanation: str = ""
    credit: float = 1.0

    def __post_init__(self) -> None:
        if not (_is_number(self.start, 0, whole=True) and _is_number(self.end, self.start, whole=True)):
            raise RewardError(
                f"Span is {self.start!r}:{self.end!r}; expected whole numbers of characters, 0 ≤ start ≤ end."
            )
        if not (_is_number(self.value, -1, whole=False) and self.value <= 1):
            raise RewardError(f"Span.value is {self.value!r}; expected a number from -1 (wrong) to 1 (right).")
        if not (_is_number(self.credit, -math.inf, whole=False) and math.isfinite(self.credit)):
            raise RewardError(f"Span.credit is {self.credit!r}; expected a finite number of nats.")


@dataclass(frozen=True)
class Coverage:
    """How much of a language model's text a learned reward's gradient reaches, as shares in [0, 1].

    `vocabulary`: tokens of the language model that are one token of the reward model too. `tokens`: tokens of this
    completion at which the reward has a gradient. Both are 1 where the vocabularies are the same.
    """

    reward: str
    vocabulary: float
    tokens: float


@dataclass(frozen=True, repr=False)
class Score(Brief):
    """A reward's judgement of one completion. NaN in `value` means: could not judge, and `explanation` says why; an
    infinite value or verdict is taken for the same, because nothing adds to it or compares with it.

    `verdict` is the part of `value` that comes from tools, None where no tool judged; a better verdict outranks any
    likelihood and learned score. `verified` is True when a tool vouches for the answer, as far as it can see (a
    calculator: every equation is right); a search takes nobody's word for a text that was cut. `coverage` says for
    each learned reward how far its gradient reaches. `explanation` is for people; `feedback` is what a model is told of
    the completion, empty where there is nothing to say or nothing to object to.
    """

    value: float
    verdict: float | None = None
    verified: bool | None = None
    spans: tuple[Span, ...] = ()
    explanation: str = ""
    usage: Usage = Usage()
    coverage: tuple[Coverage, ...] = ()
    feedback: str = ""

    @property
    def judged(self) -> bool:
        return not math.isnan(self.value)

    @property
    def objections(self) -> int:
        """How many places of the text a tool objects to."""
        return sum(span.value < 0 and span.credit > 0 for span in self.spans)

    @staticmethod
    def not_judged(explanation: str, usage: Usage = Usage()) -> Score:
        return Score(math.nan, explanation=explanation, usage=usage)


@dataclass(frozen=True, eq=False)
class Rollout:
    """One completion. `completion_ids` includes a final end-of-sequence token; `text` has neither it nor a stop string.

    `log_probs` [time] are log π(y_t | x, y_<t) in nats at temperature 1, on the CPU, whatever the sampling was;
    None for a text that no model was asked about.
    """

    prompt: Prompt
    completion_ids: tuple[int, ...]
    text: str
    log_probs: Tensor | None = None
    finish_reason: FinishReason = FinishReason.STOP
    usage: Usage = Usage()

    @property
    def cut(self) -> bool:
        """Whether a limit cut it off before its end."""
        return self.finish_reason is FinishReason.LENGTH

    @property
    def log_likelihood(self) -> float:
        """Σ log π in nats, unweighted; NaN where no model was asked."""
        return math.nan if self.log_probs is None else float(self.log_probs.double().sum())

    @staticmethod
    def from_text(prompt: str | Sequence[Message], text: str) -> Rollout:
        """A completion known as text only: enough for tool-verified rewards."""
        messages = (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
        return Rollout(Prompt(messages, "", ()), (), text)


@dataclass(frozen=True)
class TokenGain:
    """What a gradient says of one written token, characters start:end of a text: its best other token, and by how much
    the objective would grow with it, to first order, in nats.
    """

    start: int
    end: int
    new: str
    ranking_score: float


@dataclass(frozen=True, repr=False)
class Step(Brief):
    """One refine-propose-judge round. Token fields are None for a step that proposed nothing (a whole rollout).

    Steps of kind `token` tell how a text grows that nothing can revise; they are no rounds, and in no trace.

    `ranking_score` is by what the gradient ranks changes, the objective's gain to first order, and no forecast, since
    the answer is written anew behind the change; `gain` is what it gave. Both in nats.
    `kl` is KL(π'‖π) of the refined row that proposed the token from the language model's own, in nats.
    `committed_text` only grows from step to step; `done` marks the last step. `gains`, on the first step after a
    gradient pass, are those of the best completion before it, as far as its tokens were looked at.
    """

    kind: Literal["rollout", "refine", "commit", "token"]
    committed_text: str
    accepted: bool = False
    position: int | None = None
    old_token: str | None = None
    new_token: str | None = None
    ranking_score: float | None = None
    gain: float | None = None
    log_likelihood: float = math.nan
    score: Score | None = None
    text: str = ""
    usage: Usage = Usage()
    done: bool = False
    gains: tuple[TokenGain, ...] = field(default=(), repr=False)
    kl: float | None = None

    def summary(self) -> dict[str, Any]:
        """The step in a few values, as JSON has them: for progress events."""
        return {
            "kind": self.kind,
            "accepted": bool(self.accepted),
            "position": self.position,
            "old_token": self.old_token,
            "new_token": self.new_token,
            "score": None if self.score is None else finite(self.score.value),
            "text": self.text,
            "rollouts": self.usage.rollouts,
            "done": self.done,
        }


def finite(value: float) -> float | None:
    """The number as JSON has it; None for NaN and infinities."""
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class Doing:
    """What a search is at: how many answers at a time, how many tokens of them are written by now, and for how long."""

    what: str
    answers: int
    tokens: int
    seconds: float
