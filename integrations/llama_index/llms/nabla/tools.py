"""ToolCalling: tools for agents, and the calls in an answer."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.agent.react import ReActChatFormatter, ReActOutputParser
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.utils import parse_partial_json

from llama_index.llms.nabla.settings import NablaSettings

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse
    from llama_index.core.tools.types import BaseTool


class ToolCalling(NablaSettings):
    """Tool calls, decoded under the grammar of the tools' schemas, so that they can be read and fit."""

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of `chat`. A given `tool_choice` (auto, any, none or a tool's name) goes before `tool_required`."""
        messages = list(chat_history or [])
        if user_msg is not None:
            said = ChatMessage(role=MessageRole.USER, content=user_msg) if isinstance(user_msg, str) else user_msg
            messages.append(said)
        if not tools:
            return {"messages": messages, **kwargs}
        return {
            "messages": messages,
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "tool_choice": tool_choice or ("any" if tool_required else "auto"),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of an answer. Arguments that are no JSON, as cut by `max_tokens`, are read as far as they go.

        Raises:
            ValueError: no call, unless that is allowed.
        """
        blocks = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not blocks and error_on_no_tool_call:
            raise ValueError(
                f"Expected at least one tool call, got the text {response.message.content!r}. "
                "Give tool_required=True to have one enforced."
            )
        return [
            ToolSelection(
                tool_id=block.tool_call_id or f"call_{uuid.uuid4().hex}",
                tool_name=block.tool_name,
                tool_kwargs=_readable(block.tool_kwargs),
            )
            for block in blocks
        ]

    def predict_and_call(self, *args: Any, **kwargs: Any) -> AgentChatResponse:
        """Calls a tool as the model wants; by a ReAct step where `metadata.is_function_calling_model` is False."""
        return super().predict_and_call(*args, **self._with_react(kwargs))

    async def apredict_and_call(self, *args: Any, **kwargs: Any) -> AgentChatResponse:
        """As `predict_and_call`."""
        return await super().apredict_and_call(*args, **self._with_react(kwargs))

    def _with_react(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """With the formatter and parser of a ReAct step, which the core takes for given."""
        if self.metadata.is_function_calling_model:
            return kwargs
        return {"react_chat_formatter": ReActChatFormatter(), "output_parser": ReActOutputParser(), **kwargs}


def _readable(kwargs: dict[str, Any] | str) -> dict[str, Any]:
    if not isinstance(kwargs, str):
        return kwargs
    try:
        read = parse_partial_json(kwargs)
    except ValueError:
        return {}
    arguments = read.get("arguments", read) if isinstance(read, dict) else {}
    return arguments if isinstance(arguments, dict) else {}
