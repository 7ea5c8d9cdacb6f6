"""What a limit cut off never wins against what is whole, and nobody vouches for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nabla_agents import (
    ArithmeticSteps,
    BestOfN,
    Budget,
    Engine,
    FinishReason,
    Greedy,
    Nabla,
    NablaParallel,
    Rollout,
    Sampling,
    Score,
)
from nabla_agents.search.pool import Pool, Scored
from nabla_agents.testing import FixedReward, random_model
from nabla_agents.tiny import problems

QUESTIONS = [p.question for p in problems(6, seed=0, split="test")]


def entry(text: str, value: float, *, cut: bool, verdict: float | None = None, verified: bool | None = None) -> Scored:
    reason = FinishReason.LENGTH if cut else FinishReason.STOP
    bare = Rollout.from_text("?", text)
    rollout = Rollout(bare.prompt, (), text, torch.zeros(1, dtype=torch.float64), reason)
    return Scored(rollout, Score(value, verdict=verdict, verified=verified), value)


@pytest.mark.parametrize("rule", ["objective", "reward"])
def test_a_whole_completion_is_better_than_any_that_was_cut(rule: Any) -> None:
    whole, cut = entry("7", -99.0, cut=False), entry("8", 99.0, cut=True, verdict=1.0, verified=True)
    pool = Pool(rule)
    for each in (cut, whole, cut):
        pool.add(each)
    assert pool.better(whole, cut)
    assert not pool.better(cut, whole)
    assert pool.best() is whole
    assert pool.vote() is whole


@pytest.mark.parametrize("strategy", [Greedy(), BestOfN(n=3), Nabla(), NablaParallel()])
def test_a_text_that_max_tokens_cuts_is_not_verified(strategy: Any) -> None:
    engine = Engine.tiny(reward=ArithmeticSteps(), strategy=strategy, budget=Budget(rollouts=4))
    judged = 0
    for question in QUESTIONS:
        result = engine.generate(question, sampling=Sampling(max_tokens=12))
        assert result.truncated
        assert result.finish_reason is not FinishReason.VERIFIED
        assert result.score is not None
        assert not result.score.verified
        assert all(step.score is None or not step.score.verified for step in result.trace)
        judged += result.score.judged and "cut off" in result.score.explanation
    assert judged


def greedy_tokens(engine: Engine, question: str) -> int:
    result = engine.generate(question, strategy=Greedy())
    assert not result.truncated
    return len(result.token_ids)


@pytest.mark.parametrize("reward", ["tiny", ArithmeticSteps()], ids=["process", "calculator"])
@pytest.mark.parametrize("strategy", [Nabla(), NablaParallel()])
def test_no_answer_is_cut_by_a_budget_that_had_room_for_a_whole_one(strategy: Any, reward: Any) -> None:
    engine = Engine.tiny(reward=reward, strategy=strategy)
    for question in QUESTIONS:
        budget = Budget(rollouts=8, generated_tokens=greedy_tokens(engine, question) + 4)
        result = engine.generate(question, budget=budget)
        assert not result.truncated
        assert result.usage.generated_tokens <= (budget.generated_tokens or 0)


# ── drafts ────────────────────────────────────────────────────────────────────────────────────────────────────────────

DRAFT = "3 + 4 = 7\n7 * 2 = 15\n15 - 1 = 14"


def test_a_draft_ends_at_an_end_token_or_a_stop_string_of_its_text() -> None:
    engine = Engine.tiny(reward=ArithmeticSteps(), strategy=Greedy())
    [end] = engine.model.eos_ids
    whole = engine.generate("?", draft=DRAFT)
    spelled = engine.generate("?", draft=DRAFT + engine.model.tokenizer.token_text(end) + "\nand more")
    assert whole.text == spelled.text == DRAFT
    assert whole.token_ids == spelled.token_ids
    assert whole.token_ids.count(end) == 1
    stopped = engine.generate("?", draft=DRAFT, sampling=Sampling(stop=("7 *", "- 1")))
    assert stopped.text == "3 + 4 = 7\n"


def test_a_draft_is_ended_as_the_model_would_end_it() -> None:
    """Models of chats have several end tokens, and the tokenizer's own may not be the one that ends a turn."""
    model = random_model(vocabulary=["a", "b", "<end>", "<turn>"], scale=3.0)
    ends = [model.tokenizer.encode(text)[0] for text in ("<end>", "<turn>")]
    model.eos_ids = frozenset(ends)
    engine = Engine(model=model, reward=FixedReward(lambda r: 0.0), strategy=Greedy())
    chosen = set[int]()
    for draft in ("a", "ab", "abb", "ba", "bbba", "aabab", "bb", "aaa"):
        prompt = engine.prompt("ab", formatted=True)
        result = engine.generate(prompt, draft=draft)
        ids = torch.tensor([[*prompt.ids, *model.tokenizer.encode(draft)]])
        logits = model.transformer.module(input_ids=ids).logits[0, -1]
        assert result.token_ids[-1] == max(ends, key=lambda i: float(logits[i]))
        chosen.add(result.token_ids[-1])
    assert len(chosen) == 2


@pytest.mark.parametrize("strategy", [Nabla(min_promise=-9.0), NablaParallel(min_promise=-9.0)])
def test_a_draft_is_not_made_worse(strategy: Any) -> None:
    """The model finds its own words likelier; that alone is no reason to take them."""
    engine = Engine.tiny(reward=ArithmeticSteps(suggest=False), strategy=strategy, budget=Budget(rollouts=8))
    draft, refined = ArithmeticSteps().judge(DRAFT), 0
    for seed, question in enumerate(QUESTIONS):
        result = engine.generate(question, draft=DRAFT, seed=seed)
        assert result.score is not None
        refined += sum(step.kind == "refine" for step in result.trace)
        if result.text != DRAFT:
            gained = (result.score.verified or False, result.score.verdict, -result.score.objections)
            assert gained > (False, draft.verdict, -draft.objections)
    assert refined >= len(QUESTIONS)  # else nothing could have made one worse


def test_without_a_reward_a_draft_gives_way_to_what_is_likelier_alone() -> None:
    likely, draft, unlikely = (
        Scored(entry(text, 0.0, cut=False).rollout, None, j) for text, j in (("a", -1.0), ("b", -2.0), ("c", -3.0))
    )
    pool = Pool(drafted=True)
    pool.add(draft)
    assert pool.better(likely, draft)
    assert not pool.better(unlikely, draft)
    assert not pool.better(draft, draft)


def test_of_equal_rewards_the_draft_stays() -> None:
    engine = Engine.tiny(reward=FixedReward(lambda r: 0.5), strategy=Nabla(min_promise=-9.0), budget=Budget(rollouts=6))
    result = engine.generate(QUESTIONS[0], draft=DRAFT)
    assert result.usage.rollouts > 1
    assert result.text == DRAFT


# ── stop strings ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_special_token_is_a_stop_string() -> None:
    model = random_model(vocabulary=["a", "b", "<end>", "<turn>"], scale=0.0)
    [turn] = model.tokenizer.encode("<turn>")
    model.tokenizer.hf.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    assert turn not in model.eos_ids
    engine = Engine(model=model, strategy=Greedy())
    sampling = Sampling(temperature=1.0, max_tokens=40, stop=("<turn>",))
    ended = [engine.generate("ab", formatted=True, sampling=sampling, seed=seed) for seed in range(20)]
    stopped = [r for r in ended if turn in r.token_ids]
    assert stopped
    assert all(r.token_ids.index(turn) == len(r.token_ids) - 1 and not r.truncated for r in stopped)


@pytest.mark.parametrize("strategy", [Greedy(), BestOfN(n=3), Nabla(), NablaParallel()])
def test_a_draft_that_came_cut_is_not_verified_and_loses_to_what_is_whole(strategy: Any) -> None:
    """Its equations are right as far as they go: given as whole, a calculator vouches for it."""
    engine = Engine.tiny(reward=ArithmeticSteps(), strategy=strategy, budget=Budget(rollouts=4))
    text = "34 + 27 = 61\n61"
    question = "Mia has 34 apples. She buys 27 more. Then 12 are taken away. How many apples are left?"
    request = engine.request(question, draft=text)
    assert engine.submit(request).drain().score.verified is True  # type: ignore[union-attr]
    result = engine.submit(replace(request, draft_cut=True)).drain()
    first = result.trace[0]
    assert first.text == text
    assert first.score is not None
    assert first.score.verified is None
    assert (result.text == text) == result.truncated == isinstance(strategy, Greedy)
    assert result.finish_reason is not FinishReason.VERIFIED or not result.truncated


def test_a_draft_that_came_cut_uses_up_no_token_budget() -> None:
    engine = Engine.tiny(reward=ArithmeticSteps(), strategy=BestOfN(n=3), budget=Budget(generated_tokens=200))
    request = replace(engine.request(QUESTIONS[0], draft="1 + 1 = 2\n2"), draft_cut=True)
    result = engine.submit(request).drain()
    assert result.usage.rollouts > 1
    assert not result.truncated
