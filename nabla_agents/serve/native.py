"""The engine's own routes, for `RemoteEngine` and others that want a search's steps and not only its answer."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from nabla_agents.chat.grammar import Grammar
from nabla_agents.config import Sampling
from nabla_agents.errors import GrammarError
from nabla_agents.request import Request as Wanted
from nabla_agents.result import Result
from nabla_agents.serve.errors import Refusal
from nabla_agents.serve.gate import Caller
from nabla_agents.serve.protocol import NativeMessage, PromptRequest, StepsRequest, TokensRequest
from nabla_agents.serve.requests import encoded, within
from nabla_agents.serve.routes import REFUSALS, service_of
from nabla_agents.serve.schemas import compiled
from nabla_agents.serve.service import Ask
from nabla_agents.serve.streaming import events
from nabla_agents.types import Message, Prompt, Step
from nabla_agents.wire import PROMPT, STEPS, TOKENS, SentResult, SentStep

router = APIRouter(tags=["nabla"])


@router.post(PROMPT, responses=REFUSALS, response_model=None)
async def prompt(request: Request, body: PromptRequest) -> Response:
    """A prompt as the language model reads it: its text and token ids."""
    service = service_of(request)
    served = service.served(body.model)
    if (body.messages is None) == (body.text is None):
        raise Refusal(400, "Give either messages or text.", code="invalid_value", param="messages")
    if body.text is not None:
        found = await service.prompt(served, body.text, tools=body.tools, formatted=True)
    else:
        found = await service.prompt(served, _messages(body.messages or []), tools=body.tools)
    return JSONResponse({"text": found.text, "ids": list(found.ids)})


@router.post(TOKENS, responses=REFUSALS, response_model=None)
async def tokens(request: Request, body: TokensRequest) -> Response:
    """Token ids of a text, or of given ids, and the text of each."""
    service = service_of(request)
    model = service.served(body.model).engine.model
    if (body.ids is None) == (body.text is None):
        raise Refusal(400, "Give either text or ids.", code="invalid_value", param="text")
    if body.ids is not None and any(token >= model.vocab_size for token in body.ids):
        message = f"A token id is too large; {body.model} has {model.vocab_size} tokens."
        raise Refusal(400, message, code="invalid_value", param="ids")

    def read() -> dict[str, Any]:
        ids = list(body.ids or []) if body.text is None else encoded(model, body.text)
        return {"ids": ids, "texts": [model.tokenizer.token_text(token) for token in ids]}

    return JSONResponse(await service.reading(read))


_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "Steps, and at last the result, as server-sent events.", "content": {"text/event-stream": {}}}
}


@router.post(STEPS, responses={**_STREAM, **REFUSALS}, response_class=StreamingResponse, response_model=None)
async def steps(request: Request, body: StepsRequest) -> Response:
    """A search's steps as server-sent events, and at last its result."""
    service, caller = service_of(request), Caller.of(request)
    served = service.served(body.model, body.nabla.reward)
    model = served.engine.model
    fields = body.sampling.model_dump(exclude_none=True)
    grammar = None if body.sampling.grammar is None else Grammar(**body.sampling.grammar.model_dump())
    most = within(service, "sampling.max_tokens", body.sampling.max_tokens)
    sampling = Sampling(**{**fields, "grammar": grammar, "max_tokens": most})
    try:
        await compiled(service, served, grammar)
    except GrammarError as e:
        raise Refusal(400, str(e), code="invalid_value", param="sampling.grammar") from e

    def rendered() -> Prompt:
        ids = tuple(encoded(model, body.prompt.text))
        return served.engine.prompt(Prompt(tuple(_messages(body.prompt.messages)), body.prompt.text, ids))

    wanted = Wanted(
        prompt=await service.reading(rendered),
        sampling=sampling,
        budget=service.budget(served.engine, body.nabla.limits, caller.key),
        strategy=service.strategy(*body.nabla.chosen),
        seed=body.seed,
        draft=body.nabla.draft,
    )
    ask = Ask(served, wanted)
    caller.note(request, [ask])
    searches = service.searches([ask], caller.id, caller.key)

    def pieces(index: int, item: Step | Result) -> list[dict[str, Any]]:
        if isinstance(item, Step):
            return [SentStep(step=item).model_dump(mode="json")]
        texts = [model.tokenizer.token_text(token) for token in item.token_ids]
        return [{"result": SentResult.of(item, texts).model_dump(mode="json")}]

    def last(found: list[Result]) -> list[dict[str, Any]]:
        caller.note_results(request, found)
        return []

    return events(request, searches, pieces, last=last, heartbeat=service.settings.heartbeat_seconds)


def _messages(given: list[NativeMessage]) -> list[Message]:
    return [Message(message.role, message.content, message.extra) for message in given]
