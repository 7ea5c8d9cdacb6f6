"""Directions by what a model is told: an answer read with a remark is compared with it read with a neutral one."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from nabla_agents.config import Settings
from nabla_agents.models.contrast import Contrast, check_same_tokens
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.search.direction import Addable, Directed
from nabla_agents.search.pool import Scored
from nabla_agents.search.remark import plain, with_remark
from nabla_agents.search.search import READING, Search
from nabla_agents.types import Prompt, Rollout


class ContrastDirection(Settings, Addable, ABC):
    """c_t(v) = β · [log π(v | prompt with the remark, y_<t) - log π(v | prompt with a neutral one, y_<t)].

    Two forwards over the completion, without gradient, in the ledger as reward tokens; the neutral prompt is read once
    in a search. Nothing is said where there is no remark, the prompt has no user turn, or the reader's context has no
    room: then the other directions of a sum go on without it, and alone the objective's own is taken.

    Args:
        model: who reads; None is the language model itself. Another one has to read the same tokens.
        beta: weight of the contrast, in nats for each nat.
        floor: nats below which a token's probability makes no difference (see `Contrast`).
        threshold: nats that a change has to gain to be worth a rollout; where none does, further openings are drawn as
            soon as the search may `reopen`. Roundings of bfloat16 come to a tenth of a nat.
        template: what is written behind the last user turn; it has `{remark}`, and may have `{answer}`.
        neutral: the remark of the other reading. It says nothing of the answer.
        most_characters: of a remark, and of an answer in the template; of a longer one the middle is left out.
    """

    kind: ClassVar[str]
    model: LanguageModel | None = None
    beta: Annotated[float, Field(gt=0)] = 1.0
    floor: Annotated[float, Field(gt=0)] | None = 16.0
    threshold: float = 0.25
    template: str
    neutral: str
    most_characters: Annotated[int, Field(ge=1)] = 2000

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, template: str) -> str:
        if "{remark}" not in template:
            raise ValueError("expected a text with {remark} in it")
        return template

    @property
    def name(self) -> str:
        """With the settings that are not the usual ones."""
        usual = type(self).model_fields
        own = [f"{key}={getattr(value, 'name', repr(value))}" for key, value in self if value != usual[key].default]
        return f"{self.kind}({', '.join(own)})" if own else self.kind

    @abstractmethod
    def remark(self, search: Search, entry: Scored) -> str:
        """What the model is told; empty where there is nothing to say."""

    def check(self, model: LanguageModel) -> None:
        """Raises VocabularyMismatchError where the reader has other tokens than the language model."""
        if self.model is not None:
            instead = "Read with the language model itself, or with one of its family."
            check_same_tokens(self.model, model, user=type(self).__name__, instead=instead)

    async def of(self, search: Search, entry: Scored, start: int, *, outcome_weight: float) -> Directed | None:
        contrast = await self.contrast(search, entry)
        if contrast is None:
            return None
        return Directed(lambda positions, _: contrast.rows(positions), explains=True, threshold=self.threshold)

    async def contrast(self, search: Search, entry: Scored) -> Contrast | None:
        """The two readings of a completion; those of the last one are kept."""
        remark = plain(self.remark(search, entry), self.most_characters)
        last: tuple[Scored, str, Contrast] | None = search.kept.get((self, "last"))
        if last is not None and last[0] is entry and last[1] == remark:
            return last[2]
        prompts = [self._prompt(search, entry, text) for text in (remark, self.neutral)] if remark else []
        rollouts = [replace(entry.rollout, prompt=prompt) for prompt in prompts if prompt is not None]
        model = self.model or search.model
        if len(rollouts) < 2 or not all(_fits(model, r) for r in rollouts) or search.exhausted(READING):
            return None
        first, second = await search.readings(rollouts, [model, model])
        contrast = Contrast(first, second, self.beta, self.floor)
        search.kept[self, "last"] = entry, remark, contrast
        return contrast

    def _prompt(self, search: Search, entry: Scored, remark: str) -> Prompt | None:
        """The search's prompt with the remark; one that many answers are read behind is kept."""
        answer = plain(entry.rollout.text, self.most_characters)
        texts = {"{remark}": remark, "{answer}": answer}
        appended = re.sub(r"\{remark\}|\{answer\}", lambda place: texts[place[0]], self.template)
        key = (self, "prompt")
        known: tuple[str, Prompt | None] | None = search.kept.get(key)
        if known is not None and known[0] == appended:
            return known[1]
        prompt = with_remark(search.model, search.prompt, appended)
        if remark == self.neutral:
            search.kept[key] = appended, prompt
        return prompt


class FeedbackDirection(ContrastDirection):
    """Steers by what a tool says of the answer (`Score.feedback`): by Bayes' rule the log-ratio of the two readings is
    how each token changes the odds of what the remark asks for, as far as the reader understands it.

    The remark speaks of this answer, not of others, so it steers and never accepts.
    """

    kind: ClassVar[str] = "feedback"
    template: str = "\n\nAn earlier answer was checked, and this was found:\n\n{remark}\n\nWrite an answer that passes."
    neutral: str = "(What was found is not available.)"

    def remark(self, search: Search, entry: Scored) -> str:
        score = entry.score
        return "" if score is None or not score.judged or score.verified else score.feedback


class PeerDirection(ContrastDirection):
    """Steers towards the best other answer of the pool, at the tokens where the paths part.

    One whose text is another, that is whole and judged, and whose verdict by tools is not worse.
    """

    kind: ClassVar[str] = "peer"
    template: str = "\n\nHere is a good answer to this:\n\n{remark}\n\nWrite such an answer in your own words."
    neutral: str = "(It is not available.)"
    most_characters: Annotated[int, Field(ge=1)] = 8000

    def remark(self, search: Search, entry: Scored) -> str:
        others = [e for e in search.pool if e.rollout.text != entry.rollout.text and _vouches(e, entry)]
        best = max(others, key=lambda e: e.rank(search.pool.rule), default=None)
        return "" if best is None else best.rollout.text


def _vouches(peer: Scored, entry: Scored) -> bool:
    """Whether it may be an example for the other."""
    if peer.rollout.cut or peer.score is None or not peer.score.judged:
        return False
    verdicts: list[Any] = [None if e.score is None else e.score.verdict for e in (peer, entry)]
    return None in verdicts or verdicts[0] >= verdicts[1]


def _fits(model: LanguageModel, rollout: Rollout) -> bool:
    return len(rollout.prompt.ids) + len(rollout.completion_ids) <= model.context_length
