"""Refine: an answer and what is wrong with it go into the conversation, and it is written anew."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Final

from pydantic import Field, field_validator

from nabla_agents.config import Count, Settings
from nabla_agents.errors import PromptError
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.search.base import rollout_step, vouched
from nabla_agents.search.pool import AcceptanceRule, Pool, Scored
from nabla_agents.search.search import Search
from nabla_agents.types import FinishReason, Message, Prompt, Rollout, Span, Step

_REMARK: Final = "{remark}"


class Refine(Settings):
    """The model is told what a tool objects to (`Score.feedback`) and writes its answer anew, until a tool vouches, `n`
    completions are written, or nothing is said; the best of all by the acceptance rule is returned.

    The first is greedy, the others are sampled at `temperature`. Each of them is read behind the conversation, the
    newest answer and one further turn, `wording`, where `{remark}` stands for what was said. What is written is judged
    as an answer to the request: its log-likelihood is that behind the request's own prompt, as those of all entries of
    the pool, for one forward over the text.

    keep: where a tool says which place it refuses (a field, an equation), what stands before the first one is kept, and
        only the rest is written behind the remark; the whole answer, where that was tried and the same is kept again.

    No gradient pass. A verbatim prompt has no turns to go on with: a `PromptError`.
    """

    n: Count = 8
    temperature: Annotated[float, Field(ge=0)] = 0.7
    wording: str = f"A check of this answer says: {_REMARK}\n\nWrite the whole answer anew, with this put right."
    keep: bool = False
    rule: AcceptanceRule = "objective"

    @field_validator("wording")
    @classmethod
    def _has_the_remark(cls, value: str) -> str:
        if _REMARK not in value:
            raise ValueError(f"expected a text with {_REMARK}")
        return value

    def check(self, model: LanguageModel, prompt: Prompt) -> None:
        """Raises PromptError for a verbatim prompt."""
        if not prompt.messages:
            raise PromptError(
                "Refine goes on with the conversation, but the prompt is verbatim text; expected messages. Choose "
                "another strategy, such as BestOfN(n=8)."
            )

    @property
    def revises(self) -> bool:
        return self.n > 1

    async def steps(self, search: Search) -> AsyncIterator[Step]:
        prompt: Prompt | None = None
        prefix: tuple[int, ...] = ()
        kept: set[tuple[int, ...]] = {prefix}
        for i in range(self.n):
            rolled = await search.roll([prefix], temperature=self.temperature if i else 0.0, prompt=prompt)
            if not rolled or (best := search.pool.best()) is None:
                return
            [entry] = rolled
            yield rollout_step(search, entry, accepted=entry is best)
            if vouched(search, best):
                return
            if i + 1 == self.n or entry.score is None or not entry.score.feedback:
                return
            turn = self.wording.replace(_REMARK, entry.score.feedback)
            prompt = next_turn(search.model, search.prompt, entry.rollout.text, turn)
            if prompt is None:
                search.ended = (FinishReason.STOP, "the answer and the remark on it do not fit into the conversation")
                return
            if self.keep:
                prefix = before_refused(search.model, entry.rollout, entry.score.spans)
                prefix = () if prefix in kept else prefix
                kept.add(prefix)

    def select(self, pool: Pool) -> Scored | None:
        return pool.best()


def before_refused(model: LanguageModel, rollout: Rollout, spans: Sequence[Span]) -> tuple[int, ...]:
    """The tokens that end before the first place that a tool refuses; none where it names no place."""
    first = min((span.start for span in spans if span.value < 0), default=0)
    ends = [end for _, end in model.tokenizer.token_offsets(rollout.completion_ids)]
    return rollout.completion_ids[: sum(end <= first for end in ends)] if first else ()


def next_turn(model: LanguageModel, prompt: Prompt, answer: str, turn: str) -> Prompt | None:
    """The conversation with an answer and a further user turn, in which no delimiter counts as one; None where the
    template has no such turns, or the context no room.
    """
    try:
        first = model.prompt(prompt.messages).text
        longer = model.prompt([*prompt.messages, Message("assistant", answer), Message("user", turn)])
        if first != prompt.text and longer.text.startswith(first):  # it has tools, too, which only its text knows
            return model.prompt(prompt.text + longer.text[len(first) :], formatted=True)
    except PromptError:
        return None
    return longer
