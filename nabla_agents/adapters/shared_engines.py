"""Engines that a process shares: loaded once for equal settings, and named, not copied, in a pickle."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from nabla_agents.errors import ConfigurationError, ModelLoadError

if TYPE_CHECKING:
    from pydantic import SecretStr

    from nabla_agents.engine import Engine

_lock = threading.RLock()
_loaded: dict[tuple[tuple[str, Any], ...], Engine] = {}
_shared: WeakValueDictionary[str, Engine] = WeakValueDictionary()


def loaded(model: str, **loading: Any) -> Engine:
    """The engine of these settings, loaded by the first call of the process and kept to its end.

    `tiny` has its process reward; options are those of `Loading`: dtype, device_map, revision, ... With `base_url`, and
    `api_key` where it needs one, the engine is that of a server, and nothing is loaded here.

    Raises:
        ConfigurationError: loading options for a server's model.
    """
    key = (("model", model), *sorted(loading.items()))
    if key in _loaded:
        return _loaded[key]
    with _lock:
        if key not in _loaded:
            _loaded[key] = _connected(model, **loading) if "base_url" in loading else _local(model, **loading)
        return _loaded[key]


def _local(model: str, **loading: Any) -> Engine:
    from nabla_agents.engine import Engine  # loads torch, which a model that is only constructed does not need

    return Engine.tiny(**loading) if model == "tiny" else Engine(model=model, **loading)


def _connected(model: str, *, base_url: str, api_key: SecretStr | None = None, **loading: Any) -> Any:
    from nabla_agents.remote import RemoteEngine

    if loading:
        raise ConfigurationError(f"{', '.join(loading)}: a server loads its models itself; leave this out.")
    return RemoteEngine(base_url, model=model, api_key=None if api_key is None else api_key.get_secret_value())


class SharedEngine:
    """Stands for an engine in a pickle, which holds no weights: unpickled in the same process, it is that engine.

    Raises:
        ModelLoadError: on unpickling in another process, or when the engine is gone.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __reduce__(self) -> tuple[Callable[[str], Engine], tuple[str]]:
        with _lock:
            token = next((t for t, e in _shared.items() if e is self._engine), None) or uuid.uuid4().hex
            _shared[token] = self._engine
        return _engine_of, (token,)


def _engine_of(token: str) -> Engine:
    engine = _shared.get(token)
    if engine is None:
        raise ModelLoadError(
            "This model was given an engine object, which stays in its process; the pickle was read in another one (or "
            "the engine is gone). Build the model there, or give it a model name instead: that is loaded where needed."
        )
    return engine
