"""Questions from a file: one JSON object a line, with an answer or with unit tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from nabla_agents.bench.arms import default_arms
from nabla_agents.bench.tasks import Question, Task
from nabla_agents.config import Settings
from nabla_agents.errors import ConfigurationError, SandboxError
from nabla_agents.rewards import MathAnswer, PythonTests
from nabla_agents.types import Rollout, Score

_FIELDS: Mapping[str, tuple[str, str]] = {
    "jsonl": ("question", "answer"),
    "gsm8k": ("question", "answer"),
    "math-500": ("problem", "answer"),
}


class FileTask(Settings):
    r"""A file of questions, one JSON object a line.

    kind: only says how fields are named by default: `gsm8k` and `jsonl` have `question` and `answer`, `math-500` has
        `problem` and `answer`.
    question, answer, tests, entry: the fields' names. An answer may be a whole solution that ends in `#### 42` or
        `\boxed{42}`. Where `tests` is named, answers are functions: pairs `[arguments, expected]` for calls of
        `entry`'s function, or assertions as one text or a list of texts.
    prompt: what is asked, with `{question}` in it.
    symbolic: also compare formulas (extra `math`).
    """

    path: Path
    kind: Literal["jsonl", "gsm8k", "math-500"] = "jsonl"
    question: str | None = None
    answer: str | None = None
    tests: str | None = None
    entry: str | None = None
    prompt: str = "{question}"
    symbolic: bool = True

    def within(self, folder: Path) -> FileTask:
        """The same with a path that is relative to a folder."""
        return self.replace(path=folder / self.path)


def file_task(settings: FileTask) -> Task:
    """The task of a file; the questions are those of its first lines, whatever the seed.

    Raises:
        ConfigurationError: the file cannot be read, or a line lacks a field; the message names the line.
    """
    if "{question}" not in settings.prompt:
        raise ConfigurationError(f"prompt is {settings.prompt!r}; expected a text with {{question}} in it.")
    questions = [_question(settings, number, row) for number, row in _rows(settings.path)]
    return Task(
        name=f"{settings.kind} {settings.path.name}",
        draw=lambda n, seed: questions[:n],
        arms=lambda n: default_arms(n, ()),
        rewards=lambda: {},
        notes="Questions are those of the file's first lines, in order; other seeds sample other answers to them.",
        reward_names=(),
    )


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigurationError(f"The questions in {path} cannot be read ({e}).") from e
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise ConfigurationError(f"{path}:{number} is no JSON ({e}); expected one object a line.") from e
        if not isinstance(row, dict):
            raise ConfigurationError(f"{path}:{number} is no object; expected one a line.")
        rows.append((number, row))
    if not rows:
        raise ConfigurationError(f"{path} has no questions; expected one JSON object a line.")
    return rows


def _question(settings: FileTask, number: int, row: Mapping[str, Any]) -> Question:
    asked, answer = _FIELDS[settings.kind]

    def get(name: str) -> Any:
        if name not in row:
            raise ConfigurationError(
                f"{settings.path}:{number} has no field {name!r}; it has {', '.join(map(repr, row))}. Name the fields "
                "in [task]: question, and answer or tests."
            )
        return row[name]

    text = get(settings.question or asked)
    if not isinstance(text, str) or not text.strip():
        raise ConfigurationError(f"{settings.path}:{number} asks {text!r}; expected some text.")
    prompt = settings.prompt.replace("{question}", text)
    try:
        if settings.tests is None:
            gold = get(settings.answer or answer)
            reference = MathAnswer(gold, symbolic=settings.symbolic)
            return Question(prompt, lambda texts: [s.verified is True for s in judged(reference, prompt, texts)])
        tests = PythonTests(_tests(get(settings.tests)), entry=None if settings.entry is None else get(settings.entry))
        return Question(prompt, lambda texts: [passed(s) for s in judged(tests, prompt, texts)])
    except ConfigurationError as e:
        raise e if str(settings.path) in str(e) else ConfigurationError(f"{settings.path}:{number}: {e}") from e


def judged(reward: MathAnswer | PythonTests, prompt: str, texts: Sequence[str]) -> list[Score]:
    """A verdict on each text."""
    return reward.score([Rollout.from_text(prompt, text) for text in texts])


def passed(score: Score) -> bool:
    """Whether all tests passed.

    Raises:
        SandboxError: the sandbox could not judge.
    """
    if not score.judged:
        raise SandboxError(f"An answer could not be judged: {score.explanation}")
    return score.value == 1.0 and score.verified is not False


def _tests(given: Any) -> Any:
    """Assertions as one text; pairs as they are."""
    if isinstance(given, list) and given and all(isinstance(line, str) for line in given):
        return "\n".join(given)
    return (
        [(pair[0], pair[1]) if isinstance(pair, list) and len(pair) == 2 else pair for pair in given]
        if isinstance(given, list)
        else given
    )
