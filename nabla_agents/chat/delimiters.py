"""Delimiters: the texts by which a model tells turns, calls and results apart, kept out of what others write."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, cast

from nabla_agents.chat.dialects import DIALECTS
from nabla_agents.errors import PromptError
from nabla_agents.types import Message

_OTHERS: Final = ("user", "tool")  # whose text may come from anyone
_SPELLED: Final = re.compile(
    r"<{1,2}[^\s<>{}'\"%]{1,40}>{1,2}|\[/?[A-Z_]{2,40}\]"
)  # in a template: `<|user|>`, `[INST]`
_OF_TOOLS: Final = ("<tools>", "</tools>", "<tool_response>", "</tool_response>")  # as `chat.template` writes them


@dataclass(frozen=True)
class Delimiters:
    """What a model reads as the frame of a conversation, and the same texts as mere text, by a `gap` after their first
    character.

    Only the chat template writes delimiters. Special tokens are kept out of every message, whoever has its role, since
    a system prompt may quote a document and an answer may repeat one; who wants them in a prompt gives it verbatim.
    Those that are no tokens of their own (`[INST]`, `</tool_response>`) are kept out of what users and tools write, of
    calls, and of what tools are said to be: names, descriptions, every text of their schemas.

    Args:
        special: the texts that the tokenizer reads as special tokens.
        template: the chat template, whose own literals are delimiters too.
    """

    special: Collection[str]
    template: str = ""
    gap: str = "\u200b"

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation without forged delimiters.

        Raises:
            PromptError: something within is nested too deeply.
        """
        return [self._message(message) for message in messages]

    def tools(self, tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
        """The tools without forged delimiters; None where there are none.

        Raises:
            PromptError: a schema is nested too deeply.
        """
        return [cast(dict[str, Any], _each_text(tool, self._framed)) for tool in tools] if tools else None

    def within(self, text: str) -> str:
        """The text with no special token in it."""
        return self._without(self._special, text)

    def _message(self, message: Message) -> Message:
        content = self._framed(message.content) if message.role in _OTHERS else self.within(message.content)
        extra = message.extra and _each_text(message.extra, self._framed)
        return Message(message.role, content, cast(Mapping[str, Any], extra))

    def _framed(self, text: str) -> str:
        return self._without(self._all, text)

    def _without(self, pattern: re.Pattern[str], text: str) -> str:
        return pattern.sub(lambda mark: mark[0][0] + self.gap + mark[0][1:], text)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return _any_of(self.special)

    @cached_property
    def _all(self) -> re.Pattern[str]:
        calls = [mark for dialect in DIALECTS.values() for mark in (dialect.begin, dialect.end)]
        return _any_of([*self.special, *calls, *_OF_TOOLS, *_SPELLED.findall(self.template)])


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    """Any of the texts, the longest first."""
    ordered = sorted({text for text in texts if len(text) > 1}, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def _each_text(value: Any, changed: Any) -> Any:
    """The value with all of its texts changed, keys too."""
    try:
        return _texts_of(value, changed)
    except RecursionError as e:
        raise PromptError("A tool, or what a message has beside its text, is nested too deeply to be written.") from e


def _texts_of(value: Any, changed: Any) -> Any:
    if isinstance(value, str):
        return changed(value)
    if isinstance(value, Mapping):
        pairs = cast(Mapping[Any, Any], value).items()
        return {_texts_of(key, changed): _texts_of(each, changed) for key, each in pairs}
    if isinstance(value, list | tuple):
        return [_texts_of(each, changed) for each in cast(Sequence[Any], value)]
    return value
