"""The routes of OpenAI's API, and those that operators ask."""

from __future__ import annotations

import functools
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from nabla_agents.chat.committed import CommittedText
from nabla_agents.result import Result
from nabla_agents.serve.answers import ChatChoice, Envelope, ledger, text_choice, usage
from nabla_agents.serve.errors import Refusal
from nabla_agents.serve.gate import Caller
from nabla_agents.serve.protocol import ChatRequest, CompletionRequest, ErrorBody
from nabla_agents.serve.requests import chat_asks, completion_asks
from nabla_agents.serve.service import Served, Service
from nabla_agents.serve.streaming import events, results
from nabla_agents.types import Step

REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in (
        (400, "The request is wrong; the error says what and where."),
        (401, "A key is missing, unknown or expired."),
        (403, "Refused without a key from where it comes."),
        (404, "The model is not served here."),
        (408, "The body did not arrive in time."),
        (413, "The body is too large."),
        (429, "Busy, or the key's rate is exceeded: Retry-After says when to come back."),
        (500, "The server failed."),
        (503, "The server is shutting down."),
    )
}
_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The answer, or with `stream` its pieces as server-sent events.",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
}

router = APIRouter()


def service_of(request: Request) -> Service:
    return request.app.state.service


@router.post("/v1/chat/completions", responses={**_ANSWER, **REFUSALS}, response_model=None, tags=["OpenAI"])
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """A refined answer to a conversation."""
    service, caller = service_of(request), Caller.of(request)
    asks, asked = await chat_asks(service, body, caller.key)
    caller.note(request, asks)
    searches = service.searches(asks, caller.id, caller.key)
    choices = [ChatChoice(i, search, tools=asked.tools) for i, search in enumerate(searches)]
    if body.stream:
        return _chat_stream(request, body, choices)
    found = await results(request, searches)
    caller.note_results(request, found)
    envelope = Envelope("chatcmpl", "chat.completion", body.model)
    return JSONResponse(
        envelope.of(
            [choice.whole(result) for choice, result in zip(choices, found, strict=True)],
            usage=usage(searches, found, choices),
            nabla=ledger(searches, found),
        )
    )


def _chat_stream(request: Request, body: ChatRequest, choices: list[ChatChoice]) -> Response:
    envelope = Envelope("chatcmpl", "chat.completion.chunk", body.model)
    texts = [CommittedText() for _ in choices]
    searches = [choice.search for choice in choices]

    def chunk(index: int, delta: dict[str, Any], **ending: Any) -> dict[str, Any]:
        nothing = {"logprobs": None, "finish_reason": None}
        return envelope.of([{"index": index, "delta": delta, **(ending or nothing)}])

    def pieces(index: int, item: Step | Result) -> list[dict[str, Any]]:
        choice = choices[index]
        if isinstance(item, Result):
            rest = choice.rest(item)
            ending = {k: v for k, v in choice.ending(item).items() if k != "index"}
            return [*([chunk(index, rest)] if rest else []), chunk(index, {}, **ending)]
        if item.done or not texts[index].added_by(item):
            return []
        delta = choice.grown(texts[index].text)
        return [chunk(index, delta)] if delta else []

    def last(found: list[Result]) -> list[dict[str, Any]]:
        Caller.of(request).note_results(request, found)
        spent = {"nabla": ledger(searches, found)}
        if body.with_usage:
            return [envelope.of([], usage=usage(searches, found, choices), **spent)]
        return []

    first = [chunk(choice.index, {"role": "assistant", "content": ""}) for choice in choices]
    beat = service_of(request).settings.heartbeat_seconds
    return events(request, searches, pieces, first=first, last=last, heartbeat=beat)


@router.post("/v1/completions", responses={**_ANSWER, **REFUSALS}, response_model=None, tags=["OpenAI"])
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Refined completions of texts or token ids, taken verbatim."""
    service, caller = service_of(request), Caller.of(request)
    asks = await completion_asks(service, body, caller.key)
    caller.note(request, asks)
    searches = service.searches(asks, caller.id, caller.key)
    envelope = Envelope("cmpl", "text_completion", body.model)
    choice = functools.partial(text_choice, with_token_ids=bool(body.return_token_ids))
    if not body.stream:
        found = await results(request, searches)
        caller.note_results(request, found)
        pairs = enumerate(zip(searches, found, strict=True))
        return JSONResponse(
            envelope.of(
                [choice(i, search, result, result.text) for i, (search, result) in pairs],
                usage=usage(searches, found),
                nabla=ledger(searches, found),
            )
        )
    texts = [CommittedText() for _ in searches]

    def pieces(index: int, item: Step | Result) -> list[dict[str, Any]]:
        text = texts[index]
        if isinstance(item, Result):
            rest = item.text[len(text.text) :]
            return [envelope.of([choice(index, searches[index], item, rest)])]
        added = "" if item.done else text.added_by(item)
        piece = {"index": index, "text": added, "logprobs": None, "finish_reason": None}
        return [envelope.of([piece])] if added else []

    def last(found: list[Result]) -> list[dict[str, Any]]:
        caller.note_results(request, found)
        whole = {"usage": usage(searches, found), "nabla": ledger(searches, found)}
        return [envelope.of([], **whole)] if body.with_usage else []

    return events(request, searches, pieces, last=last, heartbeat=service.settings.heartbeat_seconds)


@router.get("/v1/models", responses=REFUSALS, response_model=None, tags=["OpenAI"])
async def models(request: Request) -> Response:
    """What is served."""
    service = service_of(request)
    return JSONResponse({"object": "list", "data": [_model(service, service.served(m)) for m in service.models]})


@router.get("/v1/models/{model:path}", responses=REFUSALS, response_model=None, tags=["OpenAI"])
async def model(request: Request, model: str) -> Response:
    """One model: its context, and which strategies, rewards and budgets a request may name."""
    service = service_of(request)
    return JSONResponse(_model(service, service.served(model)))


def _model(service: Service, served: Served) -> dict[str, Any]:
    language_model = served.engine.model
    template = language_model.tokenizer.hf.chat_template
    return {
        "id": served.model,
        "object": "model",
        "created": service.created,
        "owned_by": "nabla-agents",
        "max_model_len": language_model.context_length,
        "nabla": {
            "chat_template": str(template) if template else None,
            "vocab_size": language_model.vocab_size,
            "strategies": list(service.strategies),
            "rewards": service.rewards,
            "budget": vars(service.budget(served.engine, {}, None)),
            "budget_caps": vars(service.settings.budget_caps),
        },
    }


@router.get("/health", response_model=None, tags=["operation"])
async def health() -> Response:
    """200 as long as the process answers."""
    return JSONResponse({"status": "ok"})


@router.get("/ready", responses={503: REFUSALS[503]}, response_model=None, tags=["operation"])
async def ready(request: Request) -> Response:
    """200 while new requests are taken."""
    if not service_of(request).ready:
        raise Refusal(503, "The server is shutting down.", code="shutting_down", retry_after=5.0)
    return JSONResponse({"status": "ready"})


@router.get("/metrics", responses={401: REFUSALS[401], 403: REFUSALS[403]}, response_model=None, tags=["operation"])
async def metrics(request: Request) -> Response:
    """What was counted, for Prometheus."""
    text = service_of(request).metrics.text()
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")
