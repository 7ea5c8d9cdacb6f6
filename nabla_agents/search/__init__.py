"""Searches over completions; all share one budget and one ledger."""

from nabla_agents.search.base import Strategy
from nabla_agents.search.contrasts import ContrastDirection, FeedbackDirection, PeerDirection
from nabla_agents.search.direction import Direction
from nabla_agents.search.directions import GradientDirection, NoDirection, RandomDirection
from nabla_agents.search.nabla import Nabla
from nabla_agents.search.nabla_parallel import NablaParallel
from nabla_agents.search.power_sampling import PowerSampling
from nabla_agents.search.refine import Refine
from nabla_agents.search.sampling import BestOfN, Greedy, SelfConsistency
from nabla_agents.search.search import Search

__all__ = [
    "BestOfN",
    "ContrastDirection",
    "Direction",
    "FeedbackDirection",
    "GradientDirection",
    "Greedy",
    "Nabla",
    "NablaParallel",
    "NoDirection",
    "PeerDirection",
    "PowerSampling",
    "RandomDirection",
    "Refine",
    "Search",
    "SelfConsistency",
    "Strategy",
]
