"""An engine on another machine: `RemoteEngine` has the face of `Engine`, and a server of `nabla serve` does the work.

Needs the extra `remote`, and neither torch nor weights.
"""

from nabla_agents.remote.engine import RemoteEngine, RemoteStrategy

__all__ = ["RemoteEngine", "RemoteStrategy"]
