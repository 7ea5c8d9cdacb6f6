"""What a search found: the best completion that it saw, and the trace of its steps, which shows itself."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nabla_agents.types import Brief, Coverage, FinishReason, Score, Step, Usage, finite

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


class Trace(tuple[Step, ...]):
    """The steps of a search, in order, as a tuple that knows the question and shows itself.

    A notebook draws it as `to_html` does. Slices and sums are plain tuples.
    """

    question: str

    def __new__(cls, steps: Iterable[Step] = (), *, question: str = "") -> Trace:
        trace = super().__new__(cls, steps)
        trace.question = question
        return trace

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """In JSON a trace is the list of its steps."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls, handler.generate_schema(tuple[Step, ...]))

    def to_html(self, *, title: str = "Trace") -> str:
        """One self-contained page: the answer's tokens coloured by ranking score, each change with what it promised
        and gave, curves, verdicts and the ledger. It has no script, and asks nothing of the network.

        What a model or a tool wrote is escaped: it is text, whatever it contains.
        """
        from nabla_agents.report import page

        return page(self, title=title, question=self.question)

    def _repr_html_(self) -> str:
        from nabla_agents.report import fragment

        return fragment(self, question=self.question)


@dataclass(frozen=True, repr=False)
class Result(Brief):
    """The best completion a search saw, why it ended and what it cost. A notebook draws it as a page of its trace.

    `score` is None when no reward was given. `truncated` says that this completion was cut by max_tokens or the
    context. `detail` explains the finish reason, e.g. `rollouts 8/8`. `log_probs` has log π of each token, in nats,
    and `alternatives` the likeliest tokens at each place with theirs, where the request asks for `top_logprobs`.
    """

    text: str
    token_ids: tuple[int, ...] = field(repr=False)
    score: Score | None
    finish_reason: FinishReason
    usage: Usage
    trace: Trace = field(default=Trace(), repr=False)
    log_likelihood: float = math.nan
    truncated: bool = False
    detail: str = ""
    seed: int = 0
    prompt_tokens: int = 0
    log_probs: tuple[float, ...] = field(default=(), repr=False)
    alternatives: tuple[tuple[tuple[int, float], ...], ...] = field(default=(), repr=False)

    @property
    def coverage(self) -> tuple[Coverage, ...]:
        """How far the gradient of each learned reward reached on this completion."""
        return () if self.score is None else self.score.coverage

    @property
    def token_usage(self) -> dict[str, int]:
        """Tokens of prompt and completion, as OpenAI counts them; what the search discarded is in `usage`."""
        prompt, completion = self.prompt_tokens, len(self.token_ids)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def summary(self) -> dict[str, Any]:
        """The search in a few numbers, as JSON has them: for logs, traces and metadata."""
        score = self.score
        return {
            "finish_reason": str(self.finish_reason),
            "detail": self.detail,
            "score": None if score is None else finite(score.value),
            "verified": None if score is None or score.verified is None else bool(score.verified),
            "explanation": "" if score is None else score.explanation,
            "feedback": "" if score is None else score.feedback,
            "log_likelihood": finite(self.log_likelihood),
            "seed": self.seed,
            "steps": len(self.trace),
            "revisions": sum(step.kind == "refine" and step.accepted for step in self.trace),
            "usage": self.usage.as_dict(),
        }

    def with_usage(self, usage: Usage) -> Result:
        return replace(self, usage=usage)

    def _repr_html_(self) -> str:
        return self.trace._repr_html_()
