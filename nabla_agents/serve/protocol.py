"""What clients send: OpenAI's requests, and the field `nabla` in them. Unknown names and wrong types are refused."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

Probability = Annotated[float, Field(gt=0, le=1)]
Stops = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]


class Body(BaseModel):
    """Base of all requests: JSON types as they are, no further names."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class BudgetField(Body):
    """What one answer may cost, as `nabla_agents.Budget` has it."""

    rollouts: Annotated[int, Field(ge=1)] | None = None
    generated_tokens: Annotated[int, Field(ge=1)] | None = None
    gradient_passes: Annotated[int, Field(ge=0)] | None = None
    reward_calls: Annotated[int, Field(ge=0)] | None = None
    flops: Annotated[float, Field(ge=0)] | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None


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

    @property
    def chosen(self) -> tuple[str | None, dict[str, Any]]:
        """The strategy's name and what is changed of it."""
        if isinstance(self.strategy, StrategyField):
            return self.strategy.name, dict(self.strategy.model_extra or {})
        return self.strategy, {}

    @property
    def limits(self) -> dict[str, Any]:
        return {} if self.budget is None else self.budget.model_dump(exclude_none=True)


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Generation(Body):
    """What chats and completions have in common."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logit_bias": ({},),
    }
    """What is not supported, with the values that ask for nothing."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """0 and -1 are off."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: Annotated[str, Field(min_length=1)] | Stops | None = None
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None
    nabla: NablaField | None = None

    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None

    @field_validator("*", mode="after")
    @classmethod
    def _supported(cls, value: Any, info: Any) -> Any:
        allowed = cls.neutral.get(info.field_name)
        if allowed is None or value is None:
            return value
        if not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed):
            message = "Unsupported parameter: '{name}'. Leave it out."
            raise PydanticCustomError("unsupported", message, {"name": info.field_name})
        return value

    @property
    def own(self) -> NablaField:
        return self.nabla or NablaField()

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class FunctionCall(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    name: str
    arguments: str


class ToolCallTurn(BaseModel):
    """A call that the assistant made in an earlier turn."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ContentPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    type: str
    text: str | None = None


class Turn(BaseModel):
    """One message. What clients send back of an earlier answer, such as `refusal` and `annotations`, is not read."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCallTurn] | None = None
    tool_call_id: str | None = None


class FunctionTool(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionTool


class JsonSchemaFormat(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class ChatRequest(Generation):
    """`POST /v1/chat/completions`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **Generation.neutral,
        "store": (False,),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "functions": ([],),
        "function_call": ("none",),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: Annotated[list[Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    store: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    functions: Any = None
    function_call: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class CompletionRequest(Generation):
    """`POST /v1/completions`, with what vLLM has beside OpenAI's: token ids in the answer."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **Generation.neutral,
        "best_of": (1,),
        "echo": (False,),
        "suffix": ("",),
        "repetition_penalty": (1,),
        "add_special_tokens": (False,),
    }

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    return_token_ids: bool | None = None
    stop_token_ids: list[int] | None = None
    """Those that end the model's answers anyway."""

    best_of: Any = None
    echo: Any = None
    suffix: Any = None
    repetition_penalty: Any = None
    add_special_tokens: Any = None


class NativeMessage(Body):
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    extra: dict[str, Any] = {}


class PromptRequest(Body):
    """`POST /v1/nabla/prompt`: a conversation to render by the chat template, or a text verbatim."""

    model: str
    messages: list[NativeMessage] | None = None
    text: str | None = None
    tools: list[dict[str, Any]] | None = None


class TokensRequest(Body):
    """`POST /v1/nabla/tokens`: a text to tokenize, or token ids to show."""

    model: str
    text: str | None = None
    ids: list[Annotated[int, Field(ge=0)]] | None = None


class RenderedPrompt(Body):
    """A prompt as `/v1/nabla/prompt` rendered it; its token ids are made anew."""

    messages: list[NativeMessage]
    text: str


class GrammarField(Body):
    """A `nabla_agents.Grammar`."""

    body: str
    calls: bool = False
    required: bool = True
    parallel: bool = True
    reasoning: bool = False
    refine: bool = False
    instead: str | None = None
    dialect: Literal["hermes", "llama3", "mistral"] = "hermes"


class SamplingField(Body):
    """A `nabla_agents.Sampling`."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Stops = []
    grammar: GrammarField | None = None


class StepsRequest(Body):
    """`POST /v1/nabla/steps`: a search whose steps are wanted as they are made."""

    model: str
    prompt: RenderedPrompt
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] = 0
    sampling: SamplingField = SamplingField()
    nabla: NablaField = NablaField()


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every error, in OpenAI's form."""

    error: ErrorFields
