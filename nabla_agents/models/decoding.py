"""Batched rollouts: completions sampled from different prefixes of different prompts, token by token or by drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from nabla_agents.errors import GrammarError, RolloutError
from nabla_agents.functional import HEAD_CHUNK, choose_each, token_log_probs
from nabla_agents.models.causal_model import CausalModel
from nabla_agents.models.constraint import Constraint, Mask, masked
from nabla_agents.models.rows import MOST_MISSES, RolloutJob, Row
from nabla_agents.models.transformer import Context
from nabla_agents.types import FinishReason, Rollout


class RolloutBackend(Protocol):
    """Whatever can sample completions: the local model, or a server."""

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]: ...


@dataclass(frozen=True)
class Checked:
    """A backend with its contract enforced: one rollout per job."""

    backend: RolloutBackend

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]:
        rollouts: object = self.backend.rollout(jobs)
        name = type(self.backend).__name__
        if not isinstance(rollouts, Sequence) or not all(isinstance(r, Rollout) for r in rollouts):
            raise RolloutError(f"{name} returned {rollouts!r}; expected a list of Rollout.")
        if len(rollouts) != len(jobs):
            raise RolloutError(f"{name} returned {len(rollouts)} rollouts for {len(jobs)} jobs; expected one each.")
        return list(rollouts)


class Decoding:
    """Completions that are written together: jobs join at any time, and leave as they finish.

    A guess of a draft is read together with the token before it and kept if it is the token that the job's own random
    number selects there. So neither a draft nor what shares the batch changes a completion, only its cost; in float32,
    that is: in half precision a rounding that depends on the batch may tip a token, and log π is of the reading (see
    `LanguageModel.reread`).
    """

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._rows: list[Row] = []  # those being written; the context has read all of each but its newest token
        self._context: Context | None = None

    def __len__(self) -> int:
        """How many completions are being written."""
        return len(self._rows)

    @property
    def joinable(self) -> bool:
        """Whether jobs may join now. Within a sliding window, joined rows would see each other's padding."""
        return not self._rows or self._model.transformer.sliding_window is None

    @torch.no_grad()
    def add(self, jobs: Sequence[RolloutJob]) -> list[Row]:
        """Reads the jobs' prefixes and chooses the token after each: one prefill. Returns their rows, which fill as
        steps are made. One whose prefix is not a beginning of what its grammar has ends with an error.
        """
        model = self._model
        rows = [_row(model, job) for job in jobs]
        longest = max(len(job.prompt.ids) + job.max_tokens for job in jobs)
        texts = [(*job.prompt.ids, *job.prefix_ids) for job in jobs]
        context, hidden = model.transformer.read(
            texts, [model.prefix(job.prompt) for job in jobs], total_tokens=longest
        )
        for row, log_probs in zip(rows, _prefix_log_probs(model, hidden, jobs), strict=True):
            row.prefilled_tokens = row.computed_tokens = hidden.shape[1]
            row.log_probs, row.computed_rows = log_probs, len(log_probs)
            if row.ids:
                row.close_if_finished(model)
            if not model.transformer.within_window(longest):
                row.misses = MOST_MISSES  # rejected guesses leave gaps, which a sliding window would count
        opened, hidden = _still_open(rows, context, hidden[:, -1:])
        if opened:
            _take(model, opened, hidden, [()] * len(opened))
            opened, _ = _still_open(opened, context, hidden)
        if opened and self._context is not None:
            context = model.transformer.joined([self._context, context])
        if opened:
            self._rows, self._context = self._rows + opened, context
        return rows

    def finished(self, row: Row) -> Rollout:
        """What became of a row that has ended."""
        return row.rollout(self._model)

    def drop(self, rows: Sequence[Row]) -> list[Rollout]:
        """What was written of rows that are given up, cut where they are; they leave the batch."""
        for row in rows:
            row.finish = FinishReason.LENGTH
        self._rows, _ = _still_open(self._rows, self._context, torch.empty(len(self._rows)))
        if not self._rows:
            self._context = None
        return [row.rollout(self._model) for row in rows]

    @torch.no_grad()
    def step(self) -> None:
        """One forward over the batch: each row gets a token, and as many more as its draft guessed right."""
        if self._context is None:
            return
        guesses = _evened([row.guess() for row in self._rows])
        hidden = _read_on(self._model, self._context, self._rows, guesses)
        taken = _take(self._model, self._rows, hidden, guesses)
        if any(guesses):
            self._context.keep(taken, hidden.shape[1])
        self._rows, _ = _still_open(self._rows, self._context, hidden)
        if not self._rows:
            self._context = None


def rollout(model: CausalModel, jobs: Sequence[RolloutJob]) -> list[Rollout]:
    """Samples all jobs together; finished rows leave the batch. Costs one prefill, and one forward per token that no
    draft has guessed.

    Raises:
        GrammarError: a prefix is not a beginning of what its grammar has, or from what was written no end is reached.
    """
    if not jobs:
        return []
    decoding = Decoding(model)
    rows = decoding.add(jobs)
    while decoding:
        decoding.step()
    if (error := next((row.error for row in rows if row.error is not None), None)) is not None:
        raise error
    return [row.rollout(model) for row in rows]


def _read_on(
    model: CausalModel, context: Context, rows: Sequence[Row], guesses: Sequence[tuple[int, ...]]
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
    model: CausalModel,
    rows: Sequence[Row],
    hidden: Float[Tensor, "batch time hidden"],
    guesses: Sequence[tuple[int, ...]],
) -> list[int]:
    """Appends to each row its right guesses and the token after them; how many of the tokens read each row keeps."""
    places = [(i, j) for i, guess in enumerate(guesses) for j in range(len(guess) + 1)]
    masks = _masks(rows, guesses)
    chosen = iter(_chosen(model, rows, hidden, places, masks))
    kept: list[int] = []
    for i, (row, guess) in enumerate(zip(rows, guesses, strict=True)):
        drawn = [next(chosen) for _ in range(len(guess) + 1)]
        row.computed_rows += len(drawn)
        before = len(row.ids)
        for j, (token, log_prob) in enumerate(drawn):
            row.ids.append(token)
            row.log_probs.append(log_prob)
            row.follow(token, masks.get((i, j)))
            row.close_if_finished(model)
            if row.finish is not None or j == len(guess) or token != guess[j]:
                break
        accepted = len(row.ids) - before - 1  # one token a pass needs no guess
        if guess:
            row.judge(guess, accepted)
        kept.append(1 + accepted)
    return kept


def _prefix_log_probs(
    model: CausalModel, hidden: Float[Tensor, "batch time hidden"], jobs: Sequence[RolloutJob]
) -> list[list[float]]:
    """log π of each job's given tokens; the state before a prefix is the one that predicts its first token."""
    last, lengths = hidden.shape[1] - 1, [len(job.prefix_ids) for job in jobs]
    predicting = torch.cat([hidden[i, last - length : last] for i, length in enumerate(lengths)])
    log_probs = model.log_probs(predicting, [token for job in jobs for token in job.prefix_ids])
    return [row.tolist() for row in log_probs.cpu().split(lengths)]


def _chosen(
    model: CausalModel,
    rows: Sequence[Row],
    hidden: Float[Tensor, "batch time hidden"],
    places: Sequence[tuple[int, int]],
    masks: dict[tuple[int, int], Mask],
) -> list[tuple[int, float]]:
    """Token and log π for each (row, further token) place, by the row's own sampling, grammar and random numbers."""
    pairs: list[Tensor] = []
    for first in range(0, len(places), HEAD_CHUNK):
        chunk = places[first : first + HEAD_CHUNK]
        logits = model.head(hidden[[i for i, _ in chunk], [j for _, j in chunk]])
        drawn = [rows[i].uniforms[len(rows[i].ids) + j] for i, j in chunk]
        uniforms = torch.tensor(drawn, dtype=torch.float64, device=logits.device)
        choosable = masked(logits, [masks.get(place) for place in chunk])
        tokens = choose_each(choosable, [rows[i].job.sampling for i, _ in chunk], uniforms)
        pairs.append(torch.stack([tokens.double(), token_log_probs(logits, tokens).double()], dim=1))
    # The only wait for the device in a step, whatever the batch; ids are whole numbers far below 2^53.
    return [(int(token), log_prob) for token, log_prob in torch.cat(pairs).tolist()]


def _row(model: CausalModel, job: RolloutJob) -> Row:
    try:
        return Row(job, list(job.prefix_ids), constraint=_constraint(model, job))
    except GrammarError as e:
        return Row(job, list(job.prefix_ids), error=e, finish=FinishReason.LENGTH)


def _constraint(model: CausalModel, job: RolloutJob) -> Constraint | None:
    """The job's grammar, where it has one, after the job's prefix."""
    if job.sampling.grammar is None:
        return None
    constraint = model.constraint(job.sampling.grammar)
    if constraint.take(job.prefix_ids) < len(job.prefix_ids):
        text = model.tokenizer.decode(job.prefix_ids)
        raise GrammarError(f"A completion cannot go on from {text!r}: its grammar does not have that beginning.")
    return constraint


def _masks(rows: Sequence[Row], guesses: Sequence[tuple[int, ...]]) -> dict[tuple[int, int], Mask]:
    """What each row's grammar has at each (row, further token) place, as far as its guess keeps to it."""
    constrained = ((i, row.constraint) for i, row in enumerate(rows) if row.constraint is not None)
    return {(i, j): mask for i, constraint in constrained for j, mask in enumerate(constraint.masks(guesses[i]))}


def _still_open(rows: Sequence[Row], context: Context | None, tensor: Tensor) -> tuple[list[Row], Tensor]:
    """Drops finished rows from the batch and from a tensor that is aligned with it; the last ones take their places."""
    kept = [i for i, row in enumerate(rows) if row.finish is None]
    if len(kept) == len(rows) or not kept:
        return [rows[i] for i in kept], tensor
    late = [i for i in kept if i >= len(kept)]
    order = [i if rows[i].finish is None else late.pop() for i in range(len(kept))]
    assert context is not None  # where rows are left, something was read
    context.select(order)
    return [rows[i] for i in order], tensor[torch.tensor(order, device=tensor.device)]
