"""The tasks of a comparison: what is asked is what is judged, and by tests that the reward has not seen."""

from __future__ import annotations

import pytest

from nabla_agents import Rollout, SandboxError, prompt_assertions
from nabla_agents.bench import CODE, TASKS, WORDS, Bench, BenchConfig, choose, run
from nabla_agents.rewards import PythonTests
from nabla_agents.testing import random_model
from nabla_agents.tiny import code_tasks, problems
from nabla_agents.types import Score, Usage


def test_word_problems_are_those_of_the_test_split_and_judged_by_their_answer() -> None:
    questions, asked = WORDS.draw(5, 3), problems(5, seed=3, split="test")
    assert [question.text for question in questions] == [problem.question for problem in asked]
    assert questions[0].right([asked[0].solution, "Answer: -1", ""]) == [True, False, False]


def test_code_is_right_if_it_passes_the_tests_that_no_question_shows() -> None:
    [task] = code_tasks(1, seed=3, split="test")
    [question] = CODE.draw(1, 3)
    known = {tuple(xs): result for (xs,), result in task.tests}
    cheat = f"def {task.entry}(xs):\n    return {known!r}.get(tuple(xs))"
    rollout = Rollout.from_text(question.text, cheat)
    [shown] = PythonTests(prompt_assertions).score([rollout])
    assert shown.value == 1.0
    assert question.right([task.solution, cheat, "", "no code at all"]) == [True, False, False, False]


def test_the_reward_of_code_reads_the_tests_of_each_question() -> None:
    reward = CODE.rewards()["tests"]
    tasks = code_tasks(3, seed=4, split="test")
    scores = reward.score([Rollout.from_text(task.question, task.solution) for task in tasks])
    assert [score.value for score in scores] == [10.0, 10.0, 10.0]
    assert all(score.verified for score in scores)
    [score] = reward.score([Rollout.from_text("What is 2 + 2?", tasks[0].solution)])
    assert not score.judged
    assert "no tests" in score.explanation


def test_only_lines_that_begin_with_assert_are_tests() -> None:
    prompt = "We assert nothing.\nassert f(1) == 2\n  assert f(2) == 3\nassertion: none\nassert(f(3)) == 4"
    assert prompt_assertions(Rollout.from_text(prompt, "")) == "assert f(1) == 2\nassert f(2) == 3\nassert(f(3)) == 4"
    assert prompt_assertions(Rollout.from_text("Nothing here.", "")) is None


def test_an_answer_that_no_sandbox_can_judge_is_not_counted_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    [task] = code_tasks(1, seed=3)
    monkeypatch.setattr(
        PythonTests, "score", lambda self, rollouts: [Score.not_judged("sandbox broken", Usage()) for _ in rollouts]
    )
    with pytest.raises(SandboxError, match="could not be judged: sandbox broken"):
        module.passes([task.solution], task)


def test_every_arm_has_its_reward_and_runs() -> None:
    for name in ("code", "words"):
        arms = TASKS[name].arms(2)
        rewards = TASKS[name].rewards()
        assert {arm.reward for arm in arms.values()} - {None} == set(rewards) == set(TASKS[name].reward_names)
    model = random_model(width=16, layers=1)
    settings = BenchSettings(problems=2, budgets=2, max_tokens=8, batch=2)
    chosen = choose("greedy,best-of-2/tests,nabla/tests", CODE.arms(2))
    records = list(run(Bench(chosen, model=model, rewards=CODE.rewards(), settings=settings, task=CODE)))
    assert [(r.arm, r.problem, r.correct) for r in records] == [
        (arm.name, problem, False) for arm in chosen for problem in range(2)
    ]
