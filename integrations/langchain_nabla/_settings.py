"""EngineSettings: what NablaLLM, ChatNabla and NablaSolve have in common: an engine, and how one call uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from langchain_core.load.serializable import Serializable
from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from langchain_nabla._identity import described, described_engine
from nabla_agents import Budget, Sampling, SharedEngine, __version__, loaded

if TYPE_CHECKING:
    from nabla_agents import Engine, Grammar

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "stop")
LOADING = ("revision", "dtype", "device_map", "trust_remote_code", "base_url", "api_key")
PER_CALL = (*SAMPLING, "seed", "n", "rollouts", "budget", "strategy", "timeout")

CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)  # each class names it: the last base would win

SettingsT = TypeVar("SettingsT", bound="EngineSettings")


class EngineSettings(Serializable):
    """Fields that name or hold an engine, and the settings of one call of it. Weights are loaded at first use."""

    model_config = CONFIG

    per_call: ClassVar[tuple[str, ...]] = PER_CALL
    """The fields that a call may set too."""

    model: str = "tiny"
    """A hub id, a folder, or `tiny` (embedded, with its process reward)."""
    engine: Any = Field(default=None, exclude=True, repr=False)
    """A `nabla_agents.Engine` to share, in place of `model` and the loading settings."""
    revision: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    base_url: str | None = None
    """A server of `nabla serve`, for example `http://127.0.0.1:8000/v1`, that has `model`; nothing is loaded here."""
    api_key: SecretStr | None = None

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """0 is greedy, None the strategy's own."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of the answer at most; None is as long as the context allows."""
    stop: list[str] = Field(default_factory=list)
    """Strings that end the answer and are not part of it. A call's own `stop` replaces them."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    n: Annotated[int, Field(ge=1)] = 1
    """Answers per prompt, each with the whole budget."""
    rollouts: Annotated[int, Field(ge=1)] | None = None
    """Completions that the search may sample per answer, in place of the budget's number."""
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds that an answer may take; the best found by then is returned."""
    budget: Budget | None = None
    """What one answer may cost; None is the engine's own."""
    strategy: Any = None
    """A strategy object such as `BestOfN(n=8)`; None is the engine's own."""

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else [] if value is None else value

    @model_validator(mode="after")
    def _engine_fits(self: SettingsT) -> SettingsT:
        if self.engine is not None:
            if not callable(getattr(self.engine, "generate_batch", None)):
                raise ValueError(f"engine is {self.engine!r}; expected a nabla_agents.Engine.")
            given = [name for name in LOADING if getattr(self, name)]
            if given:
                raise ValueError(f"{', '.join(given)}: loading settings need a model name, got a loaded engine.")
            if "model" in self.model_fields_set and self.model != self.engine.model.name:
                raise ValueError(f"model is {self.model!r}, but the engine's is {self.engine.model.name!r}; give one.")
            self.model = self.engine.model.name
        add_version: Any = getattr(self, "_add_version", None)
        if add_version is not None:
            add_version("nabla-agents", __version__)
        return self

    def load(self) -> Engine:
        """The engine; loads the weights now where that has not happened yet."""
        if self.engine is not None:
            return self.engine
        return loaded(self.model, **{name: v for name in LOADING if (v := getattr(self, name))})

    # ── one call ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _with(self: SettingsT, options: Mapping[str, Any], stop: list[str] | None = None) -> SettingsT:
        """This model with a call's options, validated like its fields; an absent option leaves the field's value.

        Raises:
            TypeError: an option that is none of ours.
        """
        if unknown := [name for name in options if name not in self.per_call]:
            raise TypeError(
                f"{type(self).__name__} got unknown call options: {', '.join(unknown)}. Known: "
                f"{', '.join(self.per_call)}; other settings go to the constructor."
            )
        if stop is not None:
            options = {**options, "stop": stop}
        if not options:
            return self
        return type(self)(**{**self._fields(), **options})

    def _fields(self) -> dict[str, Any]:
        """Every field's value, as the constructor takes it."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def _engine_options(self, engine: Engine, grammar: Grammar | None = None) -> dict[str, Any]:
        """This model's settings as the engine takes them."""
        budget = engine.budget if self.budget is None else self.budget
        changed = {"rollouts": self.rollouts, "seconds": self.timeout}
        return {
            "sampling": Sampling(**{name: getattr(self, name) for name in SAMPLING}, grammar=grammar),
            "budget": replace(budget, **{name: v for name, v in changed.items() if v is not None}),
            "strategy": self.strategy,
        }

    def _identity(self) -> dict[str, Any]:
        """What tells this model from another, for cache keys and traces; native JSON types."""
        return {
            "model_name": self.model,
            "engine": None if self.engine is None else described_engine(self.engine),
            "loading": {name: getattr(self, name) for name in LOADING if name != "api_key"},
            # Not under the name `stop`: core overwrites that with the call's, None included.
            "settings": {name: described(getattr(self, name)) for name in self.per_call if name != "model"},
        }

    # ── copies, serialisation ─────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        return {"api_key": "NABLA_API_KEY"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        return {} if self.budget is None else {"budget": asdict(self.budget)}

    def to_json(self) -> Any:
        """Constructor arguments; none for a given engine, which a reader could only replace by a different one."""
        return super().to_json() if self.engine is None else self.to_json_not_implemented()

    def __deepcopy__(self: SettingsT, memo: dict[int, Any] | None = None) -> SettingsT:
        memo = {} if memo is None else memo
        memo[id(self.engine)] = self.engine
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        if self.engine is None:
            return state
        return {**state, "__dict__": {**state["__dict__"], "engine": SharedEngine(self.engine)}}
