"""NablaSettings: which engine a NablaLLM has, and how its calls use it. Weights are loaded at first use."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, field_validator
from llama_index.core.llms.function_calling import FunctionCallingLLM
from pydantic import SecretStr

from llama_index.llms.nabla.options import SAMPLING, check_known
from llama_index.llms.nabla.policy import RefinePolicy, TraceBudget
from nabla_agents import Budget, ConfigurationError, SharedEngine, loaded

if TYPE_CHECKING:
    from nabla_agents import Engine

_LOADING = ("revision", "dtype", "device_map", "trust_remote_code", "base_url", "api_key")
_GRAMMARS = importlib.util.find_spec("llguidance") is not None


SettingsT = TypeVar("SettingsT", bound="NablaSettings")


class NablaSettings(FunctionCallingLLM):
    """The fields of a NablaLLM, its engine and its copies."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str = Field(default="tiny", description="A hub id, a folder, or `tiny` (embedded, with its process reward).")
    revision: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    base_url: str | None = Field(
        default=None, description="A server of `nabla serve` that has `model`; nothing is loaded here."
    )
    api_key: SecretStr | None = Field(default=None, exclude=True)
    context_window: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="Tokens of prompt and answer together, where that is to be less than the model's own."
    )

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="0 is greedy, None the strategy's own."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] = Field(default=256, description="Tokens of the answer at most.")
    stop: list[str] = Field(default=[], description="Strings that end the answer and are not part of it.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    rollouts: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Completions that the search may sample per answer, in place of the budget's number."
    )
    budget: Budget | None = Field(default=None, description="What one answer may cost; None is the engine's own.")
    strategy: Any = Field(
        default=None, exclude=True, description="A strategy object such as BestOfN(n=8); None is the engine's own."
    )

    logprobs: bool = Field(default=False, description="Whether responses have log π of each token, in nats.")
    structured_retries: Annotated[int, Field(ge=0)] = Field(
        default=2, description="How often a structured answer that breaks a rule of its class is asked for again."
    )
    is_function_calling: bool | None = Field(
        default=None, description="Whether agents call tools through this model; None: where it has a chat template."
    )

    refine_policy: RefinePolicy = Field(
        default="final_only",
        description="Which calls are refined: `always`; `final_only`, answers that the user sees; "
        "`when_verifier_present`, those whose draft a tool has judged; `on_failure`, those whose draft a tool refutes "
        "or whose tool call cannot be read; `never`. Others are the draft.",
    )
    trace_budget: TraceBudget | None = Field(
        default=None, description="What the refined calls of one query or agent run may cost together."
    )
    refine_constrained: bool | None = Field(
        default=None,
        description="Whether searches change tool calls and structured answers too, within their grammar; None: the "
        "answers of `structured_predict` and its family, which their class judges.",
    )
    final: bool | None = Field(
        default=None, description="Whether a call gives the final answer; None: as its callers tell."
    )

    _engine: Any = PrivateAttr(default=None)

    def __init__(self, *, engine: Engine | None = None, **settings: Any) -> None:
        settings.pop("class_name", None)
        if engine is not None:
            if given := [name for name in _LOADING if settings.get(name)]:
                raise ConfigurationError(
                    f"{', '.join(given)}: loading settings need a model name, got a loaded engine."
                )
            if settings.setdefault("model", engine.model.name) != engine.model.name:
                raise ConfigurationError(
                    f"model is {settings['model']!r}, but the engine's is {engine.model.name!r}; give one of the two."
                )
        super().__init__(**settings)
        self._engine = engine
        known = [self.context_window, engine.model.context_length if engine else None]
        self.check_room(min((n for n in known if n), default=None))

    @classmethod
    def class_name(cls) -> str:
        return "NablaLLM"

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else [] if value is None else value

    def load(self) -> Engine:
        """The engine; loads the weights now where that has not happened yet."""
        if self._engine is not None:
            return self._engine
        return loaded(self.model, **{name: v for name in _LOADING if (v := getattr(self, name))})

    @property
    def metadata(self) -> LLMMetadata:
        """What the model can do; loads it."""
        engine = self.load()
        limit = engine.model.context_length
        window = min(self.context_window or limit, limit)
        self.check_room(window)
        return LLMMetadata(
            context_window=window,
            num_output=self.max_tokens,
            is_chat_model=engine.model.tokenizer.has_template,
            is_function_calling_model=self._calls_tools(engine),
            model_name=self.model,
        )

    def _calls_tools(self, engine: Engine) -> bool:
        return (
            engine.model.tokenizer.has_template and _GRAMMARS
            if self.is_function_calling is None
            else self.is_function_calling
        )

    @property
    def tokenizer_fn(self) -> Callable[[str], list[int]]:
        """Token ids of a text; `set_global_tokenizer(llm.tokenizer_fn)` makes LlamaIndex pack prompts by them."""
        return self.load().model.tokenizer.encode

    def effective_budget(self, engine: Engine) -> Budget:
        """What one refined answer may cost."""
        budget = engine.budget if self.budget is None else self.budget
        return budget if self.rollouts is None else replace(budget, rollouts=self.rollouts)

    def check_room(self, window: int | None) -> None:
        """Raises ConfigurationError where the longest answer would fill the whole context."""
        if window is not None and self.max_tokens >= window:
            raise ConfigurationError(
                f"max_tokens is {self.max_tokens}, but the context is {window} tokens and must also hold the prompt. "
                "Lower max_tokens."
            )

    def to_payload(self) -> dict[str, Any]:
        """Settings for events; unlike `metadata`, loads nothing."""
        settings = {name: getattr(self, name) for name in (*SAMPLING, "seed", "rollouts", "refine_policy")}
        return {"class_name": self.class_name(), "model_name": self.model, **settings}

    def with_options(self: SettingsT, **options: Any) -> SettingsT:
        """A copy with other options, validated like fields; it shares the engine and the callback manager.

        Raises:
            TypeError: an unknown option.
        """
        check_known(options)
        settings = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(engine=self._engine, **{**settings, **options})

    def with_engine(self: SettingsT, engine: Engine) -> SettingsT:
        """A copy on another engine, loading settings aside."""
        names = type(self).model_fields.keys() - {"model", *_LOADING}
        return type(self)(engine=engine, **{name: getattr(self, name) for name in names})

    # ── copies ────────────────────────────────────────────────────────────────────────────────────────────────────

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> NablaSettings:
        memo = {} if memo is None else memo
        memo[id(self._engine)] = self._engine
        return super().__deepcopy__(memo)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles settings, not weights; callbacks and the rate limiter stay behind."""
        names = type(self).model_fields.keys() - {"callback_manager", "rate_limiter"}
        engine = None if self._engine is None else SharedEngine(self._engine)
        return _rebuilt, (type(self), engine, {name: getattr(self, name) for name in names})


def _rebuilt(cls: type[NablaSettings], engine: Engine | None, settings: dict[str, Any]) -> NablaSettings:
    return cls(engine=engine, **settings)
