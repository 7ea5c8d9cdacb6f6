"""What LlamaIndex's agents say to a model that calls tools, and what they read of its answer."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from llama_index.core.agent.react import ReActChatFormatter, ReActOutputParser
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.utils import parse_partial_json


def messages(history: Sequence[ChatMessage] | None, user: str | ChatMessage | None) -> list[ChatMessage]:
    """A history, which is left alone, and the user's turn after it."""
    turn = ChatMessage(role=MessageRole.USER, content=user) if isinstance(user, str) else user
    return [*(history or []), *([] if turn is None else [turn])]


def selected(response: ChatResponse, *, required: bool) -> list[ToolSelection]:
    """The calls of an answer, each with arguments that are an object.

    Raises:
        ValueError: no call where one is required.
    """
    blocks = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    if not blocks and required:
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


def react() -> dict[str, Any]:
    """The formatter and parser of a ReAct step, which the core takes for given."""
    return {"react_chat_formatter": ReActChatFormatter(), "output_parser": ReActOutputParser()}


def _readable(kwargs: dict[str, Any] | str) -> dict[str, Any]:
    if not isinstance(kwargs, str):
        return kwargs
    try:
        read = parse_partial_json(kwargs)
    except ValueError:
        return {}
    arguments = read.get("arguments", read) if isinstance(read, dict) else {}
    return arguments if isinstance(arguments, dict) else {}
