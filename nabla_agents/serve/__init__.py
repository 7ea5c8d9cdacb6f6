"""An OpenAI-compatible server of refined answers: `create_app` makes the application, `serve` runs it.

Needs the extra `serve`.
"""

from __future__ import annotations

from nabla_agents.errors import ConfigurationError

try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as e:
    raise ConfigurationError(
        f"Serving needs {e.name}, which is not installed: pip install 'nabla-agents[serve]'."
    ) from e

from nabla_agents.serve.app import create_app
from nabla_agents.serve.keys import ApiKey, digest, new_key
from nabla_agents.serve.server import Server, serve
from nabla_agents.serve.settings import ServeSettings

__all__ = ["ApiKey", "ServeSettings", "Server", "create_app", "digest", "new_key", "serve"]
