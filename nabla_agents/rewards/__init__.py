"""Rewards: learned models, tools' verdicts, and the sum of both."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from nabla_agents.rewards.learned.sibling import SiblingReward
    from nabla_agents.rewards.tools.arithmetic import ArithmeticSteps
    from nabla_agents.rewards.tools.function import FunctionReward, reward
    from nabla_agents.rewards.tools.json_schema import JsonSchema
    from nabla_agents.rewards.tools.math_answer import MathAnswer
    from nabla_agents.rewards.tools.pattern import Pattern
    from nabla_agents.rewards.tools.prompt_tests import prompt_assertions
    from nabla_agents.rewards.tools.pydantic_class import PydanticClass
    from nabla_agents.rewards.tools.python_answer import PythonAnswer
    from nabla_agents.rewards.tools.python_tests import PythonTests

_LAZY = {
    "ARMORM": "learned.formats",
    "ArithmeticSteps": "tools.arithmetic",
    "DifferentiableReward": "base",
    "FunctionReward": "tools.function",
    "ImplicitReward": "learned.implicit",
    "JsonSchema": "tools.json_schema",
    "MATH_SHEPHERD": "learned.formats",
    "MathAnswer": "tools.math_answer",
    "OutcomeFormat": "learned.formats",
    "OutcomeReward": "learned.outcome",
    "Pattern": "tools.pattern",
    "ProcessReward": "learned.process",
    "PydanticClass": "tools.pydantic_class",
    "PythonAnswer": "tools.python_answer",
    "PythonTests": "tools.python_tests",
    "QWEN_MATH_PRM": "learned.formats",
    "QWEN_MATH_RM": "learned.formats",
    "RLHFLOW_PRM": "learned.formats",
    "Reward": "base",
    "RewardGradient": "base",
    "SKYWORK_O1_PRM": "learned.formats",
    "SKYWORK_REWARD_V2": "learned.formats",
    "SiblingReward": "learned.sibling",
    "SoftMin": "learned.aggregation",
    "StepFormat": "learned.formats",
    "TRL_PRM": "learned.formats",
    "prompt_assertions": "tools.prompt_tests",
    "reward": "tools.function",
}

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
    "SiblingReward",
    "SoftMin",
    "StepFormat",
    "prompt_assertions",
    "reward",
]


def __getattr__(name: str) -> Any:
    """Each is imported when it is first asked for: a learned reward needs no sandbox, and an engine needs neither."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
