"""Batched rollouts: completions sampled from different prefixes of different prompts, token by token or by drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from nabla_agents.config import Sampling
from nabla_agents.errors import GrammarError
from nabla_agents.functional import HEAD_CHUNK, choose_tokens, token_log_probs
from nabla_agents.models.constraint import Constraint, Mask, masked
from nabla_agents.models.prompt_caches import PrefixCache
from nabla_agents.models.transformer import Context
from nabla_agents.types import FinishReason, Prompt, Rollout, Usage

if TYPE_CHECKING:
    from nabla_agents.models.language_model import LanguageModel


FIRST_WINDOW, LARGEST_WINDOW = 4, 64  # guesses read at a time; doubled as long as all of them are right
MOST_MISSES = 3  # rounds in a row without a right guess, after which a draft is given up


@dataclass(frozen=True, eq=False)
class RolloutJob:
    """One completion to sample: `prefix_ids` of it are given, up to `max_tokens` (prefix included) may be.

    `uniforms` [max_tokens] are the job's own random numbers in [0, 1), the i-th for completion token i, so its text
    does not depend on what shares the batch. `cache` may hold keys and values of the prompt. `draft` guesses the
    tokens after the prefix, place by place: right guesses save decode steps, wrong ones change nothing. `known` are
    log π of the first prefix tokens as this backend once gave them, for one that does not read the prefix itself.
    """

    prompt: Prompt
    prefix_ids: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    uniforms: Tensor
    cache: PrefixCache | None = None
    draft: tuple[int, ...] = ()
    known: Float[Tensor, "time"] | None = None


class RolloutBackend(Protocol):
    """Whatever can sample completions: the local model, or a server."""

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]: ...


@dataclass(eq=False)
class _Row:
    """A completion being written."""

    job: RolloutJob
    ids: list[int]
    log_probs: list[float]
    computed_tokens: int = 0
    prefilled_tokens: int = 0
    constraint: Constraint | None = None
    finish: FinishReason | None = None
    text: str | None = None
    uniforms: list[float] = field(default_factory=list[float])
    window: int = FIRST_WINDOW
    misses: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0

    def guess(self) -> tuple[int, ...]:
        """What the draft has at the next places; one token more than the guess always fits."""
        if self.misses >= MOST_MISSES:
            return ()
        at, room = len(self.ids) - len(self.job.prefix_ids), self.job.max_tokens - len(self.ids) - 1
        return self.job.draft[at : at + min(self.window, room)]

    def judge(self, guess: Sequence[int], accepted: int) -> None:
        """Reads more at a time while guesses are right, and less, in the end nothing, while they are wrong."""
        self.draft_tokens += len(guess)
        self.accepted_draft_tokens += accepted
        self.misses = 0 if accepted else self.misses + 1
        self.window = min(2 * self.window, LARGEST_WINDOW) if accepted == len(guess) else FIRST_WINDOW


@torch.no_grad()
def rollout(model: LanguageModel, jobs: Sequence[RolloutJob]) -> list[Rollout]:
    """Samples all jobs together; finished rows leave the batch. Costs one prefill, and one forward per token that no
    draft has guessed.

    A guess is read together with the token before it and kept if it is the token that the job's own random number
    selects there. So a draft changes the cost of a completion, never the completion.
    """
    if not jobs:
        return []
    rows = [
        _Row(job, list(job.prefix_ids), [], constraint=_constraint(model, job), uniforms=job.uniforms.tolist())
        for job in jobs
    ]
    contexts = [(*job.prompt.ids, *job.prefix_ids) for job in jobs]
    longest = max(len(job.prompt.ids) + job.max_tokens for job in jobs)
    context, hidden = model.transformer.read(contexts, [job.cache for job in jobs], total_tokens=longest)
    for i, row in enumerate(rows):
        row.prefilled_tokens = row.computed_tokens = hidden.shape[1]
        row.log_probs = _prefix_log_probs(model, hidden[i], row.job.prefix_ids)
        if row.ids:
            _close_if_finished(model, row)
        if not model.transformer.within_window(longest):
            row.misses = MOST_MISSES  # rejected guesses leave gaps, which a sliding window would count
    active, hidden = _still_open(rows, list(range(len(rows))), context, hidden[:, -1:])
    guesses: list[tuple[int, ...]] = [()] * len(active)
    while active:
        taken = _take(model, [rows[i] for i in active], hidden, guesses)
        if any(guesses):
            context.keep(taken, hidden.shape[1])
        active, _ = _still_open(rows, active, context, hidden)
        if not active:
            break
        guesses = _evened([rows[i].guess() for i in active])
        hidden = _read_on(model, context, [rows[i] for i in active], guesses)
    return [_finished(model, row) for row in rows]


def _read_on(
    model: LanguageModel, context: Context, rows: Sequence[_Row], guesses: Sequence[tuple[int, ...]]
) -> Float[Tensor, "batch time hidden"]:
    """The states after each row's newest token and after each of its guesses."""
    fed = [(row.ids[-1], *guess) for row, guess in zip(rows, guesses, strict=True)]
    width = max(map(len, fed))
    for row in rows:
        row.computed_tokens += width
    device = model.transformer.device
    ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in fed], device=device)
    ragged = any(len(ids) < width for ids in fed)
    mask = torch.tensor([[i < len(ids) for i in range(width)] for ids in fed], device=device) if ragged else None
    return model.transformer.extend(context, ids=ids, mask=mask)


def _evened(guesses: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The guesses, cut where more than half of what is read would be padding of the rows that guess less."""
    width = 1 + max(map(len, guesses))
    while width > 1 and 2 * sum(min(1 + len(guess), width) for guess in guesses) < width * len(guesses):
        width -= 1
    return [guess[: width - 1] for guess in guesses]


def _take(
    model: LanguageModel,
    rows: Sequence[_Row],
    hidden: Float[Tensor, "batch time hidden"],
    guesses: Sequence[tuple[int, ...]],
) -> list[int]:
    """Appends to each row its right guesses and the token after them; how many of the tokens read each row keeps."""
    places = [(i, j) for i, guess in enumerate(guesses) for j in range(len(guess) + 1)]
    chosen = iter(_chosen(model, rows, hidden, places, _masks(rows, guesses)))
    kept: list[int] = []
    for row, guess in zip(rows, guesses, strict=True):
        drawn = [next(chosen) for _ in range(len(guess) + 1)]
        before = len(row.ids)
        for j, (token, log_prob) in enumerate(drawn):
            row.ids.append(token)
            row.log_probs.append(log_prob)
            if row.constraint is not None:
                row.constraint.take([token])
            _close_if_finished(model, row)
            if row.finish is not None or j == len(guess) or token != guess[j]:
                break
        accepted = len(row.ids) - before - 1  # one token a pass needs no guess
        if guess:
            row.judge(guess, accepted)
        kept.append(1 + accepted)
    return kept


def _prefix_log_probs(model: LanguageModel, hidden: Float[Tensor, "time hidden"], prefix: Sequence[int]) -> list[float]:
    """log π of the given tokens; the state before the prefix is the one that predicts its first token."""
    predicting = hidden[hidden.shape[0] - 1 - len(prefix) : hidden.shape[0] - 1]
    return model.log_probs(predicting, prefix).tolist()


def _chosen(
    model: LanguageModel,
    rows: Sequence[_Row],
    hidden: Float[Tensor, "batch time hidden"],
    places: Sequence[tuple[int, int]],
    masks: dict[tuple[int, int], Mask],
) -> list[tuple[int, float]]:
    """Token and log π for each (row, further token) place, by the row's own sampling, grammar and random numbers."""
    found: list[tuple[int, float]] = []
    for first in range(0, len(places), HEAD_CHUNK):
        chunk = places[first : first + HEAD_CHUNK]
        logits = model.head(hidden[[i for i, _ in chunk], [j for _, j in chunk]])
        drawn = [rows[i].uniforms[len(rows[i].ids) + j] for i, j in chunk]
        uniforms = torch.tensor(drawn, dtype=torch.float64, device=logits.device)
        choosable = masked(logits, [masks.get(place) for place in chunk])
        tokens = torch.empty(len(chunk), dtype=torch.long, device=logits.device)
        samplings = [rows[i].job.sampling for i, _ in chunk]
        for sampling in dict.fromkeys(samplings):
            mine = [k for k, other in enumerate(samplings) if other == sampling]
            tokens[mine] = choose_tokens(choosable[mine], sampling, uniforms[mine])
        found += zip(tokens.tolist(), token_log_probs(logits, tokens).tolist(), strict=True)
    return found


def _constraint(model: LanguageModel, job: RolloutJob) -> Constraint | None:
    """The job's grammar, where it has one, after the job's prefix."""
    if job.sampling.grammar is None:
        return None
    constraint = model.constraint(job.sampling.grammar)
    if constraint.take(job.prefix_ids) < len(job.prefix_ids):
        text = model.tokenizer.decode(job.prefix_ids)
        raise GrammarError(f"A completion cannot go on from {text!r}: its grammar does not have that beginning.")
    return constraint


def _masks(rows: Sequence[_Row], guesses: Sequence[tuple[int, ...]]) -> dict[tuple[int, int], Mask]:
    """What each row's grammar has at each (row, further token) place, as far as its guess keeps to it."""
    constrained = ((i, row.constraint) for i, row in enumerate(rows) if row.constraint is not None)
    return {
        (i, j): mask
        for i, constraint in constrained
        for j, mask in enumerate(constraint.masks(guesses[i], rows[i].job.max_tokens - len(rows[i].ids)))
    }


def _still_open(rows: Sequence[_Row], active: list[int], context: Context, tensor: Tensor) -> tuple[list[int], Tensor]:
    """Drops finished rows from the batch and from a tensor that is aligned with it."""
    kept = [k for k, i in enumerate(active) if rows[i].finish is None]
    if len(kept) < len(active) and kept:
        index = torch.tensor(kept, device=tensor.device)
        context.select(index)
        tensor = tensor[index]
    return [active[k] for k in kept], tensor


def _close_if_finished(model: LanguageModel, row: _Row) -> None:
    """A terminal token, a stop string, the end of its grammar or the length ends a row, in this order."""
    if row.ids[-1] in model.eos_ids:
        row.finish = FinishReason.STOP
    elif row.job.sampling.stop and (text := before_stop(model, row.job.sampling.stop, row.ids)) is not None:
        row.finish, row.text = FinishReason.STOP, text
    elif row.constraint is not None and row.constraint.complete:
        row.finish = FinishReason.STOP
    elif len(row.ids) >= row.job.max_tokens:
        row.finish = FinishReason.LENGTH


def before_stop(model: LanguageModel, stop: Sequence[str], ids: Sequence[int]) -> str | None:
    """The text before the first stop string, or None if the newest tokens complete none: only they are decoded."""
    window = max(len(s.encode()) for s in stop) + 8  # a token is at least one byte; margin for merged characters
    recent = model.tokenizer.decode(ids[-window:])
    if not any(s in recent for s in stop):
        return None
    text = model.tokenizer.decode(ids)
    ends = [text.find(s) for s in stop if s in text]
    return text[: min(ends)] if ends else None


def _finished(model: LanguageModel, row: _Row) -> Rollout:
    ids = tuple(row.ids)
    visible = ids[:-1] if ids and ids[-1] in model.eos_ids else ids
    usage = model.usage(prefill=row.prefilled_tokens, forward=row.computed_tokens - row.prefilled_tokens)
    return Rollout(
        prompt=row.job.prompt,
        completion_ids=ids,
        text=row.text if row.text is not None else model.tokenizer.decode(visible),
        log_probs=torch.tensor(row.log_probs, dtype=torch.float64),
        finish_reason=row.finish or FinishReason.STOP,
        usage=usage
        + Usage(
            rollouts=1,
            generated_tokens=len(ids) - len(row.job.prefix_ids),
            draft_tokens=row.draft_tokens,
            accepted_draft_tokens=row.accepted_draft_tokens,
        ),
    )
