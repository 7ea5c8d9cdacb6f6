"""What a search adds to what was handed out: to the text (StreamedText), and to the reply (StreamedReply)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from nabla_agents.chat.dialects import HERMES, Dialect
from nabla_agents.chat.reply import Reply
from nabla_agents.chat.tool_calls import function
from nabla_agents.errors import NablaError
from nabla_agents.types import Prompt, Step


class StreamedText:
    """The text handed out so far, and what each step adds to it."""

    def __init__(self) -> None:
        self.text = ""

    def added_by(self, step: Step) -> str:
        """What this step adds to the committed text; may be empty.

        Raises:
            NablaError: the strategy took back text that it had committed.
        """
        return self.added(step.committed_text)

    def added(self, text: str) -> str:
        """As `added_by`, of the text itself."""
        if not text.startswith(self.text):
            raise NablaError(f"The strategy took back committed text: {self.text!r} became {text!r}.")
        added, self.text = text[len(self.text) :], text
        return added


class StreamedReply:
    """The reply handed out so far, and what a longer text adds to it: reasoning, content, and whole tool calls."""

    def __init__(
        self,
        prompt: Prompt,
        seed: int,
        *,
        tools: bool | Sequence[Mapping[str, Any]] | None,
        dialect: Dialect = HERMES,
    ) -> None:
        """`tools` are those that were offered, in OpenAI's form, or whether some were."""
        self.reply = Reply("")
        self._source = f"{prompt.text}\n{seed}"
        names = tools if isinstance(tools, bool) else [str(function(tool).get("name")) for tool in tools or ()]
        self._dialect = dialect
        self._reading: dict[str, Any] = {
            "tools": names,
            "thinking": Reply.opens_thinking(prompt.text, dialect),
            "dialect": dialect,
        }

    def read(self, text: str) -> Reply:
        """The reply of a whole text, whatever was handed out."""
        return Reply.read(text, **self._reading)

    def grown(self, text: str) -> Reply:
        """What a longer text adds, as far as it is certain; may be empty."""
        return self._added(Reply.read(text, partial=True, **self._reading))

    def ended(self, text: str) -> Reply:
        """What the whole text adds: also what was held back until it was complete; may be empty."""
        return self._added(self.read(text))

    def call_id(self, index: int) -> str:
        """The name of a call by its place in the reply: the same on every path, and another one in another turn."""
        name = uuid.uuid5(uuid.NAMESPACE_OID, self._source + str(index)).hex
        return name[: self._dialect.call_id] if self._dialect.call_id else f"call_{name}"

    def _added(self, reply: Reply) -> Reply:
        before, self.reply = self.reply, reply
        return Reply(
            reply.content[len(before.content) :],
            reply.reasoning[len(before.reasoning) :],
            reply.tool_calls[len(before.tool_calls) :],
        )
