"""Where a completion ends by the local rules, whatever the server made of stop strings."""

from __future__ import annotations

from dataclasses import dataclass

from nabla_agents.errors import RolloutError
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.rows import RolloutJob, before_stop
from nabla_agents.rollouts.completions import Choice
from nabla_agents.types import FinishReason


@dataclass(frozen=True)
class Ending:
    """A completion's tokens up to its end, its text, and what ended it; None while nothing did."""

    ids: tuple[int, ...]
    text: str
    reason: FinishReason | None

    @property
    def finish(self) -> FinishReason:
        return self.reason or FinishReason.STOP


def ending(model: LanguageModel, job: RolloutJob, choice: Choice | None = None) -> Ending:
    """The job's prefix and what a server added: cut after the first token that ends it by the local rules, a
    terminal token or a stop string that may begin in the prefix. Else it ended as the server says.

    Raises:
        RolloutError: the server stopped, and what it stopped at is not among its tokens.
    """
    prefix = job.prefix_ids
    ids = prefix if choice is None else (*prefix, *choice.ids)
    first = max(len(prefix), 1)  # the end of the prefix may be one already
    for size in range(first, len(ids) + 1):
        if ids[size - 1] in model.eos_ids:
            return Ending(ids[:size], model.tokenizer.decode(ids[: size - 1]), FinishReason.STOP)
        if job.sampling.stop and (text := before_stop(model, job.sampling.stop, ids[:size])) is not None:
            return Ending(ids[:size], text, FinishReason.STOP)
    text = model.tokenizer.decode(ids)
    if len(ids) >= job.max_tokens:
        return Ending(ids, text, FinishReason.LENGTH)
    if choice is not None and choice.finish is FinishReason.STOP and not job.sampling.stop:
        raise RolloutError(
            f"The server stopped after {len(choice.ids)} tokens, none of which is one of the end tokens "
            f"{sorted(model.eos_ids)} of {model.name}; expected token_ids with the token that ended the completion, "
            "and a server of the same model."
        )
    return Ending(ids, text, None if choice is None else choice.finish)
