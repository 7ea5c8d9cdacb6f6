"""Rewards: learned models, tools' verdicts, and the sum of both."""

from nabla_agents.rewards.base import DifferentiableReward, Reward, RewardGradient
from nabla_agents.rewards.learned.aggregation import SoftMin
from nabla_agents.rewards.learned.formats import (
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
from nabla_agents.rewards.learned.implicit import ImplicitReward
from nabla_agents.rewards.learned.outcome import OutcomeReward
from nabla_agents.rewards.learned.process import ProcessReward
from nabla_agents.rewards.tools.arithmetic import ArithmeticSteps
from nabla_agents.rewards.tools.function import FunctionReward, reward
from nabla_agents.rewards.tools.json_schema import JsonSchema
from nabla_agents.rewards.tools.math_answer import MathAnswer
from nabla_agents.rewards.tools.pattern import Pattern
from nabla_agents.rewards.tools.prompt_tests import prompt_assertions
from nabla_agents.rewards.tools.pydantic_class import PydanticClass
from nabla_agents.rewards.tools.python_answer import PythonAnswer
from nabla_agents.rewards.tools.python_tests import PythonTests

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
    "PydanticClass",
    "PythonAnswer",
    "PythonTests",
    "Reward",
    "RewardGradient",
    "SoftMin",
    "StepFormat",
    "prompt_assertions",
    "reward",
]
