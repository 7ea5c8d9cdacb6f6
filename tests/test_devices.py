"""The language model on one device and its reward on another."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nabla_agents import Budget, Engine, ImplicitReward, LanguageModel, Nabla, NablaParallel, Result, Reward, Sampling
from nabla_agents.testing import permuted_tokenizer, random_model, random_outcome_reward, random_process_reward
from tests.second_device import move, second_device

WORDS = ("a", "b", "c", "d", "\n")
QUESTIONS = ("ab", "ddc")


def process(model: LanguageModel) -> Reward:
    return random_process_reward(model.tokenizer.hf, seed=1, width=16)


def another_vocabulary(model: LanguageModel) -> Reward:
    return random_outcome_reward(permuted_tokenizer(WORDS, seed=3)[0], seed=1, width=16)


def implicit(model: LanguageModel) -> Reward:
    return ImplicitReward(random_model("qwen3", vocabulary=WORDS, layers=1, seed=5), reference=model)


def answers(engine: Engine) -> list[Result]:
    """One by one and together, with drafts and gradients."""
    alone = [engine.generate(q, seed=i, sampling=Sampling(max_tokens=8)) for i, q in enumerate(QUESTIONS)]
    seeds = range(len(QUESTIONS))
    parallel = NablaParallel(min_promise=-20.0)
    together = engine.generate_batch(QUESTIONS, seeds=seeds, strategy=parallel, sampling=Sampling(max_tokens=8))
    return [*alone, *together]


@pytest.mark.parametrize("moved", ["reward", "model"])
@pytest.mark.parametrize("reward_of", [process, another_vocabulary, implicit], ids=lambda f: f.__name__)
def test_answers_are_the_same_when_the_reward_is_on_another_device(
    reward_of: Callable[[LanguageModel], Reward], moved: str
) -> None:
    results: list[list[Result]] = []
    for apart in (False, True):
        model = random_model("qwen3", vocabulary=WORDS, layers=2)
        reward: Any = reward_of(model)
        with second_device() as device:
            if apart:
                module = model.transformer.module if moved == "model" else reward.transformer.module
                module.set_attn_implementation("eager")
                move(module)
            engine = Engine(model=model, reward=reward, strategy=Nabla(min_promise=-20.0), budget=Budget(rollouts=4))
            if apart:
                where = {"model": model.transformer.device, "reward": reward.transformer.device}
                assert [where[name] == device for name in ("model", "reward")] == [moved == "model", moved == "reward"]
            results.append(answers(engine))
    for expected, got in zip(*results, strict=True):
        assert got.text == expected.text
        assert got.score is not None
        assert expected.score is not None
        assert got.score.value == pytest.approx(expected.score.value, abs=1e-5)
        assert got.usage.gradient_passes == expected.usage.gradient_passes > 0


def test_the_second_device_takes_no_tensor_of_the_first() -> None:
    """What the tests above rest on."""
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    expected = layer(x).sum(1)
    with second_device() as device:
        move(layer)
        with pytest.raises(RuntimeError, match="expected one device"):
            layer(x)
        torch.testing.assert_close(layer(x.to(device)).sum(1).cpu(), expected)
