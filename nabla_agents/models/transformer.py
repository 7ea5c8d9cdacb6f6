"""A frozen Hugging Face decoder: embeddings in, hidden states out, with prompt KV reuse and ragged batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from nabla_agents.errors import ModelLoadError
from nabla_agents.models.checkpointing import is_checkpointed
from nabla_agents.models.cores import keep_to_quota
from nabla_agents.models.grouping import by_length
from nabla_agents.models.kv_cache import GrowingLayer, cache_argument, growing_cache
from nabla_agents.models.prefix_cache import PrefixCache, PrefixCaches
from nabla_agents.types import Prompt

_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
_LONGEST = 1 << 17  # tokens, for models that know no limit


@dataclass(eq=False)
class Context:
    """What a batch has read so far. `mask` [batch, time] is False on padding; `padded` says whether there is any."""

    cache: DynamicCache
    mask: Bool[Tensor, "batch time"]
    lengths: Int[Tensor, "batch"]
    padded: bool = False

    def select(self, rows: Sequence[int]) -> None:
        """Keeps only these rows of the batch, in this order."""
        index = torch.tensor(rows, device=self.mask.device)
        layer: Any
        for layer in self.cache.layers:
            if isinstance(layer, GrowingLayer):
                layer.select(rows)
            else:
                layer.batch_select_indices(index)
        self.mask, self.lengths = self.mask[index], self.lengths[index]

    def keep(self, kept: Sequence[int], newest: int) -> None:
        """Of the `newest` places read last, each row keeps its first `kept`; what no row keeps is freed."""
        counts, before = torch.tensor(kept, device=self.mask.device), self.mask.shape[1] - newest
        self.lengths = self.lengths - self.mask[:, before:].sum(1) + counts
        recent = torch.arange(max(kept), device=self.mask.device) < counts[:, None]
        self.mask = torch.cat([self.mask[:, :before], recent], dim=1)
        if max(kept) < newest:
            self.cache.crop(max(kept) - newest)
        self.padded = self.padded or min(kept) < max(kept)


class Transformer:
    """The body of a causal model with its weights frozen. Threads may share it: what it keeps belongs to one prompt.

    Raises:
        ModelLoadError: the architecture has no plain key/value cache or no linear input embedding.
    """

    def __init__(self, module: PreTrainedModel) -> None:
        keep_to_quota()
        self.module = module.eval().requires_grad_(False)
        self.body: Any = module.base_model
        self.embedding: Any = module.get_input_embeddings()
        self._cache_argument = cache_argument(self.body)
        self.recomputes = is_checkpointed(module)
        self.matrix_parameters = _matrix_parameters(self.body)
        self.config: Any = module.config.get_text_config(decoder=True)
        self.embedding_scale = self._embedding_scale()
        self.prefixes = PrefixCaches()
        windows = [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=self.config).layers]
        self.sliding_window: int | None = min((int(w) for w in windows if w), default=None)
        if not all(hasattr(layer, "keys") for layer in DynamicCache(config=self.config).layers):
            raise ModelLoadError(
                f"{type(module).__name__} keeps a recurrent state; the engine expects attention layers with a "
                "key/value cache. Choose a transformer decoder."
            )

    @property
    def context_length(self) -> int:
        """Tokens that the model can read, by its config; 131,072 where that names no limit."""
        known = (getattr(self.config, name, None) for name in _LENGTHS)
        return next((length for length in known if isinstance(length, int) and length > 0), _LONGEST)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def flops(self, *, forward: int, backward: int) -> float:
        """2·N per token forward and 2·N more per token backward, for which checkpointed layers run once more; N are the
        parameters of the body's matrices.
        """
        return 2.0 * self.matrix_parameters * (forward + backward * (2 if self.recomputes else 1))

    def within_window(self, tokens: int) -> bool:
        """Whether no layer's sliding window is shorter than this context."""
        return self.sliding_window is None or tokens <= self.sliding_window

    def embed(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time hidden"]:
        return self.embedding(ids)

    def embedding_scores(self, vectors: Float[Tensor, "n hidden"]) -> Float[Tensor, "n vocab"]:
        """<vector, embedding of v> for every token v, as the forward pass embeds it (scaling included)."""
        weight = self.embedding.weight
        return self.embedding_scale * (vectors.to(weight.dtype) @ weight.T)

    @property
    def score_flops(self) -> float:
        """Of `embedding_scores` for one vector."""
        return 2.0 * self.embedding.weight.numel()

    def prefill(self, rows: Sequence[Sequence[int]]) -> list[tuple[PrefixCache, int]]:
        """Reads known tokens once, rows of like length in one pass: keys and values of each row, and the tokens that
        were computed for it; none where it has none.
        """
        return by_length([len(row) for row in rows], self._prefilled, rows)

    @torch.no_grad()
    def _prefilled(self, rows: Sequence[Sequence[int]]) -> list[tuple[PrefixCache, int]]:
        context, hidden = self.read(rows, [None] * len(rows), total_tokens=max(map(len, rows)))
        caches = [
            PrefixCache(tuple(row), tuple(_held(layer, i, len(row)) for layer in context.cache.layers) if row else ())
            for i, row in enumerate(rows)
        ]
        return [(cache, hidden.shape[1]) for cache in caches]

    def read_prompts(
        self, prompts: Sequence[Prompt], heads: Sequence[Sequence[int]], *, longest: int
    ) -> tuple[list[PrefixCache | None], list[int]]:
        """Keys and values of what this model reads of each prompt, and the tokens that each row pays for them.

        They are kept for as long as the `Prompt` object is in use, so that a request reads its prompt once. None where
        a text of `longest` tokens is beyond a sliding window, or the head is empty.
        """
        if not self.within_window(longest):
            return [None] * len(prompts), [0] * len(prompts)
        missing: dict[int, int] = {}
        for i, (prompt, head) in enumerate(zip(prompts, heads, strict=True)):
            if head and self.prefixes.get(prompt, head) is None:
                missing.setdefault(id(prompt), i)
        paid = [0] * len(prompts)
        made = self.prefill([heads[i] for i in missing.values()]) if missing else []
        for i, (cache, tokens) in zip(missing.values(), made, strict=True):
            self.prefixes.keep(prompts[i], cache)
            paid[i] = tokens
        return [self.prefixes.get(p, h) if h else None for p, h in zip(prompts, heads, strict=True)], paid

    @torch.no_grad()
    def read(
        self, rows: Sequence[Sequence[int]], caches: Sequence[PrefixCache | None], *, total_tokens: int
    ) -> tuple[Context, Float[Tensor, "batch time hidden"]]:
        """Feeds each row's tokens, left-padded, skipping what its cache already holds.

        Returns the context and the hidden states of the tokens fed, right-aligned. `total_tokens` is the longest
        length the context will reach: beyond a sliding window, cached prefixes of ragged rows cannot be joined
        exactly, and the rows are read from their start.
        """
        fits = self.within_window(total_tokens)
        known = [
            c if c is not None and fits and c.ids == tuple(row[: len(c.ids)]) else None
            for c, row in zip(caches, rows, strict=True)
        ]
        context = self._joined(known)
        rest = [list(row[len(c.ids) if c else 0 :]) for c, row in zip(known, rows, strict=True)]
        width = max(map(len, rest))
        if width == 0:
            return context, self.embedding.weight.new_zeros(len(rows), 0, self.embedding.weight.shape[1])
        ids = torch.tensor([[0] * (width - len(r)) + r for r in rest], device=self.device)
        ragged = any(len(r) < width for r in rest)
        mask = torch.tensor([[False] * (width - len(r)) + [True] * len(r) for r in rest], device=self.device)
        return context, self.extend(context, ids=ids, mask=mask if ragged else None)

    def continued(
        self,
        known: Sequence[Sequence[int]],
        rest: Sequence[Sequence[int]],
        caches: Sequence[PrefixCache | None],
        *,
        needs_grad: bool,
    ) -> tuple[
        Float[Tensor, "batch read hidden"], Float[Tensor, "batch fed hidden"], Float[Tensor, "batch fed hidden"]
    ]:
        """Reads what is known of each row without gradient, as `read`, and then the rest.

        Returns the hidden states of what was known, right-aligned, those of the rest, right-padded, and the embeddings
        that these came from, which carry gradient if one is needed.
        """
        width = max(map(len, rest))
        context, before = self.read(known, caches, total_tokens=max(map(len, known)) + width)
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rest], device=self.device)
        ragged = any(len(row) < width for row in rest)
        mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rest], device=self.device)
        embeddings = self.embed(ids).detach().requires_grad_(needs_grad)
        with torch.set_grad_enabled(needs_grad):
            hidden = self.extend(context, embeddings=embeddings, mask=mask if ragged else None)
        return before, hidden, embeddings

    def extend(
        self,
        context: Context,
        *,
        ids: Int[Tensor, "batch time"] | None = None,
        embeddings: Float[Tensor, "batch time hidden"] | None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time hidden"]:
        """Reads further tokens, given as ids or as embeddings, and returns their hidden states.

        The context grows in place. `mask` is False on padding; None says that there is none.
        """
        batch, time = (ids if ids is not None else embeddings).shape[:2]  # type: ignore[union-attr]
        context.padded = context.padded or mask is not None
        if mask is None:
            mask = torch.ones(batch, time, dtype=torch.bool, device=self.device)
        positions = (context.lengths[:, None] + mask.cumsum(1) - 1).clamp_min(0)
        context.mask = torch.cat([context.mask, mask], dim=1)
        context.lengths = context.lengths + mask.sum(1)
        output = self.body(
            input_ids=ids,
            inputs_embeds=embeddings,
            attention_mask=context.mask if context.padded else None,
            position_ids=positions,
            use_cache=True,
            **{self._cache_argument: context.cache},
        )
        return output.last_hidden_state

    def joined(self, contexts: Sequence[Context]) -> Context:
        """One batch of several, left-padded to the longest, without places that are padding in every row. Requires that
        all of it fits into a sliding window, if there is one. One host sync for each context.
        """
        begins = [int(c.mask.any(0).long().argmax()) for c in contexts]
        width = max(c.mask.shape[1] - first for c, first in zip(contexts, begins, strict=True))
        joined = self.empty_context(0)
        layers: Any
        for i, layers in enumerate(zip(*(c.cache.layers for c in contexts), strict=True)):
            keys, values = (
                torch.cat([_left_padded(t[:, :, first:], width) for t, first in zip(parts, begins, strict=True)])
                for parts in ([layer.keys for layer in layers], [layer.values for layer in layers])
            )
            joined.cache.update(keys, values, i)
        masks = [c.mask[:, first:] for c, first in zip(contexts, begins, strict=True)]
        joined.mask = torch.cat([nn.functional.pad(m, (width - m.shape[1], 0)) for m in masks])
        joined.lengths = torch.cat([c.lengths for c in contexts])
        joined.padded = any(c.padded for c in contexts) or any(m.shape[1] < width for m in masks)
        return joined

    def empty_context(self, batch: int) -> Context:
        return Context(
            growing_cache(self.config),
            torch.zeros(batch, 0, dtype=torch.bool, device=self.device),
            torch.zeros(batch, dtype=torch.long, device=self.device),
        )

    def _joined(self, caches: Sequence[PrefixCache | None]) -> Context:
        """One context from per-row caches, left-padded with zeros to the longest."""
        lengths = [len(c.ids) if c else 0 for c in caches]
        context, longest = self.empty_context(len(caches)), max(lengths)
        template = next((c for c in caches if c and c.layers), None)
        if template is None:
            return context
        for layer, (keys, values) in enumerate(template.layers):
            if all(c is template for c in caches):
                joined = [t.expand(len(caches), -1, -1, -1) for t in (keys, values)]
            else:
                joined = [
                    torch.cat(
                        [
                            _left_padded(c.layers[layer][part] if c and c.layers else like[:, :, :0], longest)
                            for c in caches
                        ]
                    )
                    for part, like in enumerate((keys, values))
                ]
            context.cache.update(joined[0], joined[1], layer)
        context.lengths = torch.tensor(lengths, device=self.device)
        context.mask = torch.arange(longest, device=self.device) >= longest - context.lengths[:, None]
        context.padded = min(lengths) < longest
        return context

    @torch.no_grad()
    def _embedding_scale(self) -> float:
        """The factor between embedding rows and what the embedding layer returns (Gemma-3 scales inside it)."""
        weight, ids = self.embedding.weight, torch.arange(min(8, self.embedding.num_embeddings), device=self.device)
        returned, rows = self.embedding(ids).double(), weight[ids].double()
        scale = float((returned * rows).sum() / (rows * rows).sum().clamp_min(1e-30))
        if not torch.allclose(returned, scale * rows, rtol=2e-2, atol=1e-6):
            raise ModelLoadError(
                f"{type(self.module).__name__} does not embed tokens linearly, so the objective has no gradient with "
                "respect to tokens. Choose a model with a plain (or constantly scaled) input embedding."
            )
        return scale


def _matrix_parameters(body: nn.Module) -> int:
    """What each token is multiplied with: not norms and biases, nor embeddings, which are looked up. Of a mixture of
    experts, all of them. Quantised layers have other shapes, but still know their sizes.
    """
    count = 0
    for module in body.modules():
        if isinstance(width := getattr(module, "in_features", None), int):
            count += width * int(module.out_features)  # type: ignore[arg-type]
        elif not isinstance(module, nn.Embedding):
            count += sum(p.numel() for p in module.parameters(recurse=False) if p.dim() > 1)
    return count


def _held(layer: Any, row: int, length: int) -> tuple[Tensor, Tensor]:
    """A copy of the keys and values of a row's last tokens, which lets go of those of other rows."""
    return layer.keys[row : row + 1, :, -length:].clone(), layer.values[row : row + 1, :, -length:].clone()


def _left_padded(x: Float[Tensor, "one heads time dim"], length: int) -> Float[Tensor, "one heads length dim"]:
    return nn.functional.pad(x, (0, 0, length - x.shape[2], 0))
