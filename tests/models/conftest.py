"""Random models of every architecture, and the full forward pass of transformers as the truth they are held against."""

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch

from nabla_agents import LanguageModel, Prompt, Sampling
from nabla_agents.models.rows import RolloutJob
from nabla_agents.testing import random_model

ARCHITECTURES = ("qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3")
WORDS = ("a", "b", "cd", "efg", "h", "i", "\n")  # no word begins another
WINDOW = 6  # tokens of sliding attention: fewer than any prompt has


@cache
def made(architecture: str, **options: object) -> LanguageModel:
    window = None if architecture == "llama" else WINDOW
    return random_model(architecture, vocabulary=WORDS, sliding_window=window, context_length=64, **options)


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return made(request.param)


@pytest.fixture
def qwen() -> LanguageModel:
    return made("qwen2")


JobMaker = Callable[..., RolloutJob]


@pytest.fixture
def job() -> JobMaker:
    """Makes a job; its random numbers come from `seed` alone."""

    def make(
        model: LanguageModel,
        prompt: str | Prompt = "ab",
        prefix: str | Sequence[int] = (),
        *,
        max_tokens: int = 10,
        seed: int = 0,
        cached: bool = False,
        **sampling: object,
    ) -> RolloutJob:
        if isinstance(prompt, str):
            prompt = model.prompt(prompt)
        if isinstance(prefix, str):
            prefix = model.tokenizer.encode(prefix)
        uniforms = torch.rand(max_tokens, generator=torch.Generator().manual_seed(seed))
        if cached:
            model.read_prompts([prompt])
        return RolloutJob(prompt, tuple(prefix), Sampling(**sampling), max_tokens, uniforms)

    return make


@pytest.fixture
def full_logits() -> Callable[[LanguageModel, Prompt, Sequence[int]], torch.Tensor]:
    """[time, vocab] logits that predict each completion token, by one forward of transformers without a cache."""

    @torch.no_grad()
    def logits(model: LanguageModel, prompt: Prompt, completion: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([[*prompt.ids, *completion]])
        return model.transformer.module(input_ids=ids, use_cache=False).logits[0, len(prompt.ids) - 1 : -1]

    return logits
