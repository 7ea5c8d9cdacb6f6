"""Settings a user writes: validated, frozen, unknown names refused."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from nabla_agents.chat.grammar import Grammar
from nabla_agents.errors import ConfigurationError

Count = Annotated[int, Field(ge=1)]
SettingsT = TypeVar("SettingsT", bound="Settings")


class Settings(BaseModel):
    """Base of all settings: errors are `ConfigurationError` and name the field, what was got and what is allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as e:
            problems = "; ".join(
                f"{'.'.join(map(str, p['loc'])) or 'settings'} = {p['input']!r}: {p['msg'].rstrip('.')}{self._meant(p)}"
                for p in e.errors()
            )
            known, end = ", ".join(type(self).model_fields), "" if problems.endswith("?") else "."
            raise ConfigurationError(f"{type(self).__name__}: {problems}{end} Known settings: {known}.") from e

    @classmethod
    def _meant(cls, problem: ErrorDetails) -> str:
        """The known name that an unknown one is nearest to, if there is one."""
        if problem["type"] != "extra_forbidden" or len(problem["loc"]) != 1:
            return ""
        nearest = get_close_matches(str(problem["loc"][0]), cls.model_fields, 1)
        return f"; did you mean {nearest[0]!r}?" if nearest else ""

    def replace(self: SettingsT, **changes: Any) -> SettingsT:
        """A validated copy with some settings changed."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


class Sampling(Settings):
    """How tokens are chosen. Temperature 0 is greedy everywhere, None is the strategy's own default; a filter that is
    None is off.

    `max_tokens` None means `MAX_TOKENS`, and never more than the context has room for. A `grammar` keeps the completion
    to a JSON schema, tool calls or a pattern. Stop strings may span several tokens, or be a special token; they end the
    rollout and are not part of its text.
    """

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if value is None or isinstance(value, str):
            return () if value is None else (value,)
        if not hasattr(value, "__iter__"):
            raise ValueError("expected text, several texts or None")
        return tuple(value)

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not s for s in value):
            raise ValueError("a stop string is empty")
        if any("\ud800" <= c <= "\udfff" for s in value for c in s):
            raise ValueError("a stop string has half a surrogate pair, which no text has")
        return value


MAX_TOKENS: Final = 1024
"""Tokens of a completion at most where nobody says how many: a weak model may never end by itself."""

GREEDY = Sampling(temperature=0.0)
