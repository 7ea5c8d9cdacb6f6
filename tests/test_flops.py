"""The ledger's FLOPs against a counter of dispatched operations: bodies, heads, rows over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from nabla_agents import BestOfN, Budget, Engine, Greedy, ImplicitReward, LanguageModel, Nabla, NoDirection, Sampling
from nabla_agents.models.checkpointing import checkpoint_layers
from nabla_agents.rewards.base import Reward
from nabla_agents.scheduling.scheduler import Scheduler
from nabla_agents.testing import byte_tokenizer, random_model, random_process_reward

PROMPTS = ("one and two", "a", "who, and by what")
PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm)  # attention's own are batched, and not in the ledger
STRATEGIES = {
    "greedy": Greedy(),
    "best of n": BestOfN(n=3),
    "nabla": Nabla(min_promise=-6.0, stop_when_verified=False),
    "nabla, none": Nabla(direction=NoDirection(), min_promise=-6.0),
}


class Products(TorchDispatchMode):
    """Adds up the FLOPs of matrix products, by torch's own formulas. A mode sees what its own thread does."""

    flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in PRODUCTS:
            self.flops += flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Products:
    """Of the scheduler's thread, from now on."""
    mode, step = Products(), Scheduler.step

    def counted(scheduler: Scheduler) -> bool:
        with mode:
            return step(scheduler)

    monkeypatch.setattr(Scheduler, "step", counted)
    return mode


def model(architecture: Any = "qwen2", **shape: Any) -> LanguageModel:
    return random_model(architecture, tokenizer=byte_tokenizer(), **{"width": 32, "layers": 2, **shape})


def rewards() -> dict[str, Callable[[LanguageModel], Reward]]:
    return {
        "implicit": lambda policy: ImplicitReward(model(seed=1, width=16)),
        "implicit, own reference": lambda _: ImplicitReward(model(seed=1), model(seed=2, layers=1)),
        "process": lambda policy: random_process_reward(policy.tokenizer.hf, width=64, layers=2, seed=1),
    }


def check(policy: LanguageModel, reward: Reward, strategy: Any, products: Products) -> None:
    engine = Engine(model=policy, reward=reward, strategy=strategy, budget=Budget(rollouts=4))
    results = engine.generate_batch(PROMPTS, sampling=Sampling(max_tokens=10))
    assert sum(r.usage.flops for r in results) == pytest.approx(products.flops, rel=0.01)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("reward", rewards())
def test_flops_are_those_of_the_matrices_that_were_multiplied(reward: str, strategy: str, products: Products) -> None:
    policy = model()
    check(policy, rewards()[reward](policy), STRATEGIES[strategy], products)


@pytest.mark.parametrize(
    ("architecture", "tied"),
    [("qwen3", True), ("llama", False), ("mistral", True), ("gemma2", False), ("gemma3", True)],
)
def test_they_are_in_every_architecture(architecture: str, tied: bool, products: Products) -> None:
    policy = model(architecture, tie_word_embeddings=tied)
    check(policy, ImplicitReward(model(architecture, seed=1)), STRATEGIES["nabla"], products)


def test_checkpointed_layers_are_computed_twice(products: Products) -> None:
    policy = model()
    checkpoint_layers(policy.transformer.module)
    policy = LanguageModel(policy.transformer.module, policy.tokenizer.hf)
    check(policy, ImplicitReward(model(seed=1)), STRATEGIES["nabla"], products)
