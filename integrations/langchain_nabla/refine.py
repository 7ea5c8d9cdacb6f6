"""NablaRefine: a draft in, a better answer out, as one step of a chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig, RunnableParallel, RunnablePassthrough
from langchain_core.runnables.base import RunnableSerializable
from pydantic import ConfigDict

from langchain_nabla._messages import text_of
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
        super().__init__(llm=ChatNabla(**settings) if llm is None else llm)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    def after(self, draft: Runnable[Any, Any]) -> Runnable[Any, AIMessage]:
        """A chain that lets `draft` answer and refines the answer; its input is the question."""
        return RunnableParallel(question=RunnablePassthrough(), draft=draft) | self

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        question, draft = _split(input)
        return self.llm.invoke(question, config, draft=draft, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        question, draft = _split(input)
        return await self.llm.ainvoke(question, config, draft=draft, **kwargs)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[AIMessageChunk]:
        question, draft = _split(input)
        yield from self.llm.stream(question, config, draft=draft, **kwargs)

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        question, draft = _split(input)
        async for chunk in self.llm.astream(question, config, draft=draft, **kwargs):
            yield chunk


def _split(given: Any) -> tuple[list[BaseMessage], str]:
    """The conversation, and the draft that answers it.

    Raises:
        ConfigurationError: an input in which one of the two cannot be told.
    """
    if isinstance(given, Mapping) and "draft" in given and ("question" in given or "messages" in given):
        question, draft = given.get("question", given.get("messages")), given["draft"]
        draft = draft[-1] if isinstance(draft, list) and draft else draft
        messages = [HumanMessage(question)] if isinstance(question, str) else _messages(question)
        return messages, text_of(draft) if isinstance(draft, BaseMessage) else str(draft)
    messages = _messages(given.get("messages") if isinstance(given, Mapping) else given)
    if len(messages) < 2 or not isinstance(messages[-1], AIMessage) or messages[-1].tool_calls:
        raise ConfigurationError(f"NablaRefine got {given!r}; {_EXPECTED}")
    return messages[:-1], text_of(messages[-1])


def _messages(given: Any) -> list[BaseMessage]:
    given = given.to_messages() if hasattr(given, "to_messages") else given
    if isinstance(given, BaseMessage):
        return [given]
    if isinstance(given, list | tuple):
        return convert_to_messages(given)
    raise ConfigurationError(f"NablaRefine got {given!r}; {_EXPECTED}")
