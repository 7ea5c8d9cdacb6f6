"""Wire: the engine's own records as JSON, as `nabla serve` sends them and a `RemoteEngine` reads them.

A number that JSON has not, such as the NaN of what could not be judged, is a string.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from nabla_agents.chat.grammar import Grammar
from nabla_agents.config import Sampling
from nabla_agents.result import Result, Trace
from nabla_agents.types import FinishReason, Message, Score, Step, Usage

PROMPT: Final = "/v1/nabla/prompt"
TOKENS: Final = "/v1/nabla/tokens"
STEPS: Final = "/v1/nabla/steps"


class Sent(BaseModel):
    """Base of what a server sends."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class SentStep(Sent):
    step: Step


class SentResult(Sent):
    """A `Result` without its trace, which the steps before it are, and the texts of its tokens."""

    text: str
    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...]
    score: Score | None
    finish_reason: FinishReason
    usage: Usage
    log_likelihood: float
    truncated: bool
    detail: str
    seed: int
    prompt_tokens: int
    log_probs: tuple[float, ...]

    @staticmethod
    def of(result: Result, token_texts: Sequence[str]) -> SentResult:
        names = SentResult.model_fields.keys() - {"token_texts"}
        return SentResult(token_texts=tuple(token_texts), **{name: getattr(result, name) for name in names})

    def with_trace(self, trace: Trace) -> Result:
        names = SentResult.model_fields.keys() - {"token_texts"}
        return Result(trace=trace, **{name: getattr(self, name) for name in names})


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """The sampling as JSON values; what is off is left out."""
    fields = {name: value for name, value in sampling if value not in (None, ())}
    if isinstance(grammar := fields.get("grammar"), Grammar):
        fields["grammar"] = asdict(grammar)
    return {**fields, "stop": list(sampling.stop)}


def message_fields(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content, "extra": dict(message.extra)}
