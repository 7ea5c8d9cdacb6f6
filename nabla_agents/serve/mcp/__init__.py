"""An MCP server of refined answers: the tools `solve` and `verify`, over stdio and streamable HTTP.

Needs the extra `mcp`.
"""

from __future__ import annotations

from nabla_agents.errors import ConfigurationError, to_install

try:
    import mcp  # noqa: F401
except ImportError as e:
    raise ConfigurationError(f"An MCP server needs {e.name}, which is not installed: {to_install('mcp')}.") from e

from nabla_agents.serve.mcp.tools import NablaTools
from nabla_agents.serve.mcp.transports import check_keys, http_app, mcp_server, run_http, run_stdio

__all__ = ["NablaTools", "check_keys", "http_app", "mcp_server", "run_http", "run_stdio"]
