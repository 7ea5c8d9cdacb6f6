"""Structured output: a schema of any kind becomes a bound model and the parser of what it says."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableGenerator
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from nabla_agents import ConfigurationError

if TYPE_CHECKING:
    from langchain_nabla.chat_models import ChatNabla

_METHODS = ("json_schema", "function_calling", "json_mode")


def bound(
    llm: ChatNabla, schema: Any, *, method: str, strict: bool | None, **kwargs: Any
) -> tuple[Runnable[Any, Any], Runnable[Any, Any]]:
    """The model bound to a schema, and the parser of its messages.

    Raises:
        ConfigurationError: an unknown method.
    """
    if method not in _METHODS:
        raise ConfigurationError(f"method is {method!r}; expected one of {', '.join(_METHODS)}.")
    traced = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
    is_pydantic = isinstance(schema, type) and is_basemodel_subclass(schema)
    if method == "function_calling":
        name = openai_tool(schema)["function"]["name"]
        calling = llm.bind_tools(
            [schema],
            tool_choice=name,
            strict=strict,
            parallel_tool_calls=False,
            ls_structured_output_format=traced,
            **kwargs,
        )
        if is_pydantic:
            return calling, _WHOLE | PydanticToolsParser(tools=[schema], first_tool_only=True)
        return calling, _WHOLE | JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    as_json = convert_to_json_schema(_unabridged(schema), strict=strict)
    if method == "json_mode":
        response_format: dict[str, Any] = {"type": "json_object", "schema": as_json}
    else:
        response_format = {
            "type": "json_schema",
            "json_schema": {"name": as_json.get("title", "answer"), "schema": as_json},
        }
    if is_pydantic and issubclass(schema, BaseModel) and _validates(schema.__pydantic_core_schema__):
        kwargs = {"accepted_by": schema, **kwargs}
    answering = llm.bind(response_format=response_format, ls_structured_output_format=traced, **kwargs)
    return answering, _WHOLE | (PydanticOutputParser(pydantic_object=schema) if is_pydantic else JsonOutputParser())


def openai_tool(tool: Any, strict: bool | None = None) -> dict[str, Any]:
    """A tool of any kind in OpenAI's form."""
    return convert_to_openai_tool(_unabridged(tool), strict=strict)


def _unabridged(schema: Any) -> Any:
    """Pydantic's own schema of a class, or tool, with a class that refers to itself; anything else as it is.

    LangChain's converter puts `{}` in the place of the inner reference, and refuses one at the root.
    """
    if isinstance(schema, BaseTool):
        model, names = schema.tool_call_schema, {"title": schema.name, "description": schema.description}
        own = _unabridged(model)
        return schema if own is model else {**own, **names}
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        own = schema.model_json_schema()
        return {**_rooted(own), "title": schema.__name__} if _recursive(own) else schema
    return _rooted(schema) if isinstance(schema, Mapping) else schema


def _recursive(schema: Mapping[str, Any]) -> bool:
    parts = schema.get("$defs", {})
    named = {name: re.findall(r'"#/\$defs/([^"]+)"', json.dumps(part)) for name, part in parts.items()}
    try:
        TopologicalSorter(named).prepare()
    except CycleError:
        return True
    return False


def _rooted(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema with the definition that its root refers to written out there."""
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    part = schema.get("$defs", {}).get(name)
    return schema if part is None else {**{k: v for k, v in schema.items() if k != "$ref"}, **part}


def _validates(schema: Any) -> bool:
    """Whether functions look at values in a pydantic core schema: what no grammar can keep."""
    if isinstance(schema, dict):
        return str(schema.get("type", "")).startswith("function-") or any(map(_validates, schema.values()))
    return isinstance(schema, list | tuple) and any(map(_validates, schema))


def _whole(messages: Iterator[AIMessage]) -> Iterator[AIMessage]:
    """The messages of one answer.

    Raises:
        OutputParserException: at its end, if it was cut off: then it is no answer, whatever can be read of it.
    """
    for message in messages:
        yield _uncut(message)


async def _awhole(messages: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessage]:
    async for message in messages:
        yield _uncut(message)


def _uncut(message: AIMessage) -> AIMessage:
    if message.response_metadata.get("finish_reason") == "length":
        raise OutputParserException("The answer was cut off before its end. Raise max_tokens, or loosen the schema.")
    return message


_WHOLE = RunnableGenerator(_whole, _awhole)
