"""Reply: a completion's text as an agent reads it, split into reasoning, content and tool calls."""

from __future__ import annotations

from dataclasses import dataclass

from nabla_agents.markers import CALL_BEGIN, CALL_END, REASONING_BEGIN, REASONING_END
from nabla_agents.tool_calls import ToolCall


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
    def read(text: str, *, tools: bool = False, thinking: bool = False, partial: bool = False) -> Reply:
        """A completion's text, read; never raises.

        Args:
            text: the completion.
            tools: whether tools were offered; without, a call marker is text like any other.
            thinking: whether the prompt has opened the reasoning already, as some templates do.
            partial: the text is the beginning of a longer one: what could still become something else is held back,
                so that each part of this reply begins the same part of the whole text's reply.
        """
        reasoning, rest = _thought(text, thinking, partial)
        if not tools:
            return Reply(_steady(rest) if partial else rest, reasoning)
        said, *written = rest.split(CALL_BEGIN)
        calls: list[ToolCall] = []
        for piece in written:
            raw, closed, after = piece.partition(CALL_END)
            if closed or not partial:
                calls.append(ToolCall.read(raw))
            said += after
        said = _steady(said, CALL_BEGIN) if partial else said.rstrip() if written else said
        return Reply(said, reasoning, tuple(calls))

    @staticmethod
    def opens_thinking(prompt_text: str) -> bool:
        """Whether a rendered prompt ends within the reasoning that the completion goes on with."""
        return prompt_text.rstrip().endswith(REASONING_BEGIN)


def _thought(text: str, thinking: bool, partial: bool) -> tuple[str, str]:
    """Reasoning and what follows it."""
    start = text.lstrip()
    if partial and REASONING_BEGIN.startswith(start):
        return "", ""
    if start.startswith(REASONING_BEGIN):
        inside = start[len(REASONING_BEGIN) :]
    elif thinking:
        inside = text
    else:
        return "", text
    reasoning, closed, rest = inside.partition(REASONING_END)
    if closed:
        return reasoning.strip(), rest.lstrip()
    return (_steady(reasoning.lstrip(), REASONING_END) if partial else reasoning.strip()), ""


def _steady(text: str, marker: str = "") -> str:
    """The part of a growing text that stays whatever follows: without trailing space and without half a marker."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            text = text[:-length]
            break
    return text.rstrip()
