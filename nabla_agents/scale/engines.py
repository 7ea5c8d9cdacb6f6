"""engine_maker: what a process of the cluster calls to have its engine; it travels, the engine does not."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nabla_agents.adapters.shared_engines import loaded
from nabla_agents.engine import Engine
from nabla_agents.errors import ConfigurationError, NablaError, to_install

EngineMaker = Callable[[], Engine]


@dataclass(frozen=True)
class _EngineMaker:
    model: str
    engine: str | None
    loading: tuple[tuple[str, Any], ...]

    def __call__(self) -> Engine:
        if self.engine is None:
            return loaded(self.model, **dict(self.loading))
        module, _, name = self.engine.partition(":")
        try:
            made = getattr(importlib.import_module(module), name)()
        except NablaError:
            raise
        except Exception as e:  # someone's module may raise anything
            raise ConfigurationError(f"{self.engine} made no engine ({type(e).__name__}: {e}).") from e
        if not isinstance(made, Engine):
            raise ConfigurationError(f"{self.engine} returned {made!r}; expected an Engine.")
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
    if engine is not None:
        module, _, name = engine.partition(":")
        if not (module and name.isidentifier()):
            raise ConfigurationError(f"engine is {engine!r}; expected package.module:function.")
    return _EngineMaker(model, engine, tuple(sorted((loading or {}).items())))


def needs_ray() -> Any:
    """Ray. Raises ConfigurationError where it is not installed."""
    try:
        import ray
    except ImportError as e:
        raise ConfigurationError(f"A cluster needs {e.name}, which is not installed: {to_install('ray')}.") from e
    return ray
