"""Rewards: learned models, tools' verdicts, and the sum of both."""

from nabla_agents.rewards.arithmetic import ArithmeticSteps
from nabla_agents.rewards.base import DifferentiableReward, Reward, RewardGradient
from nabla_agents.rewards.implicit import ImplicitReward
from nabla_agents.rewards.learned import OutcomeReward, ProcessReward

__all__ = [
    "ArithmeticSteps",
    "DifferentiableReward",
    "ImplicitReward",
    "OutcomeReward",
    "ProcessReward",
    "Reward",
    "RewardGradient",
]
