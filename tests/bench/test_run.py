"""A comparison that is interrupted, resumed, extended or batched otherwise gives the answers of one that is not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nabla_agents import (
    BestOfN,
    Budget,
    ConfigurationError,
    Engine,
    Greedy,
    Nabla,
    NoDirection,
    PowerSampling,
    Reward,
    Rollout,
    Sampling,
    SelfConsistency,
    Strategy,
)
from nabla_agents.bench import Arm, Bench, BenchSettings, Record, Report, plots, run
from nabla_agents.bench.report import follow
from nabla_agents.bench.run import costs, course
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.testing import FixedReward, random_model
from nabla_agents.tiny import problems
from nabla_agents.types import Score, Step, Usage

ARMS = [
    Arm("greedy", Greedy()),
    Arm("best-of-3", BestOfN(n=3), "letters"),
    Arm("nabla", Nabla(direction=NoDirection(), min_promise=-6.0), "letters"),
]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return random_model(width=16, layers=1)


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take a second."""
    monkeypatch.setattr(plots, "draw", lambda *_, **__: [])


def letters(rollout: Rollout) -> float:
    return float(len(set(rollout.text)))


def settings(count: int = 4, **changes: Any) -> BenchSettings:
    return BenchSettings(**{"problems": count, "budgets": 3, "max_tokens": 8, "batch": 2, **changes})


def measured(
    model: LanguageModel,
    *,
    count: int = 4,
    arms: list[Arm] = ARMS,
    out: Path | None = None,
    reward: Reward | None = None,
    **changes: Any,
) -> Iterator[Record]:
    rewards = {"letters": reward or FixedReward(letters)}
    return run(Bench(arms, model=model, rewards=rewards, settings=settings(count, **changes)), out)


Answers = dict[tuple[str, int, int], tuple[Any, ...]]


def answers(records: Any) -> Answers:
    """What must be equal: all but the clock and the padding of a batch."""
    found = {
        (r.arm, r.problem, r.seed): (
            r.text,
            r.reward,
            r.correct,
            r.pool_correct,
            r.finish_reason,
            r.proposed,
            r.accepted,
            r.usage.rollouts,
            tuple(point[:2] for point in r.curve),
        )
        for r in records
    }
    assert len(found) == len(list(records))
    return found


@pytest.fixture(scope="module")
def whole(model: LanguageModel) -> Answers:
    """Of an uninterrupted run that keeps nothing."""
    found = answers(list(measured(model)))
    assert len(found) == 12
    assert len({text for text, *_ in found.values()}) > 6
    assert sum(proposed for *_, proposed, _, _, _ in found.values()) > 0
    return found


def test_problem_i_is_sampled_with_seed_plus_i_by_every_arm(model: LanguageModel) -> None:
    found = answers(list(measured(model, seeds=5)))
    for arm in ARMS:
        reward = None if arm.reward is None else FixedReward(letters)
        engine = Engine(model=model, reward=reward, strategy=arm.strategy, budget=Budget(rollouts=3))
        for i, problem in enumerate(problems(4, seed=5, split="test")):
            alone = engine.generate(problem.question, seed=5 + i, sampling=Sampling(max_tokens=8))
            assert found[arm.name, i, 5][0] == alone.text


@pytest.mark.parametrize("batch", [1, 3])
def test_batch_size_does_not_change_the_answers(model: LanguageModel, whole: Answers, batch: int) -> None:
    assert answers(list(measured(model, batch=batch))) == whole


@pytest.mark.parametrize("done", [1, 7, 11])
def test_a_run_that_was_ended_anywhere_goes_on_to_the_same_answers(
    model: LanguageModel, whole: Answers, tmp_path: Path, done: int
) -> None:
    first = list(islice(measured(model, out=tmp_path), done))
    kept = (tmp_path / "records.jsonl").read_bytes()
    assert kept.count(b"\n") == done
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(b'{"arm": "gree')  # killed while it wrote
    resumed = list(measured(model, out=tmp_path, batch=3))
    assert resumed[:done] == first  # what is done comes first, as it was
    assert answers(resumed) == whole
    assert (tmp_path / "records.jsonl").read_bytes().startswith(kept)
    assert list(measured(model, out=tmp_path, reward=FixedReward(lambda _: pytest.fail("judged again")))) == resumed


def test_problems_and_arms_may_be_added_later(model: LanguageModel, whole: Answers, tmp_path: Path) -> None:
    two = answers(list(measured(model, count=2, arms=ARMS[:1], out=tmp_path)))
    assert two == {key: value for key, value in whole.items() if key[0] == "greedy" and key[1] < 2}
    list(measured(model, count=2, arms=ARMS[1:2], out=tmp_path))
    assert answers(list(measured(model, out=tmp_path))) == whole
    assert answers(list(measured(model, count=2, arms=ARMS[:1], out=tmp_path))) == two  # and fewer are asked for again


def test_ctrl_c_keeps_what_has_finished(model: LanguageModel, whole: Answers, tmp_path: Path) -> None:
    """In the second arm of the second chunk: each chunk of the first had 6 completions to judge."""
    calls = iter(range(100))

    def impatient(rollout: Rollout) -> float:
        if next(calls) == 6 + 1:
            raise KeyboardInterrupt
        return letters(rollout)

    arms, found = ARMS[:2], list[Record]()
    with pytest.raises(KeyboardInterrupt):
        found.extend(measured(model, arms=arms, out=tmp_path, reward=FixedReward(impatient)))
    assert 6 <= len(found) < 8  # a search that was judged beside the interrupted one may have ended
    assert all(answers(found)[key] == whole[key] for key in answers(found))
    assert (tmp_path / "records.jsonl").read_bytes().count(b"\n") == len(found)
    resumed = answers(list(measured(model, arms=arms, out=tmp_path)))
    assert resumed == {key: value for key, value in whole.items() if key[0] != "nabla"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budgets": 2}, "rollouts was 3, is 2"),
        ({"max_tokens": 9}, "max_tokens was 8"),
    ],
)
def test_other_settings_are_refused(model: LanguageModel, tmp_path: Path, changes: dict[str, int], says: str) -> None:
    list(measured(model, count=1, arms=ARMS[:1], out=tmp_path))
    with pytest.raises(ConfigurationError, match=says):
        next(measured(model, count=1, arms=ARMS[:1], out=tmp_path, **changes))


def test_another_model_or_strategy_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    list(measured(model, count=1, arms=ARMS[:1], out=tmp_path))
    with pytest.raises(ConfigurationError, match="model was"):
        next(measured(random_model(width=16, layers=1, seed=1), count=1, arms=ARMS[:1], out=tmp_path))
    with pytest.raises(ConfigurationError, match=r"arms.greedy.strategy.Greedy.rule was"):
        next(measured(model, count=1, arms=[Arm("greedy", Greedy(rule="reward"))], out=tmp_path))


def test_an_arm_without_its_reward_is_refused_before_anything_is_kept(model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Arm x needs a reward 'process'; given are letters"):
        next(measured(model, arms=[Arm("x", Greedy(), "process")], out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def followed(model: LanguageModel, out: Path, console: Console, records: Iterator[Record] | None = None) -> bool:
    bench = Bench(ARMS, model=model, rewards={"letters": FixedReward(letters)}, settings=settings())
    out.mkdir(exist_ok=True)
    return follow(records or run(bench, out), console, bench=bench, out=out, report=Report("nabla bench"))


def test_a_pipe_gets_a_line_for_each_arm_and_chunk_and_then_the_table(model: LanguageModel, tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=40)
    assert followed(model, tmp_path, console)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert not set("\x1b\r") & set(output)
    lines = output.splitlines()
    names = ("greedy", "best-of-3", "nabla") * 2
    done = zip((2, 4, 6, 8, 10, 12), names, (2, 2, 2, 4, 4, 4), strict=True)
    progress = [f"{n}/12 {arm}: 0.0 % of {k}" for n, arm, k in done]
    assert lines[:6] == progress
    assert [line.split()[0] for line in lines if line.startswith(("arm", "greedy", "best", "pass@3", "nabla"))] == [
        "arm",
        "greedy",
        "best-of-3",
        "pass@3",
        "nabla",
    ]
    assert json.loads((tmp_path / "results.json").read_text())["arms"][0]["problems"] == 4
    assert "| best-of-3 | 4 |" in (tmp_path / "table.md").read_text()


def test_a_terminal_shows_the_bar_and_has_its_cursor_back(model: LanguageModel, tmp_path: Path) -> None:
    console = Console(file=StringIO(), force_terminal=True, width=100, height=20, _environ={"TERM": "xterm"})
    assert followed(model, tmp_path, console)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
    assert "12/12" in output[: output.rindex("\x1b[?25h")]
    assert "of 4" not in output  # no lines of progress beside the bar


@pytest.mark.parametrize("done", [0, 5])
def test_an_interrupted_comparison_says_how_much_is_kept(model: LanguageModel, tmp_path: Path, done: int) -> None:
    def impatient() -> Iterator[Record]:
        yield from islice(measured(model, out=tmp_path), done)
        raise KeyboardInterrupt

    console = Console(file=StringIO())
    assert not followed(model, tmp_path, console, impatient())
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"Interrupted: {done} of 12 done and kept in {tmp_path}; the same command goes on." in output
    assert (tmp_path / "table.md").exists() == (done > 0)


def test_records_have_numbers_that_add_up(model: LanguageModel) -> None:
    for record in measured(model, count=2):
        assert record.accepted <= record.proposed <= record.usage.rollouts == len(record.curve)
        assert record.usage.flops > 0
        assert len(record.costs) == len(record.curve)
        assert record.costs[-1][0] <= record.usage.generated_tokens
        assert record.costs[-1][1] <= record.usage.flops
        assert record.log_likelihood is not None
        assert math.isfinite(record.log_likelihood)
        assert (record.reward is None) == (record.arm == "greedy")


# ── what would have been returned after each rollout, by the strategy's own selection ──────────────────────────────


def step(text: str, value: float, nats: float = -1.0, *, verified: bool | None = None) -> Step:
    return Step(
        kind="rollout", committed_text="", log_likelihood=nats, score=Score(value, verified=verified), text=text
    )


def chosen(strategy: Strategy, tried: list[Step], likelihood_weight: float = 1.0) -> list[int]:
    """The indices of what would have been returned: each rollout has a reward of its own."""
    values = [step.score.value for step in tried if step.score is not None]
    return [values.index(value) for _, value, _ in course(strategy, tried, [False] * len(tried), likelihood_weight)]


def test_best_of_n_keeps_the_best_so_far() -> None:
    trace = [step("a", 1.0), step("b", 0.5), step("c", 2.0)]
    right = [True, False, False]
    assert course(BestOfN(n=3), trace, right, 1.0) == [(True, 1.0, -1.0), (True, 1.0, -1.0), (False, 2.0, -1.0)]


def test_the_objective_weighs_likelihood_and_a_verified_answer_goes_first() -> None:
    trace = [step("a", 1.0, -1.0), step("b", 1.5, -2.0), step("c", 0.0, -9.0, verified=True)]
    assert chosen(Nabla(), trace, 1.0) == [0, 0, 2]
    assert chosen(Nabla(), trace, 0.1) == [0, 1, 2]
    assert chosen(Nabla(acceptance="reward"), trace, 1.0) == [0, 1, 1]


def test_a_vote_is_taken_anew_after_each() -> None:
    trace = [step(f"Answer: {n}", -float(i), -float(i)) for i, n in enumerate((7, 8, 8))]
    assert chosen(SelfConsistency(n=3), trace, 1.0) == [0, 0, 1]


def test_a_walk_is_where_it_stands_and_not_where_it_did_not_go() -> None:
    trace = [
        replace(step("abcd"[i], float(i)), accepted=accepted) for i, accepted in enumerate([True, False, True, False])
    ]
    assert chosen(PowerSampling(), trace, 1.0) == [0, 0, 2, 2]


def test_what_a_batch_costs_is_shared_out_over_its_rollouts() -> None:
    one, two = Usage(generated_tokens=10, flops=1e6), Usage(generated_tokens=30, flops=5e6)
    tried = [replace(step("a", 1.0), usage=usage) for usage in (one, two, two)]
    assert list(costs(tried)) == [(10.0, 1e6), (20.0, 3e6), (30.0, 5e6)]


def test_what_could_not_be_judged_is_no_number() -> None:
    assert course(BestOfN(n=1), [step("a", math.nan, math.nan)], [False], 1.0) == [(False, None, None)]
