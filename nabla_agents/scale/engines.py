"""engine_maker: what a process of the cluster calls to have its engine; it travels, the engine does not."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nabla_agents.engine import Engine
from nabla_agents.errors import ConfigurationError, NablaError
from nabla_agents.shared import loaded

EngineMaker = Callable[[], Engine]


@dataclass(frozen=True)
class _OfModel:
    model: str
    loading: tuple[tuple[str, Any], ...]

    def __call__(self) -> Engine:
        return loaded(self.model, **dict(self.loading))


@dataclass(frozen=True)
class _OfFunction:
    module: str
    name: str

    def __call__(self) -> Engine:
        try:
            made = getattr(importlib.import_module(self.module), self.name)()
        except NablaError:
            raise
        except Exception as e:  # someone's module may raise anything
            raise ConfigurationError(f"{self.module}:{self.name} made no engine ({type(e).__name__}: {e}).") from e
        if not isinstance(made, Engine):
            raise ConfigurationError(f"{self.module}:{self.name} returned {made!r}; expected an Engine.")
        return made


def engine_maker(
    model: str = "tiny", *, engine: str | None = None, loading: Mapping[str, Any] | None = None
) -> EngineMaker:
    """A function that gives the engine of a process: of a model's name, loaded once, or made by a function of yours.

    `engine` is where that function is, as `package.module:function`; every process must be able to import it. It takes
    the place of the model. `loading` are options of `Loading`: dtype, device_map, revision, ...

    Raises:
        ConfigurationError: `engine` is no such place.
    """
    if engine is None:
        return _OfModel(model, tuple(sorted((loading or {}).items())))
    module, colon, name = engine.partition(":")
    if not (colon and module and name.isidentifier()):
        raise ConfigurationError(f"engine is {engine!r}; expected package.module:function.")
    return _OfFunction(module, name)


def needs_ray() -> None:
    """Raises ConfigurationError where Ray is not installed."""
    try:
        import ray  # noqa: F401
    except ImportError as e:
        raise ConfigurationError(
            f'A cluster needs {e.name}, which is not installed: pip install "nabla-agents[ray]".'
        ) from e
