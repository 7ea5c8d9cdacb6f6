"""Reply: a completion's text as an agent reads it, split into reasoning, content and tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, cast

from nabla_agents.chat.dialects import HERMES, Dialect
from nabla_agents.chat.tool_calls import ToolCall, bare_calls, may_become_calls

_LIST: Final = re.compile(r"\s*\[\s*")
_NEXT: Final = re.compile(r"\s*,?\s*")


@dataclass(frozen=True)
class Reply:
    """What a model thought, said and called. `content` is the whole text where there is neither thought nor call."""

    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.content or self.reasoning or self.tool_calls)

    @staticmethod
    def read(
        text: str,
        *,
        tools: bool | Collection[str] = False,
        thinking: bool = False,
        partial: bool = False,
        dialect: Dialect = HERMES,
    ) -> Reply:
        """A completion's text, read; never raises.

        A text that is calls of offered tools and nothing else, bare or within a fence, counts as these calls. Of calls
        that are the same, name and arguments, the first counts.

        Args:
            text: the completion.
            tools: the names of the tools that were offered, or whether some were; without, a marker is text like any
                other, and without names a bare call is.
            thinking: whether the prompt has opened the reasoning already, as some templates do.
            partial: the text is the beginning of a longer one: what could still become something else is held back,
                so that each part of this reply begins the same part of the whole text's reply.
            dialect: how the model writes calls and reasoning.
        """
        reasoning, rest = _thought(text, thinking, partial, dialect.thought)
        if not tools:
            return Reply(_steady(rest) if partial else rest, reasoning)
        names = () if isinstance(tools, bool) else tools
        if names and not (dialect.begin and dialect.begin in rest):
            if partial and rest.strip() and may_become_calls(rest, names):
                return Reply("", reasoning)
            if not partial and (calls := bare_calls(rest, names)):
                return Reply("", reasoning, _worth_telling(calls))
            if not partial and not dialect.end and rest.strip() and may_become_calls(rest, names):
                return Reply("", reasoning, (ToolCall.read(rest),))  # its own form, cut or broken
        if not dialect.begin:
            return Reply(_steady(rest) if partial else rest, reasoning)
        content, *written = rest.split(dialect.begin)
        calls_read: list[ToolCall] = []
        for piece in written:
            raw, closed, after = piece.partition(dialect.end) if dialect.end else (piece, "", "")
            if closed or not partial:
                calls_read += _listed(raw) if dialect.several == "listed" else [ToolCall.read(raw)]
            content += after
        content = _steady(content, dialect.begin) if partial else content.rstrip() if written else content
        return Reply(content, reasoning, _worth_telling(calls_read))

    @staticmethod
    def opens_thinking(prompt_text: str, dialect: Dialect = HERMES) -> bool:
        """Whether a rendered prompt ends within the reasoning that the completion goes on with."""
        return prompt_text.rstrip().endswith(dialect.thought[0])


def _worth_telling(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """The calls without repetitions, as of small models that cannot stop, and behind a readable one without those that
    cannot be read themselves, such as one that was cut.
    """
    first = next((i for i, call in enumerate(calls) if call.error is None), len(calls))
    said = [(call.name, call.arguments) if call.error is None else None for call in calls]
    return tuple(call for i, call in enumerate(calls) if i <= first or (call.error is None and said[i] not in said[:i]))


def _listed(raw: str) -> list[ToolCall]:
    """The calls of a JSON list, the whole ones of one that was cut; what is no list is one call that says why."""
    calls, decoder = list[ToolCall](), json.JSONDecoder()
    place = _LIST.match(raw)
    if place is None:
        return [ToolCall.read(raw)]
    while raw[place.end() : place.end() + 1] not in ("", "]"):
        try:
            _, end = decoder.raw_decode(raw, place.end())
        except (ValueError, RecursionError):
            return [*calls, ToolCall.read(raw[place.end() :])]
        calls.append(ToolCall.read(raw[place.end() : end]))
        place = cast(re.Match[str], _NEXT.match(raw, end))
    return calls


def _thought(text: str, thinking: bool, partial: bool, markers: tuple[str, str]) -> tuple[str, str]:
    """Reasoning and what follows it."""
    begin, end = markers
    start = text.lstrip()
    if partial and begin.startswith(start):
        return "", ""
    if start.startswith(begin):
        inside = start[len(begin) :]
    elif thinking:
        inside = text
    else:
        return "", text
    reasoning, closed, rest = inside.partition(end)
    if closed:
        return reasoning.strip(), rest.lstrip()
    return (_steady(reasoning.lstrip(), end) if partial else reasoning.strip()), ""


def _steady(text: str, marker: str = "") -> str:
    """The part of a growing text that stays whatever follows: without trailing space and without half a marker."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            text = text[:-length]
            break
    return text.rstrip()
