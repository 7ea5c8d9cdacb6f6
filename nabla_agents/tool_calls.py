"""Tool calls as most open models write them: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from nabla_agents.markers import CALL_BEGIN, CALL_END


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
            call: Any = json.loads(raw)
        except ValueError as e:
            return ToolCall("", {}, raw, f"No JSON: {e}.")
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return ToolCall("", {}, raw, 'Expected an object with "name" and "arguments".')
        call = cast(dict[str, Any], call)
        name, arguments = call["name"], call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError as e:
                return ToolCall(name, {}, raw, f"The arguments are no JSON: {e}.")
        if not isinstance(arguments, dict):
            return ToolCall(name, {}, raw, "The arguments are no JSON object.")
        return ToolCall(name, cast(dict[str, Any], arguments), raw)

    @property
    def text(self) -> str:
        """The call as a model writes it, markers included."""
        body = {"name": self.name, "arguments": dict(self.arguments)}
        return f"{CALL_BEGIN}\n{json.dumps(body, ensure_ascii=False)}\n{CALL_END}"


def function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name, description and parameters of a tool in OpenAI's form, with or without its outer `function`."""
    inner = tool.get("function", tool)
    return cast(Mapping[str, Any], inner) if isinstance(inner, Mapping) else {}
