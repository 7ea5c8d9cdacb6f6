"""Prompts are read once a request, by rewards too; what was read goes when the request has ended."""

import gc
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from nabla_agents import BestOfN, Budget, Engine, ImplicitReward, LanguageModel, Nabla, Sampling
from nabla_agents.models.prefix_cache import PrefixCache, PrefixCaches
from nabla_agents.models.transformer import Transformer
from nabla_agents.testing import random_model, random_process_reward
from nabla_agents.types import Prompt

WORDS = ("1", "2", "3", "4", "+", "=", "\n")
QUESTIONS = ("12", "3", "4+4+4=1\n2", "4=4", "1\n1\n1")
SHORT = Sampling(max_tokens=6)


def language_model(seed: int = 0, **shape: Any) -> LanguageModel:
    return random_model(vocabulary=WORDS, seed=seed, width=16, layers=2, **shape)


def rewarded(kind: str, strategy: Any) -> tuple[Engine, Transformer]:
    model = language_model()
    reward = (
        ImplicitReward(language_model(1))
        if kind == "implicit"
        else random_process_reward(model.tokenizer.hf, width=16, layers=1, seed=1)
    )
    return Engine(model=model, reward=reward, strategy=strategy), reward.transformer


@pytest.fixture
def prefilled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Transformer, int]]:
    """(which model, how many rows) of every prefill."""
    seen: list[tuple[Transformer, int]] = []
    original = Transformer.prefill

    def prefill(self: Transformer, rows: Sequence[Sequence[int]]) -> Any:
        seen.append((self, len(rows)))
        return original(self, rows)

    monkeypatch.setattr(Transformer, "prefill", prefill)
    return seen


@pytest.mark.parametrize("kind", ["implicit", "process"])
@pytest.mark.parametrize("strategy", [BestOfN(n=4), Nabla(min_promise=-9.0)], ids=["best of n", "nabla"])
def test_a_reward_reads_the_prompt_once_a_request(
    kind: str, strategy: Any, prefilled: list[tuple[Transformer, int]]
) -> None:
    engine, transformer = rewarded(kind, strategy)
    result = engine.generate("4+4=", sampling=SHORT, budget=Budget(rollouts=4))
    assert result.usage.reward_calls == 4
    assert [rows for which, rows in prefilled if which is transformer] == [1]


def test_prompts_of_a_batch_are_read_together(prefilled: list[tuple[Transformer, int]]) -> None:
    engine, transformer = rewarded("implicit", Nabla())
    engine.generate_batch(QUESTIONS, sampling=SHORT, budget=Budget(rollouts=3))
    assert [rows for which, rows in prefilled if which is engine.model.transformer] == [len(QUESTIONS)]
    judged = [rows for which, rows in prefilled if which is transformer]
    assert sum(judged) == len(QUESTIONS)  # each once, together with those that end about when it does
    assert len(judged) < len(QUESTIONS)


@pytest.mark.parametrize("kind", ["implicit", "process"])
def test_a_request_costs_the_same_whatever_was_asked_before(kind: str) -> None:
    engine, _ = rewarded(kind, Nabla(min_promise=-9.0))
    prompt = engine.prompt("4+4=")
    costs = {engine.generate(prompt, sampling=SHORT, budget=Budget(rollouts=4)).usage.flops for _ in range(3)}
    assert len(costs) == 1


@pytest.mark.parametrize("kind", ["implicit", "process"])
def test_nothing_is_kept_when_requests_have_ended(kind: str) -> None:
    engine, transformer = rewarded(kind, Nabla(min_promise=-9.0))
    kept = engine.generate("4+4=", sampling=SHORT)
    assert len(transformer.prefixes) == 0
    results = engine.generate_batch(QUESTIONS, sampling=SHORT, budget=Budget(rollouts=3))
    gc.collect()
    assert len(transformer.prefixes) == 0
    assert len(results) == len(QUESTIONS)
    assert kept.text is not None


def test_a_batch_of_many_prompts_keeps_those_of_running_searches_only(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, transformer = rewarded("implicit", BestOfN(n=2))
    most, original = [0], Transformer.read_prompts

    def watched(self: Transformer, *arguments: Any, **options: Any) -> Any:
        found = original(self, *arguments, **options)
        most[0] = max(most[0], len(transformer.prefixes))
        return found

    monkeypatch.setattr(Transformer, "read_prompts", watched)
    engine.generate_batch(QUESTIONS * 6, sampling=SHORT, max_batch=2)
    assert 1 <= most[0] <= 4  # two at a time; the frames of two more may not have gone yet


def test_a_cache_is_of_one_prompt_object_and_its_ids() -> None:
    caches, prompt, equal = PrefixCaches(), Prompt((), "a", (1, 2)), Prompt((), "a", (1, 2))
    caches.keep(prompt, first := PrefixCache((1, 2), ()))
    assert caches.get(prompt, [1, 2]) is first
    assert caches.get(equal, (1, 2)) is None
    assert caches.get(prompt, (1,)) is None
    caches.keep(prompt, second := PrefixCache((3,), ()))
    assert caches.get(prompt, (3,)) is second
    del prompt
    gc.collect()
    assert len(caches) == 0


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_prompts_read_together_are_as_read_alone(family: Any) -> None:
    """Keys and values of rows of unlike length: padding has no part in them."""
    transformer = random_model(family, vocabulary=WORDS, width=16).transformer
    rows = [[0, 1, 2, 3, 4], [5], [], [6, 6, 1]]
    for row, (cache, _) in zip(rows, transformer.prefill(rows), strict=True):
        [(alone, tokens)] = transformer.prefill([row])
        assert tokens == len(row)
        assert cache.ids == alone.ids == tuple(row)
        for found, expected in zip(cache.layers, alone.layers, strict=True):
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
