"""What a model needs in memory: the formula, in bytes, from its sizes alone.

Each pass holds the weights, and beside them what its method says. R rows share a prompt of P tokens and have
completions of T tokens each; what was read of the prompt is kept once, and copied for each row. n = P - 1 + T places of
keys and values are held then. b are the bytes of a number: 4, or 2 in half precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM

from nabla_agents.functional import HEAD_CHUNK, NARROW
from nabla_agents.models.kv_cache import places
from nabla_agents.models.loading import Loading, chosen_dtype, precision
from nabla_agents.models.shape import Shape, bits_of

LIBRARIES: Final = 400_000_000  # bytes of a process that has loaded torch and transformers
_WIDE: Final = 4  # bytes of float32
_BLOCK: Final = 64  # weights of 4 bits that share a scale in float32, as in bitsandbytes' NF4
# Rows over the vocabulary [positions, vocab] in float32 that exist at a time, by what is done with them:
_SCORED: Final = 2  # log π of a token each
_DIFFERENTIATED: Final = 4  # the gradient of log π by the hidden states
_SAMPLED: Final = 6  # tokens drawn, by probabilities in float64; 9 with top-p
_REFINED: Final = 10  # logits, gradient, refined rows and what is computed of them


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model of this shape needs in this type; `headless` reward models make no logits. With `bits`, 4 or
    8, weights of its linear layers have so many, and one matrix at a time is unpacked.

    It is allocated memory: what the interpreter and libraries need comes on top (`LIBRARIES`), and so does what an
    allocator holds and has not given out. Matrices of attention scores are not held, as by PyTorch's fused attention.
    """

    shape: Shape
    dtype: torch.dtype = torch.float32
    headless: bool = False
    bits: int | None = None

    @classmethod
    def of(
        cls,
        name: str | Path,
        loading: Loading,
        *,
        tiny_path: Path,
        auto_class: Any = AutoModelForCausalLM,
        headless: bool = False,
    ) -> Footprint:
        """Of a model as `load` would load it, by its config or header alone.

        Raises:
            ModelLoadError: nothing of that name, or no decoder whose layers transformers names.
        """
        shape = Shape.of(name, loading, tiny_path=tiny_path, auto_class=auto_class)
        dtype = precision(chosen_dtype(loading))
        return cls(shape, dtype or shape.stored, headless, bits_of(loading.quantization_config) or shape.bits)

    @property
    def size(self) -> int:
        """b: the bytes of a number."""
        return self.dtype.itemsize

    @property
    def weights(self) -> int:
        """b · parameters; in half precision 4 · vocab · hidden more, for the output head in float32. A weight of few
        bits has these, and with 4 of them a 64th of a scale.
        """
        shape = self.shape
        head = 0 if self.headless or self.dtype not in NARROW else _WIDE * shape.vocab * shape.hidden
        if self.bits is None:
            return self.size * shape.parameters + head
        scales = _WIDE * shape.linear // _BLOCK if self.bits <= 4 else 0
        return self.size * (shape.parameters - shape.linear) + self.bits * shape.linear // 8 + scales + head

    @property
    def unpacked(self) -> int:
        """hidden · intermediate · b where weights have few bits: the largest matrix, as a pass multiplies by it."""
        return 0 if self.bits is None else self.shape.hidden * self.shape.intermediate * self.size

    def keys_and_values(self, tokens: int, *, places: int = 0) -> int:
        """Of one row: 2 · kv_heads · head_dim · b for each token and layer, or for each place where a layer has room
        for more; a layer with a sliding window w keeps w - 1 tokens.
        """
        held = sum(max(tokens, places) if w is None else min(tokens, w - 1) for w in self.shape.windows)
        return 2 * self.shape.kv_heads * self.shape.head_dim * self.size * held

    def room(self, known: int, tokens: int, *, step: int = 1) -> int:
        """Keys and values of a row that knows so many tokens and reads `tokens` more, `step` at a time, with the places
        that are kept ahead (`kv_cache.places`).
        """
        return self.keys_and_values(known + tokens, places=places(known, tokens, step=step))

    def decode(self, rows: int, prompt: int, tokens: int) -> int:
        """Keys and values of the prompt, and of n tokens of each row with room ahead; for each row 6 rows over the
        vocabulary, of which its token is drawn. Or, if that is more, one layer at work on the prompt, and what is held
        of it twice.
        """
        prefix, reading = self.keys_and_values(prompt - 1), self._at_work(1, prompt - 1)
        written = prefix + rows * self.room(prompt - 1, tokens) + self.vocabulary(rows, _SAMPLED)
        return max(written, prefix + self.room(prompt - 1, 0) + reading)

    def score(self, rows: int, prompt: int, tokens: int) -> int:
        """One forward over T tokens of each row: keys and values as in `decode`, and the larger of one layer at work
        and 2 rows over the vocabulary for each of 64 positions.
        """
        held = self.keys_and_values(prompt - 1) + rows * self.room(prompt - 1, tokens, step=tokens)
        final = 2 * rows * tokens * self.shape.hidden * self.size  # states
        return held + max(rows * self._at_work(prompt, tokens), final + self.vocabulary(rows * tokens, _SCORED))

    def gradient(self, rows: int, prompt: int, tokens: int, *, checkpointed: bool = False) -> int:
        """One forward and backward over T tokens of each row: the activations of all layers, and the largest of

        - keys and values of n tokens, at the end of the forward pass,
        - 4 rows over the vocabulary for each of 64 positions, at the output head,
        - 3 · intermediate · b for each token, as the backward pass begins.

        Checkpointed, layers leave their inputs (hidden · b for each token) and the keys and values from before and
        after the pass; the activations of one are there at a time.
        """
        shape, fed = self.shape, rows * tokens
        before, after = self.room(prompt - 1, 0), self.keys_and_values(prompt - 1 + tokens)
        layer, vocabulary = rows * self.activations(prompt, tokens), self.vocabulary(fed, _DIFFERENTIATED)
        head = 4 * fed * shape.hidden * self.size  # final states, their rows, and the gradients by both
        backward = 3 * fed * shape.intermediate * self.size
        kept = self.keys_and_values(prompt - 1) + head
        if checkpointed:
            inputs = shape.layers * fed * shape.hidden * self.size
            return kept + inputs + rows * (before + after) + max(vocabulary, layer + backward)
        cache = rows * after if shape.heads > shape.kv_heads else 0
        return kept + shape.layers * layer + max(cache, vocabulary, backward)

    def activations(self, prompt: int, tokens: int) -> int:
        """Of one layer and row, what the backward pass needs. For each of T tokens: what norms read, in float32;
        queries and what attention gives; three rows of the MLP; a row of the mask. For each of n places: keys and
        values, repeated for the queries that share them.
        """
        shape, held = self.shape, prompt - 1 + tokens
        attended = shape.heads * shape.head_dim
        token = _WIDE * (shape.normed + shape.heads) + self.size * (2 * attended + 3 * shape.intermediate + held)
        return tokens * token + 2 * held * attended * self.size

    def vocabulary(self, positions: int, rows: int = _REFINED) -> int:
        """Rows over the vocabulary in float32, of 64 positions at most at a time; 10 for each that is refined.
        None without an output head.
        """
        return 0 if self.headless else rows * min(positions, HEAD_CHUNK) * self.shape.vocab * _WIDE

    def _at_work(self, prompt: int, tokens: int) -> int:
        """What one layer needs of a row without gradient: its MLP or its attention."""
        shape, held = self.shape, prompt - 1 + tokens
        attended = shape.heads * shape.head_dim
        attention = tokens * (3 * attended + held) + 2 * held * attended
        return self.size * (2 * tokens * shape.hidden + max(3 * tokens * shape.intermediate, attention))


def peak(footprints: Sequence[Footprint], rows: int, prompt: int, tokens: int, *, checkpointed: bool = False) -> int:
    """The memory of a process that holds these models, the one that writes first: all weights, the largest pass of any
    of them, and libraries.
    """
    policy, *_ = footprints
    passes = [f.gradient(rows, prompt, tokens, checkpointed=checkpointed) for f in footprints]
    passes += [f.score(rows, prompt, tokens) for f in footprints]
    passes += [policy.decode(rows, prompt, tokens), policy.vocabulary(tokens)]
    return sum(f.weights for f in footprints) + max(f.unpacked for f in footprints) + max(passes) + LIBRARIES
