"""A tokenizer with its chat template: text to ids and back, the place of each token, the identity of a vocabulary."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from nabla_agents.chat.delimiters import Delimiters
from nabla_agents.chat.dialects import Dialect
from nabla_agents.errors import ModelLoadError, PromptError
from nabla_agents.types import Message

_WINDOW = 32  # tokens that are decoded again to place the next one
_GAPS = ("\u200b", "\u2060", " ", ".")  # within a mark that is to be text: the first that the tokenizer does not drop


class Tokenizer:
    """A Hugging Face tokenizer that threads may share (fast tokenizers refuse concurrent use)."""

    def __init__(self, hf: PreTrainedTokenizerBase, *, name: str) -> None:
        self.hf, self.name = hf, name
        self._lock = threading.Lock()
        self._delimiters: Delimiters | None = None

    @property
    def eos_id(self) -> int | None:
        eos: Any = self.hf.eos_token_id
        return eos

    @property
    def bos(self) -> str:
        """Text of the beginning-of-sequence token; empty where there is none."""
        return str(self.hf.bos_token or "")

    @property
    def eos(self) -> str:
        """Text of the end-of-sequence token; empty where there is none."""
        return str(self.hf.eos_token or "")

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template, so that conversations can be rendered."""
        return bool(self.hf.chat_template)

    @property
    def knows_reasoning(self) -> bool:
        """Whether the chat template knows of reasoning, so that the model may think before it answers."""
        return self.dialect.thought[1] in str(self.hf.chat_template)

    @cached_property
    def dialect(self) -> Dialect:
        """How the model writes tool calls and reasoning, by its chat template."""
        return Dialect.of(str(self.hf.chat_template or ""))

    @property
    def knows_tools(self) -> bool:
        """Whether the chat template writes tools and their calls."""
        return "tools" in str(self.hf.chat_template)

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer itself begins every text with its beginning-of-sequence token."""
        with self._lock:
            return self.hf.bos_token_id is not None and list(self.hf("").input_ids)[:1] == [self.hf.bos_token_id]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the ordered vocabulary, special tokens included: equal fingerprints may exchange token ids."""
        items = sorted((i, t) for t, i in self.hf.get_vocab().items())
        return hashlib.sha256(repr(items).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of text in which special tokens are already written; none are added."""
        with self._lock:
            return list(self.hf.encode(text, add_special_tokens=False, verbose=False))

    def encode_located(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode`, and the character range of each token in `text`, without gaps.

        Raises:
            ModelLoadError: the tokenizer is not a fast one, which alone know where their tokens come from.
        """
        if not self.hf.is_fast:
            raise ModelLoadError(
                f"The tokenizer of {self.name} does not locate its tokens; expected a fast one (tokenizer.json)."
            )
        with self._lock:
            encoded = self.hf(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = list(encoded.input_ids), list(encoded.offset_mapping)
        # Some byte-level tokenizers leave the space before a word out of the word's range.
        begins = [0, *(end for _, end in offsets[:-1])]
        return ids, [(min(b, start), end) for b, (start, end) in zip(begins, offsets, strict=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, special tokens left out."""
        with self._lock:
            return str(self.hf.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_text(self, token: int) -> str:
        """One token for human eyes; special tokens are shown by name."""
        with self._lock:
            return str(self.hf.decode([token]))

    def token_offsets(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Character range of each token in `decode(ids)`, without gaps. A character split over tokens belongs to the
        last of them; one that is never completed, to the first.
        """
        text, ends = self.decode(ids), [0]
        first, lead, base = 0, "", 0  # text[:base] is what comes before ids[first], and that token, which reads `lead`
        for i in range(1, len(ids) + 1):
            written = self.decode(ids[first:i])[len(lead) :]
            whole = text.startswith(written, base)
            while not text.startswith(written, base):  # half a character decodes to one that does not stay
                written = written[:-1]
            ends.append(max(ends[-1], base + len(written)))
            if whole and i - first > _WINDOW and (own := self.decode(ids[i - 1 : i])) and "\ufffd" not in own:
                first, lead, base = i - 1, own, base + len(written)
        return list(pairwise(ends))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation in the model's own chat format.

        Special tokens that a message or a tool spells (`<|im_end|>`) are kept as text, by a zero-width space within,
        and so are other delimiters in what users and tools write (see `Delimiters`): else whoever writes a text
        could end its turn and write others.

        Raises:
            PromptError: there is no chat template, or it refuses the conversation.
        """
        unforged, tools = self.delimiters.messages(messages), self.delimiters.tools(tools)
        return self.written(unforged, tools=tools, add_generation_prompt=add_generation_prompt)

    def written(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """As `render`, of messages and tools in which no mark is forged: every mark in them counts as one.

        Raises:
            PromptError: there is no chat template, or it refuses the conversation.
        """
        if not self.hf.chat_template:
            raise PromptError(
                f"The tokenizer of {self.name} has no chat template, so a conversation cannot be rendered. Set "
                "tokenizer.chat_template, choose an instruction-tuned model, or pass the text with formatted=True."
            )
        try:
            return str(
                self.hf.apply_chat_template(
                    [m.as_template_input() for m in messages],
                    tools=list(tools) if tools else None,  # pyright: ignore[reportArgumentType]
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                )
            )
        except Exception as e:  # jinja raises its own errors, templates raise anything
            roles = ", ".join(m.role for m in messages)
            raise PromptError(f"The chat template of {self.name} refuses this conversation ({roles}): {e}") from e

    @property
    def delimiters(self) -> Delimiters:
        """The texts that only the chat template may write."""
        template = str(self.hf.chat_template or "")
        if self._delimiters is None or self._delimiters.template != template:  # a template may be set later
            texts = sorted(set(self.special_tokens.values()))
            tried = [Delimiters(texts, template, gap) for gap in _GAPS]
            self._delimiters = next((delimiters for delimiters in tried if self._keeps_out(delimiters)), tried[0])
        return self._delimiters

    def _keeps_out(self, delimiters: Delimiters) -> bool:
        """Whether no special token is read in what is left of their texts."""
        own = {i for i, text in self.special_tokens.items() if len(text) > 1}
        try:
            return not own & set(self.encode("\n".join(map(delimiters.within, delimiters.special))))
        except Exception:  # a tokenizer that refuses the characters will say so for the whole prompt
            return False

    @cached_property
    def special_tokens(self) -> dict[int, str]:
        """The tokens that `decode` leaves out, with the texts that `encode` reads as them."""
        added: dict[int, Any] = self.hf.added_tokens_decoder
        own = zip(self.hf.all_special_ids, self.hf.all_special_tokens, strict=True)
        return {i: str(token.content) for i, token in added.items() if token.special} | dict(own)
