"""Doubles for tests: random models of real architectures, a fixed reward, a model that follows a script."""

from nabla_agents.testing.random_models import (
    FixedReward,
    byte_tokenizer,
    permuted_tokenizer,
    random_model,
    random_outcome_reward,
    random_process_reward,
    word_tokenizer,
)
from nabla_agents.testing.scripted import scripted_model

__all__ = [
    "FixedReward",
    "byte_tokenizer",
    "permuted_tokenizer",
    "random_model",
    "random_outcome_reward",
    "random_process_reward",
    "scripted_model",
    "word_tokenizer",
]
