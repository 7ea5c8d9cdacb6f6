"""The live state of one request: what was spent, what was found, and the three operations a strategy has."""

from __future__ import annotations

import threading
import time
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from jaxtyping import Bool
from torch import Tensor

from nabla_agents.config import Sampling
from nabla_agents.errors import RewardError, RolloutError
from nabla_agents.models.carriers import LikelihoodCarrier
from nabla_agents.models.decoding import RolloutBackend, RolloutJob
from nabla_agents.models.language_model import LanguageModel, LikelihoodGradient
from nabla_agents.models.transformer import PrefixCache
from nabla_agents.objective import Objective, ObjectiveGradient
from nabla_agents.outcome import outcome_credit
from nabla_agents.pool import AcceptanceRule, Pool, Scored
from nabla_agents.types import Budget, FinishReason, Prompt, Rollout, Score, Usage

ROLLOUT = ("rollouts", "generated_tokens", "reward_calls", "flops", "seconds")
GRADIENT = ("gradient_passes", "flops", "seconds")


class Worker(Protocol):
    """Runs a search's operations; batch-first, so that the operations of several searches can be joined."""

    def prefill(self, prompts: Sequence[Prompt]) -> list[tuple[PrefixCache, Usage]]: ...

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]: ...

    def score(self, rollouts: Sequence[Rollout]) -> list[Score | None]: ...

    def states(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], caches: Sequence[PrefixCache | None]
    ) -> list[LikelihoodGradient]: ...

    def gradient(
        self,
        rollouts: Sequence[Rollout],
        scores: Sequence[Score | None],
        starts: Sequence[int],
        caches: Sequence[PrefixCache | None],
    ) -> list[ObjectiveGradient]: ...


class LocalWorker:
    """Runs operations at once: rollouts on a backend, scores and gradients on the objective."""

    def __init__(self, objective: Objective, backend: RolloutBackend) -> None:
        self._backend = backend
        self.score, self.gradient, self.states = objective.score, objective.gradient, objective.states
        self.prefill = objective.model.prefill

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]:
        """The backend's rollouts with its contract enforced: one per job."""
        rollouts = self._backend.rollout(jobs)
        name = type(self._backend).__name__
        if not isinstance(rollouts, Sequence) or not all(isinstance(r, Rollout) for r in rollouts):
            raise RolloutError(f"{name} returned {rollouts!r}; expected a list of Rollout.")
        if len(rollouts) != len(jobs):
            raise RolloutError(f"{name} returned {len(rollouts)} rollouts for {len(jobs)} jobs; expected one each.")
        return list(rollouts)


class Cancelled(Exception):
    """The caller stopped the search; strategies let it pass."""


class Search:
    """One request's pool, ledger, budget and random numbers. Used by one thread; `cancel` may come from any."""

    def __init__(
        self,
        *,
        objective: Objective,
        worker: Worker,
        prompt: Prompt,
        sampling: Sampling,
        budget: Budget,
        seed: int,
        rule: AcceptanceRule = "objective",
        draft: tuple[int, ...] = (),
    ) -> None:
        self.objective, self.worker, self.prompt = objective, worker, prompt
        self.sampling, self.budget, self.seed = sampling, budget, seed
        self.pool = Pool(rule)
        self._draft = draft
        self.generator = torch.Generator().manual_seed(seed)
        self.ended: tuple[FinishReason, str] | None = None
        self._usage = Usage()
        self._started: float | None = None
        self._cancelled = threading.Event()
        self._cache: PrefixCache | None = None

    @property
    def model(self) -> LanguageModel:
        return self.objective.model

    @property
    def usage(self) -> Usage:
        """Everything spent so far, wall-clock seconds from the first operation on included."""
        return replace(self._usage, seconds=0.0 if self._started is None else time.perf_counter() - self._started)

    def cancel(self) -> None:
        """Stops the search before its next operation."""
        self._cancelled.set()

    def exhausted(self, spending: Sequence[str] = ROLLOUT) -> bool:
        """True once the budget refuses a `ROLLOUT` or `GRADIENT`; records the limit as the reason the search ended."""
        self._started = self._started or time.perf_counter()  # a search that waits for its turn spends nothing
        if self.objective.reward is None:
            spending = [name for name in spending if name != "reward_calls"]
        if (limit := self.budget.exhausted(self.usage, spending)) is None:
            return False
        self.ended = (FinishReason.BUDGET, limit)
        return True

    def roll(
        self,
        prefixes: Sequence[tuple[int, ...]],
        *,
        temperature: float,
        drafts: Sequence[tuple[int, ...]] | None = None,
    ) -> list[Scored]:
        """Completes each prefix, scores the completions, keeps them in the pool. One batch. `drafts` guess what
        follows each prefix, to save decode steps.

        The request's own temperature, if it has one, goes before `temperature`. Fewer than asked come back where the
        budget has less room; none, and the search counts as ended, where it has none.
        """
        if self.exhausted():
            return []
        if self._draft and not self.pool and not prefixes[0]:
            prefixes = [self._draft, *prefixes[1:]]  # the first completion is known already: it is only judged
        wanted, prefixes = len(prefixes), prefixes[: self._room(len(prefixes))]
        sampling = (
            self.sampling if self.sampling.temperature is not None else self.sampling.replace(temperature=temperature)
        )
        self._check_cancelled()
        guesses = drafts if drafts is not None else [()] * wanted
        jobs = [
            self._job(prefix, draft, sampling, len(prefixes)) for prefix, draft in zip(prefixes, guesses, strict=False)
        ]
        rollouts = self.worker.rollout(jobs)
        self._usage = sum((r.usage for r in rollouts), self._usage)
        self._check_cancelled()
        scores = self.worker.score(rollouts)
        if len(scores) != len(rollouts):
            raise RewardError(f"{len(scores)} scores came back for {len(rollouts)} rollouts; expected one each.")
        self._usage = sum((s.usage for s in scores if s is not None), self._usage)
        found = [Scored(r, s, self.objective.value(r, s)) for r, s in zip(rollouts, scores, strict=True)]
        for entry in found:
            self.pool.add(entry)
        if (len(found) < wanted or any(map(self._cut_short, rollouts))) and not self.exhausted():
            spent, allowed = self._usage.generated_tokens, self.budget.generated_tokens
            self.ended = (FinishReason.BUDGET, f"generated_tokens {spent}/{allowed}: too few for what was wanted")
        return found

    def gradient(self, entry: Scored, start: int, *, outcome_weight: float = 0.0) -> ObjectiveGradient:
        """The objective's gradient at every position from `start` on: one gradient pass.

        `outcome_weight` nats for each unit of what the pool's tool verdicts say of the tokens tried (`outcome_credit`).
        """
        self._check_cancelled()
        [gradient] = self.worker.gradient([entry.rollout], [entry.score], [start], [self._prompt_cache()])
        self._usage = self._usage + gradient.usage
        judged = [(e.rollout, e.score) for e in self.pool]
        return gradient.plus(outcome_credit(entry.rollout.completion_ids, start, judged), outcome_weight)

    def states(self, entry: Scored, start: int) -> LikelihoodCarrier:
        """The language model's own rows from `start` on: one forward, no gradient."""
        self._check_cancelled()
        [states] = self.worker.states([entry.rollout], [start], [self._prompt_cache()])
        self._usage = self._usage + states.usage
        return states.carrier

    def free(self, rollout: Rollout) -> Container[int]:
        """The places of a completion that the request's grammar leaves to the search; all of them without one."""
        grammar, ids = self.sampling.grammar, rollout.completion_ids
        if grammar is None or grammar.refine:
            return range(len(ids))
        spans = grammar.free(rollout.text)
        located = self.model.tokenizer.token_offsets(ids)
        return {i for i, (a, b) in enumerate(located) if any(start <= a < b <= end for start, end in spans)}

    def permitted(self, rollout: Rollout, positions: Sequence[int]) -> Bool[Tensor, "n vocab"] | None:
        """What the request's grammar has at ascending places of a completion; None without a grammar."""
        if self.sampling.grammar is None:
            return None
        constraint, at = self.model.constraint(self.sampling.grammar), 0
        masks: list[Tensor] = []
        for position in positions:
            constraint.take(rollout.completion_ids[at:position])
            masks.append(torch.from_numpy(constraint.mask()))
            at = position
        return torch.stack(masks)

    def uniforms(self, count: int) -> Tensor:
        """The request's next random numbers in [0, 1)."""
        return torch.rand(count, generator=self.generator)

    def committed_text(self, rollout: Rollout, tokens: int) -> str:
        """Text of the first tokens: always a prefix of the rollout's text, cut before a half-written character and
        before what another continuation could complete to a stop string.
        """
        text = self.model.tokenizer.decode(rollout.completion_ids[:tokens]).rstrip("\ufffd")
        beginnings = (stop[:length] for stop in self.sampling.stop for length in range(1, len(stop)))
        text = text[: len(text) - max((len(b) for b in beginnings if text.endswith(b)), default=0)]
        while not rollout.text.startswith(text):
            text = text[:-1]
        return text

    def _room(self, wanted: int) -> int:
        """How many rollouts the budget still allows; at least one token each. Requires a budget not exhausted."""
        if self.budget.rollouts is not None:
            wanted = min(wanted, self.budget.rollouts - self._usage.rollouts)
        if self.budget.generated_tokens is not None:
            wanted = min(wanted, self.budget.generated_tokens - self._usage.generated_tokens)
        return wanted

    @property
    def _longest(self) -> int:
        """Tokens that a completion may have by the context and the request, whatever the budget is."""
        room = self.model.context_length - len(self.prompt.ids)
        return room if self.sampling.max_tokens is None else min(room, self.sampling.max_tokens)

    def _cut_short(self, rollout: Rollout) -> bool:
        """Whether the budget, and nothing else, ended a rollout."""
        limited = self.budget.generated_tokens is not None and rollout.finish_reason is FinishReason.LENGTH
        return limited and len(rollout.completion_ids) < self._longest

    def _job(self, prefix: tuple[int, ...], draft: tuple[int, ...], sampling: Sampling, batch: int) -> RolloutJob:
        room = self._longest
        if self.budget.generated_tokens is not None:
            share = (self.budget.generated_tokens - self._usage.generated_tokens) // batch
            room = min(room, len(prefix) + share)
        room = max(room, len(prefix))  # a draft from elsewhere may be longer than the request's own answers
        return RolloutJob(self.prompt, prefix, sampling, room, self.uniforms(room), self._prompt_cache(), draft)

    def _prompt_cache(self) -> PrefixCache:
        """Keys and values of the prompt, read once per request."""
        if self._cache is None:
            [(self._cache, usage)] = self.worker.prefill([self.prompt])
            self._usage = self._usage + usage
        return self._cache

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled
