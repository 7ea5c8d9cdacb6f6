"""LangChain models on the nabla-agents engine. Importing this package loads neither torch nor weights."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from langchain_nabla.chat_models import ChatNabla
from langchain_nabla.llms import NablaLLM
from langchain_nabla.refine import NablaRefine
from langchain_nabla.tools import NablaSolve
from nabla_agents import ConfigurationError, __version__

if TYPE_CHECKING:
    from langchain_nabla.decision import NablaDecision
    from langchain_nabla.middleware import NablaRefineMiddleware

__all__ = [
    "ChatNabla",
    "NablaDecision",
    "NablaLLM",
    "NablaRefine",
    "NablaRefineMiddleware",
    "NablaSolve",
    "__version__",
]

_LATER = {"NablaDecision": "decision", "NablaRefineMiddleware": "middleware"}
"""What needs more than langchain-core 1.6, by its module."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    except ModuleNotFoundError as e:
        if e.name == "langchain_core.decisions":
            raise ConfigurationError(
                f"NablaDecision needs langchain-core 1.8 or newer, this is {version('langchain-core')}: pip install "
                "--upgrade langchain-core."
            ) from e
        raise ConfigurationError(
            f"{name} needs {e.name}, which is not installed: pip install 'nabla-agents[langchain]', or in a clone: "
            "pip install . './integrations/langchain-nabla[agents]'."
        ) from e
