"""The conversation around an answer, as a reward model reads it: by its chat template, or by a format's own prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nabla_agents.errors import PromptError
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.types import Message, Prompt

_SLOT = "\x02{}\x03"  # stands for a text in a rendered template; no conversation has these control characters


def with_system(messages: Sequence[Message], system: bool | str) -> list[Message]:
    """The conversation with its own system prompts (True), with none (False), or with this one instead."""
    if system is True:
        return list(messages)
    rest = [m for m in messages if m.role != "system"]
    return [Message("system", system), *rest] if isinstance(system, str) else rest


def framed(tokenizer: Tokenizer, prompt: Prompt, *, system: bool | str, as_written: bool) -> tuple[str, str]:
    """The text before the answer and the text that closes it, by the chat template.

    The answer is a turn of its own where the template continues its generation prompt so, as reward models are
    trained; else it follows the generation prompt and ends with the end of sequence. `as_written`: the language model
    has the same template, so that a prompt which its messages do not give alone (one with tools, say) is kept.

    Raises:
        PromptError: the template refuses the conversation, or does not show the answer once.
    """
    if not prompt.messages or not tokenizer.hf.chat_template:
        return with_one_bos(tokenizer, prompt.text or plain_text(prompt)), tokenizer.eos
    messages = with_system(prompt.messages, system)
    opened = tokenizer.render(messages)
    [head, closing] = rendered_around(tokenizer, [*messages, Message("assistant", slot(0))], 1)
    if not head.startswith(opened):
        head, closing = opened, tokenizer.eos
    if as_written and system is True and prompt.text and prompt.text != opened:
        head = prompt.text
    return with_one_bos(tokenizer, head), closing


def slot(i: int) -> str:
    """A text that stands for the i-th text to be filled in."""
    return _SLOT.format(i)


def rendered_around(tokenizer: Tokenizer, messages: Sequence[Message], count: int) -> list[str]:
    """The rendered conversation, cut at its `count` slots, which must come once each and in order.

    Raises:
        PromptError: they do not, or the template refuses the conversation.
    """
    rendered = tokenizer.render(messages, add_generation_prompt=False)
    pattern = _SLOT.format(r"(\d+)")
    if re.findall(pattern, rendered) != [str(i) for i in range(count)]:
        raise PromptError(
            f"The chat template of {tokenizer.name} does not show each turn's content once and in order, so the answer "
            "cannot be found in it. Choose a format with a `prompt` of its own, or correct the template."
        )
    return re.split(pattern.replace("(", "(?:"), rendered)


def with_one_bos(tokenizer: Tokenizer, text: str) -> str:
    """Text that begins with one beginning-of-sequence token where the template or the tokenizer writes one.

    Templates write it and tokenizers add it: both together double it, which no model was trained on.
    """
    if not tokenizer.bos:
        return text
    bare = text
    while bare.startswith(tokenizer.bos):
        bare = bare.removeprefix(tokenizer.bos)
    return tokenizer.bos + bare if bare != text or tokenizer.adds_bos else text


def plain_text(prompt: Prompt) -> str:
    """All turns of a conversation as plain text, for formats that know no turns; the system prompt is left out."""
    return "\n\n".join(m.content for m in prompt.messages if m.role != "system") or prompt.text


def filled(template: str, tokenizer: Tokenizer, prompt: Prompt) -> str:
    """A format's own prompt with the question in it."""
    question = tokenizer.delimiters.within(plain_text(prompt))
    text = template.replace("{bos}", tokenizer.bos).replace("{question}", question)
    return with_one_bos(tokenizer, text)
