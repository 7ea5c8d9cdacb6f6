"""NablaLLM: the engine as a LlamaIndex language model."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from llama_index.llms.nabla import tools as tool_calling
from llama_index.llms.nabla.call import Call, answers
from llama_index.llms.nabla.policy import RefinePolicy, TraceBudget
from llama_index.llms.nabla.scopes import check_known
from llama_index.llms.nabla.structured import StructuredAnswer
from nabla_agents import ConfigurationError, EngineSettings

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse
    from llama_index.core.tools.types import BaseTool

    from nabla_agents import Engine

_GRAMMARS = importlib.util.find_spec("llguidance") is not None

ModelT = TypeVar("ModelT", bound=BaseModel)


class NablaLLM(EngineSettings, FunctionCallingLLM):
    """A language model whose answers are refined by gradients and rewards.

    `NablaLLM(model="tiny")` loads at first use, once per process for equal loading settings; `NablaLLM(engine=engine)`
    shares an engine, with its reward and strategy. Options may be given per call, by `with_options` or by the scope
    `nabla_options`; the nearer goes first. The same seed gives the same text from each of the eight methods.

    By `refine_policy`, only answers that the user sees are refined: not what selectors, rerankers, retrievers, question
    generators and the inner nodes of a summary ask. Tool calls and structured answers are decoded under a grammar.
    What was spent and found is in `raw["nabla"]`, also of a stream's last chunk.

    A prompt for `complete` is one user turn of the chat template, if the model has one, and verbatim with
    `formatted=True` or a `completion_to_prompt` of your own. As in every LlamaIndex model, `system_prompt` is added by
    `predict`, query engines and chat engines, not by direct calls of these methods.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)
    UNPICKLED: ClassVar[tuple[str, ...]] = ("callback_manager", "rate_limiter")

    api_key: SecretStr | None = Field(default=None, exclude=True)
    strategy: Any = Field(default=None, exclude=True)
    """A strategy object such as BestOfN(n=8); None is the engine's own."""
    max_tokens: Annotated[int, Field(ge=1)] = 256  # type: ignore[assignment]
    """Tokens of the answer at most."""
    context_window: Annotated[int, Field(ge=2)] | None = None
    """Tokens of prompt and answer together, where that is to be less than the model's own."""
    logprobs: bool = False
    """Whether responses have log π of each token, in nats."""
    structured_retries: Annotated[int, Field(ge=0)] = 2
    """How often a structured answer that breaks a rule of its class is asked for again."""
    is_function_calling: bool | None = None
    """Whether agents call tools through this model; None: where it has a chat template."""

    refine_policy: RefinePolicy = "final_only"
    """Which calls are refined: `always`; `final_only`, answers that the user sees; `when_verifier_present`, those whose
    draft a tool has judged; `on_failure`, those whose draft a tool refutes or whose tool call cannot be read; `never`.
    Others are the draft."""
    trace_budget: TraceBudget | None = None
    """What the refined calls of one query or agent run may cost together."""
    refine_constrained: bool | None = None
    """Whether searches change tool calls and structured answers too, within their grammar; None: the answers of
    `structured_predict` and its family, which their class judges."""
    final: bool | None = None
    """Whether a call gives the final answer; None: as its callers tell."""

    def __init__(self, **settings: Any) -> None:
        settings.pop("class_name", None)
        super().__init__(**settings)
        self.check_engine()
        limits = [self.context_window, self.engine.model.context_length if self.engine else None]
        self.check_room(min((limit for limit in limits if limit), default=None))

    @classmethod
    def class_name(cls) -> str:
        return "NablaLLM"

    # ── what it is ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def metadata(self) -> LLMMetadata:
        """What the model can do; loads it."""
        model = self.load().model
        window = min(self.context_window or model.context_length, model.context_length)
        self.check_room(window)
        chats, calls = model.tokenizer.has_template, self.is_function_calling
        return LLMMetadata(
            context_window=window,
            num_output=self.max_tokens,
            is_chat_model=chats,
            is_function_calling_model=chats and _GRAMMARS if calls is None else calls,
            model_name=self.model,
        )

    @property
    def tokenizer_fn(self) -> Callable[[str], list[int]]:
        """Token ids of a text; `set_global_tokenizer(llm.tokenizer_fn)` makes LlamaIndex pack prompts by them."""
        return self.load().model.tokenizer.encode

    def check_room(self, window: int | None) -> None:
        """Raises ConfigurationError where the longest answer would fill the whole context."""
        if window is not None and self.max_tokens >= window:
            raise ConfigurationError(
                f"max_tokens is {self.max_tokens}, but the context is {window} tokens and must also hold the prompt. "
                "Lower max_tokens."
            )

    def to_payload(self) -> dict[str, Any]:
        """Settings for events; unlike `metadata`, loads nothing."""
        settings = {name: getattr(self, name) for name in (*self.SAMPLING, "seed", "rollouts", "refine_policy")}
        return {"class_name": self.class_name(), "model_name": self.model, **settings}

    def with_options(self, **options: Any) -> NablaLLM:
        """A copy with other options, validated like fields; it shares the engine and the callback manager.

        Raises:
            TypeError: an unknown option.
        """
        check_known(options)
        return type(self)(**{**self.settings(), **options})

    def with_engine(self, engine: Engine) -> NablaLLM:
        """A copy on another engine, loading settings aside."""
        settings = {name: v for name, v in self.settings().items() if name not in ("model", *self.LOADING)}
        return type(self)(**{**settings, "engine": engine})

    # ── the eight methods: decorated once, none through another ───────────────────────────────────────────────────

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return Call(self, messages, kwargs).answer()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return Call(self, prompt, kwargs, formatted=formatted).answer()

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return Call(self, messages, kwargs).stream()

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        return Call(self, prompt, kwargs, formatted=formatted).stream()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return await Call(self, messages, kwargs).aanswer()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return await Call(self, prompt, kwargs, formatted=formatted).aanswer()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        return Call(self, messages, kwargs).astream()

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        return Call(self, prompt, kwargs, formatted=formatted).astream()

    def chat_batch(self, conversations: Sequence[Sequence[ChatMessage]], **kwargs: Any) -> list[ChatResponse]:
        """One response per conversation, as `chat` gives it, from one batch. Events are sent when all have ended."""
        responses = answers([Call(self, messages, kwargs) for messages in conversations])
        ended = zip(conversations, responses, strict=True)
        return [_reported(llm_chat_callback(), self, messages, response) for messages, response in ended]

    def complete_batch(
        self, prompts: Sequence[str], formatted: bool = False, **kwargs: Any
    ) -> list[CompletionResponse]:
        """One response per prompt, as `complete` gives it, from one batch. Events are sent when all have ended."""
        responses = answers([Call(self, prompt, kwargs, formatted=formatted) for prompt in prompts])
        ended = zip(prompts, responses, strict=True)
        return [_reported(llm_completion_callback(), self, prompt, response) for prompt, response in ended]

    # ── tools: their calls are decoded under the grammar of their schemas, so that they can be read and fit ───────

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of `chat`. A given `tool_choice` (auto, any, none or a tool's name) goes before `tool_required`."""
        messages = tool_calling.messages(chat_history, user_msg)
        if not tools:
            return {"messages": messages, **kwargs}
        return {
            "messages": messages,
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "tool_choice": tool_choice or ("any" if tool_required else "auto"),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of an answer. Arguments that are no JSON, as cut by `max_tokens`, are read as far as they go.

        Raises:
            ValueError: no call, unless that is allowed.
        """
        return tool_calling.selected(response, required=error_on_no_tool_call)

    def predict_and_call(self, *args: Any, **kwargs: Any) -> AgentChatResponse:
        """Calls a tool as the model wants; by a ReAct step where `metadata.is_function_calling_model` is False."""
        react = {} if self.metadata.is_function_calling_model else tool_calling.react()
        return super().predict_and_call(*args, **{**react, **kwargs})

    async def apredict_and_call(self, *args: Any, **kwargs: Any) -> AgentChatResponse:
        """As `predict_and_call`."""
        react = {} if self.metadata.is_function_calling_model else tool_calling.react()
        return await super().apredict_and_call(*args, **{**react, **kwargs})

    # ── structured answers: see StructuredAnswer; other modes than the default program are the core's ─────────────

    def structured_predict(
        self, output_cls: type[ModelT], prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> ModelT:
        """An object of the class.

        Raises:
            StructuredAnswerError: none after `structured_retries` more attempts.
        """
        if self._by_program:
            return super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        return StructuredAnswer(self, output_cls, prompt, llm_kwargs, prompt_args).find()

    async def astructured_predict(
        self, output_cls: type[ModelT], prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> ModelT:
        """As `structured_predict`."""
        if self._by_program:
            return await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        return await StructuredAnswer(self, output_cls, prompt, llm_kwargs, prompt_args).afind()

    def stream_structured_predict(
        self, output_cls: type[ModelT], prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Generator[Any, None, None]:
        """Objects with the fields known so far, and at last the whole one."""
        if self._by_program:
            return super().stream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        return StructuredAnswer(self, output_cls, prompt, llm_kwargs, prompt_args).stream()

    async def astream_structured_predict(
        self, output_cls: type[ModelT], prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> AsyncGenerator[Any, None]:
        """As `stream_structured_predict`."""
        if self._by_program:
            return await super().astream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        return StructuredAnswer(self, output_cls, prompt, llm_kwargs, prompt_args).astream()

    @property
    def _by_program(self) -> bool:
        return self.pydantic_program_mode is not PydanticProgramMode.DEFAULT


def _reported(callback: Callable[..., Any], llm: NablaLLM, question: Any, response: Any) -> Any:
    """The response, after the start and end events of a call that gives it."""
    return callback(lambda _llm, _question: response)(llm, question)
