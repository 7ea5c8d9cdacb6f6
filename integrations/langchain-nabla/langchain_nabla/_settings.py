"""NablaSettings: what NablaLLM, ChatNabla and NablaSolve have in common beside the fields of EngineSettings."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from langchain_core.load.serializable import Serializable
from pydantic import ConfigDict, Field, field_validator, model_validator

from langchain_nabla import _strategies
from langchain_nabla._identity import described, described_engine
from nabla_agents import EngineSettings, Request, __version__

if TYPE_CHECKING:
    from nabla_agents import Engine, Grammar, Prompt

PER_CALL = (*EngineSettings.SAMPLING, "seed", "n", "rollouts", "budget", "strategy", "timeout")

CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)  # each class names it: the last base would win

SettingsT = TypeVar("SettingsT", bound="NablaSettings")


class NablaSettings(EngineSettings, Serializable):
    """The fields of every class here, the options of one call, and what identifies and serialises it."""

    model_config = CONFIG

    per_call: ClassVar[tuple[str, ...]] = PER_CALL
    """The fields that a call may set too."""

    n: Annotated[int, Field(ge=1)] = 1
    """Answers per prompt, each with the whole budget."""
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds that an answer may take; the best found by then is returned."""

    @field_validator("strategy", mode="before")
    @classmethod
    def _strategy_is_read(cls, value: Any) -> Any:
        return _strategies.read(value)

    @model_validator(mode="after")
    def _engine_fits(self: SettingsT) -> SettingsT:
        self.check_engine()
        add_version: Any = getattr(self, "_add_version", None)
        if add_version is not None:
            add_version("nabla-agents", __version__)
        return self

    def _shared(self) -> dict[str, Any]:
        """The settings that another class of this package has too."""
        return {name: getattr(self, name) for name in NablaSettings.model_fields if name != "name"}

    # ── one call ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _with(self: SettingsT, options: Mapping[str, Any], stop: list[str] | None = None) -> SettingsT:
        """This model with a call's options, validated like its fields; an absent option leaves the field's value.

        Raises:
            TypeError: an option that is none of ours.
        """
        if unknown := [name for name in options if name not in self.per_call]:
            raise TypeError(
                f"{type(self).__name__} got unknown call options: {', '.join(unknown)}"
                f"{self.did_you_mean(unknown[0], self.per_call)}. Known: "
                f"{', '.join(self.per_call)}; other settings go to the constructor."
            )
        if stop is not None:
            options = {**options, "stop": stop}
        return type(self)(**{**self.settings(), **options}) if options else self

    def _requests(
        self, engine: Engine, prompts: Sequence[Prompt], *, grammar: Grammar | None = None, **parts: Any
    ) -> list[Request]:
        """`n` requests per prompt, of consecutive seeds."""
        budget = self.budget_on(engine)
        budget = budget if self.timeout is None else replace(budget, seconds=self.timeout)
        options = {"sampling": self.sampling(grammar), "budget": budget, "strategy": self.strategy, **parts}
        seeds = range(self.seed, self.seed + self.n)
        return [Request(prompt=prompt, seed=seed, **options) for prompt in prompts for seed in seeds]

    # ── identity, serialisation ───────────────────────────────────────────────────────────────────────────────────

    def _identity(self) -> dict[str, Any]:
        """What tells this model from another, for cache keys and traces; native JSON types."""
        return {
            "model_name": self.model,
            "engine": None if self.engine is None else described_engine(self.engine),
            "loading": {name: getattr(self, name) for name in self.LOADING if name != "api_key"},
            # Not under the name `stop`: core overwrites that with the call's, None included.
            "settings": {name: described(getattr(self, name)) for name in self.per_call if name != "model"},
        }

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        return {"api_key": "NABLA_API_KEY"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        budget = {} if self.budget is None else {"budget": asdict(self.budget)}
        return budget if self.strategy is None else {**budget, "strategy": _strategies.written(self.strategy)}

    def to_json(self) -> Any:
        """Constructor arguments; none for a given engine or a strategy of your own, which a reader could only replace
        by a different one.
        """
        with contextlib.suppress(TypeError):
            if self.engine is None:
                return super().to_json()
        return self.to_json_not_implemented()
