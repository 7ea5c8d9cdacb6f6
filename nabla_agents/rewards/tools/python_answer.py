"""PythonAnswer: whether the program in a completion prints the right answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from nabla_agents.errors import ConfigurationError, SandboxError
from nabla_agents.final_answer import stated_answer
from nabla_agents.rewards.base import Reward
from nabla_agents.rewards.remark import quoted, remark
from nabla_agents.rewards.tools import executors
from nabla_agents.rewards.tools.answer import same
from nabla_agents.rewards.tools.code import line_span, python_code
from nabla_agents.rewards.tools.failure import at_line, failure
from nabla_agents.rewards.tools.fences import Fenced
from nabla_agents.rewards.tools.hedges import hedge
from nabla_agents.rewards.tools.math_answer import Gold, golds, verdict
from nabla_agents.rewards.tools.text import not_text
from nabla_agents.rewards.tools.trial import lacks_standard_module
from nabla_agents.sandbox import Execution, Executor, Limits, Program
from nabla_agents.types import Rollout, Score, Span, Usage


class PythonAnswer(Reward):
    """Value 1 and verified if the completion's program prints the right answer, 0 for another one, or if it fails.

    answer, answers: the right answer, as in `MathAnswer`; it never enters the sandbox.
    executor, limits, credit: as in `PythonTests`.

    The program is the last fenced block of Python, or a bare text; the answer is in its last printed line. NaN where
    the two cannot be compared as text or number, and where the sandbox is broken. A program that needs a package which
    the sandbox lacks is wrong; of a part of Python that it lacks, the value is 0 and `verified` None. One run, of
    milliseconds; no model pass.

    Raises:
        ConfigurationError: when made: no answer or several, or one that is neither text nor a number.
    """

    def __init__(
        self,
        answer: Gold | Callable[[Rollout], Gold | None] | None = None,
        *,
        answers: Mapping[str, Gold] | None = None,
        executor: Executor | None = None,
        limits: Limits = Limits(),
        credit: float = 10.0,
    ) -> None:
        if not 0 <= credit < float("inf"):
            raise ConfigurationError(f"PythonAnswer credit is {credit!r}; expected nats of at least 0.")
        self._gold = golds("PythonAnswer", answer, answers)
        self._executor, self.limits, self.credit = executor, limits, credit

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        programs = {
            i: code for i, r in enumerate(rollouts) if isinstance(r.text, str) and (code := python_code(r.text))
        }
        try:
            executor = executors.programs() if self._executor is None and programs else self._executor
            runs = (
                []
                if executor is None
                else executor.run_many([Program(c.flush) for c in programs.values()], self.limits)
            )
        except SandboxError as e:
            return [Score.not_judged(str(e), Usage(reward_calls=1))] * len(rollouts)
        done = dict(zip(programs, runs, strict=True))
        return [
            self._judge(self._gold(r), programs[i], done[i])
            if i in done
            else (_NO_PROGRAM if isinstance(r.text, str) else not_text(r.text))
            for i, r in enumerate(rollouts)
        ]

    def _judge(self, gold: str | None, code: Fenced, execution: Execution) -> Score:
        called = Usage(reward_calls=1)
        if gold is None:
            return Score.not_judged("no right answer is known for this prompt", called)
        if not execution.status.judges:
            why = execution.error_message or execution.detail
            return Score.not_judged(f"sandbox {execution.status}: {why}", called)
        if not execution.ok:
            error = f"{execution.status} {execution.error_type} {execution.error_message[:200]}".strip()
            place = line_span(code, execution.line)
            spans = () if place is None else (Span(*place, -1.0, None, error, self.credit),)
            feedback = f"The program {failure(execution)}{at_line(code, execution.line)}."
            return _failed(error, feedback, spans, None if lacks_standard_module(execution) else False)
        lines = execution.stdout.strip().splitlines()
        if not lines:
            return _failed("the program printed nothing", "The program prints nothing.")
        printed = lines[-1].strip()
        equal = same(gold, printed)
        if equal is None and (stated := stated_answer(printed)) is not None and not hedge(gold, stated):
            equal = same(gold, stated)
        feedback = f"The program prints {quoted(printed)}, which is wrong."
        return verdict(equal, f"printed {printed[:80]!r}", "compared as text and number", feedback)


def _failed(explanation: str, feedback: str, spans: tuple[Span, ...] = (), verified: bool | None = False) -> Score:
    return Score(0.0, 0.0, verified, spans, explanation, Usage(reward_calls=1), feedback=remark(feedback))


_NO_PROGRAM = _failed("no Python in the completion", "There is no Python program in the answer.")
