"""Trace: the steps of a search, and how a person sees them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nabla_agents.types import Step

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


class Trace(tuple[Step, ...]):
    """The steps of a search, in order, as a tuple that knows the question and shows itself.

    A notebook draws it as `to_html` does. Slices and sums are plain tuples.
    """

    question: str

    def __new__(cls, steps: Iterable[Step] = (), *, question: str = "") -> Trace:
        trace = super().__new__(cls, steps)
        trace.question = question
        return trace

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """In JSON a trace is the list of its steps."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls, handler.generate_schema(tuple[Step, ...]))

    def to_html(self, *, title: str = "Trace") -> str:
        """One self-contained page: the answer's tokens coloured by predicted gain, each change with what it promised
        and gave, curves, verdicts and the ledger. It has no script, and asks nothing of the network.

        What a model or a tool wrote is escaped: it is text, whatever it contains.
        """
        from nabla_agents.report import page

        return page(self, title=title, question=self.question)

    def _repr_html_(self) -> str:
        from nabla_agents.report import fragment

        return fragment(self, question=self.question)
