"""Searches over completions; all share one budget and one ledger."""

from nabla_agents.strategies.base import Strategy
from nabla_agents.strategies.nabla import Nabla
from nabla_agents.strategies.nabla_parallel import NablaParallel
from nabla_agents.strategies.sampling_only import BestOfN, Greedy, SelfConsistency
from nabla_agents.strategies.search import Search

__all__ = ["BestOfN", "Greedy", "Nabla", "NablaParallel", "Search", "SelfConsistency", "Strategy"]
