"""What a request may change of a strategy: a closed list of settings for each kind, strictly typed, each with a cap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from nabla_agents.registry import replaced
from nabla_agents.search import (
    BestOfN,
    Greedy,
    Nabla,
    NablaParallel,
    PowerSampling,
    Refine,
    SelfConsistency,
    Strategy,
)
from nabla_agents.search.nabla_parallel import Rank
from nabla_agents.search.pool import AcceptanceRule
from nabla_agents.serialization import Body
from nabla_agents.serve.errors import Refusal, dotted, invalid

_PARAM: Final = "nabla.strategy"

Completions = Annotated[int, Field(ge=1)]
"""Its cap is the server's `max_rollouts`, or the key's."""
Temperature = Annotated[float, Field(ge=0, le=2)]
Nats = Annotated[float, Field(ge=-1000, le=1000)]
Weight = Annotated[float, Field(ge=0, le=1000)]
Share = Annotated[float, Field(gt=0, le=1)]


class MirrorChanges(Body):
    beta: Weight = 1.0
    kl_budget: Annotated[float, Field(gt=0, le=1000)] | None = None


class AdamChanges(Body):
    steps: Annotated[int, Field(ge=1, le=100)] = 20
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.01
    final_learning_rate: Annotated[float, Field(ge=0, le=10)] = 0.001
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    stop_on_flip: bool = True


class RefinableChanges(Body):
    min_entropy: Annotated[float, Field(ge=0, le=1000)] | None = None
    max_probability: Share | None = None


class ResampleChanges(Body):
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None


class NablaChanges(Body):
    direction: Literal["gradient", "random", "none", "feedback", "peer", "gradient+feedback", "gradient+peer"] = (
        "gradient"
    )
    dto: MirrorChanges | AdamChanges = MirrorChanges()
    refinable: RefinableChanges = RefinableChanges()
    min_promise: Nats = 0.0
    resample: ResampleChanges | None = None
    temperature: Temperature = 0.0
    acceptance: AcceptanceRule = "objective"
    plausibility_floor: Weight | None = None
    outcome_weight: Weight = 0.0
    stop_when_verified: bool = True
    confirm: Nats | None = None
    openings: Completions = 1
    opening_temperature: Temperature = 0.0
    reopen: bool = True


class NablaParallelChanges(NablaChanges):
    width: Completions = 1
    alternatives: Annotated[int, Field(ge=1, le=100)] = 1
    rank: Rank = "promise"


class GreedyChanges(Body):
    rule: AcceptanceRule = "objective"


class BestOfNChanges(Body):
    n: Completions = 1
    temperature: Temperature = 0.0
    width: Completions | None = None
    rule: AcceptanceRule = "reward"


class SelfConsistencyChanges(Body):
    n: Completions = 1
    temperature: Temperature = 0.0
    weighting: Literal["majority", "reward"] = "majority"
    rule: AcceptanceRule = "objective"


class RefineChanges(Body):
    n: Completions = 1
    temperature: Temperature = 0.0
    keep: bool = False
    rule: AcceptanceRule = "objective"


class PowerSamplingChanges(Body):
    alpha: Annotated[float, Field(ge=0.5, le=100)] = 1.0
    blocks: Completions = 1
    moves: Annotated[int, Field(ge=0, le=10_000)] = 0
    rule: AcceptanceRule = "objective"


CHANGEABLE: Final[Mapping[type, type[Body]]] = {
    Nabla: NablaChanges,
    NablaParallel: NablaParallelChanges,
    Greedy: GreedyChanges,
    BestOfN: BestOfNChanges,
    SelfConsistency: SelfConsistencyChanges,
    Refine: RefineChanges,
    PowerSampling: PowerSamplingChanges,
}
"""Of a kind that is not here, and is no subclass of one that is, nothing can be changed. Only what a request names is
changed; defaults here say nothing."""


def changed(name: str, strategy: Strategy, changes: Mapping[str, Any], *, most_rollouts: int) -> Strategy:
    """The strategy of this name with what a request changes of it.

    Raises:
        Refusal: a setting that is not on the list, of another type, or beyond its cap; it names those on the list.
    """
    if not changes:
        return strategy
    kind = next((CHANGEABLE[one] for one in type(strategy).__mro__ if one in CHANGEABLE), None)
    if kind is None:
        raise invalid(f"The strategy {name!r} has no settings that a request may change.", _PARAM)
    try:
        body = kind.model_validate(dict(changes))
    except ValidationError as e:
        raise _refusal(name, kind, e) from e
    for setting in ("n", "openings", "width", "blocks", "moves"):
        if setting in changes and (count := getattr(body, setting)) > most_rollouts:
            message = f"{setting} of the strategy is {count}; at most {most_rollouts}."
            raise invalid(message, _PARAM, code="budget_above_cap")
    return replaced(strategy, body.model_dump(exclude_unset=True))


def _refusal(name: str, kind: type[Body], error: ValidationError) -> Refusal:
    problem = max(error.errors(include_url=False, include_input=False), key=lambda p: len(p["loc"]))
    place = dotted([part for part in problem["loc"] if not str(part).endswith("Changes")])
    unknown = problem["type"] == "extra_forbidden"
    wrong = "cannot be changed by a request" if unknown else problem["msg"]
    message = f"{place[:100]} of the strategy {name!r}: {wrong}. These can be changed: {', '.join(kind.model_fields)}."
    return invalid(message, _PARAM)
