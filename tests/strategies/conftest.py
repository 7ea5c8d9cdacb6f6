"""A language model whose every completion can be listed: four words and <eos>, at most four tokens."""

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from nabla_agents import DifferentiableReward, Engine, LanguageModel, Prompt, Result, Reward, Rollout, Score
from nabla_agents.rewards.base import RewardGradient
from nabla_agents.testing import FixedReward, random_model

WORDS = ("1", "2", "3", "4")  # digits, so that every completion is an answer that can vote
EOS = 4
LENGTH = 4
Ids = tuple[int, ...]


def five_tokens() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*WORDS, "<eos>"))}))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", clean_up_tokenization_spaces=False)


class Linear(DifferentiableReward):
    """r(y) = Σ_t table[t, y_t]: its gradient with respect to the one-hot rows is the table, exactly."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def value(self, ids: Ids) -> float:
        return sum(float(self.table[t, token]) for t, token in enumerate(ids))

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score(self.value(r.completion_ids)) for r in rollouts]

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[Any]
    ) -> list[RewardGradient | None]:
        return [RewardGradient(self)] * len(rollouts)  # this object is its own carrier

    def rows(self, positions: Sequence[int]) -> Tensor:
        return self.table[list(positions)]


@dataclass(frozen=True)
class Toy:
    """The model, its prompt, and the truth about all 341 completions by one plain forward pass."""

    model: LanguageModel
    question: str = "12"
    length: int = LENGTH
    conditionals: dict[Ids, Tensor] = field(init=False, default_factory=dict)  # log π(· | x, prefix) in float64

    @cached_property
    def prompt(self) -> Prompt:
        return self.model.prompt(self.question, formatted=True)

    @cached_property
    def likelihoods(self) -> dict[Ids, float]:
        """log π of every completion, terminal token included."""
        prefixes = [ids for n in range(self.length) for ids in itertools.product(range(EOS), repeat=n)]
        for n in range(self.length):
            rows = [p for p in prefixes if len(p) == n]
            with torch.no_grad():
                ids = torch.tensor([[*self.prompt.ids, *p] for p in rows])
                logits = self.model.transformer.module(input_ids=ids).logits[:, -1]
            self.conditionals.update(zip(rows, logits.double().log_softmax(-1), strict=True))
        ended = [(*p, EOS) for p in prefixes]
        cut = list(itertools.product(range(EOS), repeat=self.length))
        return {ids: self.likelihood(ids) for ids in (*ended, *cut)}

    def likelihood(self, ids: Ids) -> float:
        return sum(float(self.conditionals[ids[:t]][token]) for t, token in enumerate(ids))

    def greedy(self, prefix: Ids = ()) -> Ids:
        """The completion of likeliest tokens from a prefix."""
        assert self.likelihoods
        ids = prefix
        while len(ids) < self.length and EOS not in ids:
            ids = (*ids, int(self.conditionals[ids].argmax()))
        return ids

    def text(self, ids: Ids) -> str:
        return "".join(WORDS[i] for i in ids if i != EOS)

    def objective(self, reward: Callable[[Ids], float] | None = None, weight: float = 1.0) -> dict[Ids, float]:
        """J of every completion."""
        return {ids: weight * ll + (reward(ids) if reward else 0.0) for ids, ll in self.likelihoods.items()}

    def engine(self, reward: Reward | None = None, **options: Any) -> Engine:
        return Engine(model=self.model, reward=reward, **options)

    def solve(self, engine: Engine, **options: Any) -> Result:
        return engine.generate(self.question, formatted=True, **options)


def arbitrary(ids: Iterable[int], seed: int = 0) -> float:
    """A number in [-3, 3] for every completion, without any structure a search could use."""
    return random.Random(f"{seed}/{tuple(ids)}").uniform(-3, 3)


_TOYS: dict[tuple[int, float], Toy] = {}


@pytest.fixture
def toy() -> Callable[..., Toy]:
    """The toy of a seed; models are built once."""

    def make(seed: int = 0, scale: float = 2.0) -> Toy:
        if (seed, scale) not in _TOYS:
            model = random_model(tokenizer=five_tokens(), width=16, layers=1, seed=seed, scale=scale, context_length=32)
            _TOYS[seed, scale] = Toy(model)
        return _TOYS[seed, scale]

    return make


@pytest.fixture
def linear() -> type[Linear]:
    return Linear


@pytest.fixture
def table() -> Callable[..., Reward]:
    """A reward without gradient: an arbitrary number for each completion."""
    return lambda seed=0: FixedReward(lambda r: arbitrary(r.completion_ids, seed))


@pytest.fixture
def value() -> Callable[..., float]:
    """What `table` gives."""
    return arbitrary
