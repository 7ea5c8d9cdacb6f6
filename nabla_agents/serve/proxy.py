"""Proxy: the routes of OpenAI's API where an upstream answers them. The answers of those who ask for it, by the field
`nabla`, are drafts that a model of this server refines.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import quote

from fastapi import APIRouter
from pydantic import BaseModel, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from nabla_agents.errors import NablaError
from nabla_agents.json_text import read_json
from nabla_agents.request import Request
from nabla_agents.serialization import NablaField
from nabla_agents.serve.answers import Answer, ChatChoice, Json, TextChoice
from nabla_agents.serve.errors import Refusal, invalid, invalid_request, refusal_of
from nabla_agents.serve.middleware import Caller
from nabla_agents.serve.protocol import ChatRequest, CompletionRequest
from nabla_agents.serve.requests import chat_requests, check_draft, completion_requests
from nabla_agents.serve.responses import DONE, HEADERS, event, respond
from nabla_agents.serve.service import Served, Service
from nabla_agents.serve.upstream import failed, passed

BodyT = TypeVar("BodyT", bound=BaseModel)

_CHAT: Final = "/chat/completions"
_TOKENS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")

router = APIRouter(include_in_schema=False)


@router.get("/v1/models")
async def models(request: HttpRequest) -> Response:
    return await passed(request, "/models", None)


@router.get("/v1/models/{model:path}")
async def model(request: HttpRequest, model: str) -> Response:
    if {".", ".."} & set(model.split("/")):  # would lead elsewhere
        raise Refusal(404, f"The model {model!r} does not exist.", code="model_not_found", param="model")
    return await passed(request, f"/models/{quote(model)}", None)


@router.post("/v1/chat/completions")
async def chat_completions(request: HttpRequest) -> Response:
    return await _answered(request, _CHAT)


@router.post("/v1/completions")
async def completions(request: HttpRequest) -> Response:
    return await _answered(request, "/completions")


async def _answered(http: HttpRequest, path: str) -> Response:
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a web page of elsewhere cannot send
        raise Refusal(400, "Expected a body of content type application/json.", code="invalid_body")
    raw, body = await http.body(), None
    if b'"nabla"' in raw:
        try:
            body = read_json(raw)
        except ValueError:  # the upstream will say what is wrong
            body = None
    if isinstance(body, dict) and body.get("nabla") is not None:
        return await _refined(http, path, body)
    return await passed(http, path, raw)


async def _refined(http: HttpRequest, path: str, body: Json) -> Response:
    """The upstream's answer as a draft that is refined here. Only the field `nabla` is judged: where the rest, or the
    draft, is not for the model here, the draft is the answer.
    """
    service, own = Service.of(http), _read(NablaField, body["nabla"], "nabla")
    local = body["model"] if body.get("model") in service.models else service.models[0]
    service.search(service.served(local, own.reward), own, Caller.of(http).key)  # or refuses
    why, wanted = "", None
    try:
        wanted = await _wanted(http, path, body, local)
    except (Refusal, NablaError) as e:
        if own.draft is not None:
            raise
        why = _reason(e)
    if wanted is not None and own.draft is not None:
        read, served, request, choice = wanted
        return await respond(http, served, [request], Answer(read, [choice(request)]), stream=bool(read.stream))
    chat = {name: value for name, value in body.items() if name not in ("nabla", "stream", "stream_options")}
    response = await passed(http, path, json.dumps(chat, ensure_ascii=False).encode(), whole=True)
    if response.status_code != 200:
        return response
    reply = _reply(await service.readers.read(Caller.of(http).id, partial(_json, bytes(response.body))))
    if wanted is not None:
        read, served, request, choice = wanted
        try:
            request = await _drafted(http, served, request, reply["choices"][0])
            usage = reply.get("usage")
            spent = {name: n for name in _TOKENS if isinstance(usage, dict) and isinstance(n := usage.get(name), int)}
            answer = Answer(read, [choice(request)], {"upstream": {"usage": spent}})
            return await respond(http, served, [request], answer, stream=bool(read.stream))
        except (Refusal, NablaError) as e:
            why = _reason(e, 429)
    service.metrics.drafted("passed")
    http.state.facts["draft"] = "passed"
    reply["choices"] = [{**choice, "nabla": {"draft": "passed", "detail": why}} for choice in reply["choices"]]
    return _streamed(reply, body) if body.get("stream") else JSONResponse(reply)


Wanted = tuple[ChatRequest | CompletionRequest, Served, Request, Callable[[Request], ChatChoice | TextChoice]]


async def _wanted(http: HttpRequest, path: str, body: Json, model: str) -> Wanted:
    """How this model refines the answer.

    Raises:
        Refusal, NablaError: it cannot.
    """
    service, caller = Service.of(http), Caller.of(http)
    read = _read(ChatRequest if path == _CHAT else CompletionRequest, body)
    local = read.model_copy(update={"model": model})
    if isinstance(local, ChatRequest):
        served, requests, tools = await chat_requests(service, local, caller)
        choice = partial(ChatChoice, local, served, tools=tools)
    elif isinstance(local.prompt, str):
        served, requests = await completion_requests(service, local, caller)
        choice = partial(TextChoice, local, served)
    else:
        raise invalid("One text is completed at a time here; token ids are the upstream's own.", "prompt")
    if len(requests) > 1:
        raise invalid(f"{len(requests)} answers are asked for; one is refined at a time.", "n")
    return read, served, requests[0], choice


async def _drafted(http: HttpRequest, served: Served, request: Request, choice: Json) -> Request:
    """The request with the draft of this choice.

    Raises:
        Refusal, NablaError: none that could be refined.
    """
    message = choice.get("message")
    message = message if isinstance(message, dict) else {"content": choice.get("text")}
    text, reason = message.get("content"), choice.get("finish_reason")
    if message.get("tool_calls") or message.get("function_call"):
        raise invalid("The draft calls tools.", "nabla.draft")
    if reason != "stop":
        raise invalid(f"The draft has the finish reason {str(reason)[:40]!r}.", "nabla.draft")
    if not isinstance(text, str) or not text.strip():
        raise invalid("The draft has no text.", "nabla.draft")
    service, caller, request = Service.of(http), Caller.of(http), replace(request, draft=text)
    await check_draft(service, served, text, caller)
    await service.readers.read(caller.id, partial(served.engine.draft_ids, request))
    return request


def _reason(error: Exception, *others: int) -> str:
    """Why a draft stays as it is. Raises the error itself where it is none that a request can have."""
    refusal = refusal_of(error)
    if refusal.status not in (400, *others):
        raise error
    return refusal.message


def _read(kind: type[BodyT], value: Any, *place: str) -> BodyT:
    try:
        return kind.model_validate(value)
    except ValidationError as e:
        raise invalid_request([{**p, "loc": ("body", *place, *p["loc"])} for p in e.errors()]) from e


def _json(raw: bytes) -> Any:
    try:
        value = read_json(raw)
        json.dumps(value, allow_nan=False)  # 1e999 is read, and not to be written
    except ValueError as e:
        raise failed("sent no JSON") from e
    return value


def _reply(value: Any) -> Json:
    choices = value.get("choices") if isinstance(value, dict) else None
    if not (isinstance(choices, list) and choices and all(isinstance(choice, dict) for choice in choices)):
        raise failed("sent no answer of OpenAI's form")
    return value


def _streamed(reply: Json, body: Json) -> Response:
    """A whole answer as the events of a stream."""
    head = {name: value for name, value in reply.items() if name not in ("choices", "usage")}
    head["object"] = f"{head['object']}.chunk" if head.get("object") == "chat.completion" else head.get("object")
    choices: list[Json] = []
    for choice in reply["choices"]:
        message = choice.get("message")
        if isinstance(message, dict):
            calls = message.get("tool_calls")
            if isinstance(calls, list):
                calls = [{"index": i, **call} if isinstance(call, dict) else call for i, call in enumerate(calls)]
                message = {**message, "tool_calls": calls}
            choice = {**{name: value for name, value in choice.items() if name != "message"}, "delta": message}
        choices.append(choice)
    pieces = [{**head, "choices": [choice]} for choice in choices]
    options = body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage") is True and "usage" in reply:
        pieces.append({**head, "choices": [], "usage": reply["usage"]})
    text = "".join(map(event, pieces)) + DONE
    return Response(text, media_type="text/event-stream", headers=HEADERS)
