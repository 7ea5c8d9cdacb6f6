"""Names of the public face, each with the module that has it."""

from .adapters.chat_answer import ChatAnswer as ChatAnswer
from .adapters.engine_settings import EngineSettings as EngineSettings
from .adapters.shared_engines import (
    SharedEngine as SharedEngine,
)
from .adapters.shared_engines import (
    loaded as loaded,
)
from .backends.formats import (
    SGLANG as SGLANG,
)
from .backends.formats import (
    VLLM as VLLM,
)
from .backends.formats import (
    ServerFormat as ServerFormat,
)
from .backends.llama_cpp import LlamaCppRollouts as LlamaCppRollouts
from .backends.server import ServerRollouts as ServerRollouts
from .chat.grammar import Grammar as Grammar
from .chat.openai import ChatOptions as ChatOptions
from .chat.reply import Reply as Reply
from .chat.streaming import (
    StreamedReply as StreamedReply,
)
from .chat.streaming import (
    StreamedText as StreamedText,
)
from .chat.tool_calls import ToolCall as ToolCall
from .config import Sampling as Sampling
from .engine import Engine as Engine
from .errors import (
    ConfigurationError as ConfigurationError,
)
from .errors import (
    ContextOverflowError as ContextOverflowError,
)
from .errors import (
    GrammarError as GrammarError,
)
from .errors import (
    ModelLoadError as ModelLoadError,
)
from .errors import (
    ModelMismatchError as ModelMismatchError,
)
from .errors import (
    NablaError as NablaError,
)
from .errors import (
    ProgramError as ProgramError,
)
from .errors import (
    PromptError as PromptError,
)
from .errors import (
    RemoteError as RemoteError,
)
from .errors import (
    RewardError as RewardError,
)
from .errors import (
    RolloutError as RolloutError,
)
from .errors import (
    SandboxError as SandboxError,
)
from .errors import (
    VocabularyMismatchError as VocabularyMismatchError,
)
from .models.contrast import Contrast as Contrast
from .models.language_model import LanguageModel as LanguageModel
from .objective import Objective as Objective
from .remote import (
    RemoteEngine as RemoteEngine,
)
from .remote import (
    RemoteStrategy as RemoteStrategy,
)
from .request import Request as Request
from .result import (
    Result as Result,
)
from .result import (
    Trace as Trace,
)
from .rewards import (
    ARMORM as ARMORM,
)
from .rewards import (
    MATH_SHEPHERD as MATH_SHEPHERD,
)
from .rewards import (
    QWEN_MATH_PRM as QWEN_MATH_PRM,
)
from .rewards import (
    QWEN_MATH_RM as QWEN_MATH_RM,
)
from .rewards import (
    RLHFLOW_PRM as RLHFLOW_PRM,
)
from .rewards import (
    SKYWORK_O1_PRM as SKYWORK_O1_PRM,
)
from .rewards import (
    SKYWORK_REWARD_V2 as SKYWORK_REWARD_V2,
)
from .rewards import (
    TRL_PRM as TRL_PRM,
)
from .rewards import (
    ArithmeticSteps as ArithmeticSteps,
)
from .rewards import (
    DifferentiableReward as DifferentiableReward,
)
from .rewards import (
    FunctionReward as FunctionReward,
)
from .rewards import (
    ImplicitReward as ImplicitReward,
)
from .rewards import (
    JsonSchema as JsonSchema,
)
from .rewards import (
    MathAnswer as MathAnswer,
)
from .rewards import (
    OutcomeFormat as OutcomeFormat,
)
from .rewards import (
    OutcomeReward as OutcomeReward,
)
from .rewards import (
    Pattern as Pattern,
)
from .rewards import (
    ProcessReward as ProcessReward,
)
from .rewards import (
    PydanticClass as PydanticClass,
)
from .rewards import (
    PythonAnswer as PythonAnswer,
)
from .rewards import (
    PythonTests as PythonTests,
)
from .rewards import (
    Reward as Reward,
)
from .rewards import (
    SiblingReward as SiblingReward,
)
from .rewards import (
    SoftMin as SoftMin,
)
from .rewards import (
    StepFormat as StepFormat,
)
from .rewards import (
    prompt_assertions as prompt_assertions,
)
from .rewards import (
    reward as reward,
)
from .run import Run as Run
from .sandbox import (
    Execution as Execution,
)
from .sandbox import (
    Executor as Executor,
)
from .sandbox import (
    Limits as Limits,
)
from .sandbox import (
    Program as Program,
)
from .sandbox import (
    Status as Status,
)
from .sandbox import (
    make_executor as make_executor,
)
from .search import (
    BestOfN as BestOfN,
)
from .search import (
    ContrastDirection as ContrastDirection,
)
from .search import (
    Direction as Direction,
)
from .search import (
    FeedbackDirection as FeedbackDirection,
)
from .search import (
    GradientDirection as GradientDirection,
)
from .search import (
    Greedy as Greedy,
)
from .search import (
    Nabla as Nabla,
)
from .search import (
    NablaParallel as NablaParallel,
)
from .search import (
    NoDirection as NoDirection,
)
from .search import (
    PeerDirection as PeerDirection,
)
from .search import (
    PowerSampling as PowerSampling,
)
from .search import (
    RandomDirection as RandomDirection,
)
from .search import (
    Refine as Refine,
)
from .search import (
    SelfConsistency as SelfConsistency,
)
from .search import (
    Strategy as Strategy,
)
from .search.dto import (
    AdamDTO as AdamDTO,
)
from .search.dto import (
    MirrorDTO as MirrorDTO,
)
from .search.positions import Refinable as Refinable
from .types import (
    Budget as Budget,
)
from .types import (
    Coverage as Coverage,
)
from .types import (
    FinishReason as FinishReason,
)
from .types import (
    Message as Message,
)
from .types import (
    Prompt as Prompt,
)
from .types import (
    Rollout as Rollout,
)
from .types import (
    Score as Score,
)
from .types import (
    Span as Span,
)
from .types import (
    Step as Step,
)
from .types import (
    Usage as Usage,
)

__version__: str
