"""One request's live state: budgets, committed text, random numbers, cancellation and broken contracts."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from nabla_agents import (
    BestOfN,
    Budget,
    FinishReason,
    Greedy,
    Nabla,
    NoDirection,
    PowerSampling,
    RandomDirection,
    Result,
    Rollout,
    Sampling,
    Score,
    SelfConsistency,
)
from nabla_agents.errors import RewardError
from nabla_agents.search.operation import Cancelled
from nabla_agents.testing import FixedReward, random_model
from tests.search.driving import performed, search_of

FOUR = Sampling(max_tokens=4)
UNLIMITED = Budget(rollouts=None)
STRATEGIES: dict[str, Any] = {
    "greedy": Greedy(),
    "best of n": BestOfN(n=5, temperature=1.0),
    "self consistency": SelfConsistency(n=5, temperature=1.0),
    "power sampling": PowerSampling(alpha=1.5, moves=3),
    "nabla": Nabla(min_promise=-6.0, temperature=1.0),
    "nabla, none": Nabla(min_promise=-6.0, direction=NoDirection(), temperature=1.0),
    "nabla, random": Nabla(min_promise=-6.0, direction=RandomDirection(), temperature=1.0),
    "nabla, paper": Nabla.paper(),
}


def search(
    made: Any, *, reward: Any = None, sampling: Sampling = FOUR, budget: Budget = UNLIMITED, **options: Any
) -> Any:
    return search_of(made.model, made.prompt, reward, sampling=sampling, budget=budget, **options)


def ids(found: list[Any]) -> list[Any]:
    return [entry.rollout.completion_ids for entry in found]


# ── rolling ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_prefix_is_completed_scored_and_kept(toy: Callable[..., Any], linear: Any) -> None:
    """A prefix that has ended or is full is an answer as it stands: no token is asked for."""
    made, reward = toy(3), linear(torch.arange(20.0).reshape(4, 5))
    prefixes = [(), (2,), (1, 4), (3, 2, 1), (3, 2, 1, 0), (4,)]
    made_search = search(made, reward=reward)
    found = performed(made_search.roll(prefixes, temperature=0.0))
    assert ids(found) == [made.greedy(prefix) for prefix in prefixes]
    assert list(made_search.pool) == found
    for entry in found:
        completion = entry.rollout.completion_ids
        assert entry.rollout.text == made.text(completion)
        assert entry.rollout.log_likelihood == pytest.approx(made.likelihoods[completion], abs=1e-5)
        assert entry.objective == pytest.approx(made.likelihoods[completion] + reward.value(completion), abs=1e-5)
        ended = completion[-1] == 4
        assert entry.rollout.finish_reason is (FinishReason.STOP if ended else FinishReason.LENGTH)
    written = sum(len(c) - len(p) for c, p in zip(ids(found), prefixes, strict=True))
    assert made_search.usage.generated_tokens == written
    assert (made_search.usage.rollouts, made_search.usage.reward_calls) == (6, 6)
    assert made_search.ended is None


def test_where_there_is_room_for_fewer_the_first_are_rolled(toy: Callable[..., Any]) -> None:
    made = toy(3)
    made_search = search(made, budget=Budget(rollouts=3))
    assert ids(performed(made_search.roll([(0,), (1,)], temperature=0.0))) == [made.greedy((0,)), made.greedy((1,))]
    assert made_search.ended is None
    assert ids(performed(made_search.roll([(2,), (3,)], temperature=0.0))) == [made.greedy((2,))]
    assert made_search.ended == (FinishReason.BUDGET, "rollouts 3/3")
    assert performed(made_search.roll([(3,)], temperature=0.0)) == []
    assert len(made_search.pool) == made_search.usage.rollouts == 3


def test_the_last_tokens_of_a_budget_are_shared_out(toy: Callable[..., Any]) -> None:
    """7 tokens for 3 rollouts of at most 4 are 2 for each; 2 tokens for 3 rollouts are 2 rollouts of 1."""
    made = toy(3)
    made_search = search(made, budget=Budget(rollouts=None, generated_tokens=7))
    assert ids(performed(made_search.roll([()] * 3, temperature=0.0))) == [made.greedy()[:2]] * 3
    assert made_search.ended == (FinishReason.BUDGET, "generated_tokens 6/7: too few for what was wanted")
    scarce = search(made, budget=Budget(rollouts=None, generated_tokens=2))
    assert ids(performed(scarce.roll([()] * 3, temperature=0.0))) == [made.greedy()[:1]] * 2
    assert scarce.ended == (FinishReason.BUDGET, "generated_tokens 2/2")
    enough = search(made, budget=Budget(rollouts=None, generated_tokens=12))
    assert ids(performed(enough.roll([()] * 3, temperature=0.0))) == [made.greedy()] * 3
    assert enough.ended is None  # nothing that was wanted is missing
    assert performed(enough.roll([()], temperature=0.0)) == []
    assert enough.ended == (FinishReason.BUDGET, "generated_tokens 12/12")


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_count_of_a_budget_is_ever_exceeded(toy: Callable[..., Any], table: Callable[..., Any], name: str) -> None:
    made, reward = toy(3), table()
    engine = made.engine(reward, strategy=STRATEGIES[name])
    for tokens, rollouts in itertools.product((1, 3, 7, None), (1, 4, None)):
        budget = Budget(rollouts=rollouts, generated_tokens=tokens, gradient_passes=2)
        result = made.solve(engine, sampling=FOUR, budget=budget, seed=1)
        assert result.usage.rollouts <= (rollouts or 99)
        assert result.usage.generated_tokens <= (tokens or 99)
        assert result.usage.gradient_passes <= 2
        assert len(result.token_ids) > 0
        assert result.token_ids in made.likelihoods or result.finish_reason is FinishReason.BUDGET


@pytest.mark.parametrize("limit", [{"flops": 1.0}, {"seconds": 1e-9}, {"reward_calls": 1}, {"flops": 40000.0}], ids=str)
def test_flops_seconds_and_calls_end_a_search_after_the_operation_that_spent_them(
    toy: Callable[..., Any], table: Callable[..., Any], limit: dict[str, Any]
) -> None:
    made = toy(3)
    engine, backend = made.watched(table(), strategy=Nabla(min_promise=-9.0))
    result = made.solve(engine, sampling=FOUR, budget=Budget(rollouts=None, **limit))
    [(name, allowed)] = limit.items()
    if name == "seconds":
        assert len(backend.rollouts) == 0  # spent before the first one could begin
    assert result.finish_reason is FinishReason.BUDGET
    assert result.detail.startswith(f"{name} ")
    assert getattr(result.usage, name) >= allowed
    before = [getattr(step.usage, name) for step in result.trace[:-2]]
    assert all(spent < allowed for spent in before)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_scores_than_rollouts_is_an_error(toy: Callable[..., Any], count: int) -> None:
    """Two rollouts; neither a reward nor a worker that joins several searches may mix them up."""
    made = toy(3)

    class Miscounts(FixedReward):
        def score(self, rollouts: Any) -> list[Score]:
            return [Score(1.0)] * count

    with pytest.raises(RewardError, match=rf"{count} scores .*2 rollouts; expected one each"):
        made.solve(made.engine(Miscounts(lambda r: 0.0), strategy=BestOfN(n=2)), sampling=FOUR)

    made_search = search(made)
    made_search.objective.score = lambda rollouts: [None] * count
    with pytest.raises(RewardError, match=rf"{count} scores .*2 rollouts; expected one each"):
        performed(made_search.roll([(), ()], temperature=0.0))


# ── committed text ────────────────────────────────────────────────────────────────────────────────────────────────────


def shared(texts: list[str]) -> str:
    """The longest common beginning."""
    return "".join(c[0] for c in itertools.takewhile(lambda c: len(set(c)) == 1, zip(*texts, strict=False)))


@pytest.mark.parametrize("stop", [(), ("23",), ("112",), ("34", "2112"), ("11", "41"), ("1",), ("121", "212")], ids=str)
def test_committed_text_is_what_every_continuation_begins_with(toy: Callable[..., Any], stop: tuple[str, ...]) -> None:
    """Every text of up to six words, each cut at its first stop string, by plain string search."""
    made = toy(0)
    made_search = search(made, sampling=Sampling(stop=stop))

    def cut(text: str) -> str:
        return text[: min((text.find(s) for s in stop if s in text), default=len(text))]

    written = [w for n in range(7) for w in itertools.product(range(4), repeat=n)]
    open_ones = {w for w in written if not any(s in made.text(w) for s in stop)}
    ends = [w for w in written if w in open_ones or w[:-1] in open_ones]  # a rollout ends with its first stop string
    for n in range(4):
        for tokens in itertools.product(range(4), repeat=n):
            if tokens not in open_ones:
                continue
            mine = [w for w in ends if w[:n] == tokens]
            common = shared([cut(made.text(w)) for w in mine])
            for w in mine[:: max(1, len(mine) // 7)]:
                rollout = Rollout(made.prompt, w, cut(made.text(w)))
                assert made_search.committed_text(rollout, n) == common


def test_committed_text_holds_whole_characters_only() -> None:
    """One token is one byte; half a character is nothing yet."""
    model = random_model(layers=1, width=16)
    made_search = search_of(model, model.prompt("?"))
    text = "aé€😀ß.\n"
    tokens = tuple(model.tokenizer.encode(text))
    assert len(tokens) == len(text.encode())
    for length in range(1, len(tokens) + 1):  # also a rollout that was cut within a character
        written = text.encode()[:length]
        rollout = Rollout(made_search.prompt, tokens[:length], written.decode(errors="replace"))
        for n in range(length + 1):
            assert made_search.committed_text(rollout, n) == written[:n].decode(errors="ignore")


@pytest.mark.parametrize("stop", [(), ("12",), ("24", "33"), ("444", "4211")], ids=str)
@pytest.mark.parametrize("name", ["nabla", "nabla, none", "nabla, random", "nabla, paper"])
def test_committed_text_only_grows_towards_the_final_text(
    toy: Callable[..., Any], table: Callable[..., Any], name: str, stop: tuple[str, ...]
) -> None:
    grown = 0
    for seed in range(4):
        made = toy(seed)
        sampling = Sampling(max_tokens=8, stop=stop, temperature=1.0)
        result = made.solve(made.engine(table(seed), strategy=STRATEGIES[name]), sampling=sampling, seed=seed)
        committed = [step.committed_text for step in result.trace]
        assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(committed))
        assert committed[-1] == result.text
        assert not any(s in result.text for s in stop)
        grown += len(set(committed)) > 2
    assert grown > 0 or stop


# ── random numbers ────────────────────────────────────────────────────────────────────────────────────────────────────


def outcome(result: Result) -> Any:
    """All that a seed decides; gains as far as they do not depend on what else was in a batch."""
    steps = [(s.kind, s.accepted, s.position, s.new_token, s.text, s.gain and round(s.gain, 3)) for s in result.trace]
    return result.token_ids, result.finish_reason, steps


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_seed_gives_the_same_search_in_any_order_and_on_eight_threads(
    toy: Callable[..., Any], linear: Any, name: str
) -> None:
    """The research code seeded globally, so that an answer depended on what its worker had done before."""
    made = toy(2)
    engine = made.engine(linear(torch.ones(4, 5)), strategy=STRATEGIES[name])

    def solved(seed: int) -> Any:
        return outcome(made.solve(engine, sampling=FOUR.replace(temperature=1.0), seed=seed))

    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        forwards = [solved(seed) for seed in range(6)]
        assert torch.equal(torch.get_rng_state(), before)  # the global state is not moved,
        torch.manual_seed(77)  # and not read
        assert [solved(seed) for seed in reversed(range(6))] == forwards[::-1]
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(solved, range(6))) == forwards
    assert len(set(map(repr, forwards))) > 3  # different seeds differ


# ── stopping ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cancelling_from_another_thread_ends_the_search_before_its_next_operation(toy: Callable[..., Any]) -> None:
    """The second score waits until the search has been cancelled; its rollout still counts."""
    made, scoring, cancelled = toy(3), threading.Event(), threading.Event()
    judged: list[str] = []

    def judge(rollout: Rollout) -> float:
        judged.append(rollout.text)
        if len(judged) == 2:
            scoring.set()
            assert cancelled.wait(30)
        return float(len(judged))

    engine, backend = made.watched(FixedReward(judge), strategy=Nabla(min_promise=-9.0))
    run = engine.steps(made.question, formatted=True, sampling=FOUR)

    def cancel() -> None:
        assert scoring.wait(30)
        run.cancel()
        cancelled.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    result = run.drain()
    canceller.join()
    assert (result.finish_reason, result.detail) == (FinishReason.INTERRUPTED, "stopped by the caller")
    assert len(judged) == len(backend.rollouts) == 2
    assert result.text in judged
    assert result.trace[-1].done


def test_a_cancelled_search_does_nothing_more(toy: Callable[..., Any]) -> None:
    made = toy(3)
    made_search = search(made)
    [entry] = performed(made_search.roll([()], temperature=0.0))
    spent = made_search.usage
    made_search.cancel()
    for operation in (
        made_search.roll([()], temperature=0.0),
        made_search.gradient(entry, 0),
        made_search.states(entry, 0),
    ):
        with pytest.raises(Cancelled):
            performed(operation)
    assert made_search.usage.flops == spent.flops
    assert len(made_search.pool) == 1


def test_a_run_cancelled_before_it_began_has_an_empty_result(toy: Callable[..., Any]) -> None:
    made = toy(3)
    run = made.engine().steps(made.question, formatted=True)
    run.cancel()
    result = run.drain()
    assert (result.text, result.token_ids, result.usage.rollouts) == ("", (), 0)
    assert result.finish_reason is FinishReason.INTERRUPTED
