"""`@reward`: a plain function, sync or async, as a reward."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial, update_wrapper
from numbers import Real
from typing import Any, overload

import numpy as np

from nabla_agents.errors import ConfigurationError, RewardError
from nabla_agents.rewards.background import Background, side_by_side
from nabla_agents.rewards.base import Reward
from nabla_agents.rewards.remark import remark
from nabla_agents.types import Rollout, Score, Usage

_GIVEN: dict[str, Callable[[Rollout], Any]] = {
    "rollout": lambda r: r,
    **dict.fromkeys(("question", "prompt"), lambda r: r.prompt.question),
    **dict.fromkeys(("completion", "text", "answer", "response"), lambda r: r.text),
}
_ANNOTATED: dict[str, Callable[[Rollout], Any]] = {"Rollout": lambda r: r, "Prompt": lambda r: r.prompt}
_MOST_LEFT_BEHIND = 32  # hanging calls, before the function is no longer asked


class FunctionReward(Reward):
    """What a function says of each completion, `workers` of them at a time. Usually made by `@reward`.

    It is given, by the names of its parameters, `completion` (or text, answer, response), `question` (or prompt; the
    last user turn) or `rollout`; by annotation, a `Rollout` or `Prompt`; a single parameter of any name is the
    completion's text. It returns
        bool: value 1 or 0, a tool's verdict, and verified or not;
        a number: a value like that of a learned reward, which outranks nothing;
        `Score`: all that a reward can say;
        None, NaN or an infinity: not judged;
        a pair of one of these and a text: what a model is told of the completion (`Score.feedback`), as in `return ok,
            "name a source for each claim"`; empty where there is nothing to object to.

    A call that raises, or takes longer than `timeout_seconds`, is an explained NaN. One that hangs is left behind on
    its thread, and the next one begins; once as many as `workers` (at least two) of a batch hang, its others are not
    asked, so that a batch of which all hang takes one time limit (two with one worker). With 32 calls that still hang
    the function is no longer asked, until some end. Each async call has an event loop of its own.

    Raises:
        ConfigurationError: when made: not callable, parameters that nothing is known for, limits that are no limits.
        RewardError: when scoring: it returned something else.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        timeout_seconds: float = 30.0,
        workers: int = 8,
        name: str | None = None,
    ) -> None:
        if not callable(function):
            raise ConfigurationError(f"@reward got {function!r}; expected a function.")
        if not isinstance(timeout_seconds, Real) or not 0 < timeout_seconds < math.inf:
            raise ConfigurationError(f"@reward timeout_seconds is {timeout_seconds!r}; expected seconds above 0.")
        if not isinstance(workers, int) or workers < 1:
            raise ConfigurationError(f"@reward workers is {workers!r}; expected a whole number of at least 1.")
        self._function, self._name = function, name or getattr(function, "__name__", type(function).__name__)
        self._arguments = _arguments(function, self._name)
        self.timeout_seconds, self.workers = timeout_seconds, workers
        self._left_behind: list[Background[Any]] = []
        update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function itself, as it was written."""
        return self._function(*args, **kwargs)

    @property
    def name(self) -> str:
        return self._name

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        self._left_behind = [call for call in self._left_behind if call.running]
        if len(self._left_behind) >= _MOST_LEFT_BEHIND:
            return self._not_asked(len(rollouts))
        calls = [partial(self._ask, rollout) for rollout in rollouts]
        room = min(_MOST_LEFT_BEHIND - len(self._left_behind), max(2, self.workers))
        outcomes = side_by_side(calls, seconds=self.timeout_seconds, workers=self.workers, hanging=room)
        self._left_behind += [call for call in outcomes if call.running]
        return [self._score(call) for call in outcomes] + self._not_asked(len(calls) - len(outcomes))

    def _not_asked(self, count: int) -> list[Score]:
        busy = f"{self.name} is not asked: {len(self._left_behind)} calls still hang"
        return [Score.not_judged(busy, Usage(reward_calls=1))] * count

    def _ask(self, rollout: Rollout) -> Any:
        positional, named = self._arguments
        answer = self._function(*(get(rollout) for get in positional), **{k: get(rollout) for k, get in named.items()})
        if inspect.isawaitable(answer):
            # A little later than the limit of the thread, which reports it; this one ends what is left.
            return asyncio.run(_awaited(answer, self.timeout_seconds + 0.1))
        return answer

    def _score(self, call: Background[Any]) -> Score:
        called = Usage(reward_calls=1)
        if call.running:
            return Score.not_judged(f"{self.name} took longer than {self.timeout_seconds:g} s", called)
        try:
            answer = call.result()
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # a tool that leaves by SystemExit, or is cancelled, must not end the process either
            return Score.not_judged(f"{self.name} raised {type(e).__name__}: {_message(e)}", called)
        if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], str):
            score = self._judged(answer[0], called)
            return replace(score, feedback=remark(answer[1])) if score.judged else score
        return self._judged(answer, called)

    def _judged(self, answer: Any, called: Usage) -> Score:
        """What a function's answer without a remark means."""
        if isinstance(answer, Score):
            return answer
        if answer is None or (isinstance(answer, float | np.floating) and not math.isfinite(answer)):
            return Score.not_judged(f"{self.name} returned {answer}", called)
        if isinstance(answer, bool | np.bool_):
            value = float(answer)
            explanation = f"{self.name} says {'yes' if answer else 'no'}"
            return Score(value, verdict=value, verified=bool(answer), explanation=explanation, usage=called)
        if isinstance(answer, Real):
            with contextlib.suppress(OverflowError):  # a whole number beyond the range of floats
                return Score(float(answer), usage=called)
        raise RewardError(
            f"{self.name} returned {answer!r}; expected a bool, a number, a Score or None, or a pair of one "
            "of these and a remark for the model."
        )


@overload
def reward(function: Callable[..., Any], /) -> FunctionReward: ...
@overload
def reward(
    *, timeout_seconds: float = 30.0, workers: int = 8, name: str | None = None
) -> Callable[[Callable[..., Any]], FunctionReward]: ...
def reward(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """A plain function as a reward: `@reward`, or `@reward(timeout_seconds=5.0)`. See `FunctionReward`."""
    if function is not None:
        return FunctionReward(function, **options)
    return partial(FunctionReward, **options)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "?"


async def _awaited(answer: Awaitable[Any], seconds: float) -> Any:
    return await asyncio.wait_for(answer, seconds)


_Getter = Callable[[Rollout], Any]


def _arguments(function: Callable[..., Any], name: str) -> tuple[list[_Getter], dict[str, _Getter]]:
    """How each parameter is filled from a rollout: those that are positional only, and the others by name."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as e:
        raise ConfigurationError(f"@reward cannot read the parameters of {name}; wrap it in a function.") from e
    fixed = getattr(function, "keywords", ())  # of a `functools.partial`
    parameters = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in fixed]
    wanted = [p for p in parameters if p.default is p.empty]
    positional: list[_Getter] = []
    named: dict[str, _Getter] = {}
    for p in parameters:
        get = _ANNOTATED.get(_annotation(p)) or _GIVEN.get(p.name)
        if get is None and wanted == [p]:
            get = _GIVEN["completion"]
        if get is None and p in wanted:
            raise ConfigurationError(
                f"@reward does not know what to give {name} as {p.name!r}; expected parameters among "
                f"{', '.join(_GIVEN)}, one annotated as Rollout or Prompt, or a single one."
            )
        if get is not None and p.kind is p.POSITIONAL_ONLY:
            positional.append(get)
        elif get is not None:
            named[p.name] = get
    if not wanted and not named and not positional:
        raise ConfigurationError(f"@reward got {name}, which takes nothing; expected a parameter for the completion.")
    return positional, named


def _annotation(parameter: inspect.Parameter) -> str:
    """The annotation's last name, whether it is a class or, as under `from __future__ import annotations`, text."""
    annotation = parameter.annotation
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return text.strip("'\"").rpartition(".")[2]
