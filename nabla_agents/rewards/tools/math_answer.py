"""MathAnswer: whether the final answer of a completion is the right one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real

from nabla_agents.errors import ConfigurationError
from nabla_agents.final_answer import rival_answer, stated_answer
from nabla_agents.rewards.base import Reward
from nabla_agents.rewards.remark import quoted, remark
from nabla_agents.rewards.tools.answer import MAX_CHARACTERS, normal, numbers, same
from nabla_agents.rewards.tools.hedges import hedge
from nabla_agents.rewards.tools.math_check import same_by_math_verify
from nabla_agents.rewards.tools.text import not_text
from nabla_agents.sandbox import Executor
from nabla_agents.types import Rollout, Score, Usage

Gold = str | float | int
_MARKS = ("####", r"\boxed")


class MathAnswer(Reward):
    r"""Value 1 and verified for the right final answer, 0 for another one, NaN where it cannot be told.

    answer: the right answer for every prompt, or a function of the rollout that gives it (None: not known).
    answers: right answers by question, the last user turn. What is in neither is not judged.
    symbolic: also compares formulas, `x^2+2x+1` with `(x+1)^2`, by math-verify in a sandbox (extra `math`).
    executor: the sandbox for it, one that has the module math_verify; by default one that all rewards share.

    The answer is the last one that is boxed, or follows `####` or `answer is`; else the whole of a completion that is a
    mere expression, else its last number. A hedge is not judged: `3 or 7`, `42; 43`, two boxes side by side, and what
    relates a value instead of giving it, where the right answer does not (`41 = 42`, `\ge 42`, `42 \approx 41`, `[42,
    43]`), nor are invisible characters or numbers side by side. It is compared in the host by normal form, choice
    letter and exact number (fractions, per cent, units, powers of ten, numerals as far as `ninety-nine`; microseconds),
    and only what that cannot decide in the sandbox (tens of milliseconds, at most 2 s). Answers that are equal only
    when rounded, in different units or currencies (`$5`, `5 cents`), or in words are not judged. The right answer may
    be a whole solution that ends in a mark. `feedback` says which answer is wrong, as the verdict does, and nothing of
    the right one. No model pass.

    Raises:
        ConfigurationError: when made: no answer or several, or one that is neither text nor a number.
    """

    def __init__(
        self,
        answer: Gold | Callable[[Rollout], Gold | None] | None = None,
        *,
        answers: Mapping[str, Gold] | None = None,
        symbolic: bool = True,
        executor: Executor | None = None,
    ) -> None:
        self._gold = golds("MathAnswer", answer, answers)
        self._symbolic, self._executor = symbolic, executor

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [self._judge(r, self._gold(r)) for r in rollouts]

    def _judge(self, rollout: Rollout, gold: str | None) -> Score:
        called = Usage(reward_calls=1)
        if gold is None:
            return Score.not_judged("no right answer is known for this prompt", called)
        if not isinstance(rollout.text, str):
            return not_text(rollout.text)
        answer = stated_answer(rollout.text)
        if answer is None:
            return Score.not_judged("no final answer is stated, or more than one", called)
        if len(answer) > MAX_CHARACTERS:
            return Score.not_judged(f"the answer has {len(answer)} characters, limit {MAX_CHARACTERS}", called)
        rival = rival_answer(rollout.text)
        if rival is not None and same(rival, answer) is not True:
            return Score.not_judged(f"answer {answer[:80]!r} stands beside another one, {rival[:40]!r}", called)
        if why := hedge(gold, answer):
            return Score.not_judged(f"answer {answer[:80]!r} is not judged: {why}", called)
        equal = same(gold, answer)
        why = "compared as text and number" + ("; in other words, in other units, or rounded" if equal is None else "")
        if equal is None and self._symbolic and not numbers(gold, answer):
            equal, why = same_by_math_verify(normal(gold), normal(answer), self._executor)
        feedback = f"The final answer {quoted(answer)} is wrong."
        return verdict(equal, f"answer {answer[:80]!r}", why, feedback)


def golds(
    name: str, answer: Gold | Callable[[Rollout], Gold | None] | None, answers: Mapping[str, Gold] | None
) -> Callable[[Rollout], str | None]:
    """The right answer of a rollout, from one of the ways to say it."""
    if (answer is None) == (answers is None):
        raise ConfigurationError(f"{name} expected either an answer, or answers={{question: answer}}.")
    if answers is not None:
        if not isinstance(answers, Mapping) or not answers:
            raise ConfigurationError(f"{name} answers is {answers!r}; expected a mapping from question to answer.")
        known = {question: _text(name, gold) for question, gold in answers.items()}
        return lambda rollout: known.get(rollout.prompt.question)
    if callable(answer):
        ask = answer

        def right_answer(rollout: Rollout) -> str | None:
            gold = ask(rollout)
            return None if gold is None else _text(name, gold)

        return right_answer
    fixed = _text(name, answer)
    return lambda rollout: fixed


def verdict(equal: bool | None, what: str, why: str, objection: str) -> Score:
    """The score of a comparison; `objection` is what a model is told of a wrong one."""
    called = Usage(reward_calls=1)
    if equal is None:
        return Score.not_judged(f"{what} is not judged: {why}", called)
    explanation = f"{what} is {'right' if equal else 'wrong'}, {why}"
    feedback = "" if equal else remark(objection)
    return Score(float(equal), float(equal), equal, explanation=explanation, usage=called, feedback=feedback)


def _text(name: str, gold: object) -> str:
    if isinstance(gold, bool) or not isinstance(gold, str | Real) or not str(gold).strip() or gold != gold:
        raise ConfigurationError(f"{name} got the answer {gold!r}; expected text or a number.")
    text = str(gold)
    stated = stated_answer(text) if any(mark in text for mark in _MARKS) else None
    return text if stated is None else stated
