"""Runs arms on problems: chunk after chunk, every arm on each, so that an unfinished run compares arms on the same."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator

from nabla_agents.bench.arms import Arm, read_by
from nabla_agents.bench.records import Point, Record
from nabla_agents.bench.tasks import WORDS, Question, Task
from nabla_agents.config import Sampling, Settings
from nabla_agents.engine import Engine
from nabla_agents.errors import ConfigurationError
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.registry import known
from nabla_agents.request import PromptLike
from nabla_agents.result import Result
from nabla_agents.rewards.base import Reward, RewardSum
from nabla_agents.search import Strategy
from nabla_agents.search.pool import Pool, Scored
from nabla_agents.types import Budget, FinishReason, Rollout, Score, Step

_FINGERPRINTED = 32  # problems; a longer list begins with the shorter one
Seed = Annotated[int, Field(ge=0)]


class BenchSettings(Settings):
    """How much is measured, and within which budgets.

    problems: questions for each seed, at most; a file may have fewer.
    seeds: of the problems, where the task draws them, and of the sampling.
    budgets: what one question may cost: a number of rollouts, or `{rollouts = 8, flops = 1e10}` with the names of
        `Budget`. Every strategy is measured at each of them.
    batch: questions that run together. workers: processes. Neither changes an answer, only the clock.
    """

    problems: Annotated[int, Field(ge=1)] = 300
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    budgets: Annotated[tuple[Budget, ...], Field(min_length=1)] = (Budget(),)
    max_tokens: Annotated[int, Field(ge=1)] = 192
    batch: Annotated[int, Field(ge=1)] = 64
    workers: Annotated[int, Field(ge=1)] = 1

    @property
    def budget(self) -> Budget:
        """Of an arm that has none of its own."""
        return self.budgets[0]

    @field_validator("seeds", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed occurs twice")
        return value

    @field_validator("budgets", mode="before")
    @classmethod
    def _budgets(cls, value: Any) -> Any:
        many = value if isinstance(value, list | tuple) else (value,)
        return tuple(_budget(limits) for limits in many)


def budget_name(budget: Budget) -> str:
    """As it stands in the name of an arm: `8`, or `rollouts=8,flops=1e+10`."""
    limits = {f.name: getattr(budget, f.name) for f in fields(budget) if getattr(budget, f.name) is not None}
    return f"{budget.rollouts}" if set(limits) == {"rollouts"} else ",".join(f"{k}={v:g}" for k, v in limits.items())


def _budget(limits: Any) -> Any:
    if isinstance(limits, Mapping):
        for name in limits:
            known({f.name: None for f in fields(Budget)}, name, "limit of a budget")
        return Budget(**limits)
    return Budget(rollouts=limits) if isinstance(limits, int) else limits


@dataclass(frozen=True)
class Job:
    """One arm on some problems of one seed, which run as one batch."""

    arm: str
    seed: int
    problems: tuple[int, ...]


@dataclass(frozen=True)
class Measured:
    """The records of a job, and whether an interrupt ended it before all were there."""

    records: tuple[Record, ...]
    interrupted: bool = False


class Bench:
    """Arms with their model, rewards and questions, ready to be measured.

    Problem i is sampled with seed + i by every arm.

    Raises:
        ConfigurationError: an arm's reward is not among `rewards`.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        *,
        model: LanguageModel,
        rewards: Mapping[str, Reward],
        settings: BenchSettings,
        task: Task = WORDS,
        readers: Mapping[str, LanguageModel] | None = None,
    ) -> None:
        self.arms = {arm.name: arm for arm in arms}
        self.settings, self.task = settings, task
        self._model, self._rewards, self._readers = model, rewards, readers or {}
        self._engines = {arm.name: self._engine(arm) for arm in arms}
        self.questions = {seed: task.draw(settings.problems, seed) for seed in settings.seeds}

    def jobs(self, done: Collection[tuple[str, int, int]] = ()) -> Iterator[Job]:
        """What is still to be measured, in order; `done` has the keys of the records that are there."""
        size, longest = self.settings.batch, max(map(len, self.questions.values()))
        for first in range(0, longest, size):
            for seed, questions in self.questions.items():
                chunk = range(first, min(first + size, len(questions)))
                for arm in self.arms:
                    todo = tuple(i for i in chunk if (arm, seed, i) not in done)
                    if todo:
                        yield Job(arm, seed, todo)

    def measure(self, job: Job) -> Measured:
        """The records of a job; an interrupt leaves those that are finished."""
        questions = [self.questions[job.seed][i] for i in job.problems]
        arm = self.arms[job.arm]
        results = self._engines[job.arm].generate_batch(
            [self.asked(question) for question in questions],
            seeds=[job.seed + i for i in job.problems],
            sampling=self.sampling,
            max_batch=self.settings.batch,
        )
        finished = [
            recorded(arm, job.seed, i, question, result)
            for i, question, result in zip(job.problems, questions, results, strict=True)
            if result.finish_reason is not FinishReason.INTERRUPTED
        ]
        return Measured(tuple(finished), len(finished) < len(results))

    def asked(self, question: Question) -> PromptLike:
        """What the model reads of a question."""
        return question.text

    @property
    def sampling(self) -> Sampling:
        """How answers are written, but for what a strategy decides."""
        return Sampling(max_tokens=self.settings.max_tokens)

    def described(self) -> dict[str, Any]:
        """What must be equal for two runs to be one; problems may become more, and arms, seeds and rewards be added."""
        return {
            "task": self.task.name,
            "max_tokens": self.settings.max_tokens,
            "rollouts": self.settings.budget.rollouts,
            "questions": {
                str(seed): _hash(repr([q.text for q in self.task.draw(_FINGERPRINTED, seed)]).encode())
                for seed in self.questions
            },
            "model": _fingerprint(self._model),
            "rewards": {name: _fingerprint(reward) for name, reward in sorted(self._rewards.items())},
            "arms": {name: arm.settings() for name, arm in self.arms.items()},
        }

    def _engine(self, arm: Arm) -> Engine:
        if arm.reward is not None and arm.reward not in self._rewards:
            names = ", ".join(self._rewards) or "none"
            raise ConfigurationError(f"Arm {arm.name} needs a reward {arm.reward!r}; given are {names}.")
        return Engine(
            model=self._model,
            reward=None if arm.reward is None else self._rewards[arm.reward],
            strategy=arm.strategy if arm.reader is None else read_by(self._readers[arm.reader], arm.strategy),
            budget=self.settings.budget if arm.budget is None else arm.budget,
            likelihood_weight=arm.likelihood_weight,
            embedding_terms=arm.embedding_terms,
        )


def recorded(arm: Arm, seed: int, index: int, question: Question, result: Result) -> Record:
    """A result as it is written down."""
    tried = [step for step in result.trace if step.kind != "commit"]
    right, *others = question.right([result.text, *(step.text for step in tried)])
    refinements = [step for step in result.trace if step.kind == "refine"]
    return Record(
        arm=arm.name,
        problem=index,
        correct=right is True,
        claimed=right is None,
        pool_correct=any(others),
        text=result.text,
        finish_reason=str(result.finish_reason),
        usage=result.usage,
        reward=_value(result.score),
        log_likelihood=_rounded(result.log_likelihood),
        proposed=len(refinements),
        accepted=sum(step.accepted for step in refinements),
        seed=seed,
        question=_hash(question.text.encode()),
        curve=tuple(course(arm.strategy, tried, list(map(bool, others)), arm.likelihood_weight)),
        costs=tuple(costs(tried)),
    )


def course(strategy: Strategy, tried: Sequence[Step], right: Sequence[bool], likelihood_weight: float) -> list[Point]:
    """What would have been returned, had the search ended after each of its rollouts; `right` judges their texts."""
    pool, indices, points, selected = Pool(strategy.rule), dict[int, int](), list[Point](), None
    for i, step in enumerate(tried):
        weighted = likelihood_weight * step.log_likelihood if likelihood_weight else 0.0
        objective = weighted + (0.0 if step.score is None else step.score.value)
        entry = Scored(Rollout.from_text("", step.text), step.score, objective)
        pool.add(entry)
        indices[id(entry)] = i
        if selected is not None and not step.accepted and getattr(strategy, "walks", False):
            pool.add(selected)  # it stays where it was
        selected = strategy.select(pool)
        at = i if selected is None else indices[id(selected)]
        points.append((right[at], _value(tried[at].score), _rounded(tried[at].log_likelihood)))
    return points


def costs(tried: Sequence[Step]) -> Iterator[tuple[float, float]]:
    """Generated tokens and FLOPs up to each rollout; those of a batch, whose steps have one usage, are shared out."""
    before = (0.0, 0.0)
    for usage, batch in groupby(tried, key=lambda step: step.usage):
        after, size = (float(usage.generated_tokens), usage.flops), len(list(batch))
        for j in range(1, size + 1):
            yield before[0] + (after[0] - before[0]) * j / size, before[1] + (after[1] - before[1]) * j / size
        before = after


def _value(score: Score | None) -> float | None:
    return None if score is None else _rounded(score.value)


def _rounded(value: float) -> float | None:
    """To a millionth, which no comparison needs; None for what is no finite number."""
    return round(float(value), 6) if math.isfinite(value) else None


def _fingerprint(part: LanguageModel | Reward) -> str:
    """A hash of what a model or reward is made of: weights, settings, and those of its parts."""
    if isinstance(part, RewardSum):
        return " + ".join(f"{weight:g} * {_fingerprint(reward)}" for weight, reward in part.terms)
    plain = sorted((k, v) for k, v in vars(part).items() if isinstance(v, int | float | str))
    inner = [_fingerprint(v) for v in vars(part).values() if isinstance(v, Reward)]
    digest = hashlib.sha256(repr((type(part).__name__, plain, *inner)).encode())
    for owner in (part, *vars(part).values()):
        transformer = getattr(owner, "transformer", None)
        for tensor in transformer.module.state_dict().values() if transformer is not None else ():
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
