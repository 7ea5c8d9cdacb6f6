"""PydanticClass: whether the completion is JSON that a class accepts, its validators included, and where it is not."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from nabla_agents.chat.reply import Reply
from nabla_agents.errors import ConfigurationError
from nabla_agents.rewards.base import Reward
from nabla_agents.rewards.remark import remark
from nabla_agents.rewards.tools.located_json import json_body, located
from nabla_agents.rewards.tools.text import not_text
from nabla_agents.types import Rollout, Score, Span, Usage


class PydanticClass(Reward):
    """Value 1 for JSON that the class accepts, 0.5 for JSON that it refuses, 0 for what is no JSON.

    The answer is read without reasoning before it, whole or as its last fenced block, as by `JsonSchema`. A field that
    is refused is located; `credit` is the strength of that span in nats. What a rule of the whole object refuses has no
    place.

    vouches: whether an accepted answer is verified, which ends a search; False where the class is only one condition
        among others.

    A validator that raises what is no validation error leaves the answer unjudged (NaN). `.within(seconds)` limits
    slow ones. Costs no model pass.

    Raises:
        ConfigurationError: when made: no pydantic class, or a credit that is none.
    """

    def __init__(self, cls: type[BaseModel], *, vouches: bool = True, credit: float = 10.0) -> None:
        if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
            raise ConfigurationError(f"PydanticClass got {cls!r}; expected a subclass of pydantic's BaseModel.")
        if not 0 <= credit < math.inf:
            raise ConfigurationError(f"PydanticClass credit is {credit!r}; expected nats of at least 0.")
        self.cls, self.vouches, self.credit = cls, vouches, credit

    @property
    def name(self) -> str:
        return self.cls.__name__

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [self._score(r) if isinstance(r.text, str) else not_text(r.text) for r in rollouts]

    def _score(self, rollout: Rollout) -> Score:
        called = Usage(reward_calls=1)
        answer = Reply.read(rollout.text, thinking=Reply.opens_thinking(rollout.prompt.text)).content
        body, start = json_body(answer)
        try:
            self.cls.model_validate_json(body)
        except ValidationError as e:
            return self._refused(e, body, len(rollout.text) - len(answer) + start)
        except Exception as e:
            return Score.not_judged(f"{self.name} raised {type(e).__name__}: {e}", called)
        return Score(1.0, 1.0, True if self.vouches else None, explanation=f"a valid {self.name}", usage=called)

    def _refused(self, error: ValidationError, body: str, offset: int) -> Score:
        errors: Sequence[Mapping[str, Any]] = error.errors(include_url=False, include_input=False)
        explanation = "; ".join(f"{'.'.join(map(str, e['loc'])) or self.name}: {e['msg']}" for e in errors)
        feedback, called = remark(f"The answer is refused: {explanation}."), Usage(reward_calls=1)
        try:
            read = json.loads(body)
        except ValueError:
            return Score(0.0, 0.0, False, explanation=explanation, usage=called, feedback=feedback)
        places = {located(body, path): e["msg"] for e in errors if (path := _path(read, e["loc"]))}
        spans = (
            Span(offset + start, offset + end, -1.0, explanation=why, credit=self.credit)
            for (start, end), why in places.items()
        )
        return Score(0.5, 0.5, False, tuple(spans), explanation, called, feedback=feedback)


def _path(value: Any, loc: Sequence[str | int]) -> list[str | int]:
    """The keys and indices of a place in a JSON value; pydantic names alternatives and missing fields besides."""
    path: list[str | int] = []
    for step in loc:
        parts: Any = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
        if step in parts:
            path.append(step)
            value = parts[step]
    return path
