"""Traps of the research code, seen from outside an engine; the parts have tests of their own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch

from nabla_agents import (
    BestOfN,
    Budget,
    DifferentiableReward,
    Engine,
    FinishReason,
    Greedy,
    LanguageModel,
    Nabla,
    ProcessReward,
    Rollout,
    Sampling,
    Score,
    SelfConsistency,
    Strategy,
)
from nabla_agents.models.rows import RolloutJob
from nabla_agents.rewards.base import RewardGradient
from nabla_agents.rewards.learned.bound import BoundReward
from nabla_agents.testing import random_model, random_process_reward

WORDS = ("1", "2", "3", "4", "+", "=", "\n")
EOS, SYSTEM, USER, ASSISTANT = range(len(WORDS), len(WORDS) + 4)
QUESTIONS = ("12", "3", "4+4+4=1\n2", "4=4")
EAGER = Nabla(min_promise=-6.0)
STRATEGIES: list[Strategy] = [Greedy(), BestOfN(n=3), SelfConsistency(n=3), EAGER, Nabla.paper()]


@cache
def language_model(seed: int = 0) -> LanguageModel:
    return random_model(vocabulary=WORDS, seed=seed, width=16, layers=1)


def endless(context_length: int) -> LanguageModel:
    """A model that no token ends."""
    model = random_model(vocabulary=WORDS, width=16, layers=1, context_length=context_length)
    model.eos_ids = frozenset()
    return model


@torch.no_grad()
def full_log_probs(model: LanguageModel, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """[time, vocab] by one plain forward of transformers."""
    logits = model.transformer.module(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1].double().log_softmax(-1)


@torch.no_grad()
def greedy(model: LanguageModel, prompt: Sequence[int], max_tokens: int) -> tuple[int, ...]:
    """Token by token, each by a plain forward over everything."""
    ids = list(prompt)
    while len(ids) < len(prompt) + max_tokens and (len(ids) == len(prompt) or ids[-1] != EOS):
        ids.append(int(model.transformer.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


@dataclass(eq=False)
class Watched:
    """The model's own rollouts; keeps every job and what came of it. `echo` answers each with the first of all."""

    model: LanguageModel
    echo: bool = False
    jobs: list[RolloutJob] = field(default_factory=list)
    made: list[Rollout] = field(default_factory=list)

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]:
        made = [replace(self.made[0]) for _ in jobs] if self.echo and self.made else self.model.rollout(jobs)
        self.jobs += jobs
        self.made += made
        return made


@dataclass(eq=False)
class Reading:
    """What a reward's transformer read for one score, prompt included."""

    rollout: Rollout
    score: Score
    ids: tuple[int, ...] = ()

    @property
    def completion(self) -> tuple[int, ...]:
        assert self.ids[: len(self.rollout.prompt.ids)] == self.rollout.prompt.ids
        return self.ids[len(self.rollout.prompt.ids) :]


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ProcessReward, list[Reading]]]:
    """A process reward, and what it reads whenever it scores a single rollout that has text. Seen on its body."""
    reward = random_process_reward(
        language_model().tokenizer.hf, width=16, layers=1, min_coverage=0.0, seed=1, separator="\n"
    )
    rows = reward.transformer.embedding.weight
    fed: list[int] = []

    def watch(_: Any, args: Any, given: Any) -> None:
        """Ids as they are, embeddings as the token whose row they are, after what is read of the prompt already."""
        past = given.get("cache", given.get("past_key_values"))  # its name since transformers 5.24
        known = 0 if past is None else past.get_seq_length()
        if given.get("input_ids") is not None:
            fed[known:] = given["input_ids"][0].tolist()
        else:
            fed[known:] = torch.cdist(given["inputs_embeds"][0].detach(), rows).argmin(-1).tolist()

    hook = reward.transformer.body.register_forward_pre_hook(watch, with_kwargs=True)
    seen: list[Reading] = []
    original = BoundReward.score

    def score(self: BoundReward, rollouts: Sequence[Rollout]) -> list[Score]:
        assert len(rollouts) == 1
        scores = original(self, rollouts)
        if rollouts[0].text.strip():
            seen.append(Reading(rollouts[0], scores[0], tuple(fed)))
        return scores

    monkeypatch.setattr(BoundReward, "score", score)
    yield reward, seen
    hook.remove()


def test_the_same_completion_scores_the_same_as_incumbent_and_as_proposal(readings: Any) -> None:
    """It was scored with its prompt as incumbent and without as proposal; so equal texts were accepted as better."""
    reward, seen = readings
    backend = Watched(language_model(), echo=True)
    engine = Engine(model=language_model(), reward=reward, strategy=EAGER, rollouts=backend, likelihood_weight=0.5)
    result = engine.generate(QUESTIONS[0], sampling=Sampling(max_tokens=6))
    assert len(seen) == result.usage.rollouts > 2
    assert {r.score.value for r in seen} == {result.score.value if result.score else None}
    assert len({r.ids for r in seen}) == 1
    assert not any(s.accepted for s in result.trace if s.kind == "refine")


def test_the_reward_reads_prompt_and_completion_of_every_proposal(readings: Any) -> None:
    reward, seen = readings
    engine = Engine(model=language_model(), reward=reward, strategy=EAGER)
    for question in QUESTIONS:
        engine.generate(question, sampling=Sampling(max_tokens=6))
    assert len(seen) > len(QUESTIONS)
    forging = set(language_model().tokenizer.special_tokens) - {EOS}  # role markers, which this random model writes
    for reading in seen:
        assert reading.completion == tuple(t for t in reading.rollout.completion_ids if t not in forging)


def test_a_terminal_token_ends_a_rollout_and_the_reward_reads_exactly_one(readings: Any) -> None:
    reward, seen = readings
    engine = Engine(model=language_model(), reward=reward, strategy=EAGER)
    for seed, question in enumerate(QUESTIONS):
        engine.generate(question, seed=seed, sampling=Sampling(max_tokens=4, temperature=1.0))
    for reading in seen:
        ids, ended = reading.rollout.completion_ids, reading.rollout.finish_reason is FinishReason.STOP
        assert ids.count(EOS) == int(ended)
        assert (ids[-1] == EOS) == ended
        assert reading.completion.count(EOS) == int(ended)
    assert {r.completion.count(EOS) for r in seen} == {0, 1}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_the_likelihood_alone_is_an_objective(strategy: Strategy) -> None:
    """No reward was a KeyError."""
    backend = Watched(language_model())
    engine = Engine(model=language_model(), strategy=strategy, rollouts=backend)
    result = engine.generate(QUESTIONS[0], sampling=Sampling(max_tokens=6))
    assert result.score is None
    assert result.usage.reward_calls == result.usage.reward_forward_tokens == 0
    assert (result.usage.gradient_passes > 0) == isinstance(strategy, Nabla)
    prompt = engine.prompt(QUESTIONS[0]).ids
    rows = full_log_probs(language_model(), prompt, result.token_ids)
    assert result.log_likelihood == pytest.approx(
        float(rows.gather(1, torch.tensor([result.token_ids]).T).sum()), abs=1e-4
    )
    if not isinstance(strategy, SelfConsistency):
        assert result.log_likelihood == max(r.log_likelihood for r in backend.made)


class Noting(DifferentiableReward):
    """Keeps the prompts that it is asked about; has no gradient of its own."""

    def __init__(self) -> None:
        self.scored: list[tuple[int, ...]] = []
        self.differentiated: list[tuple[int, ...]] = []

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        self.scored += [r.prompt.ids for r in rollouts]
        return [Score(float(len(r.text) % 3)) for r in rollouts]

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[Any]
    ) -> list[RewardGradient | None]:
        self.differentiated += [r.prompt.ids for r in rollouts]
        return [None] * len(rollouts)


@pytest.mark.parametrize("batch", [False, True], ids=["generate", "generate_batch"])
def test_system_prompt_and_every_turn_reach_rollout_objective_and_reward(
    batch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: a marker for the role, the words, the terminal token, turn by turn; then the assistant's marker."""
    turns = [
        {"role": "system", "content": "1"},
        {"role": "user", "content": "2+"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "4="},
    ]
    by_hand = (SYSTEM, 0, EOS, USER, 1, 4, EOS, ASSISTANT, 2, EOS, USER, 3, 5, EOS, ASSISTANT)
    objective: list[tuple[int, ...]] = []
    original = LanguageModel.likelihood_gradient

    def noted(self: LanguageModel, rollouts: Sequence[Rollout], *rest: Any, **options: Any) -> Any:
        objective.extend(r.prompt.ids for r in rollouts)
        return original(self, rollouts, *rest, **options)

    monkeypatch.setattr(LanguageModel, "likelihood_gradient", noted)
    read: list[list[int]] = []
    hook = language_model().transformer.body.register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"][0].tolist()) if given["input_ids"] is not None else None,
        with_kwargs=True,
    )
    backend, reward = Watched(language_model()), Noting()
    engine = Engine(model=language_model(), reward=reward, strategy=EAGER, rollouts=backend)
    sampling = Sampling(max_tokens=6)
    if batch:
        [result] = engine.generate_batch([turns], sampling=sampling)
    else:
        result = engine.generate(turns, sampling=sampling)
    hook.remove()
    for seen in ([j.prompt.ids for j in backend.jobs], reward.scored, reward.differentiated, objective):
        assert len(seen) > 0
        assert set(seen) == {by_hand}
    assert read[0] == list(by_hand[:-1])  # the module itself; the last token is read with the completion
    assert result.prompt_tokens == len(by_hand)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_one_token_is_one_token(strategy: Strategy) -> None:
    """What was left of max_tokens reached 0 at the last position."""
    engine = Engine(model=language_model(), strategy=strategy)
    for seed in range(3):
        result = engine.generate(QUESTIONS[0], seed=seed, sampling=Sampling(max_tokens=1))
        assert len(result.token_ids) == 1
        assert result.truncated == (result.token_ids != (EOS,))
        assert all(len(engine.model.tokenizer.encode(s.text)) <= 1 for s in result.trace)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_without_max_tokens_a_completion_may_fill_the_context(strategy: Strategy) -> None:
    """An omitted max_tokens became 16."""
    engine = Engine(model=endless(40), strategy=strategy, budget=Budget(rollouts=3))
    result = engine.generate(QUESTIONS[0])
    assert len(result.token_ids) == 40 - result.prompt_tokens > 16
    assert result.truncated


@pytest.mark.parametrize("strategy", [*STRATEGIES, BestOfN(n=2, temperature=0.0)], ids=lambda s: type(s).__name__)
def test_temperature_0_is_greedy_everywhere_and_the_seed_is_nothing(strategy: Strategy) -> None:
    """It meant 1 in one place of the research code."""
    given = {} if strategy == BestOfN(n=2, temperature=0.0) else {"temperature": 0.0}
    for seed, question in enumerate(QUESTIONS):
        backend = Watched(language_model())
        engine = Engine(model=language_model(), strategy=strategy, rollouts=backend)
        engine.generate(question, seed=seed, sampling=Sampling(max_tokens=6, **given))
        expected = greedy(language_model(), engine.prompt(question).ids, 6)
        whole = [made for job, made in zip(backend.jobs, backend.made, strict=True) if not job.prefix_ids]
        assert {r.completion_ids for r in whole} == {expected}


def test_a_filter_that_is_none_is_off() -> None:
    """As one that lets everything pass: top-k None meant the tokenizer's default elsewhere."""
    engine = Engine(model=language_model(), strategy=BestOfN(n=4, temperature=1.5))
    off = Sampling(max_tokens=6)
    everything = Sampling(max_tokens=6, top_k=len(WORDS) + 5, top_p=1.0, min_p=0.0)
    only_one = Sampling(max_tokens=6, top_k=1)
    texts = {}
    for sampling in (off, everything, only_one):
        texts[sampling] = [s.text for q in QUESTIONS for s in engine.generate(q, sampling=sampling).trace]
    assert texts[off] == texts[everything]
    assert texts[off] != texts[only_one]
