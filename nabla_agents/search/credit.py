"""Outcome verdicts as credit: the leave-one-out policy gradient over the prefix tree of scored rollouts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from nabla_agents.types import Rollout, Score

Credit = dict[int, dict[int, float]]
"""{position of the completion: {token: nats}}."""


def outcome_credit(ids: Sequence[int], start: int, judged: Iterable[tuple[Rollout, Score | None]]) -> Credit:
    """c_t(v) = mean_k A_k (1[y_t^k = v] - π(v)) at every node of `ids` from position `start` on.

    k runs over the n ≥ 2 rollouts that share the prefix before t and go on, and A_k = r_k - mean_{j≠k} r_j. The
    advantages of a node sum to zero, so the term in π vanishes, and only tokens that were tried have credit. r is the
    tools' verdict; what no tool judged is left out. If the rollouts were drawn from the model, the mean is the
    gradient of the expected verdict with respect to the logits of the node. Costs no rollout and no model pass.
    """
    verdicts = [
        (r.completion_ids, s.verdict) for r, s in judged if s is not None and s.judged and s.verdict is not None
    ]
    through = [(other, verdict) for other, verdict in verdicts if list(other[:start]) == list(ids[:start])]
    credit: Credit = {}
    for position in range(start, len(ids)):
        through = [(other, verdict) for other, verdict in through if len(other) > position]
        if len(through) < 2:
            break
        row = _leave_one_out([(other[position], verdict) for other, verdict in through])
        if row:
            credit[position] = row
        through = [(other, verdict) for other, verdict in through if other[position] == ids[position]]
    return credit


def _leave_one_out(tried: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Mean advantage per token; empty where all verdicts are equal, or all tokens are."""
    n, total = len(tried), sum(verdict for _, verdict in tried)
    row: defaultdict[int, float] = defaultdict(float)
    for token, verdict in tried:
        row[token] += (verdict - (total - verdict) / (n - 1)) / n
    return {token: nats for token, nats in row.items() if nats} if len(row) > 1 else {}
