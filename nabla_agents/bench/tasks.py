"""What is asked in a comparison: questions, how an answer is judged, and the arms and rewards that fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nabla_agents.bench.arms import Arm, code_arms, word_arms
from nabla_agents.errors import SandboxError
from nabla_agents.rewards import ArithmeticSteps, ImplicitReward, PythonTests, Reward, prompt_assertions
from nabla_agents.tiny import CodeTask, Problem, code_tasks, is_correct, problems
from nabla_agents.types import Rollout


@dataclass(frozen=True)
class Question:
    """What is asked, and which of some answers are right: by the reference, not by the reward."""

    text: str
    right: Callable[[Sequence[str]], list[bool]]


@dataclass(frozen=True)
class Task:
    """A family of questions: `draw(n, seed)`, whose longer lists begin with the shorter, and what answers them.

    `arms` makes the table of named arms for a number of rollouts, `rewards` loads the rewards that they name, which are
    `reward_names`, and `notes` tell a reader of the results which arm has which.
    """

    name: str
    draw: Callable[[int, int], list[Question]]
    arms: Callable[[int], dict[str, Arm]]
    rewards: Callable[[], Mapping[str, Reward]]
    notes: str
    reward_names: tuple[str, ...] = ()


def _word_problems(n: int, seed: int) -> list[Question]:
    def asked(problem: Problem) -> Question:
        return Question(problem.question, lambda texts: [is_correct(text, problem) for text in texts])

    return [asked(problem) for problem in problems(n, seed=seed, split="test")]


def _word_rewards() -> dict[str, Reward]:
    process, arithmetic = ImplicitReward.from_pretrained("tiny"), ArithmeticSteps()
    both, located = process + arithmetic, ArithmeticSteps(suggest=False)
    return {"process": process, "arithmetic": arithmetic, "both": both, "located": located}


def _code_tasks(n: int, seed: int) -> list[Question]:
    return [
        Question(task.question, lambda texts, task=task: passes(texts, task))
        for task in code_tasks(n, seed=seed, split="test")
    ]


def _code_rewards() -> dict[str, Reward]:
    return {"tests": 10.0 * PythonTests(prompt_assertions)}


def passes(texts: Sequence[str], task: CodeTask) -> list[bool]:
    """Whether the function in each text gives what the task's tests expect, those included that no prompt shows.

    Raises:
        SandboxError: the sandbox could not judge.
    """
    tests = PythonTests(
        [(arguments, expected) for arguments, expected in task.tests + task.hidden_tests], entry=task.entry
    )
    scores = tests.score([Rollout.from_text(task.question, text) for text in texts])
    for score in scores:
        if not score.judged:
            raise SandboxError(f"An answer could not be judged: {score.explanation}")
    return [bool(score.verified) for score in scores]


_WORD_NOTES = """\
Without a suffix an arm has the process reward (greedy and majority need none); `/arithmetic` is the calculator, `/both`
the sum, `/located` the calculator when it says only where a result is wrong."""
_CODE_NOTES = """\
`/tests` arms are led by the unit tests that the question shows, and by no learned reward. An answer is right if its
function passes these and the tests that no question shows."""
WORDS = Task(
    "words", _word_problems, word_arms, _word_rewards, _WORD_NOTES, ("process", "arithmetic", "both", "located")
)
CODE = Task("code", _code_tasks, code_arms, _code_rewards, _CODE_NOTES, ("tests",))
TASKS: Mapping[str, Task] = {task.name: task for task in (WORDS, CODE)}
