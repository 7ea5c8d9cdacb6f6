"""Two vocabularies: which tokens of a language model are one token of a reward model too."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nabla_agents.models.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Alignment:
    """The reward model's token for each of the language model's.

    `counterparts` [vocab] is -1 where there is none; None altogether means that the vocabularies are the same.
    `share` of the language model's tokens have a counterpart.
    """

    counterparts: Tensor | None = None
    share: float = 1.0

    @staticmethod
    def between(policy: Tokenizer, reward: Tokenizer, vocab_size: int) -> Alignment:
        """Tokens are matched by their exact bytes, special ones by their name, and the two ends of sequence.

        `vocab_size` is the number of rows of the language model's embedding, which may exceed its tokenizer. A token
        that several tokens of the reward model could stand for has no counterpart.
        """
        if policy.fingerprint == reward.fingerprint:
            return Alignment()
        theirs, ours = _by_content(token_contents(reward.hf)), token_contents(policy.hf)
        counterparts = [theirs.get(ours[i], -1) if i in ours else -1 for i in range(vocab_size)]
        if policy.eos_id is not None and reward.eos_id is not None and counterparts[policy.eos_id] < 0:
            counterparts[policy.eos_id] = reward.eos_id
        share = sum(i >= 0 for i in counterparts) / max(len(policy.hf.get_vocab()), 1)
        return Alignment(torch.tensor(counterparts), share)

    def counterpart(self, token: int) -> int:
        """The reward model's token for one of the language model's, -1 where there is none."""
        return token if self.counterparts is None else int(self.counterparts[token])


Content = bytes | tuple[str, str]  # bytes of a plain token; a special token's name, which no text equals


def token_contents(hf: PreTrainedTokenizerBase) -> dict[int, Content]:
    """What each token of a tokenizer stands for; tokens of unknown make are left out."""
    added: Mapping[int, Any] = getattr(hf, "added_tokens_decoder", {})
    plain = _reader(hf)
    contents: dict[int, Content] = {}
    for token, i in hf.get_vocab().items():
        if i in added:
            name = str(added[i].content)
            contents[i] = ("special", name) if added[i].special else name.encode()
        elif plain is not None and (content := plain(token)) is not None:
            contents[i] = content
    return contents


def _by_content(contents: Mapping[int, Content]) -> dict[Content, int]:
    counts = Counter(contents.values())
    return {content: i for i, content in contents.items() if counts[content] == 1}


def _reader(hf: PreTrainedTokenizerBase) -> Callable[[str], bytes | None] | None:
    """How the written form of a plain token gives its bytes, by the tokenizer's decoder; None where that is unknown."""
    backend: Any = getattr(hf, "backend_tokenizer", None)
    if backend is None:
        return None
    state: Any = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {"type": "Fuse"}
    kinds = {d["type"] for d in state.get("decoders", [state])}
    if "ByteLevel" in kinds:
        table = _byte_level()
        return lambda token: bytes(table[c] for c in token) if all(c in table for c in token) else None
    if kinds & {"Metaspace", "ByteFallback", "Replace"}:
        vocabulary = hf.get_vocab()
        return lambda token: _sentence_piece(token, vocabulary)
    return str.encode if kinds == {"Fuse"} else None


def _sentence_piece(token: str, vocabulary: Mapping[str, int]) -> bytes | None:
    """`▁` is a space, and `<0x41>` a byte, unless the character has a token of its own."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        byte = bytes([int(token[3:5], 16)])
        return None if byte.decode("latin-1").replace(" ", "▁") in vocabulary and byte < b"\x80" else byte
    return token.replace("▁", " ").encode()


def _byte_level() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for (the alphabet of GPT-2)."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    printable = [b for b in range(256) if chr(b) in alphabet]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
