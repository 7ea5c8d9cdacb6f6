"""From the engine's results to LangChain's text generations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from nabla_agents import Result, Usage


def llm_result(groups: Sequence[Sequence[Result]], model: str) -> LLMResult:
    """One list of generations per prompt; each carries its own usage, and the result carries the sums."""
    results = [result for group in groups for result in group]
    usages = [token_usage(result) for result in results]
    return LLMResult(
        generations=[[Generation(text=r.text, generation_info=info(r)) for r in group] for group in groups],
        llm_output={
            "token_usage": {name: sum(usage[name] for usage in usages) for name in token_usage()},
            "model_name": model,
            "nabla": {"usage": sum((result.usage for result in results), Usage()).as_dict()},
        },
    )


def chunk(text: str, result: Result | None = None) -> GenerationChunk:
    """A piece of committed text; the last piece carries what is known about the whole result."""
    return GenerationChunk(text=text, generation_info=None if result is None else info(result))


def token_usage(result: Result | None = None) -> dict[str, int]:
    """Tokens of the prompt and of the returned completion; what the search discarded is in the ledger of `info`."""
    prompt, completion = (0, 0) if result is None else (result.prompt_tokens, len(result.token_ids))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def info(result: Result) -> dict[str, Any]:
    """Finish reason, tokens, and the search in a few numbers; native JSON types only."""
    return {
        "finish_reason": "length" if result.truncated else "stop",
        "token_usage": token_usage(result),
        "nabla": result.summary(),
    }


def best_first(results: Sequence[Result]) -> list[Result]:
    """Highest reward first, or highest likelihood where there is no reward; what could not be judged comes last."""

    def rank(result: Result) -> float:
        value = result.log_likelihood if result.score is None else result.score.value
        return -math.inf if math.isnan(value) else value

    return sorted(results, key=rank, reverse=True)
