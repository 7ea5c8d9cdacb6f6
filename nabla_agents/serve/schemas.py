"""What the tools and the response format of a chat ask of its answer; a schema that is wrong is named by its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for

from nabla_agents.chat.grammar import Grammar
from nabla_agents.chat.openai import Asked, chosen_tool
from nabla_agents.errors import ConfigurationError, GrammarError
from nabla_agents.serve.errors import Refusal, dotted
from nabla_agents.serve.protocol import ChatRequest
from nabla_agents.serve.service import Served, Service


async def read_asked(service: Service, served: Served, body: ChatRequest) -> Asked:
    """The tools and the structure of a chat, compiled.

    Raises:
        Refusal: a choice of no tool that is there, no response format, a schema that cannot be kept to.
    """
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
    if isinstance(body.tool_choice, dict) and body.tool_choice.get("type") != "function":
        message = f"tool_choice is {body.tool_choice!r}; expected a string, or type function with a name."
        raise Refusal(400, message, code="unsupported_parameter", param="tool_choice")
    try:
        chosen_tool(body.tool_choice, tools)
    except ConfigurationError as e:
        raise Refusal(400, str(e), code="invalid_value", param="tool_choice") from e
    try:
        asked = Asked.read(
            tools,
            tool_choice=body.tool_choice,
            parallel_tool_calls=body.parallel_tool_calls,
            response_format=body.response_format and body.response_format.model_dump(by_alias=True, exclude_none=True),
            reasoning=served.engine.model.tokenizer.knows_reasoning,
            dialect=served.engine.model.tokenizer.dialect,
        )
        await compiled(service, served, asked.grammar)
    except GrammarError as e:
        raise await _of_a_schema(service, served, body, e) from e
    except ConfigurationError as e:
        param = "response_format" if body.response_format else "tools"
        raise Refusal(400, str(e), code="invalid_value", param=param) from e
    return asked


async def compiled(service: Service, served: Served, grammar: Grammar | None) -> None:
    """Compiles the grammar.

    Raises:
        GrammarError: what is wrong with it.
    """
    if grammar is not None:
        await service.reading(lambda: served.engine.model.constraint(grammar))


async def _of_a_schema(service: Service, served: Served, body: ChatRequest, error: GrammarError) -> Refusal:
    """The refusal of the first schema that cannot be kept to even alone; of all of them together if there is none."""
    for place, schema in _schemas(body):
        try:
            await compiled(service, served, Grammar.json(schema, lenient=True))
        except GrammarError as e:
            param = dotted([*place, *_misplaced(schema)])
            return Refusal(400, f"Invalid value for '{param}': {e}", code="invalid_value", param=param)
    return Refusal(400, str(error), code="invalid_value", param="tools" if body.tools else "response_format")


def _schemas(body: ChatRequest) -> Iterator[tuple[list[str | int], dict[str, Any]]]:
    for i, tool in enumerate(body.tools or []):
        if tool.function.parameters is not None:
            yield ["tools", i, "function", "parameters"], tool.function.parameters
    if body.response_format and body.response_format.json_schema:
        yield ["response_format", "json_schema", "schema"], body.response_format.json_schema.schema_ or {}


def _misplaced(schema: dict[str, Any]) -> list[str | int]:
    """Where a schema breaks the rules of JSON Schema; empty where it does not."""
    try:
        validator_for(schema, Draft202012Validator).check_schema(schema)
    except SchemaError as e:
        return list(e.absolute_path)
    except RecursionError:
        pass
    return []
