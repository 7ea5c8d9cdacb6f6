"""Batches that do not fit into memory: the same results, from halves, and the ledger says so."""

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any

import pytest
import torch

from nabla_agents import Engine, ImplicitReward, LanguageModel, Nabla, NablaParallel, Result, Sampling, Usage
from nabla_agents.models.memory import in_halves
from nabla_agents.testing import FixedReward, random_model
from nabla_agents.types import Score

WORDS = ("1", "2", "3", "4", "+", "=", "\n")
QUESTIONS = ("1+2=", "3", "4+4+4=1\n2", "2+2", "1")


@cache
def language_model(seed: int = 0) -> LanguageModel:
    return random_model(vocabulary=WORDS, seed=seed, width=16, layers=1)


def with_room_for(rows: int, operation: Callable[..., Any], refused: list[int]) -> Callable[..., Any]:
    """The operation on a device that has memory for so many rows; keeps what it had to refuse."""

    @wraps(operation)
    def limited(columns: Sequence[Any], *rest: Any, **options: Any) -> Any:
        if len(columns) > rows:
            refused.append(len(columns))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return operation(columns, *rest, **options)

    return limited


def answers(results: Sequence[Result]) -> list[Any]:
    return [(r.token_ids, r.finish_reason, [(s.position, s.accepted, s.text) for s in r.trace]) for r in results]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    "strategy", [Nabla(min_promise=-6.0), NablaParallel(min_promise=-6.0)], ids=["nabla", "parallel"]
)
def test_a_batch_that_does_not_fit_gives_the_same_from_halves(
    monkeypatch: pytest.MonkeyPatch, strategy: Any, rows: int
) -> None:
    model, tuned = language_model(), language_model(1)
    engine = Engine(model=model, reward=ImplicitReward(tuned), strategy=strategy)
    expected = engine.generate_batch(QUESTIONS, sampling=Sampling(max_tokens=6))
    refused: list[int] = []
    for owner, name in ((model, "rollout"), (model, "likelihood_gradient"), (tuned, "token_log_probs")):
        monkeypatch.setattr(owner, name, with_room_for(rows, getattr(owner, name), refused))
    found = engine.generate_batch(QUESTIONS, sampling=Sampling(max_tokens=6))
    assert answers(found) == answers(expected)
    assert refused
    total = sum((r.usage for r in found), Usage())
    assert total.out_of_memory == len(refused)
    assert sum(r.usage.out_of_memory for r in expected) == 0
    assert total.rollouts == sum(r.usage.rollouts for r in expected)
    traced = [step.usage.out_of_memory for result in found for step in result.trace]
    assert max(traced) > 0


def test_halves_keep_the_order_and_say_at_the_first_row_how_often() -> None:
    refused: list[int] = []
    operation = with_room_for(
        3, lambda rows, more: [Score(float(r + m)) for r, m in zip(rows, more, strict=True)], refused
    )
    scores = in_halves(operation, list(range(10)), list(range(10)))
    assert [s.value for s in scores] == [2.0 * i for i in range(10)]
    assert refused == [10, 5, 5]
    assert [s.usage.out_of_memory for s in scores] == [2, 0, 0, 0, 0, 1, 0, 0, 0, 0]


def test_a_single_row_that_does_not_fit_is_said() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        in_halves(with_room_for(0, lambda rows: rows, []), [1, 2, 3])


def test_nothing_holds_the_failed_attempt_when_the_halves_run() -> None:
    """What the frames of the failed attempt held is free again: else the halves would find no more room than it."""
    alive: list[int] = []

    class Tensor:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    def operation(rows: Sequence[int]) -> list[Score]:
        activations = Tensor()
        if len(rows) > 1:
            raise torch.OutOfMemoryError("no room")
        assert len(alive) == 1, activations
        return [Score(0.0)] * len(rows)

    assert len(in_halves(operation, [1, 2, 3, 4])) == 4


def test_a_reward_that_runs_out_of_memory_on_one_rollout_could_not_judge_it() -> None:
    def judge(rollout: Any) -> float:
        raise torch.OutOfMemoryError("no room")

    result = Engine(model=language_model(), reward=FixedReward(judge)).generate("1+2=", sampling=Sampling(max_tokens=4))
    assert result.score is not None
    assert not result.score.judged
    assert "OutOfMemoryError" in result.score.explanation
