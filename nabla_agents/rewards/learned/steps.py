"""The steps of an answer: where they end, how a reward model is shown them, what its scores of them come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.rewards.learned.formats import StepFormat, StepTokens
from nabla_agents.rewards.learned.framing import filled, framed, rendered_around, slot, with_one_bos, with_system
from nabla_agents.rewards.learned.reading import Part, Range, Script
from nabla_agents.types import Message, Prompt, Score, Span


@dataclass(frozen=True, eq=False)
class StepScoring:
    """Steps as a format shows them, and their probabilities aggregated to one value."""

    format: StepFormat
    tokens: StepTokens
    tokenizer: Tokenizer
    aggregate: Callable[[Tensor], Tensor]

    @property
    def verbatim(self) -> bool:
        return self.format.separator is None and not self.format.turns

    def script(self, prompt: Prompt, text: str, *, ended: bool, same_template: bool) -> Script:
        ranges = step_ranges(text, self.format.split)
        if not ranges:
            return Script(problem="found no step in an empty completion")
        if self.verbatim:
            head, closing = self._frame(prompt, same_template)
            steps = [Part(text[start:end], start, marked=True) for start, end in ranges]
            rest = Part(text[ranges[-1][1] :], ranges[-1][1])
            return Script((Part(head), *steps, rest, Part(closing if ended else "")), tuple(ranges))
        ranges = without_splits(text, ranges, self.format.split)
        inserted = self.format.separator
        if inserted is not None and any(inserted in text[start:end] for start, end in ranges):
            return Script(problem=f"found its own separator {inserted!r} within a step, which would be read as its end")
        steps = [Part(text[start:end], start) for start, end in ranges]
        if self.format.turns:
            return Script(self._in_turns(prompt, steps), tuple(ranges), marked=self.tokens.right, predicted=True)
        head, _ = self._frame(prompt, same_template)
        return Script(self._separated(head, steps), tuple(ranges), marked=self.tokens.separator)

    def _separated(self, head: str, steps: Sequence[Part]) -> tuple[Part, ...]:
        """Each step closed by the separator, as text or as ids."""
        separator = Part(self.format.separator or "", marked=True)
        if self.format.apart and self.tokens.separator is not None:
            separator = Part(ids=(self.tokens.separator,), marked=True)
        parts = [self._added(head)]
        for i, step in enumerate(steps):
            glue = [self._added(self.format.glue)] if self.format.glue and i + 1 < len(steps) else []
            parts += [step, separator, *glue]
        return tuple(parts)

    def _added(self, text: str) -> Part:
        return Part(ids=tuple(self.tokenizer.encode(text))) if self.format.apart else Part(text)

    def _in_turns(self, prompt: Prompt, steps: Sequence[Part]) -> tuple[Part, ...]:
        """Steps as user turns, each answered by the right token; the first follows the question."""
        messages = with_system(prompt.messages or (Message("user", prompt.text),), self.format.system)
        question = f"{messages.pop().content} " if messages and messages[-1].role == "user" else ""
        for i in range(len(steps)):
            messages += [Message("user", question + slot(2 * i)), Message("assistant", slot(2 * i + 1))]
            question = ""
        before, *between, _ = rendered_around(self.tokenizer, messages, 2 * len(steps))
        parts = [Part(with_one_bos(self.tokenizer, before))]
        answer = Part(self.format.right or "", marked=True)
        for i, step in enumerate(steps):
            parts += [step, Part(between[2 * i]), answer, *(Part(text) for text in between[2 * i + 1 : 2 * i + 2])]
        return tuple(parts)

    def _frame(self, prompt: Prompt, same_template: bool) -> tuple[str, str]:
        if self.format.prompt is not None:
            return filled(self.format.prompt, self.tokenizer, prompt), self.tokenizer.eos
        return framed(self.tokenizer, prompt, system=self.format.system, as_written=same_template)

    def value(self, outputs: Float[Tensor, "n labels"], steps: Sequence[Range]) -> tuple[Float[Tensor, ""], Score]:
        one = outputs.shape[-1] == 1
        log_p = nn.functional.logsigmoid(outputs[:, 0]) if one else outputs.log_softmax(-1)[:, 1]
        value = self.aggregate(log_p)
        spans = tuple(
            Span(start, end, 2 * p - 1, explanation=f"step score {p:.3f}", credit=0.0)
            for (start, end), p in zip(steps, log_p.detach().exp().tolist(), strict=True)
            if p == p  # a model may overflow
        )
        return value, Score(float(value.detach()), spans=spans)


def step_ranges(text: str, split: str) -> list[Range]:
    """Characters of each step with the split that ends it. Blank text between two splits ends nothing."""
    ends: list[int] = []
    for at in [*_begins(split, text), len(text)]:
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


def _begins(split: str, text: str) -> Iterator[int]:
    """Where each split begins."""
    at = text.find(split)
    while at >= 0:
        yield at
        at = text.find(split, at + len(split))
