"""LangChain models on the nabla-agents engine. Importing this package loads neither torch nor weights."""

from typing import TYPE_CHECKING, Any

from langchain_nabla.chat_models import ChatNabla
from langchain_nabla.llms import NablaLLM
from langchain_nabla.refine import NablaRefine
from langchain_nabla.tools import NablaSolve
from nabla_agents import ConfigurationError, __version__

if TYPE_CHECKING:
    from langchain_nabla.middleware import NablaRefineMiddleware

__all__ = ["ChatNabla", "NablaLLM", "NablaRefine", "NablaRefineMiddleware", "NablaSolve", "__version__"]


def __getattr__(name: str) -> Any:
    if name != "NablaRefineMiddleware":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from langchain_nabla.middleware import NablaRefineMiddleware  # needs langchain, not langchain-core alone
    except ModuleNotFoundError as e:
        raise ConfigurationError(
            f"NablaRefineMiddleware needs {e.name}, which is not installed: pip install 'nabla-agents[langchain]', or "
            "in a clone: pip install . './integrations/langchain-nabla[agents]'."
        ) from e
    return NablaRefineMiddleware
