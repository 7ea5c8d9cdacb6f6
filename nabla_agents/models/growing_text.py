"""The text of a completion as its tokens come."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.types import Rollout


class GrowingText:
    """What is certain of a text while it is written: whole characters, and nothing that a stop string may yet take
    back. Each token is decoded a few times, however long the text is.
    """

    def __init__(self, tokenizer: Tokenizer, eos_ids: Collection[int], stop: Sequence[str]) -> None:
        self._tokenizer, self._eos_ids, self._stop = tokenizer, eos_ids, stop
        self._lead = self._read = 0  # tokens that are decoded again for the spaces between, and those that were read
        self._written = ""
        self.text = ""
        """As far as it is certain."""

    def read(self, ids: Sequence[int]) -> bool:
        """Takes the completion's tokens so far; whether the text has grown."""
        count = len(ids) - (bool(ids) and ids[-1] in self._eos_ids)
        before = self._tokenizer.decode(ids[self._lead : self._read])
        now = self._tokenizer.decode(ids[self._lead : count])
        if not now.endswith("\ufffd") and now.startswith(before):
            self._written += now[len(before) :]
            self._lead, self._read = self._read, count
        before, self.text = self.text, self._certain()
        return self.text != before

    def _certain(self) -> str:
        """Ends before a stop string, and before what may become one."""
        text = self._written
        ends = [text.find(stop) for stop in self._stop if stop in text]
        return text[: min(ends)] if ends else without_half_a_stop(text, self._stop)


def text_of(tokenizer: Tokenizer, rollout: Rollout, tokens: int, stop: Sequence[str]) -> str:
    """Text of a rollout's first tokens: always a prefix of its text, cut before a half-written character and before
    what another continuation could complete to a stop string.
    """
    text = without_half_a_stop(tokenizer.decode(rollout.completion_ids[:tokens]).rstrip("\ufffd"), stop)
    while not rollout.text.startswith(text):
        text = text[:-1]
    return text


def without_half_a_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to what another continuation could complete to a stop string."""
    beginnings = (one[:length] for one in stop for length in range(1, len(one)))
    return text[: len(text) - max((len(b) for b in beginnings if text.endswith(b)), default=0)]
