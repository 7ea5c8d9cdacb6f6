"""Process reward models: one score per step, aggregated to one value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nabla_agents.errors import ConfigurationError
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.rewards.learned.aggregation import AGGREGATIONS, Aggregation
from nabla_agents.rewards.learned.aggregation import aggregation as aggregation_of
from nabla_agents.rewards.learned.formats import TRL_PRM, StepFormat, StepTokens, step_tokens
from nabla_agents.rewards.learned.head_reward import HeadReward, Script
from nabla_agents.rewards.learned.heads import HeadedModel, VocabularyHead, check_head, found_head, width_of
from nabla_agents.rewards.learned.reading import (
    Part,
    Range,
    Reading,
    filled,
    framed,
    rendered_around,
    slot,
    step_ranges,
    with_one_bos,
    with_system,
    without_splits,
)
from nabla_agents.types import Message, Prompt, Score, Span


class ProcessReward(HeadReward):
    """A probability in [0, 1] that each step is right, aggregated to one value (in [0, 1], but for `log-product`).

    `format` declares what the model reads and where; the default is TRL's token classification, for which `separator`
    is short for `TRL_PRM.replace(split=separator)`. `aggregation` is a name, a `SoftMin`, or any function of the steps'
    log-probabilities [steps] that returns one number; the default is the format's. Scores of single steps are reported
    as spans with value 2p - 1.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        format: StepFormat | None = None,
        separator: str | None = None,
        aggregation: Aggregation | None = None,
        min_coverage: float = 0.5,
        name: str = "",
    ) -> None:
        self.format, self.aggregation = _settings(format, separator, aggregation)
        self._aggregate = aggregation_of(self.aggregation)
        label = name or type(module).__name__
        self._tokens = step_tokens(self.format, Tokenizer(tokenizer, name=label))
        head = _head(module, self.format, self._tokens, label)
        super().__init__(
            module, tokenizer, head, max_length=self.format.max_length, min_coverage=min_coverage, name=name
        )
        columns = (self._tokens.wrong, self._tokens.right)
        check_head(self.transformer, head, columns if self.format.head == "tokens" else None)  # type: ignore[arg-type]

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        format: StepFormat | None = None,
        separator: str | None = None,
        aggregation: Aggregation | None = None,
        min_coverage: float = 0.5,
        **loading: Any,
    ) -> ProcessReward:
        """Loads a model by its format: token classification with one or two labels unless another is given.

        Further options are those of `Loading`. The presets' models need no `trust_remote_code`.

        Raises:
            ConfigurationError: a token of the format that is not one, or a head of the wrong width; before weights.
            ModelLoadError: nothing to load, another kind of model, or code of its own without consent.
        """
        settings = _settings(format, separator, aggregation)

        def check(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
            step_tokens(settings[0], Tokenizer(tokenizer, name=str(name)))
            if settings[0].head == "classes" and config.num_labels not in (1, 2):
                raise ConfigurationError(_width_error(str(name), config.num_labels))

        module, tokenizer = cls._load(name, loader(settings[0]), {**loading}, check)
        return cls(
            module,
            tokenizer,
            format=settings[0],
            aggregation=settings[1],
            min_coverage=min_coverage,
            name=str(name),
        )

    # ── what is read ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _verbatim(self) -> bool:
        return self.format.separator is None and not self.format.turns

    def _script(self, prompt: Prompt, text: str, *, ended: bool) -> Script:
        ranges = step_ranges(text, self.format.split)
        if not ranges:
            return Script(problem="found no step in an empty completion")
        if self._verbatim:
            return self._as_written(prompt, text, ranges, ended)
        ranges = without_splits(text, ranges, self.format.split)
        inserted = self.format.separator
        if inserted is not None and any(inserted in text[start:end] for start, end in ranges):
            return Script(problem=f"found its own separator {inserted!r} within a step, which would be read as its end")
        parts = self._in_turns(prompt, text, ranges) if self.format.turns else self._separated(prompt, text, ranges)
        return Script(tuple(parts), tuple(ranges))

    def _as_written(self, prompt: Prompt, text: str, ranges: list[Range], ended: bool) -> Script:
        head, closing = self._frame(prompt)
        steps = [Part(text[start:end], start, marked=True) for start, end in ranges]
        rest = Part(text[ranges[-1][1] :], ranges[-1][1])
        return Script((Part(head), *steps, rest, Part(closing if ended else "")), tuple(ranges))

    def _separated(self, prompt: Prompt, text: str, ranges: list[Range]) -> list[Part]:
        head, _ = self._frame(prompt)
        apart, separator = self.format.apart, self._tokens.separator
        parts = [Part(ids=tuple(self.tokenizer.encode(head))) if apart else Part(head)]
        for i, (start, end) in enumerate(ranges):
            parts.append(Part(text[start:end], start))
            if apart and separator is not None:
                parts.append(Part(ids=(separator,), marked=True))
            else:
                parts.append(Part(self.format.separator or "", marked=True))
            if self.format.glue and i + 1 < len(ranges):
                glue = self.format.glue
                parts.append(Part(ids=tuple(self.tokenizer.encode(glue))) if apart else Part(glue))
        return parts

    def _in_turns(self, prompt: Prompt, text: str, ranges: list[Range]) -> list[Part]:
        """Steps as user turns, each answered by the right token; the first follows the question."""
        messages = with_system(prompt.messages or (Message("user", prompt.text),), self.format.system)
        question = f"{messages.pop().content} " if messages and messages[-1].role == "user" else ""
        for i in range(len(ranges)):
            messages += [Message("user", question + slot(2 * i)), Message("assistant", slot(2 * i + 1))]
            question = ""
        written = rendered_around(self.tokenizer, messages, 2 * len(ranges))
        parts = [Part(with_one_bos(self.tokenizer, written[0]))]
        for i, (start, end) in enumerate(ranges):
            parts += [
                Part(text[start:end], start),
                Part(written[2 * i + 1]),
                Part(self.format.right or "", marked=True),
            ]
            if i + 1 < len(ranges):
                parts.append(Part(written[2 * i + 2]))
        return parts

    def _frame(self, prompt: Prompt) -> tuple[str, str]:
        if self.format.prompt is not None:
            return filled(self.format.prompt, self.tokenizer, prompt), self.tokenizer.eos
        same = self._bound is not None and self._bound.same_template
        return framed(self.tokenizer, prompt, system=self.format.system, as_written=same)

    def _read_at(self, marks: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(m - 1 for m in marks) if self.format.turns else marks

    def _check(self, reading: Reading, marks: tuple[int, ...]) -> str:
        """Tokenisers may join the separator to its neighbours: then another token than declared would be read."""
        if self._tokens.marked is None:
            return ""
        wrong = [reading.ids[m] for m in marks if reading.ids[m] != self._tokens.marked]
        expected = self.tokenizer.token_text(self._tokens.marked)
        got = ", ".join(repr(self.tokenizer.token_text(i)) for i in wrong)
        return f"found {got} where {expected!r} ends a step: the tokenizer joins it to the text" if wrong else ""

    # ── what it means ─────────────────────────────────────────────────────────────────────────────────────────────

    def _value(self, outputs: Float[Tensor, "n labels"], reading: Reading) -> tuple[Float[Tensor, ""], Score]:
        one = outputs.shape[-1] == 1
        log_p = nn.functional.logsigmoid(outputs[:, 0]) if one else outputs.log_softmax(-1)[:, 1]
        value = self._aggregate(log_p)
        spans = tuple(
            Span(start, end, 2 * p - 1, explanation=f"step score {p:.3f}", credit=0.0)
            for (start, end), p in zip(reading.steps, log_p.detach().exp().tolist(), strict=True)
            if p == p  # a model may overflow
        )
        return value, Score(float(value.detach()), spans=spans)


def loader(format: StepFormat) -> Any:
    """What loads a format's models: one of transformers' auto classes, or one that is used like them."""
    return {
        "classes": AutoModelForTokenClassification,
        "two-layer": HeadedModel("two-layer", 2),
        "value": HeadedModel("value"),
        "tokens": AutoModelForCausalLM,
    }[format.head]


def _head(module: PreTrainedModel, format: StepFormat, tokens: StepTokens, label: str) -> nn.Module:
    if format.head == "tokens":
        assert tokens.wrong is not None
        assert tokens.right is not None
        return VocabularyHead(module, (tokens.wrong, tokens.right))
    head = found_head(module)
    if width_of(head) not in (1, 2):
        raise ConfigurationError(_width_error(label, width_of(head)))
    return head


def _settings(
    format: StepFormat | None, separator: str | None, aggregation: Aggregation | None
) -> tuple[StepFormat, Aggregation]:
    if not isinstance(format, StepFormat | None):
        raise ConfigurationError(f"ProcessReward got format {format!r}; expected a StepFormat, or a preset of it.")
    if format is not None and separator is not None:
        raise ConfigurationError("ProcessReward got a format and a separator; the format declares where steps end.")
    if separator == "" or not (aggregation is None or callable(aggregation) or aggregation in AGGREGATIONS):
        raise ConfigurationError(
            f"ProcessReward got separator {separator!r} and aggregation {aggregation!r}; expected a non-empty "
            f"separator and one of {', '.join(AGGREGATIONS)}, or a function."
        )
    format = format or (TRL_PRM if separator is None else TRL_PRM.replace(split=separator))
    return format, format.aggregation if aggregation is None else aggregation


def _width_error(name: str, width: int) -> str:
    return (
        f"ProcessReward needs a head with one or two labels; {name} has {width}. Choose a process reward model, or "
        "declare how its steps are scored in a StepFormat."
    )
