"""Progress of a search as LlamaIndex instrumentation events: numbers and ids, no tensors."""

from __future__ import annotations

from typing import Any

from llama_index.core.instrumentation.events import BaseEvent
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel

from nabla_agents import Result, Step

dispatcher = get_dispatcher(__name__)


class Round(BaseModel):
    """One refine-propose-judge round, as `Step.summary` has it."""

    kind: str
    accepted: bool
    position: int | None = None
    old_token: str | None = None
    new_token: str | None = None
    score: float | None = None
    text: str = ""
    rollouts: int = 0
    done: bool = False


class NablaEvent(BaseEvent):
    """Its span is that of the model call."""

    @classmethod
    def class_name(cls) -> str:
        return cls.__name__


class NablaRefineStartEvent(NablaEvent):
    """A search begins."""

    seed: int
    refine_policy: str
    refined: bool


class NablaRefineStepEvent(Round, NablaEvent):
    """One refine-propose-judge round."""


class NablaRefineVerifyEvent(NablaEvent):
    """A tool's verdict on the completion of a step."""

    verified: bool | None = None
    verdict: float
    explanation: str = ""


class NablaRefineEndEvent(NablaEvent):
    """A search has ended; `summary` is what `raw["nabla"]` says."""

    summary: dict[str, Any]


def report_start(seed: int, refine_policy: str, refined: bool) -> None:
    dispatcher.event(NablaRefineStartEvent(seed=seed, refine_policy=refine_policy, refined=refined))


def report_step(step: Step) -> None:
    """Sends a step, and the verdict of it where a tool gave one."""
    dispatcher.event(NablaRefineStepEvent(**step.summary()))
    score = step.score
    if score is not None and score.judged and score.verdict is not None:
        verified = None if score.verified is None else bool(score.verified)
        verdict, explanation = float(score.verdict), score.explanation
        dispatcher.event(NablaRefineVerifyEvent(verified=verified, verdict=verdict, explanation=explanation))


def report_end(result: Result) -> None:
    dispatcher.event(NablaRefineEndEvent(summary=result.summary()))
