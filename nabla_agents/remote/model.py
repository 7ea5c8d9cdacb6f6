"""RemoteModel: what an adapter asks of a model, answered by the server that has it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from nabla_agents.backends.http import HttpClient
from nabla_agents.chat.dialects import Dialect
from nabla_agents.wire import TOKENS

_REMEMBERED: Final = 256  # texts whose token ids are kept


class RemoteTokenizer:
    """Token ids of texts and texts of tokens, by the server; what was asked or seen before is remembered."""

    def __init__(self, http: HttpClient, model: str, chat_template: str | None) -> None:
        self.has_template = bool(chat_template)
        self.dialect = Dialect.of(chat_template)
        self.knows_reasoning = self.dialect.thought[1] in (chat_template or "")
        self._http, self._model = http, model
        self._texts: dict[int, str] = {}
        self._lock = threading.Lock()
        self._encode = lru_cache(_REMEMBERED)(lambda text: tuple(self._tokens(text=text)["ids"]))

    def encode(self, text: str) -> list[int]:
        return list(self._encode(text)) if text else []

    def token_text(self, token: int) -> str:
        if token not in self._texts:
            self._tokens(ids=[token])
        return self._texts[token]

    def learn(self, ids: Sequence[int], texts: Sequence[str]) -> None:
        """Keeps the texts of tokens."""
        with self._lock:
            self._texts.update(zip(ids, texts, strict=True))

    def _tokens(self, **text_or_ids: Any) -> dict[str, Any]:
        tokens = self._http.post(TOKENS, {"model": self._model, **text_or_ids})
        self.learn(tokens["ids"], tokens["texts"])
        return tokens


class RemoteModel:
    """A served model: its name, its context in tokens, its tokenizer, and what the server offers with it."""

    def __init__(self, http: HttpClient, card: dict[str, Any]) -> None:
        offered = card["nabla"]
        self.name, self.context_length = str(card["id"]), int(card["max_model_len"])
        self.vocab_size = int(offered["vocab_size"])
        self.strategies, self.rewards = list(offered["strategies"]), list(offered["rewards"])
        self.budget: dict[str, Any] = offered["budget"]
        self.tokenizer = RemoteTokenizer(http, self.name, offered["chat_template"])
