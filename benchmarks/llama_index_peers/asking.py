"""How one integration of LlamaIndex is asked something, and what a cell of the table says of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from backends import Backend, Make
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index_instrumentation import get_dispatcher
from pydantic import Field

PATIENCE = 60  # seconds after which a call hangs
QUESTION = "What is 3 + 4?"
SYNC = ("chat", "complete", "stream_chat", "stream_complete")
ASYNC = ("achat", "acomplete", "astream_chat", "astream_complete")


@dataclass
class Peer:
    """One integration, over a back end of its own."""

    name: str
    make: Make
    backend: Backend = field(default_factory=Backend)

    def llm(self, **fields: Any) -> Any:
        return self.make(self.backend, **fields)

    def ask(self, method: str = "chat", llm: Any = None, **options: Any) -> list[Any]:
        """All responses of one of the eight methods to the question."""
        return asyncio.run(responses(llm or self.llm(), method, **options))

    def last(self, method: str = "chat", llm: Any = None, **options: Any) -> Any:
        return self.ask(method, llm, **options)[-1]

    def heard(self, llm: Any = None, **options: Any) -> dict[str, Any]:
        """What arrives at the back end with a call, or came when it was loaded."""
        raw = self.last(llm=llm, **options).raw
        asked, searched = self.backend.options[-1], raw.get("nabla", {}) if isinstance(raw, dict) else {}
        return {**(self.backend.loaded or {}), **asked, **asked.get("options", {}), **searched}

    def events(self, llm: Any = None) -> Heard:
        """What instrumentation hears of one `chat`."""
        with listening() as heard:
            self.ask(llm=llm)
        return heard


@dataclass(frozen=True)
class Row:
    """A rule and its probe. What was `read` in the source of one integration, or of all `others`, is not run."""

    rules: str
    what: str
    probe: Callable[[Peer], Any]
    read: dict[str, str] = field(default_factory=dict)
    script: dict[str, Any] = field(default_factory=dict)
    tools: bool = False

    def cell(self, name: str, make: Make) -> str:
        """What the probe says, or the name of the error that it ended with; ʳ where it was read."""
        if read := self.read.get(name, self.read.get("others") if name != "nabla" else None):
            return f"{read} ʳ"
        peer, found = Peer(name, make, Backend(**self.script)), ["hangs"]
        if self.tools and not isinstance(peer.llm(), FunctionCallingLLM):
            return "no tools"
        thread = threading.Thread(target=lambda: found.insert(0, outcome(self.probe, peer)), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        return found[0]


async def responses(llm: Any, method: str, text: str = QUESTION, **options: Any) -> list[Any]:
    found = getattr(llm, method)(user(text) if "chat" in method else text, **options)
    found = await found if method.startswith("a") else found
    if method.startswith("astream"):
        return [chunk async for chunk in found]
    return list(found) if method.startswith("stream") else [found]


def user(text: str = QUESTION, **extra: Any) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text, additional_kwargs=extra)]


def said(response: Any) -> str:
    return (response.message.content if hasattr(response, "message") else response.text) or ""


def outcome(attempt: Callable[..., Any], *given: Any, good: str = "", **options: Any) -> str:
    """What it returns, as a cell has it, or `good`; the name of an error."""
    try:
        found = attempt(*given, **options)
    except Exception as e:
        return type(e).__name__
    if isinstance(found, tuple):
        return "; ".join(outcome(lambda part=part: part) for part in found)
    return good or (("yes" if found else "no") if isinstance(found, bool) else str(found))


def works(attempt: Callable[..., Any], *given: Any, **options: Any) -> bool:
    return outcome(attempt, *given, good="yes", **options) == "yes"


def which(ways: dict[str, dict[str, Any]], succeeds: Callable[[dict[str, Any]], Any]) -> str:
    """The first way, from the default to what a user would find, in which something succeeds."""
    for way, fields in ways.items():
        with contextlib.suppress(Exception):
            if succeeds(fields):
                return way
    return "no"


class Heard(BaseEventHandler):
    events: list[Any] = Field(default_factory=list)

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.events.append(event)

    def of(self, *names: str) -> list[Any]:
        return [event for event in self.events if type(event).__name__ in names]


class Failing(Heard):
    def handle(self, event: Any, **kwargs: Any) -> None:
        raise RuntimeError("a handler's own")


@contextlib.contextmanager
def listening(handler: Any = None) -> Iterator[Any]:
    handler, handlers = handler or Heard(), get_dispatcher().event_handlers
    handlers.append(handler)
    try:
        yield handler
    finally:
        handlers.remove(handler)
