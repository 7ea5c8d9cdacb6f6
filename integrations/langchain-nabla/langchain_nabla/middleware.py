"""NablaRefineMiddleware: an agent's final answers, judged and refined before anybody reads them."""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware import AgentMiddleware, AgentState, ExtendedModelResponse, ModelRequest, ModelResponse
from langchain.agents.middleware.internal_call_transformer import InternalCallTransformer, internal_call_metadata
from langchain_core.messages import AIMessage
from langgraph.types import Command

from langchain_nabla._messages import as_draft
from langchain_nabla.chat_models import ChatNabla
from nabla_agents import ConfigurationError


class NablaState(AgentState[Any]):
    """The agent's state, with one entry for every answer that was refined: score, verdict, cost, ..."""

    nabla: NotRequired[Annotated[list[dict[str, Any]], operator.add]]


class NablaRefineMiddleware(AgentMiddleware[NablaState, Any, Any]):
    """Lets the agent's model answer, and refines the answer on the engine of `refiner`.

    Turns that call tools, answers in a response format, and answers without text are no drafts: they are left as they
    are, and add nothing to the state. So are answers left that the engine's reward gives `threshold` or more; with None
    every answer is refined, and one that a tool verifies costs its check only. What each refinement found and cost is
    in the state under `nabla`, and in the message's metadata.

    The model's own draft carries the tag `nostream` and LangChain's mark of a middleware's inner call, so that streams
    show final text only. Traces of the hook follow `trace_policy`, as of every middleware.
    """

    state_schema = NablaState
    transformers = (InternalCallTransformer,)

    def __init__(self, refiner: ChatNabla, *, threshold: float | None = None) -> None:
        """Raises ConfigurationError for a threshold where no reward gives anything."""
        super().__init__()
        if threshold is not None and refiner.judges is False:
            raise ConfigurationError(
                f"threshold is {threshold!r}, but the refiner's engine has no reward that could reach it; give it one: "
                "ChatNabla(engine=Engine(model=..., reward=...))."
            )
        self.refiner, self.threshold = refiner, threshold

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> Any:
        response = handler(_unstreamed(request))
        draft = _draft(request, response)
        if draft is None:
            return response
        refined = self.refiner.invoke(_conversation(request), **draft, enough=self.threshold)
        return _replaced(response, refined)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> Any:
        response = await handler(_unstreamed(request))
        draft = _draft(request, response)
        if draft is None:
            return response
        refined = await self.refiner.ainvoke(_conversation(request), **draft, enough=self.threshold)
        return _replaced(response, refined)


def _unstreamed(request: ModelRequest[Any]) -> ModelRequest[Any]:
    """The request with a model whose tokens LangGraph does not show."""
    tags = [*(request.model.tags or []), "nostream"]
    metadata = {**(request.model.metadata or {}), "lc_source": "nabla_draft", **internal_call_metadata()}
    return request.override(model=request.model.model_copy(update={"tags": tags, "metadata": metadata}))


def _conversation(request: ModelRequest[Any]) -> list[Any]:
    return [*([] if request.system_message is None else [request.system_message]), *request.messages]


def _draft(request: ModelRequest[Any], response: ModelResponse[Any]) -> dict[str, Any] | None:
    """What to refine, as options of a call; None where the answer is a tool call, structured, or empty."""
    last = response.result[-1] if response.result else None
    structured = request.response_format is not None or response.structured_response is not None
    if structured or not isinstance(last, AIMessage) or last.tool_calls or last.invalid_tool_calls:
        return None
    draft = as_draft(last)
    draft["draft"] = draft["draft"].strip()
    return draft if draft["draft"] else None


def _replaced(response: ModelResponse[Any], refined: AIMessage) -> ExtendedModelResponse[Any]:
    """The refined message in the draft's place, under the draft's name; what it cost goes into the state."""
    draft = response.result[-1]
    message = refined.model_copy(update={"name": draft.name})
    answered = ModelResponse(result=[*response.result[:-1], message], structured_response=response.structured_response)
    update = {"nabla": [refined.response_metadata["nabla"]]}
    return ExtendedModelResponse(model_response=answered, command=Command(update=update))
