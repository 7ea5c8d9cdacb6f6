"""Rewards: learned models, tools' verdicts, and the sum of both."""

from nabla_agents.rewards.aggregation import SoftMin
from nabla_agents.rewards.arithmetic import ArithmeticSteps
from nabla_agents.rewards.base import DifferentiableReward, Reward, RewardGradient
from nabla_agents.rewards.formats import (
    ARMORM,
    MATH_SHEPHERD,
    QWEN_MATH_PRM,
    QWEN_MATH_RM,
    RLHFLOW_PRM,
    SKYWORK_O1_PRM,
    SKYWORK_REWARD_V2,
    TRL_PRM,
    OutcomeFormat,
    StepFormat,
)
from nabla_agents.rewards.function import FunctionReward, reward
from nabla_agents.rewards.implicit import ImplicitReward
from nabla_agents.rewards.json_schema import JsonSchema
from nabla_agents.rewards.math_answer import MathAnswer
from nabla_agents.rewards.outcome import OutcomeReward
from nabla_agents.rewards.pattern import Pattern
from nabla_agents.rewards.process import ProcessReward
from nabla_agents.rewards.prompt_tests import prompt_assertions
from nabla_agents.rewards.python_answer import PythonAnswer
from nabla_agents.rewards.python_tests import PythonTests

__all__ = [
    "ARMORM",
    "MATH_SHEPHERD",
    "QWEN_MATH_PRM",
    "QWEN_MATH_RM",
    "RLHFLOW_PRM",
    "SKYWORK_O1_PRM",
    "SKYWORK_REWARD_V2",
    "TRL_PRM",
    "ArithmeticSteps",
    "DifferentiableReward",
    "FunctionReward",
    "ImplicitReward",
    "JsonSchema",
    "MathAnswer",
    "OutcomeFormat",
    "OutcomeReward",
    "Pattern",
    "ProcessReward",
    "PythonAnswer",
    "PythonTests",
    "Reward",
    "RewardGradient",
    "SoftMin",
    "StepFormat",
    "prompt_assertions",
    "reward",
]
