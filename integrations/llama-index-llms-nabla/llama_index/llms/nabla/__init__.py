"""LlamaIndex models on the nabla-agents engine. Importing this package loads neither torch nor weights."""

from llama_index.llms.nabla.agent_tools import NablaToolSpec, sandboxed
from llama_index.llms.nabla.base import NablaLLM
from llama_index.llms.nabla.judging import NablaEvaluator
from llama_index.llms.nabla.policy import RefinePolicy, TraceBudget
from llama_index.llms.nabla.query_engine import NablaQueryEngine, numbers_in_sources
from llama_index.llms.nabla.scopes import nabla_options
from llama_index.llms.nabla.structured import StructuredAnswerError
from llama_index.llms.nabla.workflow import NablaProgress, RefineWorkflow, refine

__all__ = [
    "NablaEvaluator",
    "NablaLLM",
    "NablaProgress",
    "NablaQueryEngine",
    "NablaToolSpec",
    "RefinePolicy",
    "RefineWorkflow",
    "StructuredAnswerError",
    "TraceBudget",
    "nabla_options",
    "numbers_in_sources",
    "refine",
    "sandboxed",
]
