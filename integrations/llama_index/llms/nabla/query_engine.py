"""NablaQueryEngine: any query engine, whose last answer alone is refined and judged against its sources."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index.llms.nabla.judging import judging_too
from llama_index.llms.nabla.options import nabla_options
from llama_index.llms.nabla.recording import Recorded, recording
from nabla_agents import Score, Span

if TYPE_CHECKING:
    from llama_index.llms.nabla.base import NablaLLM

Verifier = Callable[[str, str, Sequence[NodeWithScore]], Any]


class NablaQueryEngine(BaseQueryEngine):
    """Lets a query engine answer without refinement, then refines the answer of its last model call.

    Works around every engine whose last call is one of a `NablaLLM`, whatever it retrieves, reranks, selects or asks
    before: `NablaQueryEngine(index.as_query_engine(llm=llm))`. `verifier(question, answer, source_nodes)` says whether
    the answer is right, as a function with `@reward` does (a bool, a number, a `Score`, None); its verdict is added to
    the engine's own reward. `response.metadata["nabla"]` has the verdict, the draft, and what the search found.

    Answers that are objects of a class, or of another model, are returned as they are; the metadata says why.
    """

    def __init__(
        self,
        query_engine: BaseQueryEngine,
        *,
        verifier: Verifier | None = None,
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ) -> None:
        """`options` are those of a NablaLLM's call, such as `rollouts`, for the refined answer alone."""
        self.query_engine, self.verifier, self._options = query_engine, verifier, options
        with nabla_options(**options):  # unknown names are refused here
            pass
        super().__init__(callback_manager or query_engine.callback_manager)

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"query_engine": self.query_engine}

    def _query(self, query_bundle: QueryBundle) -> Any:
        with recording() as calls, nabla_options(refine_policy="never"):
            drafted: Any = self.query_engine.query(query_bundle)
            streaming = isinstance(drafted, StreamingResponse)
            drafted = drafted.get_response() if streaming else drafted
        if (why := _unrefinable(drafted, calls)) is not None:
            return _unrefined(drafted, calls, why)
        last, metadata = calls[-1], dict(drafted.metadata or {})
        llm, asked = self._judging(last.llm, query_bundle, drafted), self._call(last)
        if not streaming:
            answer = llm.chat(**asked)
            metadata["nabla"] = _found(answer.raw, calls)
            return Response(answer.message.content or "", source_nodes=drafted.source_nodes, metadata=metadata)
        chunks = llm.stream_chat(**asked)

        def texts() -> Generator[str, None, None]:
            for chunk in chunks:
                if chunk.raw is not None:
                    metadata["nabla"] = _found(chunk.raw, calls)
                yield chunk.delta or ""

        return StreamingResponse(texts(), source_nodes=drafted.source_nodes, metadata=metadata)

    async def _aquery(self, query_bundle: QueryBundle) -> Any:
        with recording() as calls, nabla_options(refine_policy="never"):
            drafted: Any = await self.query_engine.aquery(query_bundle)
            streaming = isinstance(drafted, AsyncStreamingResponse)
            drafted = await drafted.get_response() if streaming else drafted
        if (why := _unrefinable(drafted, calls)) is not None:
            return _unrefined(drafted, calls, why)
        last, metadata = calls[-1], dict(drafted.metadata or {})
        llm, asked = self._judging(last.llm, query_bundle, drafted), self._call(last)
        if not streaming:
            answer = await llm.achat(**asked)
            metadata["nabla"] = _found(answer.raw, calls)
            return Response(answer.message.content or "", source_nodes=drafted.source_nodes, metadata=metadata)
        chunks = await llm.astream_chat(**asked)

        async def texts() -> AsyncGenerator[str, None]:
            async for chunk in chunks:
                if chunk.raw is not None:
                    metadata["nabla"] = _found(chunk.raw, calls)
                yield chunk.delta or ""

        return AsyncStreamingResponse(texts(), source_nodes=drafted.source_nodes, metadata=metadata)

    def _judging(self, llm: NablaLLM, query: QueryBundle, drafted: Response) -> NablaLLM:
        """The model that answered, judging by the verifier too."""
        if self.verifier is None:
            return llm
        from nabla_agents import reward  # loads torch, which an engine that is only constructed does not need

        verifier, nodes = self.verifier, drafted.source_nodes

        @reward(name=getattr(verifier, "__name__", "verifier"))
        def verified(completion: str) -> Any:
            return verifier(query.query_str, completion, nodes)

        return llm.with_engine(judging_too(llm.load(), verified))

    def _call(self, last: Recorded) -> dict[str, Any]:
        """The last call again, to be refined from what it answered."""
        policy = "always" if last.llm.refine_policy in ("never", "final_only") else last.llm.refine_policy
        options = {"refine_policy": policy, "final": True, **self._options, "draft": last.result.text}
        messages = [ChatMessage(role=m.role, content=m.content) for m in last.prompt.messages]
        return {"messages": messages, **options}


def numbers_in_sources(question: str, answer: str, sources: Sequence[NodeWithScore]) -> Score | None:
    """Whether every number of an answer stands in its sources or the question; each that does not is a wrong span.

    An answer without numbers is not judged. A verifier for `NablaQueryEngine`.
    """
    known = {_plain(n) for text in (question, *(s.get_content() for s in sources)) for n in _NUMBER.findall(text)}
    found = list(_NUMBER.finditer(answer))
    if not found:
        return None
    strange = [n for n in found if _plain(n[0]) not in known]
    said = ", ".join(n[0] for n in strange)
    return Score(
        1 - len(strange) / len(found),
        verdict=1 - len(strange) / len(found),
        verified=not strange,
        spans=tuple(Span(n.start(), n.end(), -1.0, explanation="in no source") for n in strange),
        explanation=f"in no source: {said}" if strange else f"all {len(found)} numbers are in the sources",
    )


_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def _plain(number: str) -> str:
    return number.replace(",", "")


def _unrefinable(drafted: Any, calls: Sequence[Recorded]) -> str | None:
    if not isinstance(drafted, Response):
        return "the answer is an object"
    if not calls:
        return "no call of a NablaLLM"
    if (drafted.response or "").strip() not in calls[-1].result.text:
        return "the answer is not that of the last call"
    if not calls[-1].prompt.messages:
        return "the prompt has no messages: the model has no chat template, or a rendering function of its own"
    return None


def _unrefined(drafted: Any, calls: Sequence[Recorded], why: str) -> Any:
    found = {"refined": False, "unrefined_because": why, "calls": len(calls)}
    drafted.metadata = {**(drafted.metadata or {}), "nabla": found}
    return drafted


def _found(raw: Any, calls: Sequence[Recorded]) -> dict[str, Any]:
    return {**raw["nabla"], "draft": calls[-1].result.text, "calls": len(calls) + 1}
