"""The tasks of a comparison: what is asked is what is judged, and by tests that the reward has not seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from nabla_agents import ConfigurationError, Reward, Rollout, SandboxError, prompt_assertions
from nabla_agents.bench import CODE, TASKS, WORDS, Bench, BenchConfig, FileTask, Task, choose, file_task, run
from nabla_agents.rewards import PythonTests
from nabla_agents.testing import random_model
from nabla_agents.tiny import code_tasks, problems
from nabla_agents.types import Score, Usage


def loaded(name: str, task: Task) -> Mapping[str, Reward]:
    return BenchConfig(task=name).made_rewards(random_model(width=16, layers=1), task, set(task.rewards))


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
    reward = loaded("code", CODE)["tests"]
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
    [question] = CODE.draw(1, 0)
    monkeypatch.setattr(
        PythonTests, "score", lambda self, rollouts: [Score.not_judged("sandbox broken", Usage()) for _ in rollouts]
    )
    with pytest.raises(SandboxError, match="could not be judged: sandbox broken"):
        question.right([task.solution])


def test_an_answer_that_alone_cannot_be_judged_is_wrong_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    [task] = code_tasks(1, seed=0, split="test")
    [question] = CODE.draw(1, 0)
    judge, absent = PythonTests.score, "```python\nimport pandas\n```"

    def score(tests: PythonTests, rollouts: Sequence[Rollout]) -> list[Score]:
        scores = judge(tests, rollouts)
        pairs = zip(rollouts, scores, strict=True)
        return [Score.not_judged("pandas is not there") if r.text == absent else s for r, s in pairs]

    monkeypatch.setattr(PythonTests, "score", score)
    assert question.right([absent, task.solution, absent]) == [False, True, False]


def test_every_arm_has_its_reward_and_runs() -> None:
    for task in TASKS.values():
        assert {arm.reward for arm in task.arms(2).values()} - {None} == set(task.rewards)
    model = random_model(width=16, layers=1)
    config = BenchConfig(task="code", problems=2, budgets=2, max_tokens=8, batch=2)
    chosen = choose("greedy,best-of-2/tests,nabla/tests", config.arms())
    records = list(run(Bench(chosen, model=model, rewards=loaded("code", CODE), settings=config, task=CODE)))
    assert [(r.arm, r.problem, r.correct) for r in records] == [
        (arm.name, problem, False) for arm in chosen for problem in range(2)
    ]


# ── questions from a file: which fields are read, how answers are judged, and what is refused where ────────────────


def lines(folder: Path, *rows: Any) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    return path


def test_gsm8k_answers_follow_four_hashes(tmp_path: Path) -> None:
    path = lines(tmp_path, {"question": "How many?", "answer": "48 / 2 = 24 clips.\n#### 1,072"})
    [question] = file_task(FileTask(path=path, kind="gsm8k")).draw(9, 0)
    assert question.text == "How many?"
    texts = ["So #### 1072", "The answer is 1,072.", "#### 24", "no number at all", "", "3 or 1072"]
    assert question.right(texts) == [True, True, False, False, False, False]


def test_math_500_answers_are_boxed(tmp_path: Path) -> None:
    rows = ({"problem": "Halve 1.", "answer": r"\frac{1}{2}"}, {"problem": "Add.", "answer": r"so \boxed{7}"})
    first, second = file_task(FileTask(path=lines(tmp_path, *rows), kind="math-500", symbolic=False)).draw(2, 5)
    assert first.right([r"thus \boxed{\frac12}", r"\boxed{0.5}", r"\boxed{2}"]) == [True, True, False]
    assert second.right([r"\boxed{7}", r"\boxed{8}"]) == [True, False]


def test_fields_and_the_prompt_have_names_of_ones_own(tmp_path: Path) -> None:
    path = lines(tmp_path, {"q": "2 + {x}?", "gold": 4})
    task = FileTask(path=path, question="q", answer="gold", prompt="Think.\n{question}\nEnd with Answer:")
    [question] = file_task(task).draw(1, 0)
    assert question.text == "Think.\n2 + {x}?\nEnd with Answer:"
    assert question.right(["Answer: 4", "Answer: 5"]) == [True, False]


@pytest.mark.parametrize(
    "tests",
    [[[[[1, 2]], 3], [[[]], 0]], "assert total([1, 2]) == 3\nassert total([]) == 0", ["assert total([1, 2]) == 3"]],
)
def test_functions_are_judged_by_tests(tmp_path: Path, tests: Any) -> None:
    path = lines(tmp_path, {"question": "Sum.", "tests": tests, "name": "total"})
    [question] = file_task(FileTask(path=path, tests="tests", entry="name")).draw(1, 0)
    right, wrong = "def total(xs):\n    return sum(xs)", "def total(xs):\n    return max(xs)"
    assert question.right([right, wrong, "no code"]) == [True, False, False]


def test_programs_answer_questions_whose_answer_is_a_number(tmp_path: Path) -> None:
    path = lines(tmp_path, {"question": "How many?", "answer": "48 / 2 = 24 clips.\n#### 1,072"})
    [question] = file_task(FileTask(path=path, kind="gsm8k", function="solution")).draw(1, 0)
    values = ["1072", "2144 / 2", "24", "'1072'", "1 / 0"]
    texts = [f"```python\ndef solution():\n    return {value}\n```" for value in values]
    assert question.right([*texts, "#### 1072", "def other():\n    return 1072"]) == [True, True, *[False] * 5]


def test_what_passes_beside_its_tests_only_claims_to_be_right(tmp_path: Path) -> None:
    loop = "for xs in ([], [1, 2]):\n    assert total(xs) == sum(xs)"
    [question] = file_task(FileTask(path=lines(tmp_path, {"question": "Sum.", "tests": loop}), tests="tests")).draw(
        1, 0
    )
    assert question.right(["def total(xs):\n    return sum(xs)", "def total(xs):\n    return 1"]) == [None, False]


def test_the_first_lines_are_asked_whatever_the_seed(tmp_path: Path) -> None:
    task = file_task(FileTask(path=lines(tmp_path, *({"question": str(i), "answer": i} for i in range(3)))))
    assert [q.text for q in task.draw(2, 0)] == [q.text for q in task.draw(2, 7)] == ["0", "1"]
    assert len(task.draw(9, 0)) == 3


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("", {}, "has no questions"),
        ("{", {}, ":1 is no JSON"),
        ('{"question": "\\ud800", "answer": "1"}', {}, r":1 is no JSON .*surrogates not allowed"),
        ('{"a":' * 100_000, {}, ":1 is no JSON .nested more than 200 levels deep"),
        ("[]", {}, ":1 is no object"),
        ('{"question": "a", "answer": 1}\n{"question": "b"}', {}, r":2 has no field 'answer'; it has 'question'"),
        ('{"question": "", "answer": 1}', {}, "asks ''; expected some text"),
        ('{"question": "a", "answer": null}', {}, ":1: MathAnswer expected either an answer"),
        ('{"question": "a", "answer": "x = y"}', {"function": "f"}, ":1 has the answer 'x = y'; expected a number"),
        ('{"question": "a", "answer": 1}', {"function": "f", "tests": "t"}, "both given; expected one"),
        ('{"question": "a", "t": []}', {"tests": "t"}, ":1: PythonTests got"),
        ('{"question": "a", "answer": 1}', {"prompt": "no place"}, "expected a text with {question} in it"),
        ('{"question": "a", "answer": 1}', {"anwser": "x"}, "did you mean 'answer'"),
        ('{"question": "a", "answer": 1}', {"kind": "gsm"}, "kind = 'gsm'"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_line(
    tmp_path: Path, content: str, options: dict[str, Any], says: str
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=says):
        file_task(FileTask(path=path, **options))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        file_task(FileTask(path=tmp_path / "none.jsonl"))
