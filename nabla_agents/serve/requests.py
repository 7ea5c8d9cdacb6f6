"""From a client's request to the searches that it asks for. Everything is checked here, before anything is computed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from nabla_agents.chat.grammar import Grammar
from nabla_agents.chat.openai import Asked
from nabla_agents.config import Sampling
from nabla_agents.errors import PromptError
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.request import Request
from nabla_agents.serve.errors import Refusal, refusal_of
from nabla_agents.serve.keys import ApiKey
from nabla_agents.serve.protocol import ChatRequest, CompletionRequest, Generation, Turn
from nabla_agents.serve.schemas import read_asked
from nabla_agents.serve.service import Ask, Served, Service
from nabla_agents.types import Message, Prompt


async def chat_asks(service: Service, body: ChatRequest, key: ApiKey | None) -> tuple[list[Ask], Asked]:
    """One search per choice, and the tools and structure that are asked for."""
    served = service.served(body.model, body.own.reward)
    if body.top_logprobs is not None and not body.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs to be true.", code="invalid_value", param="top_logprobs")
    messages = [_message(turn, i) for i, turn in enumerate(body.messages)]
    asked = await read_asked(service, served, body)
    prompt = await service.prompt(served, asked.told(messages), tools=asked.tools)
    top = (body.top_logprobs or 0) if body.logprobs else None
    return await _asks(service, served, body, [prompt], asked.grammar, top, key), asked


async def completion_asks(service: Service, body: CompletionRequest, key: ApiKey | None) -> list[Ask]:
    """`n` searches for each prompt, in the order of the prompts. A prompt is taken verbatim."""
    served = service.served(body.model, body.own.reward)
    if others := sorted(set(body.stop_token_ids or ()) - set(served.engine.model.eos_ids)):
        message = f"stop_token_ids has {others[0]}; expected end tokens of {body.model}, or texts in stop."
        raise Refusal(400, message, code="unsupported_value", param="stop_token_ids")
    try:
        prompts = [await _completion_prompt(service, served, prompt) for prompt in _prompts(body.prompt)]
    except PromptError as e:
        found = refusal_of(e)
        raise Refusal(found.status, found.message, code=found.code, param="prompt") from e
    return await _asks(service, served, body, prompts, None, body.logprobs, key)


async def _asks(
    service: Service,
    served: Served,
    body: Generation,
    prompts: Sequence[Prompt],
    grammar: Grammar | None,
    top_logprobs: int | None,
    key: ApiKey | None,
) -> list[Ask]:
    if body.stream_options is not None and not body.stream:
        raise Refusal(400, "stream_options needs stream to be true.", code="invalid_value", param="stream_options")
    n, most = body.n or 1, service.settings.max_n
    if n * len(prompts) > most:
        raise Refusal(
            400,
            f"{n * len(prompts)} answers are asked for; at most {most} are allowed.",
            code="invalid_value",
            param="n",
        )
    sampling = Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k in (0, -1) else body.top_k,
        min_p=body.min_p,
        max_tokens=_max_tokens(service, body),
        stop=body.stops,
        grammar=grammar,
    )
    if top_logprobs is not None and top_logprobs > service.settings.max_top_logprobs:
        at_most = service.settings.max_top_logprobs
        raise Refusal(400, f"At most {at_most} top_logprobs.", code="invalid_value", param="top_logprobs")
    strategy = service.strategy(*body.own.chosen)
    budget = service.budget(served.engine, body.own.limits, key)
    seed = secrets.randbits(32) if body.seed is None else body.seed
    return [
        Ask(
            served,
            Request(
                prompt=prompt,
                sampling=sampling,
                budget=budget,
                strategy=strategy,
                seed=seed + i,
                draft=body.own.draft,
                top_logprobs=top_logprobs or 0,
            ),
            top_logprobs is not None,
        )
        for prompt in prompts
        for i in range(n)
    ]


def _max_tokens(service: Service, body: Generation) -> int:
    """The request's limit, or the server's."""
    if not isinstance(body, ChatRequest) or body.max_completion_tokens is None:
        return within(service, "max_tokens", body.max_tokens)
    if body.max_tokens is not None:
        message = "Give max_tokens or max_completion_tokens, not both."
        raise Refusal(400, message, code="invalid_value", param="max_tokens")
    return within(service, "max_completion_tokens", body.max_completion_tokens)


def within(service: Service, name: str, wanted: int | None) -> int:
    """The wanted tokens of an answer, or the server's limit.

    Raises:
        Refusal: more than that.
    """
    most = service.settings.max_tokens
    if wanted is not None and wanted > most:
        raise Refusal(
            400, f"{name} is {wanted}; at most {most} tokens are allowed.", code="budget_above_cap", param=name
        )
    return most if wanted is None else wanted


def encoded(model: LanguageModel, text: str) -> list[int]:
    """Token ids of a text, verbatim.

    Raises:
        PromptError: the tokenizer cannot read it.
    """
    try:
        return model.tokenizer.encode(text)
    except Exception as e:  # half a surrogate pair, a word that it does not have: tokenizers raise anything
        raise PromptError(f"The tokenizer of {model.name} cannot read the text: {e}") from e


def _message(turn: Turn, index: int) -> Message:
    """The engine's message. Calls of earlier turns have their arguments as objects, as templates expect them."""
    role = "system" if turn.role == "developer" else turn.role
    extra: dict[str, Any] = {} if turn.name is None else {"name": turn.name}
    if turn.tool_calls:
        extra["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in turn.tool_calls
        ]
    if turn.tool_call_id is not None:
        extra["tool_call_id"] = turn.tool_call_id
    return Message(role, _text(turn, index), extra)


def _text(turn: Turn, index: int) -> str:
    if turn.content is None:
        if turn.role != "assistant":
            param = f"messages[{index}].content"
            raise Refusal(
                400, f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param
            )
        return ""
    if isinstance(turn.content, str):
        return turn.content
    for j, part in enumerate(turn.content):
        if part.type != "text" or part.text is None:
            raise Refusal(
                400,
                f"Content of type {part.type!r} is not supported: these models read text.",
                code="unsupported_value",
                param=f"messages[{index}].content[{j}].type",
            )
    return "\n".join(part.text or "" for part in turn.content)


def _arguments(text: str) -> Any:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return {"unreadable": text}
    return read if isinstance(read, dict) else {"unreadable": text}


def _prompts(given: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    if isinstance(given, str):
        return [given]
    if not given:
        raise Refusal(400, "prompt is empty; expected a text or token ids.", code="invalid_value", param="prompt")
    if isinstance(given[0], int):
        return [[token for token in given if isinstance(token, int)]]
    return [one for one in given if not isinstance(one, int)]


async def _completion_prompt(service: Service, served: Served, given: str | list[int]) -> Prompt:
    if isinstance(given, str):
        return await service.prompt(served, given, formatted=True)

    def decoded() -> Prompt:
        vocabulary = served.engine.model.vocab_size
        inside = all(0 <= token < vocabulary for token in given)
        text = served.engine.model.tokenizer.decode(given) if inside else ""
        return served.engine.prompt(Prompt((), text, tuple(given)))

    return await service.reading(decoded)
