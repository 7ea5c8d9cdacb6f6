"""What tells one engine, reward or strategy from another, for cache keys and traces."""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType
from typing import Any

_FOREIGN = ("torch", "transformers", "tokenizers")


def described(part: Any, depth: int = 8) -> Any:
    """A part by its class and settings, as JSON values; equal for equal settings, without memory addresses.

    Models are told apart by name or path. A part that changes while it works changes its description, and so misses
    the cache rather than be served another's answer.
    """
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, Mapping):
        return {str(k): described(v, depth - 1) for k, v in part.items()}
    if isinstance(part, list | tuple):
        return [described(v, depth - 1) for v in part]
    if isinstance(part, type | FunctionType):
        return f"{part.__module__}.{part.__qualname__}"
    kind = f"{type(part).__module__}.{type(part).__qualname__}"
    if kind == "nabla_agents.models.language_model.LanguageModel":
        return {"kind": kind, "name": str(getattr(part, "name", ""))}
    if kind.startswith(_FOREIGN):
        return {"kind": kind, "name": str(getattr(part, "name_or_path", ""))}
    if hasattr(part, "__dict__"):
        settings = vars(part) if depth > 0 else {}
        return {"kind": kind, **{name: described(value, depth - 1) for name, value in settings.items()}}
    text = repr(part)
    return {"kind": kind} if " at 0x" in text else text


def described_engine(engine: Any) -> dict[str, Any]:
    """An engine by its model, objective, strategy and budget; one on a server by where that is."""
    if hasattr(engine, "base_url"):
        parts = {name: described(getattr(engine, name)) for name in ("reward", "strategy", "budget")}
        return {"base_url": engine.base_url, "model": engine.model.name, **parts}
    objective = engine.objective
    return {
        "model": described(engine.model),
        "reward": described(objective.reward),
        "likelihood_weight": objective.likelihood_weight,
        "embedding_terms": objective.embedding_terms,
        "strategy": described(engine.strategy),
        "budget": described(engine.budget),
    }
