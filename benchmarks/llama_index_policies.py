"""What a LlamaIndex query costs by response mode and refinement policy, on the embedded model.

    python benchmarks/llama_index_policies.py [--chunks 12] [--rollouts 4] [--context 832]

One query over synthetic text chunks, all of which are retrieved, so that every mode makes its calls. The embedded model
writes no sense about them: what is counted are model calls, how many of them were refined, rollouts, tokens read by the
language model, and seconds, which do not depend on sense. The likelihood of the embedded model is the objective, with
its process reward.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from llama_index.core import MockEmbedding, VectorStoreIndex, set_global_tokenizer
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.response_synthesizers import CompactAndRefine, get_response_synthesizer
from llama_index.core.schema import TextNode
from llama_index_instrumentation import get_dispatcher
from pydantic import Field
from rich.console import Console
from rich.table import Table

from llama_index.llms.nabla import NablaLLM
from nabla_agents import Budget, Engine

MODES, POLICIES = ("compact", "refine", "tree_summarize"), ("always", "final_only", "on_failure", "never")


class Ledger(BaseEventHandler):
    """Searches that ended, with what they spent."""

    refined: list[bool] = Field(default_factory=list)
    spent: list[Any] = Field(default_factory=list)

    def handle(self, event: Any, **_: Any) -> None:
        if type(event).__name__ == "NablaRefineStartEvent":
            self.refined.append(event.refined)
        if type(event).__name__ == "NablaRefineEndEvent":
            self.spent.append(event.summary["usage"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=12)
    parser.add_argument("--words", type=int, default=60, help="words of a chunk")
    parser.add_argument("--rollouts", type=int, default=4, help="budget of a refined call")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--context", type=int, default=832, help="tokens of prompt and answer together")
    given = parser.parse_args()

    engine = Engine.tiny(budget=Budget(rollouts=given.rollouts))
    llm = NablaLLM(engine=engine, max_tokens=given.max_tokens, context_window=given.context)
    set_global_tokenizer(llm.tokenizer_fn)
    pens = given.words // 7
    texts = [" ".join(f"Pen {p} of farm {i} has {i + p} hens." for p in range(pens)) for i in range(given.chunks)]
    nodes = [TextNode(text=text, id_=str(i)) for i, text in enumerate(texts)]
    index = VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=8))
    ledger = Ledger()
    get_dispatcher().add_event_handler(ledger)

    title = f"{given.chunks} chunks, {given.rollouts} rollouts a refined call, context {given.context}"
    title += f", {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"
    table = Table("mode", "policy", "calls", "refined", "rollouts", "forward tokens", "seconds", title=title)
    llm.complete("warm up", refine_policy="never")
    for mode in MODES:
        for policy in POLICIES:
            ledger.refined.clear()
            ledger.spent.clear()
            seconds = query(index, llm.with_options(refine_policy=policy), mode, given.chunks)
            sums = [sum(usage[name] for usage in ledger.spent) for name in ("rollouts", "lm_forward_tokens")]
            row = (len(ledger.spent), sum(ledger.refined), *sums)
            table.add_row(mode, policy, *map(str, row), f"{seconds:.1f}")
    Console(width=100).print(table)


def query(index: VectorStoreIndex, llm: NablaLLM, mode: str, chunks: int) -> float:
    """Seconds of one query."""
    synthesizer: Any = get_response_synthesizer(llm=llm, response_mode=mode)  # type: ignore[arg-type]
    if isinstance(synthesizer, CompactAndRefine):
        synthesizer._response_padding_size = 50  # the default, 500, is for long contexts
    started = time.perf_counter()
    index.as_query_engine(llm=llm, response_synthesizer=synthesizer, similarity_top_k=chunks).query("How many hens?")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
