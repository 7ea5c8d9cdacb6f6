"""What a server sends, checked: a `RemoteEngine` believes no field before it is what it should be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nabla_agents.errors import NablaError, RemoteError
from nabla_agents.serialization import SentResult, SentStep
from nabla_agents.types import Budget, Step, Usage

ModelT = TypeVar("ModelT", bound="Received")
ReadT = TypeVar("ReadT")

_MOST: Final = 1 << 63
Count = Annotated[int, Field(ge=1, lt=1 << 31)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class Received(BaseModel):
    """Base of what a server's routes answer; names that are not known here are left alone."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def read(cls: type[ModelT], value: Any, url: str) -> ModelT:
        """The answer of the server at `url`.

        Raises:
            RemoteError: it is none.
        """
        return _read(lambda: cls.model_validate(value), url)


class Offered(Received):
    """What a server of `nabla serve` says of a model besides."""

    vocab_size: Count
    strategies: list[str]
    rewards: list[str]
    budget: dict[str, int | float | None]
    chat_template: str | None

    @model_validator(mode="after")
    def _is_a_budget(self) -> Offered:
        try:
            self.limits()
        except (TypeError, NablaError) as e:
            raise ValueError(str(e)) from e
        return self

    def limits(self) -> Budget:
        return Budget(**self.budget)  # pyright: ignore[reportArgumentType]


class Card(Received):
    """A served model."""

    id: Annotated[str, Field(min_length=1, max_length=1000)]
    max_model_len: Count
    nabla: Offered


class Cards(Received):
    data: Annotated[list[dict[str, Any]], Field(min_length=1)]


class Rendered(Received):
    """A prompt as the server's template and tokenizer have it."""

    text: str
    ids: list[TokenId]


class Tokens(Received):
    ids: list[TokenId]
    texts: list[str]

    @model_validator(mode="after")
    def _pairs(self) -> Tokens:
        if len(self.ids) != len(self.texts):
            raise ValueError(f"{len(self.texts)} texts of {len(self.ids)} tokens")
        return self


def read_step(item: Any, url: str) -> Step:
    """A step of a search.

    Raises:
        RemoteError: it is none.
    """

    def read() -> Step:
        step = SentStep.model_validate(item).step
        usages = [step.usage] if step.score is None else [step.usage, step.score.usage]
        _check(map(_is_usage, usages), "usage is below 0 or without end")
        _check([step.position is None or 0 <= step.position < _MOST], "position is none")
        _check((0 <= gain.start <= gain.end < _MOST for gain in step.gains), "a gain is at no place")
        return step

    return _read(read, url)


def read_result(item: Any, url: str, *, seed: int, vocab_size: int) -> SentResult:
    """The result of a search by this seed.

    Raises:
        RemoteError: it is none, or one of another search.
    """

    def read() -> SentResult:
        result = SentResult.model_validate(item)
        usages = [result.usage] if result.score is None else [result.usage, result.score.usage]
        _check(map(_is_usage, usages), "usage is below 0 or without end")
        count = len(result.token_ids)
        _check([len(result.token_texts) == count], f"{len(result.token_texts)} texts of {count} tokens")
        _check([len(result.log_probs) in (0, count)], f"{len(result.log_probs)} log_probs of {count} tokens")
        _check((0 <= token < vocab_size for token in result.token_ids), "a token is none of the model's")
        _check([result.seed == seed], f"seed is {result.seed}, not {seed}")
        _check([0 <= result.prompt_tokens < _MOST], "prompt_tokens is no count")
        return result

    return _read(read, url)


def _read(read: Callable[[], ReadT], url: str) -> ReadT:
    try:
        return read()
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False, include_input=False)[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    except (ValueError, TypeError, OverflowError, NablaError) as e:
        why = str(e)
    raise RemoteError(
        f"{url} is no server of `nabla serve`, or one of another version: it answered what was not expected "
        f"({why[:300]})."
    )


def _check(true: Iterable[bool], otherwise: str) -> None:
    if not all(true):
        raise ValueError(otherwise)


def _is_usage(usage: Usage) -> bool:
    return all(0 <= spent < _MOST for spent in usage.as_dict().values() if isinstance(spent, int)) and all(
        math.isfinite(spent) and spent >= 0 for spent in (usage.flops, usage.seconds)
    )
