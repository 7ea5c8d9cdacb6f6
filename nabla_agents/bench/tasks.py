"""What is asked in a comparison: questions, how an answer is judged, and the arms and rewards that fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from nabla_agents.bench.arms import Arm, default_arms, searches
from nabla_agents.bench.mbpp_plus import mbpp_plus
from nabla_agents.config import Settings
from nabla_agents.errors import ConfigurationError, SandboxError
from nabla_agents.final_answer import extract_answer
from nabla_agents.json_text import read_json
from nabla_agents.registry import STRATEGIES
from nabla_agents.rewards import MathAnswer, PythonTests
from nabla_agents.tiny import CodeTask, Problem, code_tasks, is_correct, problems
from nabla_agents.types import Rollout, Score


@dataclass(frozen=True)
class Question:
    """What is asked, and which of some answers are right: by the reference, not by the reward. None: an answer passes
    by its own account, since its tests run beside it and nobody outside sees what they compare.
    """

    text: str
    right: Callable[[Sequence[str]], Sequence[bool | None]]


@dataclass(frozen=True)
class Task:
    """A family of questions: `draw(n, seed)`, whose longer lists begin with the shorter, and what answers them.

    `arms` makes the table of named arms for a number of rollouts, `rewards` has the expressions of the rewards that
    they name, and `notes` tell a reader of the results which arm has which.
    """

    name: str
    draw: Callable[[int, int], list[Question]]
    arms: Callable[[int], dict[str, Arm]]
    notes: str
    rewards: Mapping[str, str] = field(default_factory=dict[str, str])


# ── the embedded problems ─────────────────────────────────────────────────────────────────────────────────────────


def _word_problems(n: int, seed: int) -> list[Question]:
    def question(problem: Problem) -> Question:
        return Question(problem.question, lambda texts: [is_correct(text, problem) for text in texts])

    return [question(problem) for problem in problems(n, seed=seed, split="test")]


def _word_arms(n: int = 8) -> dict[str, Arm]:
    """Greedy decoding and the plain majority need no reward and pay for none."""
    arms = default_arms(n, ("process", "arithmetic", "both"), bare="process")
    more = (
        Arm("nabla-paper", STRATEGIES["nabla-paper"](n), "process"),
        Arm("nabla/located", arms["nabla"].strategy, "located"),
    )
    return {**arms, **{arm.name: arm for arm in more}}


def _code_tasks(n: int, seed: int) -> list[Question]:
    def question(task: CodeTask) -> Question:
        tests = PythonTests([*task.tests, *task.hidden_tests], entry=task.entry)
        return Question(task.question, lambda texts: _passed(tests, task.question, texts))

    return [question(task) for task in code_tasks(n, seed=seed, split="test")]


def _code_arms(n: int = 8) -> dict[str, Arm]:
    """Every search has the unit tests that the question shows, and no learned reward."""
    return {arm.name: arm for arm in (Arm("greedy", STRATEGIES["greedy"](n)), *searches(n, "tests", "/tests"))}


WORDS = Task(
    "words",
    _word_problems,
    _word_arms,
    """\
Without a suffix an arm has the process reward (greedy and majority need none); `/arithmetic` is the calculator, `/both`
the sum, `/located` the calculator when it says only where a result is wrong.""",
    {"process": "tiny", "arithmetic": "arithmetic", "both": "process + arithmetic", "located": "located"},
)
CODE = Task(
    "code",
    _code_tasks,
    _code_arms,
    """\
`/tests` arms are led by the unit tests that the question shows, and by no learned reward. An answer is right if its
function passes these and the tests that no question shows.""",
    {"tests": "10*tests"},
)
TASKS: Mapping[str, Task] = {task.name: task for task in (WORDS, CODE)}


# ── questions from a file ─────────────────────────────────────────────────────────────────────────────────────────

_QUESTION: Mapping[str, str] = {"jsonl": "question", "gsm8k": "question", "math-500": "problem"}


class FileTask(Settings):
    r"""A file of questions, one JSON object a line.

    kind: `mbpp-plus` is EvalPlus' release of MBPP+, whose questions show two assertions and are judged by all
        (`MbppPlus`); the others only say how the question's field is named by default: `problem` in `math-500`, else
        `question`.
    skip: questions of the file that are left out before the first, for instance those that settings were chosen on.
    question, answer, tests, entry: the fields' names. An answer may be a whole solution that ends in `#### 42` or
        `\boxed{42}`. Where `tests` is named, answers are functions: pairs `[arguments, expected]` for calls of
        `entry`'s function, or assertions as one text or a list of texts.
    function: answers are programs: functions of this name without arguments, which return the number that `answer` is.
    prompt: what is asked, with `{question}` in it.
    symbolic: also compare formulas (extra `math`).
    """

    path: Path
    kind: Literal["jsonl", "gsm8k", "math-500", "mbpp-plus"] = "jsonl"
    skip: Annotated[int, Field(ge=0)] = 0
    question: str | None = None
    answer: str = "answer"
    tests: str | None = None
    entry: str | None = None
    function: str | None = None
    prompt: str = "{question}"
    symbolic: bool = True


def file_task(settings: FileTask) -> Task:
    """The task of a file; the questions are those of its first lines, whatever the seed.

    Raises:
        ConfigurationError: the file cannot be read, or a line lacks a field; the message names the line.
    """
    if "{question}" not in settings.prompt:
        raise ConfigurationError(f"prompt is {settings.prompt!r}; expected a text with {{question}} in it.")
    if settings.function is not None and settings.tests is not None:
        raise ConfigurationError("function and tests are both given; expected one of them, which says what is right.")
    rows = _rows(settings.path)[settings.skip :]
    questions = [_question(settings, number, row) for number, row in rows]
    return Task(
        name=f"{settings.kind} {settings.path.name}",
        draw=lambda n, seed: questions[:n],
        arms=lambda n: default_arms(n, ()),
        notes="Questions are those of the file's lines, in order; other seeds sample other answers to them.",
    )


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Each object with the number of its line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigurationError(f"The questions in {path} cannot be read ({e}).") from e
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = read_json(line)
        except ValueError as e:
            raise ConfigurationError(f"{path}:{number} is no JSON ({e}); expected one object a line.") from e
        if not isinstance(row, dict):
            raise ConfigurationError(f"{path}:{number} is no object; expected one a line.")
        rows.append((number, row))
    if not rows:
        raise ConfigurationError(f"{path} has no questions; expected one JSON object a line.")
    return rows


def _question(settings: FileTask, number: int, row: Mapping[str, Any]) -> Question:
    at = f"{settings.path}:{number}"

    def get(name: str) -> Any:
        if name not in row:
            raise ConfigurationError(
                f"{at} has no field {name!r}; it has {', '.join(map(repr, row))}. Name the fields in [task]: question, "
                "and answer or tests."
            )
        return row[name]

    if settings.kind == "mbpp-plus":
        function = mbpp_plus(row, at)
        return Question(settings.prompt.replace("{question}", function.text), function.right)
    text = get(settings.question or _QUESTION[settings.kind])
    if not isinstance(text, str) or not text.strip():
        raise ConfigurationError(f"{at} asks {text!r}; expected some text.")
    prompt = settings.prompt.replace("{question}", text)
    reference = get(settings.answer if settings.tests is None else settings.tests)
    if settings.function is not None:
        returns = PythonTests([((), _number(reference, at))], entry=settings.function)
        return Question(prompt, lambda texts: _passed(returns, prompt, texts))
    entry = None if settings.tests is None or settings.entry is None else get(settings.entry)
    try:
        if settings.tests is None:
            answer = MathAnswer(reference, symbolic=settings.symbolic)
            return Question(prompt, lambda texts: [score.verified is True for score in _judged(answer, prompt, texts)])
        tests = PythonTests(_tests(reference), entry=entry)
        return Question(prompt, lambda texts: _passed(tests, prompt, texts))
    except ConfigurationError as e:
        raise ConfigurationError(f"{at}: {e}") from e


_NOTHING: Final = "```python\ndef nothing():\n    pass\n```"


def _tests(tests: Any) -> Any:
    """Assertions as one text; pairs as they are."""
    if not isinstance(tests, list) or not tests:
        return tests
    if all(isinstance(line, str) for line in tests):
        return "\n".join(tests)
    return [tuple(pair) if isinstance(pair, list) and len(pair) == 2 else pair for pair in tests]


def _number(answer: Any, at: str) -> float:
    """The number that an answer is, or that a solution ends in."""
    try:
        return float(extract_answer(str(answer)) or "")
    except ValueError:
        raise ConfigurationError(
            f"{at} has the answer {answer!r}; expected a number, which a function can return."
        ) from None


def _passed(tests: PythonTests, prompt: str, texts: Sequence[str]) -> list[bool | None]:
    """Whether the function in each text passes all tests; None where that is only claimed. An answer that alone
    cannot be judged (it needs a package that is not there, say) is wrong.

    Raises:
        SandboxError: the sandbox judges nothing, not even a function that does nothing.
    """
    scores = _judged(tests, prompt, texts)
    unjudged = next((score for score in scores if not score.judged), None)
    if unjudged is not None and not _judged(tests, prompt, [_NOTHING])[0].judged:
        raise SandboxError(f"An answer could not be judged: {unjudged.explanation}")
    return [score.verified if score.value == 1.0 else False for score in scores]


def _judged(reward: MathAnswer | PythonTests, prompt: str, texts: Sequence[str]) -> list[Score]:
    return reward.score([Rollout.from_text(prompt, text) for text in texts])
