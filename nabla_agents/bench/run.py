"""Runs arms on problems: chunk after chunk, every arm on each, so that an unfinished run compares arms on the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from nabla_agents.bench.arms import Arm
from nabla_agents.bench.records import Record, Store
from nabla_agents.bench.tasks import WORDS, Question, Task
from nabla_agents.config import Sampling, Settings
from nabla_agents.engine import Engine
from nabla_agents.errors import ConfigurationError
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.result import Result
from nabla_agents.rewards.base import Reward, RewardSum
from nabla_agents.types import Budget, FinishReason

_FINGERPRINTED = 32  # problems; a longer list begins with the shorter one


class BenchSettings(Settings):
    """What a comparison holds equal. `batch` changes the clock, not the answers."""

    problems: Annotated[int, Field(ge=1)] = 300
    seed: Annotated[int, Field(ge=0)] = 0
    rollouts: Annotated[int, Field(ge=1)] = 8
    max_tokens: Annotated[int, Field(ge=1)] = 192
    batch: Annotated[int, Field(ge=1)] = 32


def run(
    arms: Sequence[Arm],
    *,
    model: LanguageModel,
    rewards: Mapping[str, Reward],
    settings: BenchSettings,
    task: Task = WORDS,
    out: Path | None = None,
) -> Iterator[Record]:
    """Every record of the arms on the task's test questions; those already in `out` come first and cost nothing.

    New ones are appended to `out/records.jsonl` before they are yielded. Problem i is sampled with seed + i by every
    arm. An interrupt is raised as KeyboardInterrupt after the finished records of its chunk have been yielded.

    Raises:
        ConfigurationError: an arm's reward is not among `rewards`, or `out` holds results of other settings.
    """
    asked = task.draw(settings.problems, settings.seed)
    engines = {arm.name: _engine(arm, model, rewards, settings) for arm in arms}
    store = (
        None if out is None else Store(out, described(arms, model=model, rewards=rewards, settings=settings, task=task))
    )
    done: set[tuple[str, int]] = set()
    for record in [] if store is None else store.read():
        if record.arm in engines and record.problem < len(asked):
            done.add((record.arm, record.problem))
            yield record
    for first in range(0, len(asked), settings.batch):
        chunk = range(first, min(first + settings.batch, len(asked)))
        for arm in arms:
            todo = [i for i in chunk if (arm.name, i) not in done]
            results = _answers(engines[arm.name], [asked[i] for i in todo], todo, settings)
            finished = [(i, r) for i, r in zip(todo, results, strict=True) if not _interrupted(r)]
            for i, result in finished:
                record = recorded(arm.name, i, asked[i], result)
                if store is not None:
                    store.append(record)
                yield record
            if len(finished) < len(todo):
                raise KeyboardInterrupt


def recorded(arm: str, index: int, question: Question, result: Result) -> Record:
    """A result as it is written down."""
    seen = [step.text for step in result.trace if step.kind != "commit"]
    right, *others = question.right([result.text, *seen])
    refinements = [step for step in result.trace if step.kind == "refine"]
    return Record(
        arm=arm,
        problem=index,
        correct=right,
        pool_correct=any(others),
        text=result.text,
        finish_reason=str(result.finish_reason),
        usage=result.usage,
        reward=result.score.value if result.score is not None and result.score.judged else None,
        log_likelihood=result.log_likelihood,
        proposed=len(refinements),
        accepted=sum(step.accepted for step in refinements),
    )


def described(
    arms: Sequence[Arm],
    *,
    model: LanguageModel,
    rewards: Mapping[str, Reward],
    settings: BenchSettings,
    task: Task = WORDS,
) -> dict[str, Any]:
    """What must be equal for two runs to be one; problems may become more, and arms may be added."""
    shown = [question.text for question in task.draw(_FINGERPRINTED, settings.seed)]
    return {
        "task": task.name,
        "seed": settings.seed,
        "rollouts": settings.rollouts,
        "max_tokens": settings.max_tokens,
        "problems": _hash(repr(shown).encode()),
        "model": _fingerprint(model),
        "rewards": {name: _fingerprint(reward) for name, reward in sorted(rewards.items())},
        "arms": {arm.name: arm.settings() for arm in arms},
    }


def _answers(
    engine: Engine, asked: Sequence[Question], indices: Sequence[int], settings: BenchSettings
) -> list[Result]:
    if not asked:
        return []
    return engine.generate_batch(
        [question.text for question in asked],
        seeds=[settings.seed + i for i in indices],
        sampling=Sampling(max_tokens=settings.max_tokens),
        max_batch=settings.batch,
    )


def _engine(arm: Arm, model: LanguageModel, rewards: Mapping[str, Reward], settings: BenchSettings) -> Engine:
    if arm.reward is not None and arm.reward not in rewards:
        raise ConfigurationError(f"Arm {arm.name} needs a reward {arm.reward!r}; given are {', '.join(rewards)}.")
    return Engine(
        model=model,
        reward=None if arm.reward is None else rewards[arm.reward],
        strategy=arm.strategy,
        budget=Budget(rollouts=settings.rollouts),
        likelihood_weight=arm.likelihood_weight,
        embedding_terms=arm.embedding_terms,
    )


def _interrupted(result: Result) -> bool:
    return result.finish_reason is FinishReason.INTERRUPTED


def _fingerprint(part: LanguageModel | Reward) -> str:
    """A hash of what a model or reward is made of: weights, settings, and those of its parts."""
    if isinstance(part, RewardSum):
        return " + ".join(f"{weight:g} * {_fingerprint(reward)}" for weight, reward in part.terms)
    plain = sorted((k, v) for k, v in vars(part).items() if isinstance(v, int | float | str))
    digest = hashlib.sha256(repr((type(part).__name__, plain)).encode())
    for owner in (part, *vars(part).values()):
        transformer = getattr(owner, "transformer", None)
        for tensor in transformer.module.state_dict().values() if transformer is not None else ():
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
