"""What the tools are asked, checked before anything is computed, and the schemas that say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import Field

from nabla_agents.config import Settings
from nabla_agents.types import Message

_LONGEST: Final = 200_000  # characters of a question or an answer

Text = Annotated[str, Field(min_length=1, max_length=_LONGEST)]


class SolveArguments(Settings):
    """What `solve` is asked."""

    question: Text = Field(description="What is to be answered.")
    system: Annotated[str, Field(max_length=_LONGEST)] | None = Field(None, description="A system prompt.")
    strategy: str | None = Field(None, description="How to search; the server's own if left out.")
    reward: str | None = Field(None, description="What judges the answer; the server's own if left out.")
    rollouts: Annotated[int, Field(ge=1)] | None = Field(None, description="Completions that may be sampled.")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Length limit of the answer in tokens.")
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = Field(0, description="The same seed gives the same answer.")


class VerifyArguments(Settings):
    """What `verify` is asked."""

    question: Text = Field(description="The question that the answer is to.")
    answer: Annotated[str, Field(max_length=_LONGEST)] = Field(description="The whole answer to be judged.")
    system: Annotated[str, Field(max_length=_LONGEST)] | None = Field(None, description="A system prompt.")
    reward: str | None = Field(None, description="What judges the answer; the server's own if left out.")


def schema_of(arguments: type[Settings], *, rollouts: int | None = None, **names: Sequence[str]) -> dict[str, Any]:
    """The arguments' schema with the names that this server knows, and its cap."""
    schema = arguments.model_json_schema()
    properties = schema["properties"]
    for name, known in names.items():
        if known:
            properties[name]["anyOf"] = [{"type": "string", "enum": list(known)}, {"type": "null"}]
        else:
            del properties[name]
    if rollouts is not None:
        properties["rollouts"]["anyOf"][0]["maximum"] = rollouts
    return schema


def messages_of(system: str | None, question: str) -> list[Message]:
    return [*([Message("system", system)] if system else []), Message("user", question)]
