"""What a reward model reads for one completion: its own ids, where they are read, which characters they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from nabla_agents.models.tokenizer import Tokenizer

Range = tuple[int, int]  # start and end characters


@dataclass(frozen=True)
class Part:
    """A piece of the text that is read.

    `origin` is where it begins in the completion, None for what the format adds. `marked`: the token in which it ends
    carries a score. `ids` are read as they are, in place of `text`.
    """

    text: str = ""
    origin: int | None = None
    marked: bool = False
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Script:
    """The text of one reading in parts, of which the first stands before the answer.

    `marked` is the token in which marked parts must end, None where it is any; `predicted`: the score stands where that
    token is predicted, one before it. `problem` says why there is nothing to read.
    """

    parts: tuple[Part, ...] = ()
    steps: tuple[Range, ...] = ()
    marked: int | None = None
    predicted: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Reading:
    """The ids that a reward model reads for one completion.

    `head` ids stand before anything of the completion, `closing` before the last part. The states of `read_at` are
    scored, one for each of `steps` (characters of the completion) in a process reward. `spans` are the characters of
    the completion that each id stands for, None for what the format added. `sources` has for each completion token of
    the language model that a reward is bound to the index of the one id that stands for the same characters, -1 where
    there is none. `problem` says why nothing can be judged.
    """

    ids: tuple[int, ...] = ()
    head: int = 0
    closing: int = 0
    read_at: tuple[int, ...] = ()
    steps: tuple[Range, ...] = ()
    spans: tuple[Range | None, ...] = ()
    sources: tuple[int, ...] = ()
    problem: str = ""

    @property
    def share(self) -> float:
        """Of the language model's tokens that the gradient reaches."""
        return sum(s >= 0 for s in self.sources) / max(len(self.sources), 1)


def read(tokenizer: Tokenizer, script: Script, written: Sequence[int] | None = None) -> Reading:
    """The script in ids: text that stands together is tokenised together. Special tokens that the completion spells
    (`<|im_end|>`) are read as text: else it could end its turn, and praise itself in the next.

    `written` are the ids in which the language model wrote the completion, of the same vocabulary. They stand for all
    parts with an origin, which must be the whole completion as it is.
    """
    if script.problem:
        return Reading(problem=script.problem)
    ids: list[int] = []
    spans: list[Range | None] = []
    marks: list[int] = []
    begins: list[int] = []  # the first token of each part
    for (as_ids, as_written), grouped in groupby(
        script.parts, key=lambda p: (bool(p.ids), written is not None and p.origin is not None)
    ):
        run = list(grouped)
        if as_ids:
            for part in run:
                begins.append(len(ids))
                ids += part.ids
                spans += [None] * len(part.ids)
                marks += [len(ids) - 1] if part.marked else []
            continue
        own = (list(written), tokenizer.token_offsets(written)) if as_written and written is not None else None
        texts = [p.text if p.origin is None or own else tokenizer.delimiters.within(p.text) for p in run]
        origins = [place for part, text in zip(run, texts, strict=True) for place in _origins(part, text)]
        run = [replace(part, text=text) for part, text in zip(run, texts, strict=True)]
        new, offsets = own or tokenizer.encode_located("".join(texts))
        end = 0
        for part in run:
            begins.append(len(ids) + (_first_beyond(offsets, end) if end else 0))  # special tokens have no text
            end += len(part.text)
            if part.marked:
                # Some tokenizers drop the space in which a template ends: then the last token it is.
                marks.append(len(ids) + min(_first_beyond(offsets, end - 1), len(offsets) - 1))
        ids += new
        spans += [_span(origins, start, stop) for start, stop in offsets]
    return Reading(
        ids=tuple(ids),
        head=begins[1],
        closing=begins[-1],
        read_at=tuple(m - script.predicted for m in marks),
        steps=script.steps,
        spans=tuple(spans),
        problem=_unmarked(tokenizer, script, [ids[m] for m in marks]),
    )


def _origins(part: Part, text: str) -> list[int | None]:
    """The character of the completion that each character of a part's `text`, as it is read, is; None for what is not
    its own.
    """
    if part.origin is None:
        return [None] * len(text)
    places, at = list[int | None](), 0
    for character in text:
        own = at < len(part.text) and character == part.text[at]
        places.append(part.origin + at if own else None)
        at += own
    return places


def _unmarked(tokenizer: Tokenizer, script: Script, marked: Sequence[int]) -> str:
    """Tokenizers may join a separator to its neighbours: then another token than declared would be read."""
    wrong = [] if script.marked is None else [i for i in marked if i != script.marked]
    if script.marked is None or not wrong:
        return ""
    expected, got = tokenizer.token_text(script.marked), ", ".join(repr(tokenizer.token_text(i)) for i in wrong)
    return f"found {got} where {expected!r} ends a step: the tokenizer joins it to the text"


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
