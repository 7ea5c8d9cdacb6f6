"""Strategies as JSON values, for LangChain's `dumps` and `loads`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import nabla_agents
from nabla_agents import ConfigurationError

_NAMES: Final = (
    *("Nabla", "NablaParallel", "Greedy", "BestOfN", "SelfConsistency", "Refine", "PowerSampling"),
    *("GradientDirection", "NoDirection", "RandomDirection", "FeedbackDirection", "PeerDirection"),
    *("AdamDTO", "MirrorDTO", "Refinable", "Sampling"),
)
"""What can be written: classes by their exported names. Nothing else is made of a text that is read."""


def written(part: Any) -> Any:
    """A strategy as `read` takes it: `kind`, and the settings that are not the usual ones.

    Raises:
        TypeError: it is one of your own, or has a part that is no setting, such as a model or a sum of directions.
    """
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, tuple):
        return [written(each) for each in part]
    kind = type(part)
    if kind.__name__ not in _NAMES or getattr(nabla_agents, kind.__name__) is not kind:
        raise TypeError(f"{part!r} cannot be written as JSON.")
    usual = kind.model_fields
    return {"kind": kind.__name__, **{n: written(value) for n, value in part if value != usual[n].get_default()}}


def read(data: Any) -> Any:
    """The strategy that was written; anything but a mapping as it is.

    Raises:
        ConfigurationError: an unknown kind, or a setting that it has not.
    """
    if not isinstance(data, Mapping):
        return data
    if (kind := data.get("kind")) not in _NAMES:
        raise ConfigurationError(f"A strategy's part is of kind {kind!r}; expected one of {', '.join(_NAMES)}.")
    return getattr(nabla_agents, str(kind))(**{name: read(value) for name, value in data.items() if name != "kind"})
