"""LangChain models on the nabla-agents engine. Importing this package loads neither torch nor weights."""

from langchain_nabla.llms import NablaLLM
from nabla_agents import __version__

__all__ = ["NablaLLM", "__version__"]
