"""The refinement loop against a plain loop over enumerated conditionals, gradients by autograd and objectives."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor

from nabla_agents import (
    Budget,
    FinishReason,
    GradientDirection,
    MirrorDTO,
    Nabla,
    NoDirection,
    RandomDirection,
    Refinable,
    Result,
    Rollout,
    Sampling,
    Step,
)
from nabla_agents.search.directions import DIRECTIONS
from nabla_agents.testing import FixedReward

FOUR = Sampling(max_tokens=4)
UNLIMITED = Budget(rollouts=None)
TOKENS = ("1", "2", "3", "4", "<eos>")
TABLES = [2.0 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(40)]


def refinements(result: Result) -> list[Step]:
    return [step for step in result.trace if step.kind == "refine"]


def mirrored(log_p: Tensor, g: Tensor, dto: MirrorDTO) -> Tensor:
    """π·exp(β·g) with the largest β up to that of the settings whose KL divergence from π is within the budget."""

    def row(beta: float) -> Tensor:
        return (log_p + beta * g).log_softmax(-1)

    low, high = 0.0, dto.beta
    for _ in range(100):
        beta = (low + high) / 2
        within = dto.kl_budget is None or float((row(beta).exp() * (row(beta) - log_p)).sum()) <= dto.kl_budget
        low, high = (beta, high) if within else (low, beta)
    return row(low)


@dataclass(frozen=True)
class Case:
    """A strategy on one toy with a reward of known value; the truth about both."""

    made: Any
    strategy: Any
    reward: Callable[[Any], float]
    weight: float = 1.0
    likeliest: bool = False  # no reward, so that every rule goes by the likelihood

    @cached_property
    def j(self) -> dict[Any, float]:
        return self.made.objective(self.reward, self.weight)

    def worth(self, ids: Any) -> float:
        """What proposals are accepted by."""
        return self.reward(ids) if self.strategy.acceptance == "reward" and not self.likeliest else self.j[ids]

    def better(self, proposal: Any, incumbent: Any) -> bool:
        return self.worth(proposal) > self.worth(incumbent)

    def plain_loop(self, gradient: Callable[[Any], Tensor]) -> Iterator[tuple[int, int, int, float, Any, bool]]:
        """Position, old and new token, ranking score, completion and verdict of each proposal, from tables alone."""
        made, strategy = self.made, self.strategy
        incumbent, committed, improved = made.greedy(), 0, True
        while improved:
            improved, g = False, gradient(incumbent)
            for t in range(committed, len(incumbent)):
                log_p, old = made.conditionals[incumbent[:t]], incumbent[t]
                entropy = -float((log_p.exp() * log_p).sum())
                if strategy.refinable.min_entropy is not None and entropy <= strategy.refinable.min_entropy:
                    continue
                refined = mirrored(log_p, g[t], strategy.dto)
                floor = math.inf if strategy.plausibility_floor is None else strategy.plausibility_floor
                plausible = [v for v in range(5) if v != old and log_p[v] >= log_p[old] - floor]
                new = max(plausible, key=lambda v: float(refined[v]), default=old)
                if new == old or refined[new] - refined[old] <= strategy.min_promise:
                    continue
                candidate = made.greedy((*incumbent[:t], new))
                improved, committed = self.better(candidate, incumbent), t + 1
                yield t, old, new, float(g[t][new] - g[t][old]), candidate, improved
                if improved:
                    incumbent = candidate
                    break


SETTINGS = {
    "defaults": Nabla(),
    "only what is preferred": Nabla(min_promise=0.0),
    "nearly everything": Nabla(min_promise=-9.0, plausibility_floor=None),
    "a low floor": Nabla(min_promise=-9.0, plausibility_floor=1.5),
    "a small step": Nabla(dto=MirrorDTO(beta=0.3), min_promise=-1.5),
    "a kl budget": Nabla(dto=MirrorDTO(beta=50.0, kl_budget=0.3), min_promise=-1.0),
    "uncertain positions": Nabla(min_promise=-4.0, refinable=Refinable(min_entropy=1.1)),
    "accepted by reward": Nabla(acceptance="reward", min_promise=-4.0),
    "no gradient": Nabla(direction=NoDirection(), min_promise=-4.0),
}


@pytest.mark.parametrize("objective", ["likelihood and reward", "no embedding terms", "mostly reward", "no reward"])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_step_is_that_of_a_plain_loop_over_the_tables(
    toy: Callable[..., Any], linear: Any, name: str, objective: str
) -> None:
    """Reward Σ table[t, y_t]: its gradient is the table. That of the likelihood is autograd's through every position;
    without embedding terms it is log π.
    """
    strategy = SETTINGS[name]
    weight, bare = (0.05 if objective == "mostly reward" else 1.0), objective == "no reward"
    embedding_terms = objective != "no embedding terms"
    seen: list[Step] = []
    for seed in range(4):
        table = TABLES[seed] * (not bare)
        case = Case(toy(seed), strategy, linear(table).value, weight, likeliest=bare)
        made, j = case.made, case.j

        def gradient(ids: Any, made: Any = made, table: Tensor = table) -> Tensor:
            direct = torch.stack([made.conditionals[ids[:t]] for t in range(len(ids))])
            likelihood = made.gradient(ids) if embedding_terms else direct
            return (weight * likelihood + table[: len(ids)]) * (strategy.direction == GradientDirection())

        engine, backend = made.watched(
            None if bare else linear(table),
            strategy=strategy,
            likelihood_weight=weight,
            embedding_terms=embedding_terms,
            budget=UNLIMITED,
        )
        result = made.solve(engine, sampling=FOUR)
        expected = list(case.plain_loop(gradient))
        steps = refinements(result)
        assert backend.ids == [made.greedy(), *(candidate for *_, candidate, _ in expected)]
        incumbent = made.greedy()
        for step, (position, old, new, predicted, candidate, accepted) in zip(steps, expected, strict=True):
            assert (step.position, step.accepted) == (position, accepted)
            assert (step.old_token, step.new_token) == (TOKENS[old], TOKENS[new])
            assert step.ranking_score == pytest.approx(predicted, abs=1e-4)
            assert step.gain == pytest.approx(j[candidate] - j[incumbent], abs=1e-4)
            incumbent = candidate if accepted else incumbent
        assert result.token_ids == incumbent == max(backend.ids, key=case.worth)
        assert result.usage.gradient_passes <= 1 + sum(step.accepted for step in steps)
        assert (result.usage.gradient_passes == 0) == (strategy.direction == NoDirection())
        assert result.detail == "nothing promising left"
        seen += steps
    assert seen or bare
    assert len({step.accepted for step in seen}) == 2 or bare or name != "nearly everything"


# ── whatever the rollouts are ─────────────────────────────────────────────────────────────────────────────────────────


def replayed(case: Case, result: Result, backend: Any) -> Iterator[tuple[Step, Any, Any]]:
    """Each refinement with incumbent and proposal; checks that one token of the incumbent changed, and the verdict."""
    incumbent, committed = backend.ids[0], 0
    for step, prefix, candidate in zip(refinements(result), backend.prefixes[1:], backend.ids[1:], strict=True):
        assert step.position is not None
        assert step.position >= committed
        assert prefix == candidate[: step.position + 1]
        assert prefix[:-1] == incumbent[: step.position]
        assert prefix[-1] != incumbent[step.position]
        assert step.accepted == case.better(candidate, incumbent)
        yield step, incumbent, candidate
        committed = step.position + 1
        incumbent = candidate if step.accepted else incumbent


STRATEGIES = {
    "gradient": Nabla(min_promise=-6.0),
    "random": Nabla(min_promise=-6.0, direction=RandomDirection()),
    "none": Nabla(min_promise=-6.0, direction=NoDirection()),
    "by reward": Nabla(min_promise=-6.0, acceptance="reward"),
    "paper": Nabla.paper(),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_token_of_the_incumbent_changes_and_only_what_is_better_is_kept(
    toy: Callable[..., Any], table: Callable[..., Any], value: Callable[..., float], name: str
) -> None:
    """Rollouts sampled at temperature 1.2, judged by an arbitrary table.

    Rollouts are seldom the argmax of their logits, so the ranking score shows whose tokens the gradient belongs to.
    The proposal and the incumbent are judged alike, each with the prompt: their gain is the enumerated difference.
    """
    strategy = STRATEGIES[name]
    steps: list[Step] = []
    for seed in range(10):
        case = Case(toy(seed % 5), strategy, lambda ids, seed=seed: value(ids, seed), 0.5)
        made, j = case.made, case.j
        engine, backend = made.watched(table(seed), strategy=strategy, likelihood_weight=0.5)
        result = made.solve(engine, sampling=FOUR.replace(temperature=1.2), seed=seed)
        for step, old, new in replayed(case, result, backend):
            assert step.gain == pytest.approx(j[new] - j[old], abs=1e-4)
            if strategy.direction == GradientDirection():
                row = 0.5 * made.gradient(old)[step.position]
                predicted = float(row[new[step.position]] - row[old[step.position]])
                assert step.ranking_score == pytest.approx(predicted, abs=1e-4)
            if strategy.plausibility_floor is not None:
                log_p = made.conditionals[old[: step.position]]
                assert log_p[new[step.position]] >= log_p[old[step.position]] - strategy.plausibility_floor
            steps.append(step)
        assert result.token_ids == max(backend.ids, key=case.worth)  # never merely the last
        committed = [step.committed_text for step in result.trace]
        assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(committed))
        assert committed[-1] == result.text
        assert result.usage.gradient_passes <= 1 + sum(step.accepted for step in refinements(result))
        assert result.usage.rollouts == len(backend.rollouts) <= 8
    assert len({step.accepted for step in steps}) == 2


def test_proposal_and_incumbent_are_judged_with_the_same_prompt(toy: Callable[..., Any]) -> None:
    """The research code scored the proposal without its prompt, and so compared numbers of two different states."""
    made, seen = toy(0), []

    def judge(rollout: Rollout) -> float:
        seen.append((rollout.prompt, rollout.completion_ids))
        return float(len(rollout.text))

    made.solve(made.engine(FixedReward(judge), strategy=Nabla(min_promise=-6.0)), sampling=FOUR)
    assert len(seen) > 2
    assert {prompt.ids for prompt, _ in seen} == {made.prompt.ids}


def test_the_kl_budget_lets_through_only_what_a_distribution_that_near_prefers(
    toy: Callable[..., Any], linear: Any
) -> None:
    """The nearest distribution in which `new` reaches `old` gives both √(p_old·p_new); its divergence from p is
    -log(1 - (√p_old - √p_new)²). No refined row within a smaller budget prefers `new`, however large its gradient is.
    """
    proposed = 0
    for seed, budget in itertools.product(range(8), (0.02, 0.2, 1.0)):
        strategy = Nabla(
            dto=MirrorDTO(beta=1e4, kl_budget=budget), min_promise=0.0, plausibility_floor=None, acceptance="reward"
        )
        case = Case(toy(seed % 6), strategy, linear(TABLES[seed]).value)
        engine, backend = case.made.watched(linear(TABLES[seed]), strategy=strategy, budget=UNLIMITED)
        result = case.made.solve(engine, sampling=FOUR)
        for step, old, new in replayed(case, result, backend):
            p = case.made.conditionals[old[: step.position]].exp()
            gap = float(p[old[step.position]].sqrt() - p[new[step.position]].sqrt())
            assert -math.log(1 - gap**2) <= budget + 1e-5
            proposed += 1
    assert proposed > 10


def test_without_a_reward_the_likelihood_is_refined(toy: Callable[..., Any]) -> None:
    """The research code stopped with a KeyError."""
    gains = 0
    for seed in range(8):
        made = toy(seed)
        engine, backend = made.watched(strategy=Nabla(min_promise=-4.0))
        result = made.solve(engine, sampling=FOUR.replace(temperature=1.5), seed=seed)
        assert result.score is None
        assert result.token_ids == max(backend.ids, key=made.likelihoods.__getitem__)
        gains += made.likelihoods[result.token_ids] > made.likelihoods[backend.ids[0]]
    assert gains > 3


# ── budgets and ends ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("direction", ["gradient", "random", "none"])
def test_a_smaller_budget_of_rollouts_ends_the_same_search_earlier(
    toy: Callable[..., Any], table: Callable[..., Any], direction: Any
) -> None:
    ends = set()
    for seed in range(4):
        made = toy(seed)
        engine, backend = made.watched(table(seed), strategy=Nabla(min_promise=-6.0, direction=DIRECTIONS[direction]))
        whole = made.solve(engine, sampling=FOUR, seed=seed, budget=UNLIMITED)
        assert whole.detail == "nothing promising left"
        assert whole.finish_reason is (FinishReason.LENGTH if whole.truncated else FinishReason.STOP)
        everything = backend.ids.copy()
        for allowed in range(1, len(everything) + 2):
            backend.rollouts.clear()
            result = made.solve(engine, sampling=FOUR, seed=seed, budget=Budget(rollouts=allowed))
            assert backend.ids == everything[:allowed]
            assert result.usage.rollouts == min(allowed, len(everything))
            assert result.usage.gradient_passes < allowed  # none that no rollout can follow
            if allowed < len(everything):
                assert (result.finish_reason, result.detail) == (FinishReason.BUDGET, f"rollouts {allowed}/{allowed}")
            ends.add(result.finish_reason)
    assert len(ends) > 1


def test_gradient_passes_are_limited_and_with_none_the_first_rollout_is_the_answer(
    toy: Callable[..., Any], linear: Any
) -> None:
    limited = 0
    for seed in range(12):
        made = toy(seed % 6)
        engine = made.engine(linear(TABLES[seed]), strategy=Nabla(min_promise=-4.0))
        for allowed in (0, 1, 2):
            budget = Budget(rollouts=None, gradient_passes=allowed)
            result = made.solve(engine, sampling=FOUR, budget=budget)
            assert result.usage.gradient_passes <= allowed
            if result.finish_reason is FinishReason.BUDGET:
                assert result.detail == f"gradient_passes {allowed}/{allowed}"
                assert sum(step.accepted for step in refinements(result)) == allowed
                limited += 1
            if allowed == 0:
                assert (result.token_ids, result.usage.rollouts) == (made.greedy(), 1)
                assert result.finish_reason is FinishReason.BUDGET
    assert limited > 14  # 12 with no pass at all, and some that a pass more would have gone on


def test_a_search_without_gradient_needs_no_budget_of_gradient_passes(toy: Callable[..., Any], linear: Any) -> None:
    made = toy(1)
    engine = made.engine(linear(TABLES[1]), strategy=Nabla(direction=NoDirection(), min_promise=-6.0))
    free, limited = (made.solve(engine, sampling=FOUR, budget=Budget(gradient_passes=allowed)) for allowed in (None, 0))
    assert limited.usage.rollouts == free.usage.rollouts > 1
    assert limited.token_ids == free.token_ids


def test_it_stops_before_it_pays_where_nothing_is_promising(toy: Callable[..., Any], linear: Any) -> None:
    """One rollout and one gradient pass; Σ of all promises is far below 100 nats."""
    made = toy(0)
    result = made.solve(made.engine(linear(TABLES[0]), strategy=Nabla(min_promise=100.0)), sampling=FOUR)
    assert (result.usage.rollouts, result.usage.gradient_passes) == (1, 1)
    assert (result.finish_reason, result.detail) == (FinishReason.STOP, "nothing promising left")
    assert result.token_ids == made.greedy()


def test_the_last_position_is_refined_and_needs_no_new_token(toy: Callable[..., Any], linear: Any) -> None:
    """At the last place the research code asked its server for 0 tokens. The reward wants a 4 at the end only."""
    made = toy(3)
    assert len(made.greedy()) == 4
    assert made.greedy()[-1] != 3
    wish = torch.zeros(4, 5)
    wish[3, 3] = 20.0
    strategy = Nabla(plausibility_floor=None, min_promise=0.0)
    engine, backend = made.watched(linear(wish), strategy=strategy, embedding_terms=False)
    result = made.solve(engine, sampling=FOUR)
    assert result.token_ids == (*made.greedy()[:3], 3)
    assert backend.prefixes == [(), result.token_ids]
    assert result.usage.generated_tokens == 4
    assert (result.finish_reason, result.truncated) == (FinishReason.LENGTH, True)


def test_without_max_tokens_a_rollout_may_fill_the_context(toy: Callable[..., Any]) -> None:
    """Room for 32 tokens, 2 of them the prompt's; greedy repeats one word for ever."""
    made = toy(3)
    result = made.solve(made.engine(strategy=Nabla(min_promise=0.0)))
    assert len(result.token_ids) == 30
    assert (result.finish_reason, result.truncated) == (FinishReason.LENGTH, True)
