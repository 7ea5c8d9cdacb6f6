"""EngineSettings: which engine a model of an agent framework has, and what one call of it may set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from nabla_agents.adapters.judging import judging_by_class, judging_too, takes_rewards
from nabla_agents.adapters.shared_engines import SharedEngine, loaded
from nabla_agents.chat.grammar import Grammar
from nabla_agents.config import Sampling
from nabla_agents.errors import ConfigurationError
from nabla_agents.types import Budget

if TYPE_CHECKING:
    from nabla_agents.engine import Engine
    from nabla_agents.rewards import Reward


_ELSEWHERE: Mapping[str, str] = {  # other models' names
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "model_name": "model",
    "model_id": "model",
    "model_path": "model",
    "stop_sequences": "stop",
    "random_seed": "seed",
}


class EngineSettings(BaseModel):
    """Fields for a pydantic class of a framework that answers by an engine. Weights are loaded at first use.

    Copies and pickles share a given engine; neither holds weights.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)

    SAMPLING: ClassVar = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "stop")
    """The fields that say how tokens are chosen."""
    LOADING: ClassVar = ("revision", "gguf_file", "dtype", "device_map", "trust_remote_code", "base_url", "api_key")
    """The fields that, with `model`, say what is loaded."""
    UNPICKLED: ClassVar[tuple[str, ...]] = ()
    """Fields that a pickle leaves behind."""

    model: str = "tiny"
    """A hub id, a folder, a GGUF file, or `tiny` (embedded, with its process reward)."""
    engine: Any = Field(default=None, exclude=True, repr=False)
    """A `nabla_agents.Engine` to share, in place of `model` and the loading settings."""
    revision: str | None = None
    gguf_file: str | None = None
    """A GGUF file of the folder or hub id."""
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
    """Tokens of the answer at most; None is 1,024. The context may have room for fewer."""
    stop: list[str] = Field(default_factory=list)
    """Strings that end the answer and are not part of it. A call's own `stop` replaces them."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    rollouts: Annotated[int, Field(ge=1)] | None = None
    """Completions that the search may sample per answer, in place of the budget's number."""
    budget: Budget | None = None
    """What one answer may cost; None is the engine's own."""
    strategy: Any = None
    """A strategy object such as `BestOfN(n=8)`; None is the engine's own."""

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            known = {field.alias or key for key, field in cls.model_fields.items()} | set(cls.model_fields)
            if isinstance(name, str) and name not in known and (meant := cls.did_you_mean(name, known)):
                raise ValueError(f"{name} is no setting of {cls.__name__}{meant}.")
        return values

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else [] if value is None else value

    def check_engine(self) -> None:
        """Takes over the name of a given engine.

        Raises:
            ConfigurationError: no engine, or settings beside it that only loading has.
        """
        if self.engine is None:
            return
        if not callable(getattr(self.engine, "submit", None)):
            raise ConfigurationError(f"engine is {self.engine!r}; expected a nabla_agents.Engine.")
        if given := [name for name in self.LOADING if getattr(self, name)]:
            raise ConfigurationError(f"{', '.join(given)}: loading settings need a model name, got a loaded engine.")
        name = self.engine.model.name
        if "model" in self.model_fields_set and self.model != name:
            raise ConfigurationError(f"model is {self.model!r}, but the engine's is {name!r}; give one of the two.")
        self.model = name

    def load(self) -> Engine:
        """The engine; loads the weights now where that has not happened yet."""
        if self.engine is not None:
            return self.engine
        return loaded(self.model, **{name: value for name in self.LOADING if (value := getattr(self, name))})

    def load_judging(self, reward: Reward) -> Engine:
        """The engine with one reward more; where its own cannot judge an answer, this one alone does.

        Raises:
            ConfigurationError: it is on a server, which judges by the rewards that it was started with.
        """
        return judging_too(self.load(), reward)

    def load_accepting(self, cls: type[BaseModel], *, verbatim: bool = False) -> Engine | None:
        """The engine whose searches look for an answer that the class accepts: told what it refuses, a model writes
        from there on, unless engine or settings have a strategy of their own. None where a server judges.

        verbatim: prompts are no conversations, so that nothing can be told.
        """
        engine = self.load()
        if not takes_rewards(engine):
            return None
        return judging_by_class(engine, cls, told=engine.model.tokenizer.has_template and not verbatim)

    @property
    def judges(self) -> bool | None:
        """Whether the engine has a reward; None where only a server knows."""
        if self.engine is not None:
            objective = getattr(self.engine, "objective", None)
            return None if objective is None else objective.reward is not None
        return None if self.base_url else self.model == "tiny"

    @staticmethod
    def did_you_mean(name: str, known: Collection[str]) -> str:
        """` (did you mean X?)`, X being the setting that is probably meant; empty where none is like it."""
        other = _ELSEWHERE.get(name)
        nearest = [other] if other in known else get_close_matches(name, known, 1)
        return f" (did you mean {nearest[0]}?)" if nearest else ""

    def settings(self) -> dict[str, Any]:
        """Every field's value, as the constructor takes it."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def sampling(self, grammar: Grammar | None = None) -> Sampling:
        """How tokens are chosen, under a grammar or freely."""
        return Sampling(**{name: getattr(self, name) for name in self.SAMPLING}, grammar=grammar)

    def budget_on(self, engine: Engine) -> Budget:
        """What one answer may cost on this engine."""
        budget = engine.budget if self.budget is None else self.budget
        return budget if self.rollouts is None else replace(budget, rollouts=self.rollouts)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """The model and what was set of it: one line."""
        yield "model", self.model
        for name, field in EngineSettings.model_fields.items():
            if name not in ("model", "engine", "api_key") and getattr(self, name) != field.get_default(
                call_default_factory=True
            ):
                yield name, getattr(self, name)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Any:
        memo = {} if memo is None else memo
        memo[id(self.engine)] = self.engine
        return super().__deepcopy__(memo)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        settings = {name: value for name, value in self.settings().items() if name not in self.UNPICKLED}
        return _rebuilt, (type(self), {**settings, "engine": self.engine and SharedEngine(self.engine)})


def _rebuilt(cls: type[EngineSettings], settings: dict[str, Any]) -> EngineSettings:
    return cls(**settings)
