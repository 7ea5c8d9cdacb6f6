"""CausalModel: what writing completions and taking their gradients need of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from nabla_agents.chat.grammar import Grammar
from nabla_agents.models.constraint import Constraint
from nabla_agents.models.prefix_cache import PrefixCache
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.models.transformer import Transformer
from nabla_agents.types import Prompt, Usage


class CausalModel(Protocol):
    """A transformer with the head that makes logits of its hidden states. `LanguageModel` is one, and holds no state of
    a request.
    """

    transformer: Transformer
    tokenizer: Tokenizer
    eos_ids: frozenset[int]
    """The tokens that end a completion."""
    vocab_size: int
    """Rows of its embedding."""
    head_flops: float
    """Of the logits of one position."""

    def prefix(self, prompt: Prompt) -> PrefixCache | None:
        """Keys and values of a prompt, if it was read."""
        ...

    def head(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocab"]:
        """Logits of hidden states."""
        ...

    def log_probs(self, hidden: Float[Tensor, "time hidden"], tokens: Sequence[int]) -> Float[Tensor, "time"]:
        """log π of each token from the hidden state that predicts it."""
        ...

    def constraint(self, grammar: Grammar) -> Constraint:
        """The grammar compiled for its tokens, at the beginning of a completion."""
        ...

    def usage(self, *, prefill: int = 0, forward: int = 0, backward: int = 0, rows: int = 0) -> Usage:
        """The ledger entry of tokens that it computed, and of rows that its head did; prefill tokens are forward tokens
        too.
        """
        ...
