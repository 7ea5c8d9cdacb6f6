"""Rollouts on a server, gradients here: any OpenAI-compatible endpoint that reads and returns token ids."""

from nabla_agents.rollouts.formats import SGLANG, VLLM, ServerFormat
from nabla_agents.rollouts.server import ServerRollouts

__all__ = ["SGLANG", "VLLM", "ServerFormat", "ServerRollouts"]
