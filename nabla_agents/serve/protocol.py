"""What clients of OpenAI's API send, with the field `nabla`. Unknown names and wrong types are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from nabla_agents.config import Count
from nabla_agents.serialization import Body, Many, NablaField, Stop, Stops

Probability = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]


def neutral(*values: Any) -> AfterValidator:
    """Of a parameter that is not supported: it may have only values that ask for nothing, these and null."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if value is None or any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in values):
            return value
        message = "Unsupported parameter: '{name}'. Leave it out."
        raise PydanticCustomError("unsupported", message, {"name": info.field_name})

    return AfterValidator(check)


def _few(value: Any) -> Any:
    """At most as many pairs as OpenAI takes."""
    if isinstance(value, dict) and len(value) > 16:
        raise PydanticCustomError("too_many_names", "has more than 16 names")
    return value


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Generation(Body):
    """What chats and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """0 and -1 are off."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: Stop | Stops | None = None
    seed: Seed | None = None
    n: Count | None = None
    user: str | None = None
    nabla: NablaField | None = None

    frequency_penalty: Annotated[Any, neutral(0)] = None
    presence_penalty: Annotated[Any, neutral(0)] = None
    logit_bias: Annotated[Any, neutral({})] = None

    @property
    def own(self) -> NablaField:
        return self.nabla or NablaField()

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


# What is sent back of an earlier answer may have more than is read.
_SENT_BACK = ConfigDict(strict=True, extra="ignore", frozen=True)


class FunctionCall(BaseModel):
    model_config = _SENT_BACK

    name: str
    arguments: str


class ToolCallTurn(BaseModel):
    """A call that the assistant made in an earlier turn."""

    model_config = _SENT_BACK

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ContentPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    type: str
    text: str | None = None


class Turn(BaseModel):
    """One message. What clients send back of an earlier answer, such as `refusal` and `annotations`, is not read."""

    model_config = _SENT_BACK

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], Many] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCallTurn], Many] | None = None
    tool_call_id: str | None = None


class Named(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    strict: bool | None = None


class FunctionTool(Named):
    parameters: dict[str, Any] | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionTool


class JsonSchemaFormat(Named):
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class ChatRequest(Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Turn], Field(min_length=1), Many]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Many] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(_few)] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    store: Annotated[Any, neutral(False)] = None
    modalities: Annotated[Any, neutral(["text"])] = None
    audio: Annotated[Any, neutral()] = None
    prediction: Annotated[Any, neutral()] = None
    functions: Annotated[Any, neutral([])] = None
    function_call: Annotated[Any, neutral("none")] = None
    reasoning_effort: Annotated[Any, neutral("none")] = None
    verbosity: Annotated[Any, neutral("medium")] = None
    web_search_options: Annotated[Any, neutral()] = None


class CompletionRequest(Generation):
    """`POST /v1/completions`, with what vLLM has beside OpenAI's: token ids in the answer."""

    prompt: (
        str
        | Annotated[list[str], Many]
        | Annotated[list[int], Many]
        | Annotated[list[Annotated[list[int], Many]], Many]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    return_token_ids: bool | None = None
    stop_token_ids: Annotated[list[int], Many] | None = None
    """Those that end the model's answers anyway."""

    best_of: Annotated[Any, neutral(1)] = None
    echo: Annotated[Any, neutral(False)] = None
    suffix: Annotated[Any, neutral("")] = None
    repetition_penalty: Annotated[Any, neutral(1)] = None
    add_special_tokens: Annotated[Any, neutral(False)] = None


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every error, in OpenAI's form."""

    error: ErrorFields
