"""LlamaIndex models on the nabla-agents engine. Importing this package loads neither torch nor weights."""

from llama_index.llms.nabla.base import NablaLLM
from llama_index.llms.nabla.options import nabla_options

__all__ = ["NablaLLM", "nabla_options"]
