"""Rewards: learned models, tools' verdicts, and the sum of both."""

from nabla_agents.rewards.arithmetic import ArithmeticSteps
from nabla_agents.rewards.base import DifferentiableReward, Reward, RewardGradient
from nabla_agents.rewards.function import FunctionReward, reward
from nabla_agents.rewards.implicit import ImplicitReward
from nabla_agents.rewards.json_schema import JsonSchema
from nabla_agents.rewards.learned import OutcomeReward, ProcessReward
from nabla_agents.rewards.math_answer import MathAnswer
from nabla_agents.rewards.pattern import Pattern
from nabla_agents.rewards.python_answer import PythonAnswer
from nabla_agents.rewards.python_tests import PythonTests

__all__ = [
    "ArithmeticSteps",
    "DifferentiableReward",
    "FunctionReward",
    "ImplicitReward",
    "JsonSchema",
    "MathAnswer",
    "OutcomeReward",
    "Pattern",
    "ProcessReward",
    "PythonAnswer",
    "PythonTests",
    "Reward",
    "RewardGradient",
    "reward",
]
