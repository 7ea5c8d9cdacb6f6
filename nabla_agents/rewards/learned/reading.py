"""What a reward model reads for one completion: its own ids, where they are read, which characters they stand for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from nabla_agents.errors import PromptError
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.types import Message, Prompt

Range = tuple[int, int]  # start and end characters


@dataclass(frozen=True)
class Part:
    """A piece of the text that is read.

    `origin` is where it begins in the completion, None for what the format adds. `marked`: the token in which it ends
    scores a step. `ids` are read as they are, in place of `text`.
    """

    text: str = ""
    origin: int | None = None
    marked: bool = False
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reading:
    """The ids that a reward model reads for one completion.

    `head` ids stand before anything of the completion. The states of `read_at` are scored, one for each of `steps`
    (characters of the completion) in a process reward. `sources` has for each completion token of the language model
    the index of the one id that stands for the same characters, -1 where there is none. `problem` says why nothing can
    be judged.
    """

    ids: tuple[int, ...] = ()
    head: int = 0
    read_at: tuple[int, ...] = ()
    steps: tuple[Range, ...] = ()
    sources: tuple[int, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Encoded:
    """Parts as ids. `spans`: the characters of the completion that each id stands for, None for what the format added.
    `marks` are the indices of the tokens that score a step; `begins` that of the first token of each part.
    """

    ids: tuple[int, ...]
    spans: tuple[Range | None, ...]
    marks: tuple[int, ...]
    begins: tuple[int, ...]


def encode(tokenizer: Tokenizer, parts: Sequence[Part], written: Sequence[int] | None = None) -> Encoded:
    """The ids of parts: text that stands together is tokenised together.

    `written` are the ids in which the language model wrote the completion, of the same vocabulary. They stand for all
    parts with an origin, which must be the whole completion as it is.
    """
    ids: list[int] = []
    spans: list[Range | None] = []
    marks: list[int] = []
    begins: list[int] = []
    for kind, grouped in groupby(parts, key=lambda p: (bool(p.ids), written is not None and p.origin is not None)):
        run = list(grouped)
        if kind[0]:
            for part in run:
                begins.append(len(ids))
                ids += part.ids
                spans += [None] * len(part.ids)
                marks += [len(ids) - 1] if part.marked else []
            continue
        own = (list(written), tokenizer.token_offsets(written)) if kind[1] and written is not None else None
        new, offsets = own or tokenizer.encode_located("".join(p.text for p in run))
        origins = [None if p.origin is None else p.origin + i for p in run for i in range(len(p.text))]
        end = 0
        for part in run:
            begins.append(len(ids) + (_first_beyond(offsets, end) if end else 0))  # special tokens have no text
            end += len(part.text)
            if part.marked:
                # Some tokenizers drop the space in which a template ends: then the last token it is.
                marks.append(len(ids) + min(_first_beyond(offsets, end - 1), len(offsets) - 1))
        ids += new
        spans += [_span(origins, start, stop) for start, stop in offsets]
    return Encoded(tuple(ids), tuple(spans), tuple(marks), tuple(begins))


def _first_beyond(offsets: Sequence[Range], character: int) -> int:
    """The first token that ends after a character."""
    return next((i for i, (_, end) in enumerate(offsets) if end > character), len(offsets))


def _span(origins: Sequence[int | None], start: int, end: int) -> Range | None:
    """The characters of the completion that start:end of a text are, if they are that and nothing else."""
    if start >= end:
        return None
    first, last = origins[start], origins[end - 1]
    if first is None or last is None or last - first != end - 1 - start:
        return None
    return first, last + 1


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def step_ranges(text: str, split: str) -> list[Range]:
    """Characters of each step with the split that ends it. Blank text between two splits ends nothing."""
    ends: list[int] = []
    for at in [*_found(split, text), len(text)]:
        if text[ends[-1] if ends else 0 : at].strip():
            ends.append(min(at + len(split), len(text)))
    return list(zip([0, *ends], ends, strict=False))


def without_splits(text: str, steps: Sequence[Range], split: str) -> list[Range]:
    """The same steps without the splits, and the blank text, around them."""
    inner: list[Range] = []
    for start, end in steps:
        end -= len(split) if text[start:end].endswith(split) else 0
        while text.startswith(split, start):
            start += len(split)
        inner.append((start, end))
    return inner


def _found(split: str, text: str) -> Iterator[int]:
    """Where each split begins."""
    at = text.find(split)
    while at >= 0:
        yield at
        at = text.find(split, at + len(split))


# ── the conversation around the answer ────────────────────────────────────────────────────────────────────────────────

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
        return with_one_bos(tokenizer, prompt.text or asked(prompt)), tokenizer.eos
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


def asked(prompt: Prompt) -> str:
    """All turns of a conversation as plain text, for formats that know no turns; the system prompt is left out."""
    return "\n\n".join(m.content for m in prompt.messages if m.role != "system") or prompt.text


def filled(template: str, tokenizer: Tokenizer, prompt: Prompt) -> str:
    """A format's own prompt with the question in it."""
    text = template.replace("{bos}", tokenizer.bos).replace("{question}", asked(prompt))
    return with_one_bos(tokenizer, text)
