"""What the tools return, as JSON with a schema."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

from nabla_agents.result import Result
from nabla_agents.types import Score, Step, finite

_CHANGES: Final = 64  # accepted changes that are told


class Finding(BaseModel):
    """A verdict on the characters start:end of the answer: -1 wrong, 1 right."""

    start: int
    end: int
    value: float
    expected: str | None
    explanation: str


class Verdict(BaseModel):
    """What the reward says of an answer. `verified`: a tool vouches for it, as far as it can see; null: none judged.
    `feedback` is what to mend, in words for a model; empty where there is nothing to say.
    """

    verified: bool | None
    score: float | None
    explanation: str
    feedback: str
    findings: list[Finding]

    @staticmethod
    def of(score: Score | None) -> Verdict:
        if score is None:
            return Verdict(verified=None, score=None, explanation="", feedback="", findings=[])
        findings = [Finding(**{name: getattr(span, name) for name in Finding.model_fields}) for span in score.spans]
        verified = None if score.verified is None else bool(score.verified)
        return Verdict(
            verified=verified,
            score=finite(score.value),
            explanation=score.explanation,
            feedback=score.feedback,
            findings=findings,
        )


class Change(BaseModel):
    """A token that was changed because the objective grew, by `gain` nats."""

    position: int | None
    old: str | None
    new: str | None
    gain: float | None

    @staticmethod
    def of(step: Step) -> Change:
        gain = None if step.gain is None else finite(step.gain)
        return Change(position=step.position, old=step.old_token, new=step.new_token, gain=gain)


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

    @staticmethod
    def of(result: Result) -> Solution:
        changed = [step for step in result.trace if step.kind == "refine" and step.accepted]
        trace = Trace(
            finish_reason=str(result.finish_reason),
            detail=result.detail,
            steps=len(result.trace),
            revisions=len(changed),
            changes=[Change.of(step) for step in changed[:_CHANGES]],
            truncated=result.truncated,
            log_likelihood=finite(result.log_likelihood),
            seed=result.seed,
        )
        verdict, ledger = Verdict.of(result.score), result.usage.as_dict()
        return Solution(answer=result.text, verdict=verdict, trace=trace, ledger=ledger)


class Verification(BaseModel):
    """A judged answer and what that cost."""

    verdict: Verdict
    log_likelihood: float | None
    ledger: dict[str, int | float]

    @staticmethod
    def of(result: Result) -> Verification:
        likelihood, ledger = finite(result.log_likelihood), result.usage.as_dict()
        return Verification(verdict=Verdict.of(result.score), log_likelihood=likelihood, ledger=ledger)


def in_words(step: Step) -> str:
    """A step in one line, without the answer's text."""
    spent = f"{step.usage.rollouts} rollouts"
    if step.kind == "refine":
        what = "accepted" if step.accepted else "refused"
        return f"{spent}: {step.old_token!r} → {step.new_token!r} {what}"
    return f"{spent}: done" if step.done else f"{spent}: {step.kind}"
