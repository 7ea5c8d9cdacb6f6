"""Changed prefixes judged before their rollouts: what is better is rolled out, and what nobody can judge as well."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from nabla_agents import Budget, MirrorDTO, Nabla, NablaParallel, Rollout, Sampling, Score
from nabla_agents.testing import FixedReward

FOUR = Sampling(max_tokens=4)
UNLIMITED = Budget(rollouts=None)
TABLES = [2.0 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(12)]
STRATEGIES = {
    "nabla": Nabla(min_promise=-8.0, dto=MirrorDTO(beta=0.7)),
    "parallel": NablaParallel(min_promise=-8.0, dto=MirrorDTO(beta=0.7), width=2),
}


def gain(made: Any, table: Any, ids: Any, position: int, new: int) -> float:
    """Of log π + the table, for the tokens up to a changed one: all before it is the same."""
    log_p, old = made.conditionals[ids[:position]], ids[position]
    return float(log_p[new] - log_p[old]) + float(table[position, new] - table[position, old])


@pytest.mark.parametrize("least", [-1.0, 0.0, 1.5])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_rollout_is_paid_for_better_prefixes_alone(
    toy: Callable[..., Any], linear: Any, name: str, least: float
) -> None:
    """Without embedding terms promise and gain of a prefix differ by the step size and the table's share alone."""
    paid = spared = 0
    for seed in range(6):
        made, table = toy(seed), TABLES[seed]
        engine, backend = made.watched(
            linear(table), strategy=STRATEGIES[name], budget=UNLIMITED, embedding_terms=False
        )
        made.solve(engine, sampling=FOUR)
        everything = set(backend.prefixes)
        confirming = STRATEGIES[name].replace(confirm=least)
        engine, backend = made.watched(linear(table), strategy=confirming, budget=UNLIMITED, embedding_terms=False)
        result = made.solve(engine, sampling=FOUR)
        incumbent, j = backend.ids[0], made.objective(linear(table).value)
        for prefix, candidate in zip(backend.prefixes[1:], backend.ids[1:], strict=True):
            position = len(prefix) - 1
            sources = [ids for ids in backend.ids if ids[:position] == prefix[:-1] and len(ids) > position]
            assert any(gain(made, table, ids, position, prefix[-1]) > least for ids in sources)
            incumbent = max(incumbent, candidate, key=j.__getitem__)
        assert result.token_ids == incumbent
        paid += len(backend.prefixes)
        spared += len(everything - set(backend.prefixes))
    assert paid > 6
    assert spared > 0 or least < 0


def test_what_the_reward_cannot_judge_unfinished_is_rolled_out(
    toy: Callable[..., Any], value: Callable[..., float]
) -> None:
    for seed in range(3):
        made, rolled = toy(seed), []
        reward = FixedReward(lambda r, seed=seed: value(r.completion_ids, seed))
        for confirm in (None, 5.0):
            strategy = Nabla(min_promise=-6.0, confirm=confirm)
            engine, backend = made.watched(reward, strategy=strategy)
            made.solve(engine, sampling=FOUR)
            rolled.append(backend.prefixes)
        assert rolled[0] == rolled[1]
        assert len(rolled[0]) > 1


def test_a_tool_that_knows_unfinished_text_decides(toy: Callable[..., Any]) -> None:
    """A tool that forbids the digit 3 from its first sight on: no rollout begins with it."""

    class NoThree(FixedReward):
        def score_prefixes(self, rollouts: Sequence[Rollout]) -> list[Score | None]:
            seen.extend(r.text for r in rollouts)
            return [*self.score(rollouts)]

    seen: list[str] = []
    reward = NoThree(lambda r: Score(-100.0 * ("3" in r.text)))
    tried: dict[Any, set[int]] = {}
    for confirm in (None, -50.0):
        tried[confirm] = set()
        for seed in range(6):
            made = toy(seed)
            strategy = NablaParallel(min_promise=-20.0, plausibility_floor=None, confirm=confirm)
            engine, backend = made.watched(reward, strategy=strategy, budget=UNLIMITED)
            made.solve(engine, sampling=FOUR)
            tried[confirm] |= {prefix[-1] for prefix in backend.prefixes if prefix}
    assert 2 in tried[None]
    assert 2 not in tried[-50.0]
    assert tried[-50.0]
    assert any("3" in text for text in seen)


def test_every_prefix_that_was_scored_is_a_reward_call(toy: Callable[..., Any], linear: Any) -> None:
    made, calls = toy(0), []

    class Counting(linear):
        def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
            calls.extend(rollouts)
            return super().score(rollouts)

    engine = made.engine(Counting(TABLES[0]), strategy=Nabla(min_promise=-8.0, confirm=0.0))
    result = made.solve(engine, sampling=FOUR)
    assert result.usage.reward_calls == len(calls) > result.usage.rollouts
    prefixes = [r for r in calls if r.finish_reason.value == "length" and len(r.completion_ids) < 4]
    for rollout in prefixes:  # the likelihood of a prefix is known without a pass
        assert rollout.log_likelihood == pytest.approx(made.likelihood(rollout.completion_ids), abs=1e-4)
