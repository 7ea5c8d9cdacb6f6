"""GGUF files of random Llamas, as llama.cpp's converter writes them: the truth is the model they are made of."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nabla_agents import LanguageModel
from nabla_agents.testing import random_model

F32, F16, Q8_0 = (gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "Q8_0"))
FILE_TYPES = {F32: 0, F16: 1, Q8_0: 7}
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|bye|>")
TOKENS = (*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ĠĠ", *CONTROL)
MERGES = (("h", "e"), ("Ġ", "Ġ"))
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}"
)
_NAMES = {
    "embed_tokens": "token_embd",
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "norm": "output_norm",
    "lm_head": "output",
}


def original(**shape: Any) -> LanguageModel:
    """A random Llama; its vocabulary of bytes has two merges and four tokens of its own."""
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate(TOKENS)}, list(MERGES)))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|bye|>", extra_special_tokens=list(CONTROL[:3]), chat_template=TEMPLATE
    )
    return random_model("llama", tokenizer=tokenizer, **shape)


def write(
    model: LanguageModel, file: Path, kind: gguf.GGMLQuantizationType = F32, *, without: str = "", **fields: Any
) -> Path:
    """The file of a model, its matrices of this kind; `without` leaves out a tensor, `fields` replace others."""
    module, config = model.transformer.module, model.transformer.config
    writer = gguf.GGUFWriter(file, fields.pop("architecture", "llama"))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(fields.pop("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in CONTROL else 1 for token in TOKENS])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_eos_token_id(fields.pop("eos", TOKENS.index("<|bye|>")))
    writer.add_add_bos_token(False)
    if template := fields.pop("template", TEMPLATE):
        writer.add_chat_template(template)
    for name, value in fields.items():
        writer.add_uint16(name.replace("__", "."), value)
    for name, weights in module.state_dict().items():
        stored = _stored(name, weights.numpy(), config)
        if stored[0] != without:
            _add(writer, *stored, kind if weights.dim() == 2 else F32)
    for finish in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        finish()
    writer.close()
    return file


def _stored(name: str, weights: np.ndarray, config: Any) -> tuple[str, np.ndarray]:
    """A tensor's name and numbers in a file: rotary halves lie interleaved there, as in llama.cpp's `permute`."""
    *_, part, kind = name.split(".")
    layer = name.split(".")[2] if ".layers." in name else None
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(part)
    if heads is not None:
        halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, weights.shape[1])
        weights = halves.swapaxes(1, 2).reshape(weights.shape)
    return f"{'' if layer is None else f'blk.{layer}.'}{_NAMES[part]}.{kind}", np.ascontiguousarray(weights)


def _add(writer: gguf.GGUFWriter, name: str, weights: np.ndarray, kind: gguf.GGMLQuantizationType) -> None:
    if kind == Q8_0:
        writer.add_tensor(name, gguf.quantize(weights, Q8_0), raw_dtype=Q8_0)
    else:
        writer.add_tensor(name, weights.astype(np.float16 if kind == F16 else np.float32))
