"""From the scores of single steps to one value for the whole answer; every way is differentiable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from nabla_agents.config import Settings
from nabla_agents.errors import RewardError

AggregationName = Literal["min", "mean", "product", "last", "log-product", "geometric", "soft-min"]
Aggregation = AggregationName | Callable[[Tensor], Tensor]  # of log p [steps] in nats to one number


class SoftMin(Settings):
    """Σ p_i · softmax(-p / temperature)_i: the minimum at temperature 0⁺, the mean at ∞, always between the two.

    Unlike the minimum it has a gradient at every step. Temperature is in units of probability. The weights are those
    of PURE's min-form credit assignment (Cheng et al. 2025, arXiv 2504.15275).
    """

    temperature: Annotated[float, Field(gt=0)] = 0.1

    def __call__(self, log_p: Float[Tensor, "steps"]) -> Float[Tensor, ""]:
        p = log_p.exp()
        return (p * (-p / self.temperature).softmax(-1)).sum()


AGGREGATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "min": lambda log_p: log_p.min().exp(),  # Math-Shepherd §3.4
    "mean": lambda log_p: log_p.exp().mean(),
    "product": lambda log_p: log_p.sum().exp(),  # Lightman et al. 2023; favours short answers
    "last": lambda log_p: log_p[-1].exp(),  # Snell et al. 2024, App. E
    "log-product": lambda log_p: log_p.sum(),  # in nats, ≤ 0: as the product, without its underflow
    "geometric": lambda log_p: log_p.mean().exp(),  # the product without its bias to short answers
    "soft-min": SoftMin(),
}


def aggregation(which: Aggregation) -> Callable[[Tensor], Tensor]:
    """The function of a name, or the one given, whose result is checked to be one number."""
    if isinstance(which, str):
        return AGGREGATIONS[which]

    def checked(log_p: Float[Tensor, "steps"]) -> Float[Tensor, ""]:
        value = which(log_p)
        if not isinstance(value, Tensor) or value.dim():
            raise RewardError(
                f"The aggregation {which!r} returned {value!r}; expected a tensor with one number, computed by torch "
                "from the log-probabilities [steps]."
            )
        return value

    return checked
