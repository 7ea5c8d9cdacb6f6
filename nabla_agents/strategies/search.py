"""The live state of one request: what was spent, what was found, and the three operations a strategy has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from nabla_agents.config import Sampling
from nabla_agents.errors import RewardError, RolloutError
from nabla_agents.models.carriers import LikelihoodCarrier
from nabla_agents.models.decoding import Decoding, RolloutBackend, RolloutJob
from nabla_agents.models.language_model import LanguageModel, LikelihoodGradient
from nabla_agents.models.memory import in_halves
from nabla_agents.models.prompt_caches import PrefixCache
from nabla_agents.objective import Objective, ObjectiveGradient
from nabla_agents.outcome import outcome_credit
from nabla_agents.pool import AcceptanceRule, Pool, Scored
from nabla_agents.positions import Proposal
from nabla_agents.types import Budget, FinishReason, Prompt, Rollout, Score, TokenGain, Usage

ResultT = TypeVar("ResultT")

ROLLOUT = ("rollouts", "generated_tokens", "reward_calls", "flops", "seconds")
GRADIENT = ("gradient_passes", "flops", "seconds")


class Worker(Protocol):
    """Runs a search's operations; batch-first, so that the operations of several searches can be joined."""

    @property
    def tools_judge(self) -> bool:
        """Whether scores come from tools alone, and so need neither models nor their device."""
        ...

    def prefill(self, prompts: Sequence[Prompt]) -> list[tuple[PrefixCache, Usage]]: ...

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]: ...

    def decoding(self) -> Decoding | None: ...

    def score(self, rollouts: Sequence[Rollout]) -> list[Score | None]: ...

    def score_prefixes(self, rollouts: Sequence[Rollout]) -> list[Score | None]: ...

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

    def compute(self, task: Callable[[], ResultT]) -> ResultT:
        """What a task returns; for arithmetic on the rows of one rollout. It must not ask for other operations."""
        ...


class LocalWorker:
    """Runs operations at once: rollouts on a backend, scores and gradients on the objective; what does not fit into
    memory in halves.
    """

    def __init__(self, objective: Objective, backend: RolloutBackend) -> None:
        self._objective, self._backend = objective, backend
        self.prefill = objective.model.prefill

    @property
    def tools_judge(self) -> bool:
        return self._objective.reward is not None and not self._objective.reward.learned

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]:
        return in_halves(self._rollout, jobs)

    def decoding(self) -> Decoding | None:
        """A batch of rollouts that grows and shrinks as it is written; None where the backend has none."""
        return self._backend.decoding() if isinstance(self._backend, LanguageModel) else None

    def score(self, rollouts: Sequence[Rollout]) -> list[Score | None]:
        return in_halves(self._objective.score, rollouts)

    def score_prefixes(self, rollouts: Sequence[Rollout]) -> list[Score | None]:
        return in_halves(self._objective.score_prefixes, rollouts)

    def states(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], caches: Sequence[PrefixCache | None]
    ) -> list[LikelihoodGradient]:
        return in_halves(self._objective.states, rollouts, starts, caches)

    def gradient(
        self,
        rollouts: Sequence[Rollout],
        scores: Sequence[Score | None],
        starts: Sequence[int],
        caches: Sequence[PrefixCache | None],
    ) -> list[ObjectiveGradient]:
        return in_halves(self._objective.gradient, rollouts, scores, starts, caches)

    def compute(self, task: Callable[[], ResultT]) -> ResultT:
        return task()

    def _rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]:
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
        self._gradient: tuple[Scored, int, ObjectiveGradient] | None = None
        self._noted: tuple[Scored, list[TokenGain]] | None = None

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
        """The objective's gradient at every position from `start` on: one gradient pass, none for the entry of the
        last one.

        `outcome_weight` nats for each unit of what the pool's tool verdicts say of the tokens tried (`outcome_credit`).
        """
        self._check_cancelled()
        known = self._gradient
        if known is not None and known[0] is entry and known[1] <= start:
            gradient = known[2]
        else:
            [gradient] = self.worker.gradient([entry.rollout], [entry.score], [start], [self._prompt_cache()])
            self._usage = self._usage + gradient.usage
            self._gradient = (entry, start, gradient)
        judged = [(e.rollout, e.score) for e in self.pool]
        return gradient.plus(outcome_credit(entry.rollout.completion_ids, start, judged), outcome_weight)

    def note(self, entry: Scored, proposals: Sequence[Proposal]) -> None:
        """Keeps what a gradient says of a completion's tokens for the next step, which shows it."""
        located = self.model.tokenizer.token_offsets(entry.rollout.completion_ids)
        gains = [
            TokenGain(*located[p.position], self.model.tokenizer.token_text(p.new), p.predicted_gain) for p in proposals
        ]
        before = self._noted[1] if self._noted is not None and self._noted[0] is entry else []
        self._noted = entry, before + gains

    def noted(self) -> tuple[TokenGain, ...]:
        """What was kept by `note` since it was last asked for."""
        noted, self._noted = self._noted, None
        return () if noted is None else tuple(noted[1])

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

    def prefix_gains(self, entry: Scored, proposals: Sequence[Proposal]) -> list[float | None]:
        """By how much each change makes the objective of the text up to it better, in nats; None where the reward
        cannot judge unfinished text. One batch, two reward calls a change.
        """
        self._check_cancelled()
        changed = [self._prefix(entry.rollout, p.position, p.new, p.log_odds) for p in proposals]
        written = [self._prefix(entry.rollout, p.position, p.old, 0.0) for p in proposals]
        scores = self.worker.score_prefixes([*changed, *written])
        self._usage = sum((s.usage for s in scores if s is not None), self._usage)
        weight, half = self.objective.likelihood_weight, len(proposals)
        return [
            None if a is None or b is None or not (a.judged and b.judged) else weight * p.log_odds + a.value - b.value
            for p, a, b in zip(proposals, scores[:half], scores[half:], strict=True)
        ]

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

    def _prefix(self, rollout: Rollout, position: int, token: int, log_odds: float) -> Rollout:
        """A rollout up to a position, with this token there; `log_odds` against the written one, in nats."""
        ids = (*rollout.completion_ids[:position], token)
        ended = token in self.model.eos_ids
        log_probs = None if rollout.log_probs is None else rollout.log_probs[: position + 1].clone()
        if log_probs is not None:
            log_probs[position] += log_odds
        return replace(
            rollout,
            completion_ids=ids,
            text=self.model.tokenizer.decode(ids[:-1] if ended else ids),
            log_probs=log_probs,
            finish_reason=FinishReason.STOP if ended else FinishReason.LENGTH,
        )

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
        known = self.pool.log_probs(prefix)
        return RolloutJob(self.prompt, prefix, sampling, room, self.uniforms(room), self._prompt_cache(), draft, known)

    def _prompt_cache(self) -> PrefixCache:
        """Keys and values of the prompt, read once per request."""
        if self._cache is None:
            [(self._cache, usage)] = self.worker.prefill([self.prompt])
            self._usage = self._usage + usage
        return self._cache

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled
