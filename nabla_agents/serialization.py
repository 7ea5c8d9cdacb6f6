"""Wire: requests, steps and results as JSON: what a server's own routes take and send, and a `RemoteEngine` speaks.

The fields of sampling, budget and grammar are those of the engine's records, which declare them. A number that JSON has
not, such as the NaN of what could not be judged, is a string.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from typing import Annotated, Any, Final, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator
from pydantic_core import PydanticCustomError

from nabla_agents.chat.dialects import DIALECTS, HERMES
from nabla_agents.chat.grammar import Grammar
from nabla_agents.config import Sampling
from nabla_agents.request import Request
from nabla_agents.result import Result, Trace
from nabla_agents.types import LEAST_LIMITS, Budget, FinishReason, Message, Role, Score, Step, Usage

PROMPT: Final = "/v1/nabla/prompt"
TOKENS: Final = "/v1/nabla/tokens"
STEPS: Final = "/v1/nabla/steps"

Many: Any = Field(fail_fast=True)
"""Of a list: one thing that is wrong with it is enough, where a client may send a hundred thousand."""
_MOST_NAMES: Final = 64  # of one object

Stop = Annotated[str, Field(min_length=1, max_length=256)]
Stops = Annotated[list[Stop], Field(max_length=16)]


# ── requests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Body(BaseModel):
    """Base of all requests: JSON types as they are, no further names."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_names(cls, data: Any) -> Any:
        """Before each of them becomes an error of its own."""
        if isinstance(data, dict) and len(data) > _MOST_NAMES:
            raise PydanticCustomError("too_many_names", "has too many names, most of them unknown")
        return data


def _body_of(record: type, **otherwise: Any) -> type[Body]:
    """A body with the fields that a record declares; `otherwise` has those that differ, as (type, default)."""
    hints = get_type_hints(record, include_extras=True)
    if issubclass(record, BaseModel):
        defaults = {name: field.get_default() for name, field in record.model_fields.items()}
    else:
        defaults = {f.name: ... if f.default is MISSING else f.default for f in fields(record)}
    declared: dict[str, Any] = {name: (hints[name], default) for name, default in defaults.items()}
    return create_model(record.__name__, __base__=Body, **{**declared, **otherwise})


_LIMITS: Final = {
    name: (Annotated[kind, Field(ge=LEAST_LIMITS.get(name, 0))], None) for name, kind in get_type_hints(Budget).items()
}
_DIALECT: Any = Literal.__getitem__(tuple(sorted(DIALECTS)))  # pyright: ignore[reportAttributeAccessIssue]


class GrammarField(_body_of(Grammar, dialect=(_DIALECT, HERMES.name))):
    """A `nabla_agents.Grammar`."""


class SamplingField(_body_of(Sampling)):
    """A `nabla_agents.Sampling`."""

    stop: Stops = Field(default=[])
    grammar: GrammarField | None = None

    def read(self) -> Sampling:
        grammar = None if self.grammar is None else Grammar(**self.grammar.model_dump())
        return Sampling(**{**dict(self), "grammar": grammar})


class BudgetField(_body_of(Budget, **_LIMITS)):
    """What one answer may cost, as `nabla_agents.Budget` has it."""


class StrategyField(BaseModel):
    """A strategy by name, with some of its settings changed."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    name: str


class NablaField(Body):
    """How an answer is searched: by names that the server offers, within its caps."""

    strategy: str | StrategyField | None = None
    budget: BudgetField | None = None
    reward: str | None = None
    draft: str | None = None
    """An answer from elsewhere, which the search starts from."""
    draft_cut: bool = False
    """Whether a limit cut it."""

    @property
    def chosen(self) -> tuple[str | None, dict[str, Any]]:
        """The strategy's name and what is changed of it."""
        if isinstance(self.strategy, StrategyField):
            return self.strategy.name, dict(self.strategy.model_extra or {})
        return self.strategy, {}

    @property
    def limits(self) -> dict[str, Any]:
        return {} if self.budget is None else self.budget.model_dump(exclude_none=True)


class NativeMessage(Body):
    role: Role
    content: str
    extra: dict[str, Any] = {}

    def read(self) -> Message:
        return Message(self.role, self.content, self.extra)


class PromptRequest(Body):
    """`POST /v1/nabla/prompt`: a conversation to render by the chat template, or a text verbatim."""

    model: str
    messages: Annotated[list[NativeMessage], Many] | None = None
    text: str | None = None
    tools: Annotated[list[dict[str, Any]], Many] | None = None


class TokensRequest(Body):
    """`POST /v1/nabla/tokens`: a text to tokenize, or token ids to show."""

    model: str
    text: str | None = None
    ids: Annotated[list[Annotated[int, Field(ge=0)]], Many] | None = None


class RenderedPrompt(Body):
    """A prompt as `/v1/nabla/prompt` rendered it; its token ids are made anew."""

    messages: Annotated[list[NativeMessage], Many]
    text: str


class StepsRequest(Body):
    """`POST /v1/nabla/steps`: a `nabla_agents.Request`, whose steps are wanted as they are made."""

    model: str
    prompt: RenderedPrompt
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] = 0
    sampling: SamplingField = SamplingField()
    nabla: NablaField = NablaField()


def steps_fields(
    request: Request, *, model: str, budget: Budget | None, strategy: Any = None, reward: str | None = None
) -> dict[str, Any]:
    """The request as the values of a `StepsRequest`; what is not asked for is left out. `strategy` is the server's."""
    sampling = {name: value for name, value in request.sampling if value not in (None, ())}
    if request.sampling.grammar is not None:
        sampling["grammar"] = asdict(request.sampling.grammar)
    limits = None if budget is None else {name: limit for name, limit in vars(budget).items() if limit is not None}
    nabla = {
        "reward": reward,
        "draft": request.draft,
        "draft_cut": request.draft_cut or None,
        "budget": limits,
        "strategy": strategy,
    }
    messages = [message_fields(message) for message in request.prompt.messages]
    return {
        "model": model,
        "prompt": {"messages": messages, "text": request.prompt.text},
        "seed": request.seed,
        "sampling": {**sampling, "stop": list(request.sampling.stop)},
        "nabla": {name: value for name, value in nabla.items() if value is not None},
    }


def message_fields(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content, "extra": dict(message.extra)}


# ── what a server sends ───────────────────────────────────────────────────────────────────────────────────────────────


class Sent(BaseModel):
    """Base of what a server sends."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class SentStep(Sent):
    step: Step


class SentResult(Sent):
    """A `Result` without its trace, which the steps before it are, and the texts of its tokens."""

    text: str
    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...]
    score: Score | None
    finish_reason: FinishReason
    usage: Usage
    log_likelihood: float
    truncated: bool
    detail: str
    seed: int
    prompt_tokens: int
    log_probs: tuple[float, ...]

    @staticmethod
    def of(result: Result, token_texts: Sequence[str]) -> SentResult:
        names = SentResult.model_fields.keys() - {"token_texts"}
        return SentResult(token_texts=tuple(token_texts), **{name: getattr(result, name) for name in names})

    def with_trace(self, trace: Trace) -> Result:
        names = SentResult.model_fields.keys() - {"token_texts"}
        return Result(trace=trace, **{name: getattr(self, name) for name in names})
