"""NablaRefine: a draft in, a better answer out, as one step of a chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig, RunnableParallel, RunnablePassthrough
from langchain_core.runnables.base import RunnableSerializable
from pydantic import ConfigDict

from langchain_nabla._messages import as_draft
from langchain_nabla.chat_models import ChatNabla
from nabla_agents import ConfigurationError

_EXPECTED = (
    'expected {"question": ..., "draft": ...}, or a conversation that ends with the draft. For a chain that gives the '
    "draft alone, use refine.after(chain): it passes the question on."
)


class NablaRefine(RunnableSerializable[Any, AIMessage]):
    """Refines an answer that another model wrote: the search starts from it, and returns the best that it finds.

    Its input is `{"question": ..., "draft": ...}`, each text or messages, or a conversation whose last message is the
    draft. `refine.after(draft)` is a chain from the question alone, `{"question": ..., "draft": draft} | refine` one
    from several inputs. The output is the message of `llm`, with the search in `response_metadata["nabla"]`.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    llm: ChatNabla
    """What refines: its engine's reward judges the draft, its settings say how far the search goes."""

    def __init__(self, llm: ChatNabla | None = None, **settings: Any) -> None:
        """With `llm`, or with the settings of a `ChatNabla`."""
        if llm is not None and settings:
            raise ConfigurationError(f"NablaRefine got llm and {', '.join(settings)}; expected one of the two.")
        parts: dict[str, Any] = {"llm": ChatNabla(**settings) if llm is None else llm}
        super().__init__(**parts)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    def after(self, draft: Runnable[Any, Any]) -> Runnable[Any, AIMessage]:
        """A chain that lets `draft` answer and refines the answer; its input is the question."""
        return RunnableParallel(question=RunnablePassthrough(), draft=draft) | self

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        question, draft = _split(input)
        return self.llm.invoke(question, config, **draft, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        question, draft = _split(input)
        return await self.llm.ainvoke(question, config, **draft, **kwargs)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[AIMessageChunk]:
        question, draft = _split(input)
        yield from self.llm.stream(question, config, **draft, **kwargs)

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        question, draft = _split(input)
        async for chunk in self.llm.astream(question, config, **draft, **kwargs):
            yield chunk


def _split(input: Any) -> tuple[list[BaseMessage], dict[str, Any]]:
    """The conversation, and the draft that answers it, as options of a call.

    Raises:
        ConfigurationError: an input in which one of the two cannot be told.
    """
    if isinstance(input, Mapping) and "draft" in input and ("question" in input or "messages" in input):
        question, draft = input.get("question", input.get("messages")), input["draft"]
        draft = draft[-1] if isinstance(draft, list) and draft else draft
        if not isinstance(draft, str | BaseMessage):
            raise ConfigurationError(f"NablaRefine got {draft!r} as the draft; {_EXPECTED}")
        messages: list[BaseMessage] = [HumanMessage(question)] if isinstance(question, str) else _messages(question)
        return messages, {"draft": draft} if isinstance(draft, str) else as_draft(draft)
    messages = _messages(input.get("messages", input) if isinstance(input, Mapping) else input)
    if len(messages) < 2 or not isinstance(messages[-1], AIMessage) or messages[-1].tool_calls:
        raise ConfigurationError(f"NablaRefine got {input!r}; {_EXPECTED}")
    return messages[:-1], as_draft(messages[-1])


def _messages(input: Any) -> list[BaseMessage]:
    input = input.to_messages() if hasattr(input, "to_messages") else input
    if isinstance(input, BaseMessage):
        return [input]
    if isinstance(input, list | tuple):
        return convert_to_messages(input)
    raise ConfigurationError(f"NablaRefine got {input!r}; {_EXPECTED}")
