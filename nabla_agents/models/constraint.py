"""Constraint: a grammar compiled for one tokenizer, followed token by token."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nabla_agents.chat.grammar import Grammar
from nabla_agents.errors import ConfigurationError, GrammarError, to_install
from nabla_agents.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_OF_SCHEMA = "failed to compile JSON schema: "  # how llguidance begins what is wrong with a schema
_KEPT = 64  # compiled grammars of a model; an agent has a few
_KEPT_CHARACTERS = 256 * 1024  # of their sources: compiled they take about 120 bytes a character, and 0.5 MB each
_AHEAD = 8  # tokens
_QUOTES = ('"}}', '"}', '"')  # what brings JSON nearest to its end: within a string
_CLOSING = ("}}", "}", "]", *_QUOTES, "0")  # ... and elsewhere

Mask = np.ndarray[Any, np.dtype[np.bool_]]


class Constraint:
    """Where one completion is in its grammar. Used by one thread."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, closers: Sequence[Sequence[int]]) -> None:
        self._matcher, self._vocab_size, self._closers = matcher, vocab_size, closers
        self._closing, self._quotes, self._brackets = closers

    def take(self, ids: Sequence[int]) -> int:
        """Follows tokens; how many of them the grammar has."""
        taken = self._matcher.try_consume_tokens(list(ids))
        if self._matcher.is_error():
            raise GrammarError(
                "No text that ends keeps to the grammar, or it is too large to follow. A JSON schema that refers to "
                "itself must leave a way to stop: a property that is not required, an empty array, null in an anyOf."
            )
        return taken

    def check_ends(self) -> None:
        """Looks a few tokens ahead for a place from which nothing that ends leads on.

        Raises:
            GrammarError: it is there, as in a JSON schema that refers to itself without a way to stop.
        """
        ahead = self._copy()
        for _ in range(_AHEAD):
            ahead.take([int(ahead.mask().argmax())])
            if ahead.complete:
                return

    def can_end(self, room: int) -> bool:
        """Whether an end is reached within so many tokens where each is the one that closes most."""
        ahead = self._copy()
        for _ in range(room):
            mask = ahead.mask()
            closing = self._quotes if _free(mask) else self._closing
            ahead.take([next((token for token in closing if mask[token]), int(mask.argmax()))])
            if ahead.whole:
                return True
        return False

    @property
    def whole(self) -> bool:
        """Whether what was written may end here."""
        return self._matcher.is_accepting()

    @property
    def settled(self) -> bool:
        """Whether what was written may end here, or by one bracket, and is no text that goes on as it likes: a call has
        been ended.
        """
        return self.settles(self.mask())

    def settles(self, mask: Mask) -> bool:
        """As `settled`, for who has its mask already."""
        if _free(mask) or self.whole:
            return not _free(mask)
        for token in (token for token in self._brackets if mask[token]):
            ahead = self._copy()
            if ahead.take([token]) == 1 and ahead.whole:
                return True
        return False

    @property
    def complete(self) -> bool:
        """Whether nothing more can be written."""
        return self._matcher.is_stopped()

    def mask(self) -> Mask:
        """[vocab]: the tokens that may come next, those that end the completion included."""
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        bits = allocate_token_bitmask(1, self._vocab_size)
        fill_next_token_bitmask(self._matcher, bits)
        return np.unpackbits(bits.view(np.uint8), bitorder="little")[: self._vocab_size].astype(bool)

    def masks(self, guess: Sequence[int]) -> list[Mask]:
        """What may come next, and after each token of a guess as far as the grammar has it; stays where it was."""
        masks, taken = [self.mask()], 0
        for token in guess:
            try:
                if not masks[-1][token] or self.take([token]) == 0:
                    break
            except GrammarError:  # raised again where the token is written
                return masks
            taken += 1
            if self.complete:
                break
            masks.append(self.mask())
        if taken:
            self._matcher.rollback(taken)
        return masks

    def _copy(self) -> Constraint:
        return Constraint(self._matcher.deep_copy(), self._vocab_size, self._closers)


class Compiler:
    """Compiles grammars for one tokenizer and keeps what it compiled. Threads may share it.

    Raises:
        ConfigurationError: llguidance is not installed, or the tokenizer is not one that it reads.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._ll = _ll_tokenizer(tokenizer, vocab_size, eos_ids)
        self._closers = [_tokens(tokenizer, texts) for texts in (_CLOSING, _QUOTES, ("]",))]
        self._lock = threading.Lock()
        self._compiled: dict[Grammar, LLMatcher] = {}

    def start(self, grammar: Grammar) -> Constraint:
        """The grammar at the beginning of a completion.

        Raises:
            GrammarError: it does not compile.
        """
        with self._lock:
            matcher = self._compiled.pop(grammar, None)
        if matcher is None:
            matcher = self._compile(grammar)  # others need not wait for it
        with self._lock:
            self._compiled[grammar] = matcher  # the newest is last
            kept = sum(_size(other) for other in self._compiled)
            while len(self._compiled) > 1 and (len(self._compiled) > _KEPT or kept > _KEPT_CHARACTERS):
                oldest = next(iter(self._compiled))
                kept -= _size(oldest)
                del self._compiled[oldest]
            return Constraint(matcher.deep_copy(), self._vocab_size, self._closers)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        from llguidance import LLMatcher

        source = grammar.lark(self._own_token)
        matcher = LLMatcher(self._ll, source, log_level=0)
        if matcher.is_error():
            reason = re.split(r"\n +\d+ \|", re.sub(r"^at \d+\(\d+\): ", "", matcher.get_error()))[0].strip()
            if reason.startswith(_OF_SCHEMA):
                wrong = reason.removeprefix(_OF_SCHEMA)
                raise GrammarError(f"The JSON schema cannot be kept to: {wrong}. Correct it, or leave it out.")
            raise GrammarError(f"The grammar does not compile: {reason}. Its rule is {_short(grammar.body)}")
        return matcher

    def _own_token(self, marker: str) -> int | None:
        """The id of a marker that the tokenizer added as one token: llguidance sees no text in such."""
        ids = self._tokenizer.encode(marker)
        return ids[0] if len(ids) == 1 and self._ll.is_special_token(ids[0]) else None


def masked(logits: Float[Tensor, "batch vocab"], masks: Sequence[Mask | None]) -> Float[Tensor, "batch vocab"]:
    """Logits with what a row's grammar does not have at -inf; a row without a mask stays as it is."""
    if all(mask is None for mask in masks):
        return logits
    everything = np.ones(logits.shape[-1], dtype=bool)
    allowed = torch.from_numpy(np.stack([everything if mask is None else mask for mask in masks]))
    return torch.where(allowed.to(logits.device), logits, -torch.inf)


def _ll_tokenizer(tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> LLTokenizer:
    try:
        from llguidance.hf import from_tokenizer
    except ImportError as e:
        raise ConfigurationError(f"A grammar needs llguidance, which is not installed: {to_install('grammar')}.") from e
    if not eos_ids:
        raise ConfigurationError(f"{tokenizer.name} has no end-of-sequence token, with which a grammar could end.")
    try:
        return from_tokenizer(tokenizer.hf, n_vocab=vocab_size, eos_token=sorted(eos_ids))  # pyright: ignore[reportArgumentType]
    except Exception as e:  # llguidance raises anything for a tokenizer that it does not know
        raise ConfigurationError(
            f"The tokenizer of {tokenizer.name} cannot be constrained by a grammar ({e}); expected a fast byte-level "
            "or byte-fallback one."
        ) from e


def _tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Those of the texts that are one token, as such."""
    return [ids[0] for ids in map(tokenizer.encode, texts) if len(ids) == 1]


def _free(mask: Mask) -> bool:
    """Whether any text may come next, as within a string."""
    return bool(mask.mean() > 0.5)


def _size(grammar: Grammar) -> int:
    return len(grammar.body) + len(grammar.instead or "")


def _short(text: str, length: int = 300) -> str:
    return text if len(text) <= length else f"{text[:length]}..."
