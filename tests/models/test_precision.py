"""Half precision: logits in float32, one way of reading what is compared, and a margin above the noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nabla_agents import Budget, Engine, ImplicitReward, LanguageModel, Nabla, Objective, Rollout, Sampling
from nabla_agents.models.precision import NOISE, widened
from nabla_agents.models.rows import RolloutJob
from nabla_agents.testing import random_model


def narrow(seed: int = 0, dtype: torch.dtype = torch.bfloat16, **shape: Any) -> LanguageModel:
    return random_model(seed=seed, dtype=dtype, **{"width": 64, "layers": 2, **shape})


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_of_half_precision_are_not_rounded_to_it(architecture: Any, dtype: torch.dtype) -> None:
    model = random_model(architecture, dtype=dtype, width=64)
    hidden = torch.randn(7, 64, dtype=dtype, generator=torch.Generator().manual_seed(0))
    logits = model.head(hidden)
    exact = hidden.double() @ model.transformer.module.get_output_embeddings().weight.double().T
    cap = getattr(model.transformer.config, "final_logit_softcapping", None)
    exact = exact if cap is None else cap * torch.tanh(exact / cap)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits.double(), exact, rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits, logits.to(dtype).float())


def test_a_head_in_float32_stays_the_very_one() -> None:
    head = random_model().transformer.module.get_output_embeddings()
    assert widened(head) is head


def test_what_is_compared_was_read_in_one_way() -> None:
    """A rollout that goes on from another was decoded to a part only: its log π would have other roundings."""
    model = narrow()
    engine = Engine(model=model, reward=ImplicitReward(narrow(1)), strategy=Nabla(min_promise=-8.0))
    limits = {"sampling": Sampling(max_tokens=24, temperature=1.0), "budget": Budget(rollouts=4)}
    for seed in range(3):
        result = engine.generate("ab", seed=seed, **limits)
        rollout = Rollout(model.prompt("ab"), result.token_ids, result.text)
        [(read, _)] = model.token_log_probs([rollout])
        assert result.log_probs == tuple(read.tolist())
        job = RolloutJob(rollout.prompt, (), Sampling(temperature=0.0), 24, torch.zeros(24))
        [decoded] = model.rollout([job])
        assert decoded.log_probs is not None
        assert not torch.equal(model.token_log_probs([decoded])[0][0], decoded.log_probs)  # else this shows nothing


@pytest.mark.parametrize("weight", [1.0, 0.2])
def test_in_half_precision_a_better_objective_has_to_be_above_the_noise(weight: float) -> None:
    model = narrow()
    assert Objective(model, likelihood_weight=weight).noise == weight * NOISE
    assert Objective(random_model(), likelihood_weight=weight).noise == 0
