"""What the local model does for completions that a server samples: says where they end, and reads log π of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nabla_agents.backends.completions import Choice
from nabla_agents.errors import RolloutError
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.memory import in_halves
from nabla_agents.models.rows import RolloutJob, before_stop
from nabla_agents.types import FinishReason, Rollout, Usage


@dataclass(frozen=True)
class Ending:
    """A completion's tokens up to its end, its text, and what ended it; None while nothing did."""

    ids: tuple[int, ...]
    text: str
    reason: FinishReason | None


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


def log_probs(
    model: LanguageModel, completions: Sequence[tuple[RolloutJob, Ending, Choice | None]]
) -> list[tuple[Float[Tensor, "time"], Usage]]:
    """log π of each whole completion, and what it cost to read here what neither its job knows nor its server gave:
    all after the known ones without a choice.
    """
    gaps: list[range] = []
    for job, end, choice in completions:
        prefix = min(len(job.prefix_ids), len(end.ids))
        known = 0 if job.known is None else min(len(job.known), prefix)
        gaps.append(range(known, len(end.ids) if choice is None else prefix))
    open_gaps = [i for i, gap in enumerate(gaps) if gap]
    unread = [(completions[i][0], completions[i][1].ids[: gaps[i].stop], gaps[i].start) for i in open_gaps]
    read_here = dict(zip(open_gaps, read(model, unread), strict=True))
    whole: list[tuple[Tensor, Usage]] = []
    for i, (job, end, choice) in enumerate(completions):
        nothing = torch.zeros(0, dtype=torch.float64)
        known = nothing if job.known is None else job.known[: gaps[i].start].double().cpu()
        between, usage = read_here.get(i, (nothing, Usage()))
        sampled = nothing if choice is None else torch.tensor(choice.log_probs, dtype=torch.float64)
        whole.append((torch.cat([known, between, sampled])[: len(end.ids)], usage))
    return whole


@dataclass(frozen=True, eq=False)
class _Read:
    log_probs: Tensor
    usage: Usage


def read(
    model: LanguageModel, completions: Sequence[tuple[RolloutJob, tuple[int, ...], int]]
) -> list[tuple[Float[Tensor, "time"], Usage]]:
    """log π of `ids[start:]` for each (job, ids, start), in nats, and the cost: one forward over all but prompts that
    were read; in halves where memory is short.
    """
    if not completions:
        return []
    rollouts = [Rollout(job.prompt, ids, "") for job, ids, _ in completions]
    starts = [start for *_, start in completions]

    def states(*columns: Sequence[Any]) -> list[_Read]:
        passes = model.likelihood_gradient(columns[0], columns[1], embedding_terms=False)
        tails = [r.completion_ids[start:] for r, start in zip(*columns, strict=True)]
        return [
            _Read(
                model.log_probs(p.gradient.hidden, tail).double().cpu(),
                p.usage + model.usage(rows=len(tail)),
            )
            for p, tail in zip(passes, tails, strict=True)
        ]

    return [(r.log_probs, r.usage) for r in in_halves(states, rollouts, starts)]
