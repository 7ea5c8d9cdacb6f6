"""The ledger against counters that hang on the modules themselves: nothing is computed that it does not show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch

from nabla_agents import (
    BestOfN,
    Budget,
    Engine,
    ImplicitReward,
    LanguageModel,
    Nabla,
    NoDirection,
    Objective,
    PowerSampling,
    RandomDirection,
    Result,
    Reward,
    Rollout,
    Sampling,
    SelfConsistency,
    Usage,
)
from nabla_agents.models.rows import RolloutJob
from nabla_agents.models.transformer import Transformer
from nabla_agents.rewards.learned.bound import BoundReward
from nabla_agents.testing import random_model, random_outcome_reward, random_process_reward

WORDS = ("1", "2", "3", "4", "+", "=", "\n")
QUESTIONS = ("1+2=", "3", "4+4+4=1\n2", "2+2")


@cache
def language_model(seed: int = 0, **shape: Any) -> LanguageModel:
    return random_model(vocabulary=WORDS, seed=seed, **{"width": 16, "layers": 1, **shape})


@dataclass(eq=False)
class Tokens:
    """What one transformer read and differentiated, batch × time, padding included."""

    forward: int = 0
    backward: int = 0
    backward_rows: int = 0


@contextmanager
def counted(*transformers: Transformer) -> Iterator[list[Tokens]]:
    """Counts on the bodies, independently of the ledger."""
    counts: list[Tokens] = []
    handles: list[Any] = []
    for transformer in transformers:
        count = Tokens()

        def before(_: Any, args: Any, kwargs: Any, count: Tokens = count) -> None:
            assert not args
            read = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
            count.forward += read.shape[0] * read.shape[1]

        def after(_: Any, args: Any, kwargs: Any, output: Any, count: Tokens = count) -> None:
            def differentiated(gradient: torch.Tensor) -> None:
                count.backward += gradient.shape[0] * gradient.shape[1]
                count.backward_rows += gradient.shape[0]

            if output.last_hidden_state.requires_grad:
                output.last_hidden_state.register_hook(differentiated)

        handles.append(transformer.body.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(transformer.body.register_forward_hook(after, with_kwargs=True))
        counts.append(count)
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@dataclass(eq=False)
class CountingBackend:
    """The model's own rollouts, counted."""

    model: LanguageModel
    rollouts: list[Rollout] = field(default_factory=list)
    generated_tokens: int = 0

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]:
        made = self.model.rollout(jobs)
        self.rollouts += made
        self.generated_tokens += sum(len(r.completion_ids) - len(j.prefix_ids) for r, j in zip(made, jobs, strict=True))
        return made


@dataclass(eq=False)
class Setup:
    """A language model, a reward, and the transformers that the reward runs."""

    model: LanguageModel
    reward: Reward | None
    judges: list[Transformer]
    kinds: tuple[type[Reward], ...]  # of its rewards, whose calls are reward calls


@cache
def nothing() -> Setup:
    return Setup(language_model(), None, [], ())


@cache
def process() -> Setup:
    model = language_model()
    reward = random_process_reward(model.tokenizer.hf, min_coverage=0.0, width=32, layers=2, seed=1)
    return Setup(model, reward, [reward.transformer], (BoundReward,))


@cache
def implicit() -> Setup:
    model, tuned = language_model(), language_model(1, width=32)
    return Setup(model, ImplicitReward(tuned), [tuned.transformer], (ImplicitReward,))


@cache
def own_reference() -> Setup:
    model, tuned, reference = language_model(), language_model(1, width=32), language_model(2, layers=2)
    reward = ImplicitReward(tuned, reference)
    return Setup(model, reward, [tuned.transformer, reference.transformer], (ImplicitReward,))


@cache
def several() -> Setup:
    model, tuned = language_model(), language_model(1, width=32)
    hf = model.tokenizer.hf
    steps, whole = (
        random_process_reward(hf, seed=1, labels=1, min_coverage=0.0),
        random_outcome_reward(hf, width=16, seed=2, min_coverage=0.0),
    )
    judges = [steps.transformer, whole.transformer, tuned.transformer]
    reward = 3.0 * steps + 0.5 * whole + 0.1 * ImplicitReward(tuned)
    return Setup(model, reward, judges, (BoundReward, BoundReward, ImplicitReward))


@cache
def windowed() -> Setup:
    """Sliding attention, shorter than a prompt: cached prompts of ragged rows are read again."""
    model = random_model("gemma3", vocabulary=WORDS, width=16, sliding_window=4)
    tuned = random_model("gemma3", vocabulary=WORDS, width=16, sliding_window=4, seed=1)
    return Setup(model, ImplicitReward(tuned), [tuned.transformer], (ImplicitReward,))


@cache
def narrow() -> Setup:
    """In half precision finished rollouts are read once more."""
    model = random_model(vocabulary=WORDS, width=16, layers=1, dtype=torch.bfloat16)
    tuned = language_model(1, width=32)
    return Setup(model, ImplicitReward(tuned), [tuned.transformer], (ImplicitReward,))


SETUPS = [nothing, process, implicit, own_reference, several, windowed, narrow]
STRATEGIES = {
    "best of n": BestOfN(n=3),
    "self consistency": SelfConsistency(n=3),
    "power sampling": PowerSampling(alpha=1.5, moves=4),
    "nabla": Nabla(min_promise=-6.0),
    "nabla, none": Nabla(direction=NoDirection(), min_promise=-6.0),
    "nabla, random": Nabla(direction=RandomDirection(), min_promise=-6.0),
    "nabla, paper": Nabla.paper(),
}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[[Setup], list[float]]:
    """The values that the rewards of a setup give, one for each rollout and reward that was called."""

    def watch(setup: Setup) -> list[float]:
        values: list[float] = []
        for kind in set(setup.kinds):
            original: Any = kind.score

            def score(self: Any, rollouts: Any, original: Any = original) -> Any:
                scores = original(self, rollouts)
                values.extend(s.value for s in scores)
                return scores

            monkeypatch.setattr(kind, "score", score)
        return values

    return watch


def assert_ledger(usage: Usage, policy: Tokens, judges: Sequence[Tokens]) -> None:
    """Tokens as the modules saw them; for FLOPs see `test_flops.py`."""
    assert usage.lm_forward_tokens == policy.forward
    assert usage.lm_backward_tokens == policy.backward
    assert usage.reward_forward_tokens == sum(j.forward for j in judges)
    assert usage.reward_backward_tokens == sum(j.backward for j in judges)


def engine_of(setup: Setup, strategy: Any, **options: Any) -> tuple[Engine, CountingBackend]:
    backend = CountingBackend(setup.model)
    return Engine(model=setup.model, reward=setup.reward, strategy=strategy, rollouts=backend, **options), backend


def total(results: Sequence[Result]) -> Usage:
    return sum((r.usage for r in results), Usage())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("setup", SETUPS)
def test_the_ledger_equals_what_the_modules_saw(
    setup: Callable[[], Setup], strategy: str, scored: Callable[[Setup], list[float]]
) -> None:
    made = setup()
    engine, backend = engine_of(made, STRATEGIES[strategy], budget=Budget(rollouts=5))
    values = scored(made)
    with counted(made.model.transformer, *made.judges) as (policy, *judges):
        result = engine.generate(QUESTIONS[0], sampling=Sampling(max_tokens=10), seed=3)
    usage = result.usage
    assert_ledger(usage, policy, judges)
    assert usage.rollouts == len(backend.rollouts)
    assert usage.generated_tokens == backend.generated_tokens
    assert usage.gradient_passes == policy.backward_rows
    assert usage.reward_calls == len(values) == len(backend.rollouts) * len(made.kinds)
    passes = strategy in ("nabla", "nabla, random", "nabla, paper")
    assert (usage.gradient_passes > 0) == (usage.lm_backward_tokens > 0) == passes
    assert usage.prefill_tokens <= usage.lm_forward_tokens
    assert usage.seconds > 0
    assert result.trace[-1].usage.flops == usage.flops


@pytest.mark.parametrize(
    ("strategy", "embedding_terms"),
    [("best of n", True), ("self consistency", True), ("nabla", True), ("nabla", False), ("nabla, none", True)],
)
@pytest.mark.parametrize("setup", [process, own_reference, several, windowed])
def test_the_ledgers_of_a_batch_add_up_to_what_the_modules_saw(
    setup: Callable[[], Setup], strategy: str, embedding_terms: bool, scored: Callable[[Setup], list[float]]
) -> None:
    """Prompts of different lengths: padding is computed, and so it is counted."""
    made = setup()
    engine, backend = engine_of(made, STRATEGIES[strategy], budget=Budget(rollouts=4), embedding_terms=embedding_terms)
    values = scored(made)
    with counted(made.model.transformer, *made.judges) as (policy, *judges):
        results = engine.generate_batch(QUESTIONS, sampling=Sampling(max_tokens=8))
    usage = total(results)
    assert_ledger(usage, policy, judges)
    assert usage.rollouts == len(backend.rollouts)
    assert usage.generated_tokens == backend.generated_tokens
    assert usage.reward_calls == len(values) == len(backend.rollouts) * len(made.kinds)
    assert policy.backward_rows == (usage.gradient_passes if embedding_terms else 0)
    assert (usage.gradient_passes > 0) == (strategy == "nabla")


@pytest.mark.parametrize("starts", [(0, 0, 0), (1, 3, 0), (4, 4, 2)], ids=str)
@pytest.mark.parametrize("cached", [False, True], ids=["uncached", "cached"])
@pytest.mark.parametrize("setup", SETUPS)
def test_every_gradient_pass_counts_its_own_tokens(
    setup: Callable[[], Setup], cached: bool, starts: tuple[int, ...]
) -> None:
    """From any position on: also what is read again of the committed tokens."""
    made = setup()
    model = made.model
    objective = Objective(model, made.reward)
    lengths = zip(QUESTIONS, (9, 6, 7), strict=False)
    rollouts = [
        Rollout(model.prompt(question), ids, model.tokenizer.decode(ids))
        for question, ids in ((q, (0, 1, 6, 2, 4, 5, 6, 3, 1)[:n]) for q, n in lengths)
    ]
    if cached:
        model.read_prompts([r.prompt for r in rollouts])
    with counted(model.transformer, *made.judges) as (policy, *judges):
        gradients = objective.gradient(rollouts, [None] * 3, starts)
    assert_ledger(sum((g.usage for g in gradients), Usage()), policy, judges)
    assert [g.usage.gradient_passes for g in gradients] == [1, 1, 1]
    with counted(model.transformer, *made.judges) as (policy, *judges):
        for gradient, rollout in zip(gradients, rollouts, strict=True):
            gradient.rows([len(rollout.completion_ids) - 1])  # rows come from what is held: no module runs again
    assert [t.forward for t in (policy, *judges)] == [0] * (1 + len(judges))


@pytest.mark.parametrize("strategy", ["nabla", "nabla, none", "nabla, random", "best of n"])
@pytest.mark.parametrize("setup", [process, implicit])
def test_the_result_is_the_best_of_everything_that_was_scored(
    setup: Callable[[], Setup], strategy: str, scored: Callable[[Setup], list[float]]
) -> None:
    """The research code returned the last state and threw rejected rollouts away."""
    for seed in range(2):
        made = setup()
        chosen = STRATEGIES[strategy]
        engine, backend = engine_of(made, chosen, likelihood_weight=0.2)
        values = scored(made)
        result = engine.generate(QUESTIONS[1], sampling=Sampling(max_tokens=8, temperature=1.0), seed=seed)
        assert len(values) == len(backend.rollouts) > 1
        weight = 0.0 if chosen.rule == "reward" else 0.2
        judged = [-math.inf if math.isnan(v) else v for v in values]  # an empty completion has no steps to judge
        objectives = [v + weight * r.log_likelihood for v, r in zip(judged, backend.rollouts, strict=True)]
        whole = [not r.cut and j > -math.inf for r, j in zip(backend.rollouts, objectives, strict=True)]
        best = max(range(len(objectives)), key=lambda i: (whole[i], objectives[i]))
        assert result.score is not None
        assert result.score.value + weight * result.log_likelihood == pytest.approx(objectives[best])
        assert result.text == backend.rollouts[best].text


@pytest.mark.parametrize("rule", ["reward", "objective"])
def test_by_the_reward_alone_the_result_has_the_highest_score(
    rule: Any, scored: Callable[[Setup], list[float]]
) -> None:
    made = process()
    engine, backend = engine_of(made, Nabla(acceptance=rule, min_promise=-8.0), likelihood_weight=0.2)
    values = scored(made)
    result = engine.generate(QUESTIONS[2], sampling=Sampling(max_tokens=8), seed=1)
    assert result.score is not None
    if rule == "reward":
        assert result.score.value == max(values)
    assert result.score.value in values
    assert {s.text for s in result.trace} <= {r.text for r in backend.rollouts}


def test_the_ledger_never_shrinks_from_step_to_step() -> None:
    made = implicit()
    engine, _ = engine_of(made, Nabla(min_promise=-6.0))
    with counted(made.model.transformer, *made.judges) as (policy, judge):
        run = engine.steps(QUESTIONS[0], sampling=Sampling(max_tokens=8), seed=2)
        previous = Usage()
        for step in run:
            assert_ledger(step.usage, policy, [judge])  # at every moment, not only at the end
            for name, amount in previous.as_dict().items():
                assert getattr(step.usage, name) >= amount
            previous = step.usage
    assert run.result.usage.flops == previous.flops
