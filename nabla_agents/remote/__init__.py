"""An engine on another machine: `RemoteEngine` has the face of `Engine`, and a server of `nabla serve` does the work.

Needs the extra `remote`.
"""

from __future__ import annotations

from nabla_agents.errors import ConfigurationError

try:
    import httpx  # noqa: F401
    import tenacity  # noqa: F401
except ImportError as e:
    raise ConfigurationError(
        f"A remote engine needs {e.name}, which is not installed: pip install 'nabla-agents[remote]'."
    ) from e

from nabla_agents.remote.engine import RemoteEngine
from nabla_agents.remote.strategy import RemoteStrategy

__all__ = ["RemoteEngine", "RemoteStrategy"]
