"""From what clients send to the engine's requests. Everything is checked here, before anything is computed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from nabla_agents.chat.grammar import Grammar
from nabla_agents.chat.openai import ChatOptions, chosen_tool
from nabla_agents.config import Sampling
from nabla_agents.errors import ConfigurationError, ContextOverflowError, GrammarError, PromptError
from nabla_agents.request import PromptLike, Request
from nabla_agents.serialization import StepsRequest
from nabla_agents.serve.errors import dotted, invalid, missing, refusal_of
from nabla_agents.serve.middleware import Caller
from nabla_agents.serve.protocol import ChatRequest, CompletionRequest, Generation, Turn
from nabla_agents.serve.schemas import check_sizes, misplaced, refers
from nabla_agents.serve.service import Served, Service
from nabla_agents.types import Message, Prompt


async def chat_requests(
    service: Service, body: ChatRequest, caller: Caller
) -> tuple[Served, list[Request], list[dict[str, Any]] | None]:
    """One request per choice, to whom they go, and the tools that are offered.

    Raises:
        Refusal: what cannot be met, named by its place in the body.
    """
    served = service.served(body.model, body.own.reward)
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs to be true.", "top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise invalid("Give max_tokens or max_completion_tokens, not both.", "max_tokens")
    _check_count(service, body, 1)
    check_sizes([*_schemas(body)], service.settings)
    _check_messages(served, body.messages)
    messages = [_message(turn, f"messages[{i}]") for i, turn in enumerate(body.messages)]
    chat = await _read_chat_options(service, served, body, caller)
    prompt = await read_prompt(service, served, caller, chat.with_schema(messages), tools=chat.tools)
    await check_draft(service, served, body.own.draft, caller)
    await _check_grammar(service, served, body, chat.grammar, caller)
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    sampling = _sampling(body, grammar=chat.grammar, max_tokens=service.max_tokens(name, getattr(body, name)))
    return served, _requests(service, served, body, [prompt], sampling, body.top_logprobs, caller), chat.tools


async def completion_requests(
    service: Service, body: CompletionRequest, caller: Caller
) -> tuple[Served, list[Request]]:
    """`n` requests for each prompt, in the order of the prompts, and to whom they go. A prompt is taken verbatim.

    Raises:
        Refusal: what cannot be met, named by its place in the body.
    """
    served = service.served(body.model, body.own.reward)
    if others := sorted(set(body.stop_token_ids or ()) - set(served.engine.model.eos_ids)):
        message = f"stop_token_ids has {others[0]}; expected end tokens of {body.model}, or texts in stop."
        raise invalid(message, "stop_token_ids", code="unsupported_value")
    texts = _prompts(body.prompt)
    _check_count(service, body, len(texts))
    try:
        prompts = [await _completion_prompt(service, served, text, caller) for text in texts]
    except PromptError as e:
        refusal = refusal_of(e)
        refusal.param = "prompt"
        raise refusal from e
    await check_draft(service, served, body.own.draft, caller)
    sampling = _sampling(body, grammar=None, max_tokens=service.max_tokens("max_tokens", body.max_tokens))
    return served, _requests(service, served, body, prompts, sampling, body.logprobs, caller)


def _sampling(body: Generation, *, grammar: Grammar | None, max_tokens: int) -> Sampling:
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k in (0, -1) else body.top_k,
        min_p=body.min_p,
        max_tokens=max_tokens,
        stop=body.stops,
        grammar=grammar,
    )


def _requests(
    service: Service,
    served: Served,
    body: Generation,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    top_logprobs: int | None,
    caller: Caller,
) -> list[Request]:
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options needs stream to be true.", "stream_options")
    n, top = body.n or 1, top_logprobs or 0
    if top > service.settings.max_top_logprobs:
        raise invalid(f"At most {service.settings.max_top_logprobs} top_logprobs.", "top_logprobs")
    seed = secrets.randbits(32) if body.seed is None else body.seed
    common = {"sampling": sampling, "top_logprobs": top, **service.search(served, body.own, caller.key)}
    return [Request(prompt=prompt, seed=seed + i, **common) for prompt in prompts for i in range(n)]


async def check_draft(service: Service, served: Served, draft: str | None, caller: Caller) -> None:
    """A draft is read whole, several times; it may be as long as an answer."""
    if draft is None:
        return
    count = len(await service.readers.read(caller.id, partial(encoded, served, draft)))
    if count > service.settings.max_tokens:
        message = f"The draft has {count} tokens; at most {service.settings.max_tokens} are allowed."
        raise invalid(message, "nabla.draft", code="budget_above_cap")


def _check_count(service: Service, body: Generation, prompts: int) -> None:
    """Before any prompt is read: each costs time."""
    count, most = (body.n or 1) * prompts, service.settings.max_n
    if count > most:
        raise invalid(f"{count} answers are asked for; at most {most} are allowed.", "n")


async def steps_request(service: Service, body: StepsRequest, caller: Caller) -> tuple[Served, Request]:
    """The request of an engine elsewhere, and to whom it goes.

    Raises:
        Refusal: what cannot be met.
    """
    served = service.served(body.model, body.nabla.reward)
    sampling = body.sampling.read()
    sampling = sampling.replace(max_tokens=service.max_tokens("sampling.max_tokens", sampling.max_tokens))
    if sampling.grammar is not None:
        rules = [sampling.grammar.body, sampling.grammar.instead]
        check_sizes([(["sampling", "grammar"], rules)], service.settings)

    def rendered() -> Prompt:
        messages, text = tuple(message.read() for message in body.prompt.messages), body.prompt.text
        return served.engine.prompt(Prompt(messages, text, tuple(encoded(served, text))))

    prompt = await service.readers.read(caller.id, rendered)
    await check_draft(service, served, body.nabla.draft, caller)
    if sampling.grammar is not None:
        try:
            await service.readers.read(caller.id, partial(served.engine.model.constraint, sampling.grammar))
        except GrammarError as e:
            raise invalid(str(e), "sampling.grammar") from e
    wish = service.search(served, body.nabla, caller.key)
    return served, Request(prompt=prompt, sampling=sampling, seed=body.seed, **wish)


def encoded(served: Served, text: str) -> list[int]:
    """Token ids of a text, verbatim.

    Raises:
        PromptError: the tokenizer cannot read it.
    """
    model = served.engine.model
    try:
        return model.tokenizer.encode(text)
    except Exception as e:  # half a surrogate pair, a word that it does not have: tokenizers raise anything
        raise PromptError(f"The tokenizer of {model.name} cannot read the text: {e}") from e


async def read_prompt(service: Service, served: Served, caller: Caller, prompt: PromptLike, **options: Any) -> Prompt:
    """The prompt as the language model reads it.

    Raises:
        ContextOverflowError: it has more messages than the context has tokens; or its text is too long.
        PromptError: it cannot be rendered.
    """
    if not isinstance(prompt, str | Prompt):
        _check_messages(served, prompt)
    return await service.readers.read(caller.id, partial(served.engine.prompt, prompt, **options))


def _check_messages(served: Served, messages: Sequence[Any]) -> None:
    most = served.engine.model.context_length
    if len(messages) > most:
        raise ContextOverflowError(f"The prompt has {len(messages)} messages; the context is {most} tokens.")


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _message(turn: Turn, place: str) -> Message:
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
    return Message(role, _text(turn, f"{place}.content"), extra)


def _text(turn: Turn, place: str) -> str:
    if turn.content is None and turn.role != "assistant":
        raise missing(place)
    if turn.content is None or isinstance(turn.content, str):
        return turn.content or ""
    for j, part in enumerate(turn.content):
        if part.type != "text" or part.text is None:
            message = f"Content of type {part.type!r} is not supported: these models read text."
            raise invalid(message, f"{place}[{j}].type", code="unsupported_value")
    return "\n".join(part.text or "" for part in turn.content)


def _arguments(text: str) -> Any:
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return {"unreadable": text}
    return arguments if isinstance(arguments, dict) else {"unreadable": text}


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise invalid("prompt is empty; expected a text or token ids.", "prompt")
    if isinstance(prompt[0], int):
        return [[token for token in prompt if isinstance(token, int)]]
    return [one for one in prompt if not isinstance(one, int)]


async def _completion_prompt(service: Service, served: Served, prompt: str | list[int], caller: Caller) -> Prompt:
    if isinstance(prompt, str):
        return await read_prompt(service, served, caller, prompt, formatted=True)
    model = served.engine.model
    if len(prompt) >= model.context_length:
        raise ContextOverflowError(f"The prompt has {len(prompt)} tokens; the context is {model.context_length}.")

    def decoded() -> Prompt:
        inside = all(0 <= token < model.vocab_size for token in prompt)
        return served.engine.prompt(Prompt((), model.tokenizer.decode(prompt) if inside else "", tuple(prompt)))

    return await service.readers.read(caller.id, decoded)


# ── tools and structure ───────────────────────────────────────────────────────────────────────────────────────────────


async def _read_chat_options(service: Service, served: Served, body: ChatRequest, caller: Caller) -> ChatOptions:
    """The tools and the structure of a chat.

    Raises:
        Refusal: a choice of no tool that is there, no response format, a schema that is none.
    """
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
    if isinstance(body.tool_choice, dict) and body.tool_choice.get("type") != "function":
        message = f"tool_choice is {body.tool_choice!r}; expected a string, or type function with a name."
        raise invalid(message, "tool_choice", code="unsupported_parameter")
    try:
        chosen_tool(body.tool_choice, tools)
    except ConfigurationError as e:
        raise invalid(str(e), "tool_choice") from e
    tokenizer = served.engine.model.tokenizer
    read = partial(
        ChatOptions.read,
        tools,
        tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=body.response_format and body.response_format.model_dump(by_alias=True, exclude_none=True),
        reasoning=tokenizer.knows_reasoning,
        dialect=tokenizer.dialect,
    )
    try:
        return await service.readers.read(caller.id, read)
    except ConfigurationError as e:
        raise invalid(str(e), "response_format" if body.response_format else "tools") from e


async def _check_grammar(
    service: Service, served: Served, body: ChatRequest, grammar: Grammar | None, caller: Caller
) -> None:
    """Compiles the grammar of a chat, whose prompt is known to fit by now.

    Raises:
        Refusal: of the first schema that cannot be kept to even alone; of all of them together if there is none.
    """
    if grammar is None:
        return
    schemas = [*_schemas(body)]

    def check() -> None:
        compiled = served.engine.model.constraint
        for place, schema in schemas:
            if refers(schema):
                _check_alone(served, place, schema)
        try:
            compiled(grammar)
        except GrammarError as e:
            for place, schema in schemas:
                _check_alone(served, place, schema)
            raise invalid(str(e), "tools" if body.tools else "response_format") from e

    await service.readers.read(caller.id, check)


def _check_alone(served: Served, place: Sequence[str | int], schema: dict[str, Any]) -> None:
    try:
        served.engine.model.constraint(Grammar.json(schema, lenient=True)).check_ends()
    except GrammarError as e:
        param = dotted([*place, *misplaced(schema)])
        raise invalid(f"Invalid value for '{param}': {e}", param) from e


def _schemas(body: ChatRequest) -> Iterator[tuple[list[str | int], dict[str, Any]]]:
    for i, tool in enumerate(body.tools or []):
        if tool.function.parameters is not None:
            yield ["tools", i, "function", "parameters"], tool.function.parameters
    if body.response_format and body.response_format.json_schema:
        yield ["response_format", "json_schema", "schema"], body.response_format.json_schema.schema_ or {}
