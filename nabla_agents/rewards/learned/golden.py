"""Stored scores of a reward model's reference route, and the test that this package gives the same."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nabla_agents.errors import ConfigurationError, RewardError
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.models.transformer import Transformer
from nabla_agents.rewards.learned.reading import Reading
from nabla_agents.types import Message, Rollout, Score

_TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_CLOSE = 0.1  # differences up to this are what another precision may give


@dataclass(frozen=True)
class GoldenCase:
    """One answer, its scores (one per step, or one in all), and the ids that were read for it, if they were stored."""

    question: str | tuple[Message, ...]
    answer: str
    scores: tuple[float, ...]
    ids: tuple[int, ...] = ()


class SelfTested(ABC):
    """A reward that can be held against stored scores: from its model card, its own code, or an earlier version."""

    label: str
    tokenizer: Tokenizer
    transformer: Transformer

    @abstractmethod
    def score(self, rollouts: Sequence[Rollout]) -> list[Score]: ...

    @abstractmethod
    def reading(self, rollout: Rollout) -> Reading: ...

    def record(self, path: str | Path, answers: Sequence[tuple[str | Sequence[Message], str]]) -> None:
        """Stores the scores of (question, answer) pairs as JSON for `self_test`. Cost: one forward per answer.

        Raises:
            RewardError: an answer cannot be judged.
        """
        cases = []
        for question, answer in answers:
            rollout = Rollout.from_text(question, answer)
            stored = question if isinstance(question, str) else [m.as_template_input() for m in question]
            ids = list(self.reading(rollout).ids)
            cases.append({"question": stored, "answer": answer, "scores": self._scores(rollout), "ids": ids})
        content = {"model": self.label, "dtype": str(self._dtype), "cases": cases}
        Path(path).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def self_test(self, path: str | Path, *, tolerance: float | None = None) -> float:
        """The largest difference from stored scores, relative where they exceed 1. Cost: one forward per case.

        The file is JSON: {"cases": [{"question": text or messages, "answer": text, "scores": [numbers]}]}; `ids` in a
        case, what the reference read, tell where another text was read. `tolerance` follows the model's dtype.

        Raises:
            RewardError: a difference beyond the tolerance; it says what differs and the likely causes.
            ConfigurationError: the file is not of this form.
        """
        allowed = _TOLERANCES.get(self._dtype, 1e-3) if tolerance is None else tolerance
        differences, complaints = [0.0], []
        for i, case in enumerate(golden_cases(path)):
            rollout = Rollout.from_text(case.question, case.answer)
            scores = self._scores(rollout)
            difference = _difference(scores, case.scores)
            differences.append(difference)
            if not difference <= allowed:
                cause = self._cause(case, scores, self.reading(rollout).ids)
                shown = [round(x, 4) for x in scores], [round(x, 4) for x in case.scores]
                complaints.append(f"case {i} ({case.answer[:40]!r}): got {shown[0]}, stored {shown[1]}. {cause}")
        if complaints:
            raise RewardError(
                f"{self.label} fails its golden scores in {len(complaints)} of {len(differences) - 1} cases, beyond "
                f"the tolerance {allowed:g}:\n" + "\n".join(complaints)
            )
        return max(differences)

    def _scores(self, rollout: Rollout) -> list[float]:
        [score] = self.score([rollout])
        if not score.judged:
            raise RewardError(f"{self.label} cannot judge {rollout.text[:40]!r}: {score.explanation}")
        return [(span.value + 1) / 2 for span in score.spans] or [score.value]

    @property
    def _dtype(self) -> torch.dtype:
        return self.transformer.embedding.weight.dtype

    def _cause(self, case: GoldenCase, scores: Sequence[float], ids: Sequence[int]) -> str:
        """The likeliest reason, from the ids that were read where they are known, else from the numbers."""
        if case.ids and tuple(ids) != case.ids:
            at = next((i for i, (a, b) in enumerate(zip(ids, case.ids, strict=False)) if a != b), None)
            at = min(len(ids), len(case.ids)) if at is None else at
            here, there = (self.tokenizer.token_text(x[at]) if at < len(x) else "nothing" for x in (ids, case.ids))
            bos = self.tokenizer.hf.bos_token_id
            where = "bos" if bos is not None and bos in (*ids[at : at + 1], *case.ids[at : at + 1]) else "text"
            likely = "one bos too many or too few" if where == "bos" else "system prompt, chat template or separator"
            return f"Another text is read: token {at} is {here!r}, stored {there!r}. Likely: {likely}."
        if len(scores) != len(case.scores):
            return f"{len(scores)} steps against {len(case.scores)}. Likely: the split rule or the separator."
        read = "" if case.ids else " separator, system prompt, bos,"
        if _difference([_sigmoid(x) for x in case.scores], scores) < 1e-3:
            return "Stored are logits. Likely: the reference does not apply the sigmoid or softmax."
        if _difference([_sigmoid(x) for x in scores], case.scores) < 1e-3:
            return "The stored scores are the sigmoid of these. Likely: a softmax or sigmoid applied once more."
        if _difference([1 - x for x in scores], case.scores) < 1e-3:
            return "Likely: the classes are swapped (right against wrong)."
        if _difference(scores, case.scores) <= _CLOSE:
            return f"The numbers are near. Likely: dtype (this model runs in {self._dtype})."
        return f"Likely, in this order:{read} the position that is read, softmax, other weights."


def golden_cases(path: str | Path) -> list[GoldenCase]:
    """The cases of a file.

    Raises:
        ConfigurationError: it is not there, or not of the form that `self_test` describes.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        cases = [_case(c) for c in content["cases"]]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigurationError(
            f"Cannot read golden scores from {str(path)!r}: {type(e).__name__}: {e}. Expected JSON as "
            '{"cases": [{"question": "...", "answer": "...", "scores": [0.9]}]}; `record` writes it.'
        ) from e
    if not cases or not all(c.scores for c in cases):
        raise ConfigurationError(f"{str(path)!r} has no golden scores; expected at least one case with scores.")
    return cases


def _case(stored: Mapping[str, Any]) -> GoldenCase:
    question = stored["question"]
    if not isinstance(question, str):
        question = tuple(Message(m["role"], m["content"]) for m in question)
    scores = tuple(float(x) for x in stored["scores"])
    return GoldenCase(question, str(stored["answer"]), scores, tuple(int(i) for i in stored.get("ids", ())))


def _difference(scores: Sequence[float], expected: Sequence[float]) -> float:
    """The largest, relative to scores beyond 1; infinite for another number of scores, or one that is no number."""
    if len(scores) != len(expected) or any(math.isnan(x) for x in (*scores, *expected)):
        return math.inf
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(scores, expected, strict=True))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, x))))
