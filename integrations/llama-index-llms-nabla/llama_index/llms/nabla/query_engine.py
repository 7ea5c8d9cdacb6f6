"""NablaQueryEngine: any query engine, whose last answer alone is refined and judged against its sources."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index.llms.nabla.scopes import Recorded, check_known, nabla_options, recording
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
        check_known(options)
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
        answer = _Refined(drafted, calls)
        llm, question = self._judging(calls[-1].llm, query_bundle, drafted), self._call(calls[-1])
        if not streaming:
            return answer.whole(llm.chat(**question))
        chunks = llm.stream_chat(**question)
        return StreamingResponse((answer.delta(chunk) for chunk in chunks), **answer.parts)

    async def _aquery(self, query_bundle: QueryBundle) -> Any:
        with recording() as calls, nabla_options(refine_policy="never"):
            drafted: Any = await self.query_engine.aquery(query_bundle)
            streaming = isinstance(drafted, AsyncStreamingResponse)
            drafted = await drafted.get_response() if streaming else drafted
        if (why := _unrefinable(drafted, calls)) is not None:
            return _unrefined(drafted, calls, why)
        answer = _Refined(drafted, calls)
        llm, question = self._judging(calls[-1].llm, query_bundle, drafted), self._call(calls[-1])
        if not streaming:
            return answer.whole(await llm.achat(**question))
        chunks: Any = await llm.astream_chat(**question)
        return AsyncStreamingResponse((answer.delta(chunk) async for chunk in chunks), **answer.parts)

    def _judging(self, llm: NablaLLM, query: QueryBundle, drafted: Response) -> NablaLLM:
        """The model that answered, judging by the verifier too."""
        if self.verifier is None:
            return llm
        from nabla_agents import reward  # loads torch, which an engine that is only constructed does not need

        verifier, nodes = self.verifier, drafted.source_nodes

        @reward(name=getattr(verifier, "__name__", "verifier"))
        def verified(completion: str) -> Any:
            return verifier(query.query_str, completion, nodes)

        return llm.with_engine(llm.load_judging(verified))

    def _call(self, last: Recorded) -> dict[str, Any]:
        """The last call again, to be refined from what it answered."""
        policy = "always" if last.llm.refine_policy in ("never", "final_only") else last.llm.refine_policy
        draft = {"draft": last.result.text, "draft_cut": last.result.truncated}
        options = {"refine_policy": policy, "final": True, **self._options, **draft}
        messages = [ChatMessage(role=m.role, content=m.content) for m in last.prompt.messages]
        return {"messages": messages, **options}


class _Refined:
    """The refined answer of a query, whose metadata says what the search found."""

    def __init__(self, drafted: Response, calls: Sequence[Recorded]) -> None:
        self.parts: dict[str, Any] = {
            "source_nodes": drafted.source_nodes,
            "metadata": dict(drafted.metadata or {}),
        }
        self._facts = {"draft": calls[-1].result.text, "calls": len(calls) + 1}

    def whole(self, answer: ChatResponse) -> Response:
        self._note(answer)
        return Response(answer.message.content or "", **self.parts)

    def delta(self, chunk: ChatResponse) -> str:
        """What a chunk adds; the last one has what was found."""
        if chunk.raw is not None:
            self._note(chunk)
        return chunk.delta or ""

    def _note(self, answer: ChatResponse) -> None:
        raw: Any = answer.raw
        self.parts["metadata"]["nabla"] = {**raw["nabla"], **self._facts}


def numbers_in_sources(question: str, answer: str, sources: Sequence[NodeWithScore]) -> Score | None:
    """Whether every number of an answer stands in its sources or the question; each that does not is a wrong span.

    An answer without numbers is not judged. A verifier for `NablaQueryEngine`.
    """
    texts = [question, *(source.get_content() for source in sources)]
    borne_out = {_plain(number) for text in texts for number in _NUMBER.findall(text)}
    numbers = list(_NUMBER.finditer(answer))
    if not numbers:
        return None
    strange = [number for number in numbers if _plain(number[0]) not in borne_out]
    share = 1 - len(strange) / len(numbers)
    listed = ", ".join(number[0] for number in strange)
    return Score(
        share,
        verdict=share,
        verified=not strange,
        spans=tuple(Span(n.start(), n.end(), -1.0, explanation="in no source") for n in strange),
        explanation=f"in no source: {listed}" if strange else f"all {len(numbers)} numbers are in the sources",
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
    facts = {"refined": False, "unrefined_because": why, "calls": len(calls)}
    drafted.metadata = {**(drafted.metadata or {}), "nabla": facts}
    return drafted
