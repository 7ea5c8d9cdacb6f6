"""A language model whose every completion can be listed: four words and <eos>, at most four tokens."""

import copy
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from nabla_agents import DifferentiableReward, Engine, LanguageModel, Nabla, Prompt, Result, Reward, Rollout, Score
from nabla_agents.models.rows import RolloutJob
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
        return [RewardGradient(self)] * len(rollouts)  # this object is its own gradient

    def rows(self, positions: Sequence[int]) -> Tensor:
        return self.table[list(positions)]


@dataclass(frozen=True)
class Toy:
    """The model, its prompt, and the truth about all 341 completions by one plain forward pass."""

    model: LanguageModel
    question: str = "12"
    length: int = LENGTH
    gradients: dict[Ids, Tensor] = field(init=False, default_factory=dict)

    @cached_property
    def prompt(self) -> Prompt:
        return self.model.prompt(self.question, formatted=True)

    @cached_property
    def conditionals(self) -> dict[Ids, Tensor]:
        """log π(· | x, prefix) of every prefix that goes on, in float64."""
        rows: dict[Ids, Tensor] = {}
        for n in range(self.length):
            prefixes = list(itertools.product(range(EOS), repeat=n))
            with torch.no_grad():
                ids = torch.tensor([[*self.prompt.ids, *p] for p in prefixes])
                logits = self.model.transformer.module(input_ids=ids).logits[:, -1]
            rows.update(zip(prefixes, logits.double().log_softmax(-1), strict=True))
        return rows

    @cached_property
    def likelihoods(self) -> dict[Ids, float]:
        """log π of every completion, terminal token included."""
        ended = [(*p, EOS) for p in self.conditionals]
        cut = list(itertools.product(range(EOS), repeat=self.length))
        return {ids: self.likelihood(ids) for ids in (*ended, *cut)}

    def likelihood(self, ids: Ids) -> float:
        return sum(float(self.conditionals[ids[:t]][token]) for t, token in enumerate(ids))

    def greedy(self, prefix: Ids = ()) -> Ids:
        """The completion of likeliest tokens from a prefix."""
        ids = prefix
        while len(ids) < self.length and EOS not in ids:
            ids = (*ids, int(self.conditionals[ids].argmax()))
        return ids

    def distribution(self, temperature: float = 1.0) -> dict[Ids, float]:
        """The probability of sampling each completion token by token at a temperature."""
        rows = {prefix: (row / temperature).softmax(-1).tolist() for prefix, row in self.conditionals.items()}
        return {ids: math.prod(rows[ids[:t]][token] for t, token in enumerate(ids)) for ids in self.likelihoods}

    @cached_property
    def exact(self) -> Any:
        """The model in float64."""
        return copy.deepcopy(self.model.transformer.module).double().requires_grad_(False)

    def gradient(self, ids: Ids) -> Tensor:
        """∂ Σ log π / ∂ one-hot rows of a completion, by autograd through everything that reads them, in float64."""
        if ids not in self.gradients:
            table = self.exact.get_input_embeddings().weight
            one_hot = torch.nn.functional.one_hot(torch.tensor(ids), len(table)).double().requires_grad_()
            read = torch.cat([table[list(self.prompt.ids)], one_hot @ table])[None]
            logits = self.exact(inputs_embeds=read).logits[0, len(self.prompt.ids) - 1 : -1]
            (self.gradients[ids],) = torch.autograd.grad((one_hot * logits.log_softmax(-1)).sum(), one_hot)
        return self.gradients[ids]

    def text(self, ids: Ids) -> str:
        return "".join(WORDS[i] for i in ids if i != EOS)

    def objective(self, reward: Callable[[Ids], float] | None = None, weight: float = 1.0) -> dict[Ids, float]:
        """J of every completion."""
        return {ids: weight * ll + (reward(ids) if reward else 0.0) for ids, ll in self.likelihoods.items()}

    def engine(self, reward: Reward | None = None, **options: Any) -> Engine:
        return Engine(model=self.model, reward=reward, **{"strategy": Nabla(), **options})

    def solve(self, engine: Engine, **options: Any) -> Result:
        return engine.generate(self.question, formatted=True, **options)

    def solve_many(self, engine: Engine, seeds: Sequence[int], **options: Any) -> list[Result]:
        """`solve` for each seed, with joined operations."""
        return engine.generate_batch([self.prompt] * len(seeds), seeds=seeds, max_batch=50, **options)

    def watched(self, reward: Reward | None = None, **options: Any) -> tuple[Engine, "Watched"]:
        """An engine, and what its rollouts were."""
        backend = Watched(self.model)
        return self.engine(reward, rollouts=backend, **options), backend


@dataclass(eq=False)
class Watched:
    """The model's own rollouts, kept with the prefix and the batch of each."""

    model: LanguageModel
    rollouts: list[Rollout] = field(default_factory=list)
    prefixes: list[Ids] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[Ids]:
        return [r.completion_ids for r in self.rollouts]

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]:
        made = self.model.rollout(jobs)
        self.rollouts += made
        self.prefixes += [job.prefix_ids for job in jobs]
        self.batches.append(len(jobs))
        return made


def chi_square_odds(seen: Iterable[Any], expected: Mapping[Any, float]) -> float:
    """The probability that a sample of the expected distribution fits it as badly as what was seen.

    Outcomes expected fewer than 5 times are one cell; an outcome that cannot be has odds 0.
    """
    counts = Counter(seen)
    total = counts.total()
    if any(expected.get(outcome, 0.0) == 0.0 for outcome in counts):
        return 0.0
    common = [outcome for outcome, p in expected.items() if p * total >= 5]
    cells = [(counts[outcome], expected[outcome] * total) for outcome in common]
    rest = (total - sum(n for n, _ in cells), total - sum(m for _, m in cells))
    cells += [rest] if rest[1] > 1 else []
    assert len(cells) > 1
    statistic = sum((n - m) ** 2 / m for n, m in cells)
    halves = torch.tensor([len(cells) - 1, statistic], dtype=torch.float64) / 2
    return float(torch.special.gammaincc(*halves))


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


@pytest.fixture(autouse=True)
def four_tokens_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """All 341 completions compete by their objectives: those of four tokens, too, count as texts that have ended."""
    monkeypatch.setattr(Rollout, "cut", False)


@pytest.fixture
def linear() -> type[Linear]:
    return Linear


class Unexplained(FixedReward):
    @property
    def learned(self) -> bool:
        return True


@pytest.fixture
def table() -> Callable[..., Reward]:
    """A reward model that gives no gradient, so that the likelihood's is all: an arbitrary number for a completion."""
    return lambda seed=0: Unexplained(lambda r: arbitrary(r.completion_ids, seed))


@pytest.fixture
def value() -> Callable[..., float]:
    """What `table` gives."""
    return arbitrary


@pytest.fixture
def odds() -> Callable[..., float]:
    return chi_square_odds
