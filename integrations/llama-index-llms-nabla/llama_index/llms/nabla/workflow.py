"""Refinement as a step of a LlamaIndex workflow, with its progress on the workflow's stream."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.llms.llm import LLM
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step

from llama_index.llms.nabla.events import Round
from llama_index.llms.nabla.judging import judged, own_reward
from llama_index.llms.nabla.scopes import watching

if TYPE_CHECKING:
    from llama_index.llms.nabla.base import NablaLLM
    from nabla_agents import Step


class NablaProgress(Round, Event):
    """One round of a search: kind, accepted, position, old_token, new_token, score, text, rollouts, done."""


class Drafted(Event):
    """An answer that is to be verified."""

    question: str
    draft: str
    cut: bool


class Doubtful(Event):
    """An answer that no tool vouches for."""

    question: str
    draft: str
    cut: bool


async def refine(
    ctx: Context, llm: NablaLLM, question: str | Sequence[ChatMessage], *, draft: str | None = None, **options: Any
) -> ChatResponse:
    """The refined answer, for use in a step of any workflow; each round is a `NablaProgress` on its stream.

    `draft` is an answer of another model to start from; `options` are those of a call. A step that is cancelled or
    timed out stops the search within one decode step.
    """
    loop = asyncio.get_running_loop()

    def report(one: Step) -> None:
        loop.call_soon_threadsafe(ctx.write_event_to_stream, NablaProgress(**one.summary()))

    messages = [ChatMessage(role="user", content=question)] if isinstance(question, str) else question
    options = {"refine_policy": "always", **({} if draft is None else {"draft": draft}), **options}
    with watching(report):
        return await llm.achat(messages, **options)


class RefineWorkflow(Workflow):
    """Draft, verify, refine: `await RefineWorkflow(llm, drafter=other).run(question="...")`.

    Any model drafts (the refining one without refinement, if none is given). A draft that a tool vouches for is the
    answer; any other is refined. The result is a dict: answer, draft, verified, refined, explanation.
    """

    def __init__(self, llm: NablaLLM, *, drafter: LLM | None = None, **workflow_options: Any) -> None:
        super().__init__(**{"timeout": None, **workflow_options})
        self._llm = llm
        self._drafter: LLM = llm.with_options(refine_policy="never") if drafter is None else drafter

    @step
    async def draft(self, ev: StartEvent) -> Drafted:
        response = await self._drafter.achat([ChatMessage(role="user", content=ev.question)])
        return Drafted(question=ev.question, draft=response.message.content or "", cut=_cut(response.raw))

    @step
    async def verify(self, ev: Drafted) -> Doubtful | StopEvent:
        reward = own_reward(await asyncio.to_thread(self._llm.load))
        if reward is not None and not ev.cut:
            score = await asyncio.to_thread(judged, reward, ev.question, ev.draft)
            if score.verified:
                return StopEvent(result=_result(ev.draft, ev.draft, True, False, score.explanation))
        return Doubtful(question=ev.question, draft=ev.draft, cut=ev.cut)

    @step
    async def improve(self, ctx: Context, ev: Doubtful) -> StopEvent:
        response = await refine(ctx, self._llm, ev.question, draft=ev.draft, draft_cut=ev.cut)
        raw: Any = response.raw
        verified, explanation = raw["nabla"]["verified"], raw["nabla"]["explanation"]
        return StopEvent(result=_result(response.message.content or "", ev.draft, verified, True, explanation))


def _cut(raw: Any) -> bool:
    """Whether a limit ended an answer, by what its model's API said, in OpenAI's form or flat."""
    choices = _field(raw, "choices")
    said = _field(choices[0], "finish_reason") if isinstance(choices, Sequence) and choices else None
    reasons = (said, *(_field(raw, name) for name in ("finish_reason", "stop_reason", "done_reason")))
    return any(isinstance(reason, str) and reason.lower() in ("length", "max_tokens") for reason in reasons)


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _result(answer: str, draft: str, verified: bool | None, refined: bool, explanation: str) -> dict[str, Any]:
    return {"answer": answer, "draft": draft, "verified": verified, "refined": refined, "explanation": explanation}
