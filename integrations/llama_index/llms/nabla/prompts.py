"""From what LlamaIndex passes, text or messages, to the prompt the language model reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ThinkingBlock, ToolCallBlock

from nabla_agents import Asked, ContextOverflowError, Message, PromptError

if TYPE_CHECKING:
    from nabla_agents import Engine, Prompt

_ROLES: Final = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


def text_prompt(
    engine: Engine, text: str, asked: Asked, *, formatted: bool, completion_to_prompt: Callable[[str], str] | None
) -> Prompt:
    """One user turn; verbatim if formatted, without a chat template, or as the given function writes it."""
    if formatted or completion_to_prompt is not None or not engine.model.tokenizer.has_template:
        text = text if formatted or completion_to_prompt is None else completion_to_prompt(text)
        return engine.prompt(text, formatted=True)
    return engine.prompt(asked.told([Message("user", text)]), tools=asked.tools)


def chat_prompt(
    engine: Engine,
    messages: Sequence[ChatMessage],
    asked: Asked,
    *,
    messages_to_prompt: Callable[[Sequence[ChatMessage]], str] | None,
) -> Prompt:
    """The conversation by the chat template, or as the given function writes it.

    Raises:
        PromptError: a block that is not text, or a conversation that the template refuses in any form.
    """
    if messages_to_prompt is not None:
        return engine.prompt(messages_to_prompt(messages), formatted=True)
    return engine.prompt(asked.told(conversation(messages)), tools=asked.tools)


def fitting(prompt: Prompt, context_window: int | None) -> Prompt:
    """The prompt, where the window that the user set has room for it and one token more."""
    if context_window is not None and len(prompt.ids) >= context_window:
        raise ContextOverflowError(
            f"The prompt has {len(prompt.ids)} tokens, but context_window is {context_window} tokens and must also "
            "hold the answer. Shorten the prompt or raise context_window."
        )
    return prompt


def conversation(messages: Sequence[ChatMessage]) -> list[Message]:
    """The engine's messages, from roles and blocks alone. Thoughts of earlier turns are left out.

    Raises:
        PromptError: a block that is neither text, thought nor tool call.
    """
    return [_message(message) for message in messages]


def _message(message: ChatMessage) -> Message:
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in message.blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ToolCallBlock):
            function = {"name": block.tool_name, "arguments": _arguments(block.tool_kwargs)}
            calls.append({"id": block.tool_call_id, "type": "function", "function": function})
        elif not isinstance(block, ThinkingBlock):
            raise PromptError(
                f"A {message.role.value} message has a {type(block).__name__}; this model reads text only."
            )
    return Message(_ROLES[message.role], "\n".join(texts), {"tool_calls": calls} if calls else {})


def _arguments(given: dict[str, Any] | str) -> Any:
    """A call's arguments as an object where they are one; else the text that the model wrote."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except ValueError:
        return {"unreadable": given}
