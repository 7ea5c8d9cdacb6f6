"""log π of tokens that a server did not sample, read by the local model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.memory import in_halves
from nabla_agents.models.rows import RolloutJob
from nabla_agents.types import Rollout, Usage


@dataclass(frozen=True, eq=False)
class _Read:
    log_probs: Tensor
    usage: Usage


def read(
    model: LanguageModel, wanted: Sequence[tuple[RolloutJob, tuple[int, ...], int]]
) -> list[tuple[Float[Tensor, "time"], Usage]]:
    """log π of `ids[start:]` for each (job, ids, start), in nats, and the cost: one forward over what the job's cache
    does not hold; in halves where memory is short.
    """
    if not wanted:
        return []
    rollouts = [Rollout(job.prompt, ids, "") for job, ids, _ in wanted]
    starts, caches = [start for *_, start in wanted], [job.cache for job, *_ in wanted]

    def states(*columns: Sequence[Any]) -> list[_Read]:
        found = model.likelihood_gradient(columns[0], columns[1], columns[2], embedding_terms=False)
        return [
            _Read(model.log_probs(f.carrier.hidden, r.completion_ids[start:]).double().cpu(), f.usage)
            for f, r, start in zip(found, columns[0], columns[1], strict=True)
        ]

    return [(r.log_probs, r.usage) for r in in_halves(states, rollouts, starts, caches)]
