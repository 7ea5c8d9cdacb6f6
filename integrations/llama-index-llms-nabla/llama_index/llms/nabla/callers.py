"""Who asks: the LlamaIndex components around a model call, as its spans tell them."""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.base_selector import BaseSelector
from llama_index.core.chat_engine import CondensePlusContextChatEngine, CondenseQuestionChatEngine
from llama_index.core.indices.query.query_transform.base import BaseQueryTransform
from llama_index.core.instrumentation.span import BaseSpan, active_span_id
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import FLAREInstructQueryEngine, MultiStepQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen.types import BaseQuestionGenerator
from llama_index.core.response_synthesizers import Accumulate, Refine, TreeSummarize
from llama_index.core.response_synthesizers.base import BaseSynthesizer
from llama_index.core.schema import TransformComponent
from llama_index_instrumentation import get_dispatcher

_HELPERS: Final = (
    BaseNodePostprocessor,
    BaseQueryTransform,
    BaseQuestionGenerator,
    BaseRetriever,
    BaseSelector,
    TransformComponent,
)
_ASK_OTHERS: Final = (FLAREInstructQueryEngine, MultiStepQueryEngine, SubQuestionQueryEngine)
_CONDENSE: Final = (CondensePlusContextChatEngine, CondenseQuestionChatEngine)
_WORDS: Final = 4  # of a chunk that tell its end from its other parts
_MOST: Final = 4096  # open spans that are kept; a span that its owner never closes is forgotten in time


@dataclass(frozen=True, eq=False)
class Caller:
    """An open span: the component whose method runs, the texts that it was given to read, and its caller's span."""

    id: str
    instance: Any
    parent: str | None
    chunks: tuple[str, ...] | None = None


class _Callers(BaseSpanHandler[BaseSpan]):
    """Keeps the open spans, so that a call can ask who is around it."""

    def span_enter(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any = None,
        parent_id: str | None = None,
        tags: Any = None,
        **kwargs: Any,
    ) -> None:
        chunks = bound_args.arguments.get("text_chunks") if isinstance(instance, BaseSynthesizer) else None
        read = None if chunks is None else tuple(map(str, chunks))
        with _lock:
            _open[id_] = Caller(id_, instance, parent_id, read)
            while len(_open) > _MOST:
                _open.popitem(last=False)

    def span_exit(self, id_: str, *args: Any, **kwargs: Any) -> None:
        with _lock:
            closed = _open.pop(id_, None)
        if closed is not None and closed.parent is None:
            for forget in on_trace_end:
                forget(id_)

    def span_drop(self, id_: str, *args: Any, **kwargs: Any) -> None:
        self.span_exit(id_)

    def new_span(self, id_: str, *args: Any, **kwargs: Any) -> None: ...

    def prepare_to_exit_span(self, id_: str, *args: Any, **kwargs: Any) -> None: ...

    def prepare_to_drop_span(self, id_: str, *args: Any, **kwargs: Any) -> None: ...


_lock = threading.Lock()
_open: OrderedDict[str, Caller] = OrderedDict()
on_trace_end: list[Callable[[str], object]] = []
get_dispatcher().add_span_handler(_Callers())


def callers() -> list[Caller]:
    """The components around this place, the nearest first."""
    found: list[Caller] = []
    with _lock:
        at = _open.get(active_span_id.get() or "")
        while at is not None:
            found.append(at)
            at = _open.get(at.parent or "")
    return found


def is_open(trace: str) -> bool:
    """Whether a span has not ended yet."""
    with _lock:
        return trace in _open


def is_final(text: str, around: Sequence[Caller]) -> bool:
    """Whether a call that reads `text` gives an answer that the user sees, as far as its callers tell.

    It does not within selectors, rerankers, retrievers, question generators, query transforms and node transformations,
    for a question that a chat engine condenses, for the answer to a sub-question, and where a synthesizer goes on from
    it: for `refine` and `compact` the call that reads the last chunk is final, for the others the one that reads all.
    """
    synthesizer: Any = None
    engine: Any = None
    for caller in around:
        asks = caller.instance
        if isinstance(asks, _HELPERS):
            return False
        if isinstance(asks, _ASK_OTHERS) and engine not in (None, asks):
            return False
        if isinstance(asks, _CONDENSE) and synthesizer is None:
            return False
        if isinstance(asks, BaseSynthesizer) and synthesizer is None and caller.chunks is not None:
            synthesizer = asks
            if not _reads_enough(asks, caller.chunks, text):
                return False
        if isinstance(asks, BaseQueryEngine) and engine is None:
            engine = asks
    return True


def _reads_enough(synthesizer: BaseSynthesizer, chunks: Sequence[str], text: str) -> bool:
    if isinstance(synthesizer, Refine):
        return not chunks or _end_of(chunks[-1]) in " ".join(text.split())
    if isinstance(synthesizer, TreeSummarize | Accumulate):
        return all(chunk.strip() in text for chunk in chunks)
    return True


def _end_of(chunk: str) -> str:
    """The last words of a text: where it does not fit into one prompt, the last call reads these alone of it."""
    return " ".join(chunk.split()[-_WORDS:])
