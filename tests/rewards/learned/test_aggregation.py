"""From step scores to one value: numbers by hand, gradients against finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nabla_agents import ConfigurationError, Rollout, SoftMin, StepFormat
from nabla_agents.errors import RewardError
from nabla_agents.rewards.learned.aggregation import AGGREGATIONS, aggregation
from nabla_agents.testing import byte_tokenizer, random_process_reward

STEPS = [0.9, 0.4, 0.8]
BY_HAND = {
    "min": 0.4,
    "mean": 0.7,
    "product": 0.288,
    "last": 0.8,
    "log-product": math.log(0.288),
    "geometric": 0.288 ** (1 / 3),
    # weights e^-9, e^-4, e^-8 at temperature 0.1
    "soft-min": (0.9 * math.exp(-9) + 0.4 * math.exp(-4) + 0.8 * math.exp(-8))
    / (math.exp(-9) + math.exp(-4) + math.exp(-8)),
}


def log_p(values: list[float] = STEPS) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


def test_every_named_aggregation_has_its_value() -> None:
    assert {name: float(f(log_p())) for name, f in AGGREGATIONS.items()} == pytest.approx(BY_HAND)


@pytest.mark.parametrize("name", [*AGGREGATIONS, "a function"])
def test_every_aggregation_is_differentiable(name: str) -> None:
    f = aggregation(lambda x: x.exp().square().sum() if name == "a function" else AGGREGATIONS[name](x))
    leaf = log_p().requires_grad_()
    (gradient,) = torch.autograd.grad(f(leaf), leaf)
    step = 1e-6
    for i in range(3):
        up, down = log_p(), log_p()
        up[i] += step
        down[i] -= step
        assert float(gradient[i]) == pytest.approx(float(f(up) - f(down)) / (2 * step), abs=1e-8)
    assert bool(gradient.any())


def test_one_step_is_its_own_aggregate() -> None:
    for name, f in AGGREGATIONS.items():
        expected = math.log(0.4) if name == "log-product" else 0.4
        assert float(f(log_p([0.4]))) == pytest.approx(expected)


@pytest.mark.parametrize("values", [STEPS, [0.5, 0.5], [0.999, 0.001, 0.5, 0.2]], ids=repr)
def test_the_soft_minimum_goes_from_the_minimum_to_the_mean(values: list[float]) -> None:
    assert float(SoftMin(temperature=1e-4)(log_p(values))) == pytest.approx(min(values))
    assert float(SoftMin(temperature=1e4)(log_p(values))) == pytest.approx(sum(values) / len(values), abs=1e-4)
    softened = [float(SoftMin(temperature=t)(log_p(values))) for t in (0.01, 0.1, 1.0, 10.0)]
    assert softened == sorted(softened)
    assert all(min(values) - 1e-12 <= s <= sum(values) / len(values) + 1e-12 for s in softened)


def test_many_steps_do_not_underflow_in_the_logarithm() -> None:
    many = torch.full((400,), 0.05, dtype=torch.float32).log()
    assert float(AGGREGATIONS["product"](many)) == 0.0
    assert float(AGGREGATIONS["log-product"](many)) == pytest.approx(400 * math.log(0.05), rel=1e-5)
    assert float(AGGREGATIONS["geometric"](many)) == pytest.approx(0.05, rel=1e-5)


def test_a_reward_aggregates_by_the_users_function() -> None:
    tokenizer, answer = byte_tokenizer(), Rollout.from_text("?", "a\nb\nc")
    probabilities = [(s.value + 1) / 2 for s in random_process_reward(tokenizer, width=16).score([answer])[0].spans]
    second = random_process_reward(tokenizer, width=16, aggregation=lambda x: x[1].exp())
    assert second.score([answer])[0].value == pytest.approx(probabilities[1], abs=1e-6)
    softened = random_process_reward(tokenizer, width=16, aggregation=SoftMin(temperature=1e-4))
    assert softened.score([answer])[0].value == pytest.approx(min(probabilities), abs=1e-5)
    declared = StepFormat(aggregation=lambda x: x[0].exp())
    assert random_process_reward(tokenizer, width=16, format=declared).score([answer])[0].value == pytest.approx(
        probabilities[0], abs=1e-6
    )


@pytest.mark.untyped
@pytest.mark.parametrize("bad", [lambda x: 0.5, lambda x: x.exp(), lambda x: None], ids=["float", "vector", "none"])
def test_a_function_that_does_not_return_one_tensor_is_refused(bad: Any) -> None:
    reward = random_process_reward(byte_tokenizer(), width=16, aggregation=bad)
    with pytest.raises(RewardError, match="one number"):
        reward.score([Rollout.from_text("?", "a\nb")])


@pytest.mark.untyped
def test_a_temperature_is_positive() -> None:
    with pytest.raises(ConfigurationError, match="temperature"):
        SoftMin(temperature=0)
