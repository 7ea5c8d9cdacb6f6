"""The command `nabla`, a file for each of its commands. Only here do strings select parts, each through one table
(`registry.py`); nothing heavy is imported before it is needed.
"""

from nabla_agents.cli import bench, cache, doctor, mcp, serve, solve
from nabla_agents.cli.app import app, main

__all__ = ["app", "bench", "cache", "doctor", "main", "mcp", "serve", "solve"]
