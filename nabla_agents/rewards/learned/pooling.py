"""From the log-ratios of single tokens to one value for the whole answer."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from nabla_agents.models.contrast import Contrast
from nabla_agents.models.gradients import GradientRows, PositiveRows

Pooling = Literal["sum", "mean", "positive"]
POOLINGS: tuple[Pooling, ...] = ("sum", "mean", "positive")


def pooled(contrast: Float[Tensor, "time"], how: Pooling) -> float:
    """sum: the log-ratio of the answers, which grows with their length. mean: per token, so that a long answer has no
    advantage. positive: the sum of what is above 0, where every token that is not worse is no loss.
    """
    if how == "positive":
        return float(contrast.clamp_min(0).sum())
    return float(contrast.sum()) / (max(1, len(contrast)) if how == "mean" else 1)


def pooled_rows(contrast: Contrast, time: int, how: Pooling) -> GradientRows:
    """The gradient of `pooled` with respect to the one-hot rows of a completion of so many tokens.

    positive: of the linear extension, whose difference between two tokens is exact for the place itself; it has no
    term through embeddings.
    """
    if how == "positive":
        return PositiveRows(contrast)
    return contrast if how == "sum" else Contrast(contrast.first, contrast.second, contrast.beta / max(1, time))
