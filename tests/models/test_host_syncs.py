"""How often the host waits for the device: a fixed number of times a decode step, and a gradient pass."""

from collections import Counter
from typing import Any

import pytest
import torch

from nabla_agents import LanguageModel, Objective, OutcomeReward, Rollout, Sampling
from nabla_agents.models.decoding import Decoding
from nabla_agents.models.rows import RolloutJob
from nabla_agents.testing import random_model, random_outcome_reward

WORDS = tuple("abcdefgh")
READERS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero")


def language_model() -> LanguageModel:
    return random_model(vocabulary=WORDS, width=16, layers=2, scale=0.2)


def job(model: LanguageModel, tokens: int, seed: int) -> RolloutJob:
    uniforms = torch.rand(tokens, generator=torch.Generator().manual_seed(seed))
    prompt = model.prompt("ab" * (1 + seed % 3))
    return RolloutJob(prompt, (), Sampling(temperature=1.0, top_p=0.9), tokens, uniforms)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often tensors were read by the host, by how."""
    seen: Counter[str] = Counter()
    depth = [0]
    for name in READERS:
        original: Any = getattr(torch.Tensor, name)

        def counted(self: Any, *rest: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            seen[name] += depth[0] == 0  # one may call another
            depth[0] += 1
            try:
                return original(self, *rest, **options)
            finally:
                depth[0] -= 1

        monkeypatch.setattr(torch.Tensor, name, counted)
    return seen


@pytest.mark.parametrize("batch", [1, 8, 40])
def test_a_decode_step_waits_for_the_device_as_often_whatever_the_batch(batch: int, reads: Counter[str]) -> None:
    """Once for all tokens with their log-probabilities; once in transformers, which asks whether there is padding."""
    model = language_model()
    decoding = Decoding(model)
    rows = decoding.add([job(model, 60, seed) for seed in range(batch)])
    for _ in range(10):
        before, written = reads.copy(), len(decoding)
        decoding.step()
        if written == len(decoding):  # none ended
            new = reads - before
            assert new["tolist"] <= 1, new
            assert new["__bool__"] <= 1, new
            assert sum(new.values()) <= 2, new
    assert max(len(row.ids) for row in rows) > 5


@pytest.mark.parametrize("tokens", [70, 140])
def test_a_gradient_pass_waits_for_the_device_no_more_often_for_a_longer_text(tokens: int, reads: Counter[str]) -> None:
    model = language_model()
    reward: OutcomeReward = random_outcome_reward(model.tokenizer.hf, width=16, seed=1)
    objective, prompt = Objective(model, reward), model.prompt("ab")
    ids = tuple(model.tokenizer.encode("abcdefg" * (tokens // 7)))
    rollouts = [Rollout(prompt, ids, model.tokenizer.decode(ids))]
    objective.gradient(rollouts, [None], [0])
    reads.clear()
    [gradient] = objective.gradient(rollouts, [None], [0])
    gradient.rows(range(10))
    assert sum(reads.values()) <= 4, reads
