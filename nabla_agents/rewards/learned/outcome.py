"""Outcome reward models: one score for a whole answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from nabla_agents.errors import ConfigurationError, ModelLoadError, NablaError
from nabla_agents.functional import wide
from nabla_agents.rewards.learned.formats import SEQUENCE_CLASSIFICATION, OutcomeFormat
from nabla_agents.rewards.learned.head_reward import HeadReward, Script
from nabla_agents.rewards.learned.heads import HeadedModel, check_head, found_head, width_of
from nabla_agents.rewards.learned.passes import Pass
from nabla_agents.rewards.learned.reading import Part, Reading, framed
from nabla_agents.types import Prompt, Rollout, Score


class OutcomeReward(HeadReward):
    """One unbounded score per completion, read at the conversation's last token in the model's own chat template.

    Where `format.output` names another attribute than `logits`, the score is read from the model's own forward pass;
    then there is a gradient only if that pass takes embeddings in place of ids, which is tried once on construction.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        format: OutcomeFormat = SEQUENCE_CLASSIFICATION,
        min_coverage: float = 0.5,
        name: str = "",
    ) -> None:
        self.format = _format(format)
        self._whole = format.output != "logits"
        head = nn.Identity() if self._whole else found_head(module)
        if not self._whole and width_of(head) != 1:
            raise ConfigurationError(_width_error(name or type(module).__name__, width_of(head)))
        super().__init__(module, tokenizer, head, max_length=format.max_length, min_coverage=min_coverage, name=name)
        if self._whole:
            self.differentiable = self._takes_embeddings()
        else:
            check_head(self.transformer, head)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        format: OutcomeFormat = SEQUENCE_CLASSIFICATION,
        min_coverage: float = 0.5,
        **loading: Any,
    ) -> OutcomeReward:
        """Loads a sequence classification model with one label, or what `format` declares; options as in `Loading`.

        Raises:
            ConfigurationError, ModelLoadError: before any weight is loaded where possible.
        """
        _format(format)

        def check(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
            declared = config.num_labels
            if (format.head, format.output, declared == 1) == ("linear", "logits", False):
                raise ConfigurationError(_width_error(str(name), declared))

        auto_class = HeadedModel("two-layer", 1) if format.head == "two-layer" else AutoModelForSequenceClassification
        module, tokenizer = cls._load(name, auto_class, {**loading}, check)
        return cls(module, tokenizer, format=format, min_coverage=min_coverage, name=str(name))

    def _script(self, prompt: Prompt, text: str, *, ended: bool) -> Script:
        same = self._bound is not None and self._bound.same_template
        head, closing = framed(self.tokenizer, prompt, system=self.format.system, as_written=same)
        closing = closing if ended else ""
        if not (text or closing):
            return Script(problem="found nothing to judge in an empty completion")
        answer = Part(text, 0, marked=not closing)
        return Script((Part(head), answer, Part(closing, marked=bool(closing))))

    def _value(self, outputs: Float[Tensor, "n labels"], reading: Reading) -> tuple[Float[Tensor, ""], Score]:
        value = outputs[-1, 0]
        return value, Score(float(value.detach()))

    # ── a score that the model's own forward pass computes ────────────────────────────────────────────────────────

    def _run(self, readings: Sequence[Reading], prompts: Sequence[Prompt], starts: Sequence[int] | None) -> Pass:
        if not self._whole:
            return super()._run(readings, prompts, starts)
        # One text at a time: how a model of this kind treats padding is not known.
        lengths = [len(r.ids) for r in readings]
        ids = [torch.tensor([r.ids], device=self.transformer.device) for r in readings]
        if starts is None:
            return Pass([self._own_score(input_ids=row) for row in ids], [], lengths, [0] * len(lengths))
        embedded = [self.transformer.embed(row).detach() for row in ids]
        leaves = [row[:, start:].clone().requires_grad_() for row, start in zip(embedded, starts, strict=True)]
        with torch.enable_grad():
            outputs = [
                self._own_score(inputs_embeds=torch.cat([row[:, :start], leaf], dim=1))
                for row, leaf, start in zip(embedded, leaves, starts, strict=True)
            ]
        return Pass(outputs, leaves, lengths, lengths)

    def _own_score(self, **inputs: Tensor) -> Float[Tensor, "one one"]:
        [given] = inputs.values()
        mask = torch.ones(given.shape[:2], dtype=torch.long, device=given.device)
        output: Any = self.transformer.module(**inputs, attention_mask=mask)
        score = getattr(output, self.format.output, None)
        if not isinstance(score, Tensor) or score.numel() != 1:
            shape = tuple(score.shape) if isinstance(score, Tensor) else score
            known = ", ".join(k for k, v in vars(output).items() if v is not None)
            raise ModelLoadError(
                f"The output of {self.label} has {shape!r} as `{self.format.output}`; expected one number for one "
                f"text. It has: {known}. Name the attribute of the score in OutcomeFormat(output=...)."
            )
        return wide(score).reshape(1, 1)

    @torch.no_grad()
    def _takes_embeddings(self) -> bool:
        reading = self.reading(Rollout.from_text("1 + 1 = ?", "2"))
        ids = torch.tensor([reading.ids], device=self.transformer.device)
        expected = self._own_score(input_ids=ids)
        try:
            got = self._own_score(inputs_embeds=self.transformer.embed(ids))
        except NablaError:
            raise
        except Exception:  # code that a checkpoint ships fails in its own way without ids
            return False
        return torch.allclose(got, expected, rtol=2e-2, atol=2e-2)


def _format(format: object) -> OutcomeFormat:
    if not isinstance(format, OutcomeFormat):
        raise ConfigurationError(f"OutcomeReward got format {format!r}; expected an OutcomeFormat, or a preset of it.")
    return format


def _width_error(name: str, width: int) -> str:
    return (
        f"OutcomeReward needs a head with one label; {name} has {width}. Choose a reward model, or a ProcessReward for "
        "one that scores steps."
    )
