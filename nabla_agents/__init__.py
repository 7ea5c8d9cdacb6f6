"""Gradient-refined reasoning that an agent can call as one step of a larger chain.

Importing this package is light: torch and transformers are imported with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nabla_agents.chat.grammar import Grammar
from nabla_agents.chat.openai import Asked
from nabla_agents.chat.reply import Reply
from nabla_agents.chat.tool_calls import ToolCall
from nabla_agents.errors import (
    ConfigurationError,
    ContextOverflowError,
    GrammarError,
    ModelLoadError,
    ModelMismatchError,
    NablaError,
    ProgramError,
    PromptError,
    RemoteError,
    RewardError,
    RolloutError,
    SandboxError,
    VocabularyMismatchError,
)
from nabla_agents.result import Result, Trace
from nabla_agents.types import (
    Budget,
    Coverage,
    FinishReason,
    Message,
    Prompt,
    Rollout,
    Score,
    Span,
    Step,
    Usage,
)

if TYPE_CHECKING:
    from nabla_agents.backends.formats import SGLANG, VLLM, ServerFormat
    from nabla_agents.backends.server import ServerRollouts
    from nabla_agents.chat.committed import CommittedReply, CommittedText
    from nabla_agents.chat_answer import ChatAnswer
    from nabla_agents.config import Sampling
    from nabla_agents.engine import Engine
    from nabla_agents.engine_settings import EngineSettings
    from nabla_agents.models.language_model import LanguageModel
    from nabla_agents.objective import Objective
    from nabla_agents.remote import RemoteEngine, RemoteStrategy
    from nabla_agents.request import Request
    from nabla_agents.rewards import (
        ARMORM,
        MATH_SHEPHERD,
        QWEN_MATH_PRM,
        QWEN_MATH_RM,
        RLHFLOW_PRM,
        SKYWORK_O1_PRM,
        SKYWORK_REWARD_V2,
        TRL_PRM,
        ArithmeticSteps,
        DifferentiableReward,
        FunctionReward,
        ImplicitReward,
        JsonSchema,
        MathAnswer,
        OutcomeFormat,
        OutcomeReward,
        Pattern,
        ProcessReward,
        PydanticClass,
        PythonAnswer,
        PythonTests,
        Reward,
        SoftMin,
        StepFormat,
        prompt_assertions,
        reward,
    )
    from nabla_agents.run import Run
    from nabla_agents.sandbox import Execution, Executor, Limits, Program, Status, make_executor
    from nabla_agents.search import (
        BestOfN,
        Direction,
        GradientDirection,
        Greedy,
        Nabla,
        NablaParallel,
        NoDirection,
        RandomDirection,
        SelfConsistency,
        Strategy,
    )
    from nabla_agents.search.dto import AdamDTO, MirrorDTO
    from nabla_agents.search.positions import Refinable
    from nabla_agents.shared import SharedEngine, loaded

__version__ = "0.1.0"

_LAZY = {
    "RandomDirection": "search",
    "NoDirection": "search",
    "GradientDirection": "search",
    "Direction": "search",
    "ARMORM": "rewards",
    "MATH_SHEPHERD": "rewards",
    "QWEN_MATH_PRM": "rewards",
    "QWEN_MATH_RM": "rewards",
    "RLHFLOW_PRM": "rewards",
    "SGLANG": "backends.formats",
    "SKYWORK_O1_PRM": "rewards",
    "SKYWORK_REWARD_V2": "rewards",
    "TRL_PRM": "rewards",
    "VLLM": "backends.formats",
    "AdamDTO": "search.dto",
    "ArithmeticSteps": "rewards",
    "BestOfN": "search",
    "ChatAnswer": "chat_answer",
    "CommittedReply": "chat.committed",
    "CommittedText": "chat.committed",
    "DifferentiableReward": "rewards",
    "Engine": "engine",
    "EngineSettings": "engine_settings",
    "Execution": "sandbox",
    "Executor": "sandbox",
    "FunctionReward": "rewards",
    "Greedy": "search",
    "ImplicitReward": "rewards",
    "JsonSchema": "rewards",
    "LanguageModel": "models.language_model",
    "Limits": "sandbox",
    "MathAnswer": "rewards",
    "MirrorDTO": "search.dto",
    "Nabla": "search",
    "NablaParallel": "search",
    "Objective": "objective",
    "OutcomeFormat": "rewards",
    "OutcomeReward": "rewards",
    "Pattern": "rewards",
    "ProcessReward": "rewards",
    "Program": "sandbox",
    "PydanticClass": "rewards",
    "PythonAnswer": "rewards",
    "PythonTests": "rewards",
    "Refinable": "search.positions",
    "RemoteEngine": "remote",
    "RemoteStrategy": "remote",
    "Reward": "rewards",
    "Request": "request",
    "Run": "run",
    "Sampling": "config",
    "SelfConsistency": "search",
    "ServerFormat": "backends.formats",
    "ServerRollouts": "backends.server",
    "SharedEngine": "shared",
    "SoftMin": "rewards",
    "StepFormat": "rewards",
    "Status": "sandbox",
    "Strategy": "search",
    "loaded": "shared",
    "make_executor": "sandbox",
    "prompt_assertions": "rewards",
    "reward": "rewards",
}

__all__ = [
    "ARMORM",
    "MATH_SHEPHERD",
    "QWEN_MATH_PRM",
    "QWEN_MATH_RM",
    "RLHFLOW_PRM",
    "SGLANG",
    "SKYWORK_O1_PRM",
    "SKYWORK_REWARD_V2",
    "TRL_PRM",
    "VLLM",
    "AdamDTO",
    "ArithmeticSteps",
    "Asked",
    "BestOfN",
    "Budget",
    "ChatAnswer",
    "CommittedReply",
    "CommittedText",
    "ConfigurationError",
    "ContextOverflowError",
    "Coverage",
    "DifferentiableReward",
    "Direction",
    "Engine",
    "EngineSettings",
    "Execution",
    "Executor",
    "FinishReason",
    "FunctionReward",
    "GradientDirection",
    "Grammar",
    "GrammarError",
    "Greedy",
    "ImplicitReward",
    "JsonSchema",
    "LanguageModel",
    "Limits",
    "MathAnswer",
    "Message",
    "MirrorDTO",
    "ModelLoadError",
    "ModelMismatchError",
    "Nabla",
    "NablaError",
    "NablaParallel",
    "NoDirection",
    "Objective",
    "OutcomeFormat",
    "OutcomeReward",
    "Pattern",
    "ProcessReward",
    "Program",
    "ProgramError",
    "Prompt",
    "PromptError",
    "PydanticClass",
    "PythonAnswer",
    "PythonTests",
    "RandomDirection",
    "Refinable",
    "RemoteEngine",
    "RemoteError",
    "RemoteStrategy",
    "Reply",
    "Request",
    "Result",
    "Reward",
    "RewardError",
    "Rollout",
    "RolloutError",
    "Run",
    "Sampling",
    "SandboxError",
    "Score",
    "SelfConsistency",
    "ServerFormat",
    "ServerRollouts",
    "SharedEngine",
    "SoftMin",
    "Span",
    "Status",
    "Step",
    "StepFormat",
    "Strategy",
    "ToolCall",
    "Trace",
    "Usage",
    "VocabularyMismatchError",
    "__version__",
    "loaded",
    "make_executor",
    "prompt_assertions",
    "reward",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
