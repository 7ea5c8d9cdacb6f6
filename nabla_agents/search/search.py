"""The live state of one request: what was spent, what was found, and the operations that a strategy awaits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nabla_agents.config import MAX_TOKENS, Sampling
from nabla_agents.errors import RewardError
from nabla_agents.functional import likeliest
from nabla_agents.models.contrast import readings
from nabla_agents.models.decoding import RolloutBackend, RolloutJob
from nabla_agents.models.gradients import LikelihoodRows, Meter
from nabla_agents.models.growing_text import GrowingText, text_of
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.objective import Objective, ObjectiveGradient
from nabla_agents.request import Request
from nabla_agents.search import operation
from nabla_agents.search.credit import outcome_credit
from nabla_agents.search.operation import Cancelled, Operation, Writing, Written
from nabla_agents.search.pool import AcceptanceRule, Pool, Scored
from nabla_agents.search.positions import Proposal, prefix_with
from nabla_agents.search.room import cut_short, room, share
from nabla_agents.types import Budget, FinishReason, Prompt, Rollout, Score, Step, TokenGain, Usage

ROLLOUT = ("rollouts", "generated_tokens", "reward_calls", "flops", "seconds")
GRADIENT = ("gradient_passes", "flops", "seconds")
STOPPED = (FinishReason.INTERRUPTED, "stopped by the caller")
READING = ("flops", "seconds")  # limits that bind at any time, while rollouts are written too


class Search:
    """One request's pool, ledger, budget and random numbers. The scheduler's thread uses it; any may `cancel` it.

    `final` says that nothing will revise the first completion: then `tell` is given a step for each of its tokens,
    where someone is there to see it. `kept` is for parts of a strategy, which hold no state of their own.
    """

    def __init__(
        self,
        request: Request,
        *,
        objective: Objective,
        backend: RolloutBackend,
        budget: Budget,
        rule: AcceptanceRule = "objective",
        final: bool = False,
        draft: tuple[int, ...] | None = None,
    ) -> None:
        self.request, self.objective, self.budget = request, objective, budget
        self.prompt, self.sampling, self.seed = request.prompt, request.sampling, request.seed
        self.pool = Pool(rule, drafted=draft is not None, noise=objective.noise)
        self.generator = torch.Generator().manual_seed(request.seed)
        self.ended: tuple[FinishReason, str] | None = None
        self.tell: Callable[[Step], object] | None = None
        self.final = final
        self.kept: dict[Any, Any] = {}
        self._backend, self._draft = backend, draft
        self._usage, self._meter = Usage(), Meter()
        self._started: float | None = None
        self._cancelled = threading.Event()
        self._prompt_read = False
        self._gradient: tuple[Scored, int, ObjectiveGradient] | None = None
        self._noted: tuple[Scored, list[TokenGain]] | None = None
        self._calls = 0 if objective.reward is None else objective.reward.calls_per_completion

    @property
    def model(self) -> LanguageModel:
        return self.objective.model

    @property
    def usage(self) -> Usage:
        """Everything spent so far, wall-clock seconds from the first operation on included."""
        seconds = 0.0 if self._started is None else time.perf_counter() - self._started
        return replace(self._usage, seconds=seconds, flops=self._usage.flops + self._meter.flops)

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stops the search within one decode step."""
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

    def overdrawn(self, writing: Callable[[], Usage]) -> bool:
        """Whether the search has to end while rollouts are written, given what these have cost so far."""
        if self.cancelled:
            return True
        if self.budget.flops is None and self.budget.seconds is None:
            return False
        spent = self.usage if self.budget.flops is None else self.usage + writing()
        return self.budget.exhausted(spent, READING) is not None

    async def roll(
        self,
        prefixes: Sequence[tuple[int, ...]],
        *,
        temperature: float,
        drafts: Sequence[tuple[int, ...]] | None = None,
        prompt: Prompt | None = None,
        most: int | None = None,
    ) -> list[Scored]:
        """Completes each prefix, scores the completions, keeps them in the pool. One batch. `drafts` guess what
        follows each prefix, to save decode steps. With another `prompt`, the model reads that one; what it writes is an
        answer to the request's all the same, with the likelihood that it has there (one forward more). With `most`,
        parts of answers are written, of so many tokens at most, which nobody judges.

        The request's own temperature, if it has one, goes before `temperature`. Fewer than asked come back where the
        budget has less room, or ends while they are written; none, and the search counts as ended, where it has none.
        If the very first ones are cut off so, the longest of them is what the search has: cut, and not judged.
        """
        if self.exhausted():
            return []
        drafted = self._draft is not None and not self.pool and not prefixes[0]
        if self._draft is not None and drafted:
            prefixes = [await self._ended(self._draft), *prefixes[1:]]  # known already: it is only judged
        allowed = room(self.budget, self._usage, self.pool.best(), prefixes)
        wanted, prefixes = len(prefixes), prefixes[: allowed if most else self._callable(allowed, 1)]
        if not prefixes:
            self.ended = (FinishReason.BUDGET, self._too_few())
            return []
        sampling = self.sampling
        if sampling.temperature is None:
            sampling = sampling.replace(temperature=temperature)
        self._check_cancelled()
        guesses = drafts if drafts is not None else [()] * wanted
        await self._read_prompt()
        longest = min(self.longest(prompt), most or self.longest())
        each = share(self.budget, self._usage, len(prefixes))
        jobs = [
            self._job(prefix, draft, sampling, prompt, min(longest, len(prefix) + each))
            for prefix, draft in zip(prefixes, guesses, strict=False)
        ]
        if drafted and self.request.draft_cut:
            jobs[0] = replace(jobs[0], max_tokens=len(prefixes[0]))  # ends there, as what a limit cuts
        written = await self._written(jobs)
        if prompt is not None or (self.model.narrow and isinstance(self._backend, LanguageModel)):
            written = replace(written, ended=await self._reread(written.ended))
        self._usage = sum((r.usage for r in written.ended), self._usage)
        self._usage = sum((replace(r.usage, rollouts=0) for r in written.given_up), self._usage)
        scores = await self._scores(written.ended) if most is None else [self._unjudged] * len(written.ended)
        entries = [Scored(r, s, self.objective.value(r, s)) for r, s in zip(written.ended, scores, strict=True)]
        if not entries and not self.pool and written.given_up:
            entries = [self._cut(max(written.given_up, key=lambda r: len(r.completion_ids)))]
        for entry in entries:
            self.pool.add(entry)
        cut = any(cut_short(self.budget, entry.rollout, longest) for entry in entries)
        short = cut or len(entries) < wanted or bool(written.given_up)
        if short and self.cancelled:
            self.ended = STOPPED
        elif short and not self.exhausted():
            self.ended = (FinishReason.BUDGET, self._too_few("generated_tokens" if cut else None))
        return entries

    async def gradient(self, entry: Scored, start: int, *, outcome_weight: float = 0.0) -> ObjectiveGradient:
        """The objective's gradient at every position from `start` on: one gradient pass, none for the entry of the
        last one.

        `outcome_weight` nats for each unit of what the pool's tool verdicts say of the tokens tried (`outcome_credit`).
        """
        self._check_cancelled()
        last = self._gradient
        if last is not None and last[0] is entry and last[1] <= start:
            gradient = last[2]
        else:
            await self._read_prompt()
            columns = [entry.rollout], [entry.score], [start]
            [gradient] = await Operation(self.objective.gradient, columns, operation.GRADIENT)
            self._usage = self._usage + gradient.usage
            self._gradient = (entry, start, gradient := gradient.metered(self._meter))
        judged = [(e.rollout, e.score) for e in self.pool]
        return gradient.plus(outcome_credit(entry.rollout.completion_ids, start, judged), outcome_weight)

    def note(self, entry: Scored, proposals: Sequence[Proposal]) -> None:
        """Keeps what a gradient says of a completion's tokens for the next step, which shows it."""
        located = self.model.tokenizer.token_offsets(entry.rollout.completion_ids)
        gains = [
            TokenGain(*located[p.position], self.model.tokenizer.token_text(p.new), p.ranking_score) for p in proposals
        ]
        before = self._noted[1] if self._noted is not None and self._noted[0] is entry else []
        self._noted = entry, before + gains

    def noted(self) -> tuple[TokenGain, ...]:
        """What was kept by `note` since it was last asked for."""
        noted, self._noted = self._noted, None
        return () if noted is None else tuple(noted[1])

    async def states(self, entry: Scored, start: int) -> LikelihoodRows:
        """The language model's own rows from `start` on: one forward, no gradient."""
        self._check_cancelled()
        await self._read_prompt()
        [states] = await Operation(self.objective.states, ([entry.rollout], [start]), operation.STATES)
        self._usage = self._usage + states.usage
        return replace(states.gradient, meter=self._meter)

    async def readings(self, rollouts: Sequence[Rollout], models: Sequence[LanguageModel]) -> list[LikelihoodRows]:
        """Each rollout as a model reads it behind the rollout's own prompt: one forward each, as a reward's tokens."""
        self._check_cancelled()
        read = await Operation(readings, (rollouts, models), operation.STATES)
        self._usage = sum((usage for _, usage in read), self._usage)
        return [rows for rows, _ in read]

    async def alternatives(self, entry: Scored, top: int) -> tuple[tuple[tuple[int, float], ...], ...]:
        """At each place of a completion the `top` likeliest tokens with log π in nats: one forward."""
        gradient = await self.states(entry, 0)
        return likeliest(gradient.logits(range(len(entry.rollout.completion_ids))), top)

    async def prefix_gains(self, entry: Scored, proposals: Sequence[Proposal]) -> list[float | None]:
        """By how much each change makes the objective of the text up to it better, in nats; None where the reward
        cannot judge unfinished text. One batch, two reward calls a change; those for which none are left are not asked.
        """
        self._check_cancelled()
        every, proposals = len(proposals), proposals[: self._callable(len(proposals), 2)]
        if not proposals:
            return [None] * every
        changed = [prefix_with(self.model, entry.rollout, p.position, p.new, p.log_odds) for p in proposals]
        written = [prefix_with(self.model, entry.rollout, p.position, p.old, 0.0) for p in proposals]
        columns = ([*changed, *written],)
        scores = await Operation(self.objective.score_prefixes, columns, operation.SCORE_PREFIXES)
        self._usage = sum((s.usage for s in scores if s is not None), self._usage)
        weight, half = self.objective.likelihood_weight, len(proposals)
        gains = [
            None if a is None or b is None or not (a.judged and b.judged) else weight * p.log_odds + a.value - b.value
            for p, a, b in zip(proposals, scores[:half], scores[half:], strict=True)
        ]
        return [*gains, *[None] * (every - half)]

    def uniforms(self, count: int) -> Tensor:
        """The request's next random numbers in [0, 1)."""
        return torch.rand(count, generator=self.generator)

    def committed_text(self, rollout: Rollout, tokens: int) -> str:
        """Text of the first tokens, as far as no continuation can change it."""
        return text_of(self.model.tokenizer, rollout, tokens, self.sampling.stop)

    async def _written(self, jobs: Sequence[RolloutJob]) -> Written:
        """The jobs' rollouts: by the local model token by token, by another backend whole."""
        if not isinstance(self._backend, LanguageModel):
            rollouts = Operation(self._backend.rollout, (jobs,), operation.ROLLOUTS, apart=True, alone=True)
            return Written(await rollouts, [])
        return await Writing(self._backend, jobs, self._watcher() if self.final else None)

    async def _reread(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """What was written behind any prompt as answers to the request's, with log π of all tokens read in one pass."""
        if not rollouts:
            return []
        own = [replace(r, prompt=self.prompt) for r in rollouts]
        return await Operation(self.model.reread, (own,), operation.SCORE, closing=True)

    async def _scores(self, rollouts: Sequence[Rollout]) -> list[Score | None]:
        """What the reward says; of a tool that is still at it when the search is stopped, that it did not say."""
        if not rollouts:
            return []
        reward = self.objective.reward
        tools = reward is not None and not reward.learned
        scoring = Operation(self.objective.score, (rollouts,), operation.SCORE, apart=tools, closing=True)
        try:
            scores: list[Score | None] = await scoring
        except Cancelled:
            self.ended = STOPPED
            return [Score.not_judged("not judged: the search was stopped")] * len(rollouts)
        if len(scores) != len(rollouts):
            raise RewardError(f"{len(scores)} scores came back for {len(rollouts)} rollouts; expected one each.")
        self._usage = sum((s.usage for s in scores if s is not None), self._usage)
        self._calls = max([self._calls, *(s.usage.reward_calls for s in scores if s is not None)])
        return scores

    def _cut(self, rollout: Rollout) -> Scored:
        """A first completion that was cut off: all that there is."""
        self._usage = self._usage + Usage(rollouts=1)
        return Scored(rollout, self._unjudged, self.objective.value(rollout, self._unjudged))

    @property
    def _unjudged(self) -> Score | None:
        """What is said of a part of an answer."""
        cut = "not judged: cut off before its end"
        return None if self.objective.reward is None else Score.not_judged(cut)

    def _watcher(self) -> Callable[[Sequence[int]], None]:
        """Tells of each piece of text that a completion grows by, if someone is there to see it."""
        growing = GrowingText(self.model.tokenizer, self.model.eos_ids, self.sampling.stop)

        def watch(ids: Sequence[int]) -> None:
            if self.tell is not None and growing.read(ids):
                self.tell(Step("token", growing.text, accepted=True, text=growing.text, usage=self.usage))

        return watch

    def _callable(self, wanted: int, texts: int) -> int:
        """Of how many the reward may still judge so many texts each."""
        if self.budget.reward_calls is None or not self._calls:
            return wanted
        return min(wanted, max(0, self.budget.reward_calls - self._usage.reward_calls) // (texts * self._calls))

    def _too_few(self, name: str | None = None) -> str:
        """In words: which limit is in the way; None for one of those that are looked at before rollouts begin."""
        if name is None:
            name = "generated_tokens" if self.budget.reward_calls is None else "reward_calls"
        spent, allowed = getattr(self._usage, name), getattr(self.budget, name)
        return f"{name} {spent}/{allowed}: too few for what was wanted"

    def longest(self, prompt: Prompt | None = None) -> int:
        """Tokens that a completion may have by the context and the request, whatever the budget is."""
        read = self.prompt if prompt is None else prompt
        return min(self.model.context_length - len(read.ids), self.sampling.max_tokens or MAX_TOKENS)

    def _job(
        self, prefix: tuple[int, ...], draft: tuple[int, ...], sampling: Sampling, prompt: Prompt | None, most: int
    ) -> RolloutJob:
        most = max(most, len(prefix))  # a draft from elsewhere may be longer than the request's own answers
        known = self.pool.log_probs(prefix) if prompt is None else None
        return RolloutJob(prompt or self.prompt, prefix, sampling, most, self.uniforms(most), draft, known)

    async def _ended(self, draft: tuple[int, ...]) -> tuple[int, ...]:
        """A draft that is whole with the likeliest of the model's end tokens: one forward where there are several."""
        ends = self.model.eos_ids
        if self.request.draft_cut:
            return draft
        if len(ends) < 2:
            return (*draft, *ends)
        [(end, usage)] = await Operation(self.model.likeliest_ends, ([self.prompt], [draft]), operation.STATES)
        self._usage = self._usage + usage
        return (*draft, end)

    async def _read_prompt(self) -> None:
        """Once a request, for all passes over its completions."""
        if not self._prompt_read:
            [usage] = await Operation(self.model.read_prompts, ([self.prompt],), operation.PREFILL)
            self._usage = self._usage + usage
            self._prompt_read = True

    def _check_cancelled(self) -> None:
        if self.cancelled:
            raise Cancelled
