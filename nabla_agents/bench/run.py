"""Runs arms on problems: chunk after chunk, every arm on each, so that an unfinished run compares arms on the same."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nabla_agents.bench.arms import Arm
from nabla_agents.bench.curve import known, points, reward_of, rollouts
from nabla_agents.bench.records import Record
from nabla_agents.bench.settings import BenchSettings
from nabla_agents.bench.tasks import WORDS, Question, Task
from nabla_agents.config import Sampling
from nabla_agents.engine import Engine
from nabla_agents.errors import ConfigurationError
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.result import Result
from nabla_agents.rewards.base import Reward, RewardSum
from nabla_agents.types import FinishReason

_FINGERPRINTED = 32  # problems; a longer list begins with the shorter one


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
    ) -> None:
        self.arms = {arm.name: arm for arm in arms}
        self.settings, self.task = settings, task
        self._model, self._rewards = model, rewards
        self._engines = {arm.name: self._engine(arm) for arm in arms}
        self.questions = {seed: task.draw(settings.problems, seed) for seed in settings.seeds}

    def jobs(self, done: Collection[tuple[str, int, int]] = ()) -> Iterator[Job]:
        """What is still to be measured, in order; `done` has the keys of the records that are there."""
        size, longest = self.settings.batch, max(map(len, self.questions.values()))
        for first in range(0, longest, size):
            for seed, asked in self.questions.items():
                chunk = range(first, min(first + size, len(asked)))
                for arm in self.arms:
                    todo = tuple(i for i in chunk if (arm, seed, i) not in done)
                    if todo:
                        yield Job(arm, seed, todo)

    def measure(self, job: Job) -> Measured:
        """The records of a job; an interrupt leaves those that are finished."""
        asked = [self.questions[job.seed][i] for i in job.problems]
        arm = self.arms[job.arm]
        results = self._engines[job.arm].generate_batch(
            [question.text for question in asked],
            seeds=[job.seed + i for i in job.problems],
            sampling=Sampling(max_tokens=self.settings.max_tokens),
            max_batch=self.settings.batch,
        )
        finished = [
            recorded(arm, job.seed, i, question, result)
            for i, question, result in zip(job.problems, asked, results, strict=True)
            if result.finish_reason is not FinishReason.INTERRUPTED
        ]
        return Measured(tuple(finished), len(finished) < len(results))

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
            strategy=arm.strategy,
            budget=self.settings.budget if arm.budget is None else arm.budget,
            likelihood_weight=arm.likelihood_weight,
            embedding_terms=arm.embedding_terms,
        )


def recorded(arm: Arm, seed: int, index: int, question: Question, result: Result) -> Record:
    """A result as it is written down."""
    right, *others = question.right([result.text, *(step.text for step in rollouts(result.trace))])
    refinements = [step for step in result.trace if step.kind == "refine"]
    return Record(
        arm=arm.name,
        problem=index,
        correct=right,
        pool_correct=any(others),
        text=result.text,
        finish_reason=str(result.finish_reason),
        usage=result.usage,
        reward=reward_of(result.score),
        log_likelihood=known(result.log_likelihood),
        proposed=len(refinements),
        accepted=sum(step.accepted for step in refinements),
        seed=seed,
        question=_hash(question.text.encode()),
        curve=tuple(points(arm.strategy, result.trace, others, arm.likelihood_weight)),
    )


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
