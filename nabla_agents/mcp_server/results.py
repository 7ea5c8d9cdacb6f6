"""What the tools return, as JSON with a schema."""

from __future__ import annotations

import math
from typing import Final

from pydantic import BaseModel

from nabla_agents.result import Result
from nabla_agents.types import Score, Step

_CHANGES: Final = 64  # accepted changes that are told


class Finding(BaseModel):
    """A verdict on the characters start:end of the answer: -1 wrong, 1 right."""

    start: int
    end: int
    value: float
    expected: str | None
    explanation: str


class Verdict(BaseModel):
    """What the reward says of an answer. `verified`: a tool vouches for it, as far as it can see; null: none judged."""

    verified: bool | None
    score: float | None
    explanation: str
    findings: list[Finding]


class Change(BaseModel):
    """A token that was changed because the objective grew, by `gain` nats."""

    position: int | None
    old: str | None
    new: str | None
    gain: float | None


class Trace(BaseModel):
    """The search in a few numbers."""

    finish_reason: str
    detail: str
    steps: int
    revisions: int
    changes: list[Change]
    truncated: bool
    log_likelihood: float | None
    seed: int


class Solution(BaseModel):
    """A refined answer, how it was judged and found, and what it cost."""

    answer: str
    verdict: Verdict
    trace: Trace
    ledger: dict[str, int | float]


class Verification(BaseModel):
    """A judged answer and what that cost."""

    verdict: Verdict
    log_likelihood: float | None
    ledger: dict[str, int | float]


def solution(result: Result) -> Solution:
    """A search's result as `solve` returns it."""
    changed = [step for step in result.trace if step.kind == "refine" and step.accepted]
    return Solution(
        answer=result.text,
        verdict=_verdict(result.score),
        trace=Trace(
            finish_reason=str(result.finish_reason),
            detail=result.detail,
            steps=len(result.trace),
            revisions=len(changed),
            changes=[_change(step) for step in changed[:_CHANGES]],
            truncated=result.truncated,
            log_likelihood=_finite(result.log_likelihood),
            seed=result.seed,
        ),
        ledger=result.usage.as_dict(),
    )


def verification(result: Result) -> Verification:
    """A judged draft as `verify` returns it."""
    return Verification(
        verdict=_verdict(result.score),
        log_likelihood=_finite(result.log_likelihood),
        ledger=result.usage.as_dict(),
    )


def told(step: Step) -> str:
    """A step in one line, without the answer's text."""
    spent = f"{step.usage.rollouts} rollouts"
    if step.kind == "refine":
        what = "accepted" if step.accepted else "refused"
        return f"{spent}: {step.old_token!r} → {step.new_token!r} {what}"
    return f"{spent}: done" if step.done else f"{spent}: {step.kind}"


def _verdict(score: Score | None) -> Verdict:
    if score is None:
        return Verdict(verified=None, score=None, explanation="", findings=[])
    return Verdict(
        verified=None if score.verified is None else bool(score.verified),
        score=_finite(score.value),
        explanation=score.explanation,
        findings=[
            Finding(start=s.start, end=s.end, value=s.value, expected=s.expected, explanation=s.explanation)
            for s in score.spans
        ],
    )


def _change(step: Step) -> Change:
    gain = None if step.gain is None else _finite(step.gain)
    return Change(position=step.position, old=step.old_token, new=step.new_token, gain=gain)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
