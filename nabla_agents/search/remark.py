"""Remark: what a model is told of an answer, written into the conversation that it reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from nabla_agents.errors import PromptError
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.rewards.remark import readable
from nabla_agents.types import Message, Prompt

_HERE: Final = "\x1enabla-agents was here\x1e"  # no text of a conversation


def plain(text: str, most: int) -> str:
    """What can be read of the text, and of that at most so many characters: its beginning and its end."""
    text = "".join(readable(text)).strip()
    if len(text) <= most:
        return text
    gap = " [...] "[: max(0, most)]
    head = (most - len(gap) + 1) // 2
    return text[:head] + gap + text[len(text) - (most - len(gap) - head) :]


def with_remark(model: LanguageModel, prompt: Prompt, remark: str) -> Prompt | None:
    """The prompt with a text at the end of its last user turn, in which no delimiter counts as one.

    All else stays as it was written, tools and begun answers included. None where there is no user turn (a verbatim
    prompt), or no room for the text in the model's context.
    """
    last = max((i for i, m in enumerate(prompt.messages) if m.role == "user"), default=None)
    if last is None:
        return None
    messages = list(prompt.messages)
    messages[last] = replace(messages[last], content=messages[last].content + _HERE)
    try:
        after = model.rendered(messages, None).rpartition(_HERE)[2]
        if not prompt.text.endswith(after):
            return None
        [message] = model.tokenizer.delimiters.messages([Message("user", remark)])
        text = prompt.text[: len(prompt.text) - len(after)] + message.content + after
        ids = tuple(model.tokenizer.encode(text))
    except PromptError:
        return None
    return Prompt(prompt.messages, text, ids) if len(ids) < model.context_length else None
