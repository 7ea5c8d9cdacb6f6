"""RemoteModel: what an adapter asks of a model, answered by the server that has it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from nabla_agents.backends.http import HttpClient
from nabla_agents.chat.dialects import Dialect
from nabla_agents.errors import RemoteError
from nabla_agents.remote.received import Card, Tokens
from nabla_agents.serialization import TOKENS

_REMEMBERED: Final = 256  # texts whose token ids are kept


class RemoteTokenizer:
    """Token ids of texts and texts of tokens, by the server; what was asked or seen before is remembered.

    Everything that asks it raises `RemoteError` where the server gives no such ids.
    """

    def __init__(self, http: HttpClient, model: str, chat_template: str | None, vocab_size: int) -> None:
        self.has_template = bool(chat_template)
        self.dialect = Dialect.of(chat_template)
        self.knows_reasoning = self.dialect.thought[1] in (chat_template or "")
        self._http, self._model, self._vocab_size = http, model, vocab_size
        self._texts: dict[int, str] = {}
        self._lock = threading.Lock()
        self._encode = lru_cache(_REMEMBERED)(lambda text: tuple(self._tokens(text=text).ids))

    def encode(self, text: str) -> list[int]:
        return list(self._encode(text)) if text else []

    def token_text(self, token: int) -> str:
        if token not in self._texts:
            tokens = self._tokens(ids=[token])
            if tokens.ids != [token]:
                raise RemoteError(f"{self._http.url} was asked for token {token}, and answered {tokens.ids[:8]}.")
        return self._texts[token]

    def learn(self, ids: Sequence[int], texts: Sequence[str]) -> None:
        """Keeps the texts of tokens."""
        with self._lock:
            self._texts.update(zip(ids, texts, strict=True))

    def checked(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Ids that the server gave; each is of the vocabulary."""
        strange = next((token for token in ids if not 0 <= token < self._vocab_size), None)
        if strange is not None:
            raise RemoteError(f"{self._http.url} answered token {strange}; its model has {self._vocab_size} tokens.")
        return tuple(ids)

    def _tokens(self, **text_or_ids: Any) -> Tokens:
        answer = self._http.post(TOKENS, {"model": self._model, **text_or_ids})
        tokens = Tokens.read(answer, self._http.url)
        self.learn(self.checked(tokens.ids), tokens.texts)
        return tokens


class RemoteModel:
    """A served model: its name, its context in tokens, its tokenizer, and what the server offers with it."""

    def __init__(self, http: HttpClient, card: Card) -> None:
        offered = card.nabla
        self.name, self.context_length = card.id, card.max_model_len
        self.vocab_size = offered.vocab_size
        self.strategies, self.rewards = offered.strategies, offered.rewards
        self.budget = offered.limits()
        self.tokenizer = RemoteTokenizer(http, self.name, offered.chat_template, self.vocab_size)
