"""Progress of a search as LlamaIndex instrumentation events: numbers and ids, no tensors."""

from __future__ import annotations

from typing import Any

from llama_index.core.instrumentation.events import BaseEvent
from llama_index_instrumentation import get_dispatcher

from nabla_agents import Result, Step

dispatcher = get_dispatcher(__name__)


class NablaRefineStartEvent(BaseEvent):
    """A search begins. Its span is that of the model call, as in all these events."""

    seed: int
    refine_policy: str
    refined: bool

    @classmethod
    def class_name(cls) -> str:
        return "NablaRefineStartEvent"


class NablaRefineStepEvent(BaseEvent):
    """One refine-propose-judge round."""

    kind: str
    accepted: bool
    position: int | None = None
    old_token: str | None = None
    new_token: str | None = None
    score: float | None = None
    text: str = ""
    rollouts: int = 0
    done: bool = False

    @classmethod
    def class_name(cls) -> str:
        return "NablaRefineStepEvent"


class NablaRefineVerifyEvent(BaseEvent):
    """A tool's verdict on the completion of a step."""

    verified: bool | None = None
    verdict: float
    explanation: str = ""

    @classmethod
    def class_name(cls) -> str:
        return "NablaRefineVerifyEvent"


class NablaRefineEndEvent(BaseEvent):
    """A search has ended; `summary` is what `raw["nabla"]` says."""

    summary: dict[str, Any]

    @classmethod
    def class_name(cls) -> str:
        return "NablaRefineEndEvent"


def report_start(*, seed: int, refine_policy: str, refined: bool) -> None:
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
