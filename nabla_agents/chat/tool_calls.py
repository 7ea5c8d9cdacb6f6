"""Tool calls as models write them: JSON objects with a name and arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from nabla_agents.chat.dialects import HERMES
from nabla_agents.json_text import read_json

_FENCES: Final = ("```json\n", "```\n")
_FENCE: Final = re.compile(r"```(?:json)?\s*\n")


@dataclass(frozen=True)
class ToolCall:
    """One call as the model wrote it. `error` says why `raw` is no call; then name and arguments are what was readable.

    `raw` is the text between the markers, without white space around it.
    """

    name: str
    arguments: Mapping[str, Any]
    raw: str
    error: str | None = None

    @staticmethod
    def read(raw: str) -> ToolCall:
        """A call from the text between its markers; never raises. Arguments may be an object or JSON text of one."""
        raw = raw.strip()
        try:
            call: Any = read_json(raw)
        except ValueError as e:
            return ToolCall("", {}, raw, f"No JSON: {e}.")
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return ToolCall("", {}, raw, 'Expected an object with "name" and "arguments".')
        call = cast(dict[str, Any], call)
        name, arguments = call["name"], call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = read_json(arguments)
            except ValueError as e:
                return ToolCall(name, {}, raw, f"The arguments are no JSON: {e}.")
        if not isinstance(arguments, dict):
            return ToolCall(name, {}, raw, "The arguments are no JSON object.")
        try:
            json.dumps(arguments, allow_nan=False)
        except ValueError as e:  # 1e999 is read as an infinity
            return ToolCall(name, {}, raw, f"The arguments are no JSON: {e}.")
        return ToolCall(name, cast(dict[str, Any], arguments), raw)

    @property
    def arguments_text(self) -> str:
        """The arguments as JSON text; of what cannot be read, what the model wrote."""
        return json.dumps(dict(self.arguments), ensure_ascii=False) if self.error is None else self.raw

    @property
    def text(self) -> str:
        """The call as Hermes and Qwen write it, markers included."""
        body = {"name": self.name, "arguments": dict(self.arguments)}
        return f"{HERMES.begin}\n{json.dumps(body, ensure_ascii=False)}\n{HERMES.end}"


def bare_calls(text: str, names: Collection[str]) -> tuple[ToolCall, ...]:
    """The calls that a whole text is, bare or within a fence: JSON of a call of one of these tools, or a list of such.
    Empty where it is anything else.
    """
    text = text.strip()
    if not may_become_calls(text, names):
        return ()
    fence = _FENCE.match(text)
    closed = fence is not None and text.endswith("```", fence.end())
    try:
        read: Any = read_json(text[fence.end() : -3] if fence is not None and closed else text)
    except ValueError:
        return ()
    objects = read if isinstance(read, list) else [read]
    calls = [ToolCall.read(json.dumps(each, ensure_ascii=False)) for each in objects]
    return tuple(calls) if calls and all(call.error is None and call.name in names for call in calls) else ()


def may_become_calls(text: str, names: Collection[str]) -> bool:
    """Whether a text may be the beginning of one that is calls alone, bare or within a fence."""
    text = text.lstrip()
    if any(fence.startswith(text) for fence in _FENCES):
        return True
    fence = _FENCE.match(text)
    text = "".join(text[fence.end() if fence else 0 :].split()).removeprefix("[")
    begins = ["".join(f'{{"name":{json.dumps(name, ensure_ascii=False)}'.split()) for name in names]
    return any(begin.startswith(text) or text.startswith(begin) for begin in begins)


def function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name, description and parameters of a tool in OpenAI's form, with or without its outer `function`."""
    inner = tool.get("function", tool)
    return cast(Mapping[str, Any], inner) if isinstance(inner, Mapping) else {}
