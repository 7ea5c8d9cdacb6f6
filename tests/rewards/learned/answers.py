"""What the tests of learned rewards share: tokenizers of several makes, and completions written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nabla_agents import FinishReason, LanguageModel, Message, Rollout
from nabla_agents.testing import byte_tokenizer

CONVERSATION = [
    Message("system", "Be brief."),
    Message("user", "hi"),
    Message("assistant", "yes"),
    Message("user", "2?"),
]


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def by_one_hot(module: Any, ids: Sequence[int], value: Callable[[Tensor], Tensor]) -> Tensor:
    """∂ value(embeddings [1, time, hidden]) / ∂ one-hot rows of every id [time, vocab], by autograd."""
    table = module.get_input_embeddings().weight
    rows = torch.nn.functional.one_hot(torch.tensor(ids), len(table)).double().requires_grad_()
    return torch.autograd.grad(value((rows @ table)[None]), rows)[0]


def completed(
    model: LanguageModel,
    answer: str | Sequence[int],
    question: str | Sequence[Message] = "ab",
    *,
    ended: bool = True,
) -> Rollout:
    """An answer in the model's tokens, closed by its end-of-sequence token or cut by the length."""
    tokenizer = model.tokenizer
    ids = tuple(tokenizer.encode(answer) if isinstance(answer, str) else answer)
    assert tokenizer.eos_id is not None
    return Rollout(
        model.prompt(question),
        (*ids, tokenizer.eos_id) if ended else ids,
        answer if isinstance(answer, str) else tokenizer.decode(ids),
        finish_reason=FinishReason.STOP if ended else FinishReason.LENGTH,
    )


def bytes_with_bos(*, adds: bool = False, writes: bool = False) -> PreTrainedTokenizerFast:
    """Bytes, and a beginning-of-sequence token: added by the tokenizer, written by the template, or by a text only."""
    hf = byte_tokenizer()
    hf.add_special_tokens({"bos_token": "<bos>"})
    if adds:
        special = [("<bos>", int(hf.bos_token_id or 0))]
        hf.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=special)
    hf.chat_template = "<bos>" * writes + str(hf.chat_template)
    return hf


def separated() -> PreTrainedTokenizerFast:
    """Bytes, and the special separator of Qwen's process reward models."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<extra_0>"]}, replace_extra_special_tokens=False)
    return tokenizer


def sentence_piece(
    characters: str, merges: Sequence[tuple[str, str]], *, prepend: bool = False, strip: bool = False
) -> PreTrainedTokenizerFast:
    """As Llama and Mistral tokenise: `▁` for a space, merges, and bytes for what has no token of its own.

    `prepend`: texts begin with a `▁`; `strip`: what is decoded begins without its space.
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *characters, *map("".join, merges)]
    raw = RawTokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [*merges], byte_fallback=True, unk_token="<unk>")
    )
    raw.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁")] * prepend + [normalizers.Replace(" ", "▁")]  # type: ignore[list-item]
    )
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *[decoders.Strip(" ", 1, 0)] * strip]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def shepherd_tokenizer() -> PreTrainedTokenizerFast:
    """Math-Shepherd's way: its tags are tokens after a space."""
    characters = "▁abcdefghijklmnopqrstuvwxyzFHIST0123456789.,=?+-\nки"
    merges = [("к", "и"), ("▁", "ки"), ("▁", "+"), ("▁", "-"), ("i", "s"), ("▁", "is"), ("o", "r"), ("▁", "or")]
    return sentence_piece(characters, merges, prepend=True, strip=True)
