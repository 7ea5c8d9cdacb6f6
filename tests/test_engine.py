"""The engine: its parts, equal results on every way in and for every seed, and the traps of the research code."""

import math
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from nabla_agents import (
    ArithmeticSteps,
    BestOfN,
    Budget,
    Engine,
    FinishReason,
    Greedy,
    ImplicitReward,
    LanguageModel,
    Message,
    Nabla,
    NoDirection,
    RandomDirection,
    Result,
    Reward,
    Rollout,
    Sampling,
    SelfConsistency,
    Step,
    Strategy,
)
from nabla_agents.models.rows import RolloutJob
from nabla_agents.testing import FixedReward, random_model, random_process_reward

WORDS = ("1", "2", "3", "4", "+", "=", "\n")
QUESTIONS = ("12", "3", "4+4+4=1\n2", "4=4", "1\n1\n1\n1\n1")
SHORT = Sampling(max_tokens=6)


@cache
def language_model(seed: int = 0, **shape: Any) -> LanguageModel:
    return random_model(vocabulary=WORDS, seed=seed, **{"width": 16, "layers": 1, **shape})


@pytest.fixture(scope="module")
def tiny() -> Engine:
    return Engine.tiny()


def arbitrary(rollout: Rollout) -> float:
    """A number in [-3, 3] for every completion, without structure."""
    return random.Random(repr(rollout.completion_ids)).uniform(-3, 3)


def implicit() -> Reward:
    return ImplicitReward(language_model(1))


def process() -> Reward:
    return random_process_reward(language_model().tokenizer.hf, width=16, layers=1, seed=1)


@dataclass(eq=False)
class Watched:
    """The model's own rollouts; keeps every job and what came of it."""

    model: LanguageModel
    jobs: list[RolloutJob] = field(default_factory=list)
    made: list[Rollout] = field(default_factory=list)

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]:
        made = self.model.rollout(jobs)
        self.jobs += jobs
        self.made += made
        return made


def assert_same(got: Result, expected: Result) -> None:
    """Everything but seconds, memory and what padding adds to the tokens computed."""
    assert (got.text, got.token_ids) == (expected.text, expected.token_ids)
    assert (got.finish_reason, got.detail) == (expected.finish_reason, expected.detail)
    assert (got.seed, got.prompt_tokens, got.truncated) == (expected.seed, expected.prompt_tokens, expected.truncated)
    assert got.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-4, abs=1e-4)
    values = [math.nan if r.score is None else r.score.value for r in (got, expected)]
    assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-4, nan_ok=True)
    for name in ("rollouts", "generated_tokens", "gradient_passes", "reward_calls"):
        assert getattr(got.usage, name) == getattr(expected.usage, name), name
    assert [(s.kind, s.accepted, s.committed_text) for s in got.trace] == [
        (s.kind, s.accepted, s.committed_text) for s in expected.trace
    ]


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_embedded_engine_answers_on_a_cpu(tiny: Engine) -> None:
    result = tiny.generate("Tom has 3 apples and buys 4 more. How many apples does Tom have?")
    assert "Answer:" in result.text
    assert result.score is not None
    assert result.score.judged
    assert result.finish_reason is FinishReason.STOP
    assert result.prompt_tokens == len(
        tiny.prompt("Tom has 3 apples and buys 4 more. How many apples does Tom have?").ids
    )
    assert isinstance(tiny.strategy, Nabla)
    assert tiny.budget == Budget()
    assert tiny.model.name == "tiny"
    assert isinstance(tiny.objective.reward, ImplicitReward)


@pytest.mark.parametrize(
    ("options", "read", "expected"),
    [
        ({"reward": None, "strategy": Greedy()}, lambda e: e.objective.reward, None),
        ({"reward": ArithmeticSteps()}, lambda e: type(e.objective.reward), ArithmeticSteps),
        ({"strategy": BestOfN(n=2)}, lambda e: e.strategy, BestOfN(n=2)),
        ({"budget": Budget(rollouts=2)}, lambda e: e.budget, Budget(rollouts=2)),
        ({"likelihood_weight": 0.5}, lambda e: e.objective.likelihood_weight, 0.5),
        ({"embedding_terms": False}, lambda e: e.objective.embedding_terms, False),
        ({"dtype": "bfloat16"}, lambda e: e.model.transformer.embedding.weight.dtype, torch.bfloat16),
        ({"model": language_model(), "reward": None, "strategy": Greedy()}, lambda e: e.model, language_model()),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_keyword_of_tiny_replaces_a_part_and_leaves_the_others(
    tiny: Engine, options: dict[str, Any], read: Callable[[Engine], Any], expected: Any
) -> None:
    engine = Engine.tiny(**options)
    assert read(engine) == expected
    if "strategy" not in options:
        assert engine.strategy == tiny.strategy
    if "budget" not in options:
        assert engine.budget == tiny.budget
    if "reward" not in options:
        assert type(engine.objective.reward) is type(tiny.objective.reward)


def test_without_a_reward_an_engine_decodes_greedily_and_says_so() -> None:
    """Nothing could tell a better answer: eight rollouts would be spent for the greedy text."""
    model = language_model()
    with pytest.warns(UserWarning, match="no reward.*decodes greedily"):
        engine = Engine(model=model)
    greedy = Engine(model=model, strategy=Greedy())  # whoever says so is not warned
    result = engine.generate("12", sampling=SHORT)
    assert (result.text, result.usage.rollouts) == (greedy.generate("12", sampling=SHORT).text, 1)
    assert engine.with_reward(ArithmeticSteps()).strategy == Nabla()
    assert greedy.with_reward(ArithmeticSteps()).strategy == Greedy()


def test_rollouts_of_tiny_come_from_the_backend_that_was_given(tiny: Engine) -> None:
    backend = Watched(tiny.model)
    result = Engine.tiny(model=tiny.model, rollouts=backend, strategy=BestOfN(n=3)).generate("1 + 1?", sampling=SHORT)
    assert len(backend.made) == 3
    assert result.text in {r.text for r in backend.made}


def test_options_of_a_call_go_before_those_of_the_engine() -> None:
    engine = Engine(model=language_model(), strategy=BestOfN(n=3), budget=Budget(rollouts=2))
    assert engine.generate("12", sampling=SHORT).usage.rollouts == 2
    assert engine.generate("12", sampling=SHORT, budget=Budget()).usage.rollouts == 3
    assert engine.generate("12", sampling=SHORT, strategy=Greedy()).usage.rollouts == 1
    assert engine.generate("12", sampling=SHORT).usage.rollouts == 2


def test_loading_options_reach_from_pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantisation and device maps need packages and devices; that they arrive is ours."""
    language_model().transformer.module.save_pretrained(tmp_path)
    language_model().tokenizer.hf.save_pretrained(tmp_path)
    seen: dict[str, Any] = {}

    def from_pretrained(path: str, **options: Any) -> Any:
        seen.update(options, path=path)
        return language_model().transformer.module, {"missing_keys": set()}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    quantised = {"load_in_4bit": True}
    loading: dict[str, Any] = {"dtype": "bfloat16", "device_map": "auto", "revision": "v1"}
    Engine(model=tmp_path, strategy=Greedy(), quantization_config=quantised, **loading)
    assert (loading | {"quantization_config": quantised}).items() <= seen.items()
    assert seen["path"] == str(tmp_path)
    assert seen["trust_remote_code"] is False


def test_a_bfloat16_engine_refines_and_scores_in_single_precision() -> None:
    """Log-ratios of 8-bit floats would be multiples of a coarse power of two."""
    result = Engine.tiny(dtype="bfloat16").generate("Ann has 5 pens and loses 2. How many pens are left?")
    assert result.usage.gradient_passes > 0
    assert result.score is not None
    assert math.isfinite(result.score.value)
    assert result.score.value * 128 != round(result.score.value * 128)
    assert result.log_likelihood * 128 != round(result.log_likelihood * 128)


# ── equal seeds, equal results ────────────────────────────────────────────────────────────────────────────────────────

PAIRS: dict[str, tuple[Strategy, Callable[[], Reward | None]]] = {
    "greedy": (Greedy(), lambda: None),
    "best of n": (BestOfN(n=3), lambda: FixedReward(arbitrary)),
    "self consistency": (SelfConsistency(n=3), process),
    "nabla": (Nabla(min_promise=-6.0), implicit),
    "nabla, likelihood only": (Nabla(temperature=0.7, min_promise=-6.0), lambda: None),
    "nabla, none": (Nabla(direction=NoDirection(), temperature=0.7, min_promise=-6.0), process),
    "nabla, random": (Nabla(direction=RandomDirection(), min_promise=-6.0), implicit),
    "nabla, paper": (Nabla.paper(), lambda: implicit() + 0.5 * FixedReward(arbitrary) + ArithmeticSteps()),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_generate_steps_and_batch_agree(pair: str) -> None:
    """Prompts of different lengths, in any order, at most `max_batch` at a time."""
    strategy, reward = PAIRS[pair]
    engine = Engine(model=language_model(), reward=reward(), strategy=strategy, budget=Budget(rollouts=3))
    single = [engine.generate(q, seed=i, sampling=SHORT) for i, q in enumerate(QUESTIONS)]
    assert_same(engine.steps(QUESTIONS[2], seed=2, sampling=SHORT).drain(), single[2])
    for order, max_batch in (((0, 1, 2, 3, 4), 32), ((4, 2, 0, 3, 1), 2)):
        prompts = [QUESTIONS[i] for i in order]
        batch = engine.generate_batch(prompts, seeds=order, sampling=SHORT, max_batch=max_batch)
        for result, i in zip(batch, order, strict=True):
            assert_same(result, single[i])
    [alone] = engine.generate_batch(QUESTIONS[1:2], seeds=[1], sampling=SHORT, max_batch=1)
    assert_same(alone, single[1])


def test_the_embedded_models_agree_too(tiny: Engine) -> None:
    questions = ["Tom has 3 apples and buys 4 more. How many?", [Message("user", "What is 7 * 8?")]]
    options: dict[str, Any] = {"budget": Budget(rollouts=2), "sampling": Sampling(max_tokens=16)}
    for i, result in enumerate(tiny.generate_batch(questions, **options)):
        assert_same(result, tiny.generate(questions[i], seed=i, **options))


def test_seeds_of_a_batch_default_to_0_1_2() -> None:
    engine = Engine(model=language_model(), strategy=BestOfN(n=1, temperature=1.5))
    batch = engine.generate_batch(["12"] * 6, sampling=SHORT)
    assert [r.seed for r in batch] == [0, 1, 2, 3, 4, 5]
    assert len({r.text for r in batch}) > 1
    for i, result in enumerate(batch):
        assert_same(result, engine.generate("12", seed=i, sampling=SHORT))


def test_one_engine_gives_eight_threads_the_texts_of_one() -> None:
    engine = Engine(model=language_model(), reward=implicit(), strategy=Nabla(temperature=1.0, min_promise=-6.0))
    tasks = [(question, seed) for seed in range(4) for question in QUESTIONS[:4]]

    def solve(task: tuple[str, int]) -> Result:
        return engine.generate(task[0], seed=task[1], sampling=SHORT, budget=Budget(rollouts=3))

    alone = [solve(task) for task in tasks]
    shuffled = random.Random(0).sample(range(len(tasks)), len(tasks))
    with ThreadPoolExecutor(8) as threads:
        together = dict(zip(shuffled, threads.map(lambda i: solve(tasks[i]), shuffled, timeout=60), strict=True))
    for i, expected in enumerate(alone):
        assert_same(together[i], expected)


@pytest.mark.untyped  # the checker of annotations draws random numbers
def test_nothing_is_seeded_globally_and_nothing_depends_on_it() -> None:
    engine = Engine(model=language_model(), reward=implicit(), strategy=Nabla.paper())
    texts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        before = torch.random.get_rng_state(), random.getstate()
        texts.append(engine.generate("12", seed=3, sampling=SHORT).text)
        engine.generate_batch(QUESTIONS, sampling=SHORT)
        assert torch.equal(torch.random.get_rng_state(), before[0])
        assert random.getstate() == before[1]
    assert texts[0] == texts[1]


# ── batches ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_prompt_of_a_batch_has_the_whole_budget() -> None:
    engine = Engine(model=language_model(), reward=implicit(), strategy=Nabla(min_promise=-6.0))
    budget = Budget(rollouts=3, generated_tokens=10, gradient_passes=1)
    batch = engine.generate_batch(QUESTIONS, sampling=SHORT, budget=budget, max_batch=2)
    for result in batch:
        assert 1 <= result.usage.rollouts <= 3
        assert 1 <= result.usage.generated_tokens <= 10
        assert result.usage.gradient_passes == 1
    assert sum(r.usage.rollouts for r in batch) > 3
    assert FinishReason.BUDGET in {r.finish_reason for r in batch}


def test_a_prompt_that_waits_for_its_turn_spends_no_seconds() -> None:
    def slow(rollout: Rollout) -> float:
        time.sleep(0.03)
        return 0.0

    engine = Engine(model=language_model(), reward=FixedReward(slow), budget=Budget(seconds=0.02))
    batch = engine.generate_batch(QUESTIONS, sampling=SHORT, max_batch=1)
    assert [r.usage.rollouts for r in batch] == [1] * len(QUESTIONS)
    runs = [engine.steps(q, sampling=SHORT) for q in QUESTIONS]
    assert [run.drain().usage.rollouts for run in runs] == [1] * len(QUESTIONS)


def test_seconds_of_a_batch_are_its_wall_clock_shared_out_by_flops() -> None:
    def slow(rollout: Rollout) -> float:
        time.sleep(0.02)
        return 0.0

    engine = Engine(model=language_model(), reward=FixedReward(slow), strategy=BestOfN(n=2))
    started = time.perf_counter()
    batch = engine.generate_batch(QUESTIONS, sampling=SHORT)
    elapsed = time.perf_counter() - started
    assert 2 * len(QUESTIONS) * 0.02 < sum(r.usage.seconds for r in batch) < elapsed
    rates = [r.usage.seconds / r.usage.flops for r in batch]
    assert rates == pytest.approx([rates[0]] * len(rates))


def test_a_reward_that_raises_on_one_rollout_leaves_the_others_of_the_batch_as_they_were() -> None:
    def judge(refused: set[str]) -> Reward:
        def score(rollout: Rollout) -> float:
            if rollout.prompt.question in refused:
                raise ValueError("out of order")
            return arbitrary(rollout)

        return FixedReward(score)

    fine, broken = (Engine(model=language_model(), reward=judge(r), strategy=BestOfN(n=2)) for r in (set(), {"3"}))
    expected, batch = (e.generate_batch(QUESTIONS, sampling=SHORT) for e in (fine, broken))
    for question, result, other in zip(QUESTIONS, batch, expected, strict=True):
        if question != "3":
            assert_same(result, other)
            continue
        assert result.score is not None
        assert not result.score.judged
        assert result.score.explanation == "FixedReward raised ValueError: out of order"


class Faulty:
    """Greedy, but it fails on one question, at once; the others end later."""

    rule = "objective"

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def steps(self, search: Any) -> AsyncIterator[Step]:
        if search.prompt.question == "3":
            raise RuntimeError("a defect")
        async for step in Greedy().steps(search):
            yield step
        self.ended.append(search.prompt.question)

    def select(self, pool: Any) -> Any:
        return pool.best()


@pytest.mark.parametrize("max_batch", [1, 2, 32])
def test_an_error_in_one_search_is_raised_when_all_have_ended(max_batch: int) -> None:
    strategy = Faulty()
    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="a defect"):
        Engine(model=language_model(), strategy=strategy).generate_batch(QUESTIONS, max_batch=max_batch, sampling=SHORT)
    assert sorted(strategy.ended) == sorted(q for q in QUESTIONS if q != "3")
    until = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= threads
