"""What a model's memory depends on, read from its config or the header of its file: no weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from nabla_agents.errors import ModelLoadError
from nabla_agents.models.gguf_copy import own_dtype, require_packages
from nabla_agents.models.gguf_header import GgufHeader
from nabla_agents.models.gguf_unpacking import refuse_unknown
from nabla_agents.models.loading import Loading, attempt, located

# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and what transformers calls the same
_FIELDS: Final = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, and the type in which its checkpoint has the weights. `parameters` has tied weights once.

    `normed` are the numbers of a token that a layer's norms read; `intermediate` those of a row of one matrix of its
    MLP, for a mixture those of all experts that a token goes through; `windows` has for each layer how many tokens it
    attends to, None where that is all. `linear` are the parameters of linear layers within the decoder's, which
    quantised weights have in fewer bits; `bits` is how many a quantised checkpoint says it has.
    """

    parameters: int
    vocab: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    normed: int
    windows: tuple[int | None, ...]
    stored: torch.dtype = torch.float32
    linear: int = 0
    bits: int | None = None

    @property
    def layers(self) -> int:
        return len(self.windows)

    @classmethod
    def of(
        cls, name: str | Path, loading: Loading, *, tiny_path: Path, auto_class: Any = AutoModelForCausalLM
    ) -> Shape:
        """Of a hub id, a folder, a GGUF file or `tiny`, as `load` understands them.

        Raises:
            ModelLoadError: nothing of that name, or no decoder whose layers transformers names.
        """
        path, file, common = located(name, loading, tiny_path=tiny_path)
        if file is not None:
            require_packages()
            header = GgufHeader.read(file)
            refuse_unknown(file, header)
            return attempt(name, "header", partial(cls.of_header, header))
        config = attempt(name, "config", lambda: AutoConfig.from_pretrained(path, **common))
        return attempt(name, "config", lambda: cls.of_config(config, auto_class=auto_class))

    @classmethod
    def of_header(cls, header: GgufHeader) -> Shape:
        """Of a GGUF file, whose header counts the parameters."""
        fields = {name: header.fields.get(f"{header.architecture}.{field}") for field, name in _FIELDS.items()}
        sizes = {name: size for name, size in fields.items() if size is not None}
        config = AutoConfig.for_model(
            _model_type(header.architecture), vocab_size=header.fields["tokenizer.ggml.tokens"], **sizes
        )
        return replace(cls.of_config(config), parameters=header.weights, stored=own_dtype(header))

    @classmethod
    def of_config(cls, config: Any, *, auto_class: Any = AutoModelForCausalLM) -> Shape:
        """Of a model that is made of a config without weights, on torch's `meta` device.

        Raises:
            ModelLoadError: transformers names no layers of this architecture, or they keep a recurrent state.
        """
        with torch.device("meta"):
            module = auto_class.from_config(config)
        text: Any = config.get_text_config(decoder=True)
        layers = [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]
        caches = DynamicCache(config=text).layers
        if not layers or not all(hasattr(cache, "keys") for cache in caches):
            raise ModelLoadError(
                f"{type(module).__name__} has no attention layers that transformers names, by which its memory could "
                "be computed. Choose a transformer decoder."
            )
        heads = int(text.num_attention_heads)
        kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
        head_dim = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
        width = getattr(text, "moe_intermediate_size", None) or getattr(text, "intermediate_size", None)
        return cls(
            parameters=sum(p.numel() for p in module.parameters()),
            vocab=int(module.get_input_embeddings().weight.shape[0]),
            hidden=int(text.hidden_size),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=int(width or 4 * text.hidden_size) * int(getattr(text, "num_experts_per_tok", None) or 1),
            normed=_normed(layers[0], {"q": heads * head_dim, "k": kv_heads * head_dim}),
            windows=tuple(getattr(cache, "sliding_window", None) for cache in caches),
            stored=getattr(config, "dtype", None) or torch.float32,
            linear=sum(m.weight.numel() for layer in layers for m in layer.modules() if isinstance(m, torch.nn.Linear)),
            bits=bits_of(getattr(config, "quantization_config", None)),
        )


def bits_of(quantization: Any) -> int | None:
    """The bits of a weight by transformers' `quantization_config`, an object or a mapping; None where it is none, or
    does not say.
    """
    given = quantization if isinstance(quantization, Mapping) else getattr(quantization, "__dict__", {})
    named = 4 * bool(given.get("load_in_4bit", given.get("_load_in_4bit")))
    named = named or 8 * bool(given.get("load_in_8bit", given.get("_load_in_8bit")))
    return int(given.get("bits") or named) or None


def _normed(layer: torch.nn.Module, projected: Mapping[str, int]) -> int:
    """Numbers of a token that the norms of a layer read; those of queries and keys read all heads'."""
    norms = [name.rpartition(".")[2] for name, m in layer.named_modules() if "norm" in type(m).__name__.lower()]
    hidden = next(m.in_features for m in layer.modules() if isinstance(m, torch.nn.Linear))
    return sum(projected.get(name[0] if name[1:2] == "_" else "", hidden) for name in norms)


def _model_type(architecture: str) -> str:
    """What transformers calls the text model of an architecture of llama.cpp."""
    plain = {name.replace("_", ""): name for name in CONFIG_MAPPING}
    name = plain.get(architecture.replace("-", "").replace("_", ""), architecture)
    return f"{name}_text" if f"{name}_text" in CONFIG_MAPPING else name
