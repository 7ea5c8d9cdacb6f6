"""LangChain models on the nabla-agents engine. Importing this package loads neither torch nor weights."""

from typing import TYPE_CHECKING, Any

from langchain_nabla.chat_models import ChatNabla
from langchain_nabla.llms import NablaLLM
from langchain_nabla.refine import NablaRefine
from langchain_nabla.tools import NablaSolve
from nabla_agents import __version__

if TYPE_CHECKING:
    from langchain_nabla.middleware import NablaRefineMiddleware

__all__ = ["ChatNabla", "NablaLLM", "NablaRefine", "NablaRefineMiddleware", "NablaSolve", "__version__"]


def __getattr__(name: str) -> Any:
    if name != "NablaRefineMiddleware":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from langchain_nabla.middleware import NablaRefineMiddleware  # needs langchain, not langchain-core alone

    return NablaRefineMiddleware
