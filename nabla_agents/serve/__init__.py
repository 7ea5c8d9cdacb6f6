"""Serving refined answers: an OpenAI-compatible server (`create_app` makes the application, `serve` runs it; extra
`serve`), and tools for MCP clients (`nabla_agents.serve.mcp`; extra `mcp`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nabla_agents.errors import ConfigurationError, to_install

if TYPE_CHECKING:
    from nabla_agents.serve.app import create_app
    from nabla_agents.serve.keys import ApiKey, digest, new_key
    from nabla_agents.serve.server import Server, serve
    from nabla_agents.serve.settings import ServeSettings

__all__ = ["ApiKey", "ServeSettings", "Server", "create_app", "digest", "new_key", "serve"]
_MODULES = {"create_app": "app", "Server": "server", "serve": "server", "ServeSettings": "settings"}  # the rest: keys


def __getattr__(name: str) -> Any:
    """The names above, with what they need; either kind of server is imported without what the other needs."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        for package in ("fastapi", "prometheus_client", "uvicorn"):
            importlib.import_module(package)
    except ImportError as e:
        raise ConfigurationError(f"Serving needs {e.name}, which is not installed: {to_install('serve')}.") from e
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'keys')}"), name)
    globals()[name] = value
    return value
