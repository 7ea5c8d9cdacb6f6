"""The routes: those of OpenAI's API, the engine's own, and those that operators ask."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from nabla_agents.serialization import PROMPT, STEPS, TOKENS, PromptRequest, StepsRequest, TokensRequest
from nabla_agents.serve.answers import Answer, ChatChoice, StepsAnswer, TextChoice
from nabla_agents.serve.errors import Refusal, invalid
from nabla_agents.serve.middleware import Caller
from nabla_agents.serve.protocol import ChatRequest, CompletionRequest, ErrorBody
from nabla_agents.serve.requests import chat_requests, completion_requests, encoded, read_prompt, steps_request
from nabla_agents.serve.responses import respond
from nabla_agents.serve.service import Served, Service

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
        (503, "The server is shutting down, or hangs."),
    )
}
_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The answer, or with `stream` its pieces as server-sent events.",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
}
_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "Steps, and at last the result, as server-sent events.", "content": {"text/event-stream": {}}}
}

_MOST_IDS: Final = 65_536  # or the context, if that is more

router = APIRouter()


@router.post("/v1/chat/completions", responses={**_ANSWER, **REFUSALS}, tags=["OpenAI"])
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """A refined answer to a conversation."""
    served, wanted, tools = await chat_requests(Service.of(request), body, Caller.of(request))
    answer = Answer(body, [ChatChoice(body, served, one, tools) for one in wanted])
    return await respond(request, served, wanted, answer, stream=bool(body.stream))


@router.post("/v1/completions", responses={**_ANSWER, **REFUSALS}, tags=["OpenAI"])
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Refined completions of texts or token ids, taken verbatim."""
    served, wanted = await completion_requests(Service.of(request), body, Caller.of(request))
    answer = Answer(body, [TextChoice(body, served, one) for one in wanted])
    return await respond(request, served, wanted, answer, stream=bool(body.stream))


@router.get("/v1/models", responses=REFUSALS, tags=["OpenAI"])
async def models(request: Request) -> Response:
    """What is served."""
    service = Service.of(request)
    return JSONResponse({"object": "list", "data": [_model(service, service.served(m)) for m in service.models]})


@router.get("/v1/models/{model:path}", responses=REFUSALS, tags=["OpenAI"])
async def model(request: Request, model: str) -> Response:
    """One model: its context, and which strategies, rewards and budgets a request may name."""
    service = Service.of(request)
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


# ── for a `RemoteEngine`, and others that want a search's steps and not only its answer ───────────────────────────────


@router.post(PROMPT, responses=REFUSALS, tags=["nabla"])
async def prompt(request: Request, body: PromptRequest) -> Response:
    """A prompt as the language model reads it: its text and token ids."""
    service = Service.of(request)
    served = service.served(body.model)
    if (body.messages is None) == (body.text is None):
        raise invalid("Give either messages or text.", "messages")
    conversation = [message.read() for message in body.messages or []] if body.text is None else body.text
    options = {"tools": body.tools, "formatted": body.text is not None}
    rendered = await read_prompt(service, served, Caller.of(request), conversation, **options)
    return JSONResponse({"text": rendered.text, "ids": list(rendered.ids)})


@router.post(TOKENS, responses=REFUSALS, tags=["nabla"])
async def tokens(request: Request, body: TokensRequest) -> Response:
    """Token ids of a text, or of given ids, and the text of each."""
    service = Service.of(request)
    served = service.served(body.model)
    model = served.engine.model
    if (body.ids is None) == (body.text is None):
        raise invalid("Give either text or ids.", "text")
    most = max(_MOST_IDS, model.context_length)
    if body.ids is not None and len(body.ids) > most:
        raise invalid(f"{len(body.ids)} token ids; at most {most} are shown at a time.", "ids")
    if body.ids is not None and any(token >= model.vocab_size for token in body.ids):
        raise invalid(f"A token id is too large; {body.model} has {model.vocab_size} tokens.", "ids")

    def read() -> dict[str, Any]:
        ids = list(body.ids or []) if body.text is None else encoded(served, body.text)
        return {"ids": ids, "texts": [model.tokenizer.token_text(token) for token in ids]}

    return JSONResponse(await service.readers.read(Caller.of(request).id, read))


@router.post(STEPS, responses={**_STREAM, **REFUSALS}, response_class=StreamingResponse, tags=["nabla"])
async def steps(request: Request, body: StepsRequest) -> Response:
    """A search's steps as server-sent events, and at last its result."""
    served, wanted = await steps_request(Service.of(request), body, Caller.of(request))
    return await respond(request, served, [wanted], StepsAnswer(served.engine.model.tokenizer), stream=True)


# ── for operators ─────────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("/health", responses={503: REFUSALS[503]}, tags=["operation"])
async def health(request: Request) -> Response:
    """200 as long as the process answers, and the thread that computes moves or waits for work."""
    service = Service.of(request)
    if service.stalled:
        message = f"One step has taken longer than {service.settings.stall_seconds:g} s. Restart the server."
        raise Refusal(503, message, code="stalled")
    return JSONResponse({"status": "ok"})


@router.get("/ready", responses={503: REFUSALS[503]}, tags=["operation"])
async def ready(request: Request) -> Response:
    """200 while new requests are taken."""
    if not Service.of(request).ready:
        raise Refusal(503, "The server is shutting down.", code="shutting_down", retry_after=5.0)
    return JSONResponse({"status": "ready"})


@router.get("/metrics", responses={401: REFUSALS[401], 403: REFUSALS[403]}, tags=["operation"])
async def metrics(request: Request) -> Response:
    """What was counted, for Prometheus."""
    text = Service.of(request).metrics.text()
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")
