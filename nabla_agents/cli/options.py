"""Options: how `solve`, `serve` and `mcp` are told of models, and the engine that they make of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import nabla_agents as na
from nabla_agents.errors import ConfigurationError
from nabla_agents.registry import Term, own_reward, reward_of, terms_of

TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code of the model's own.")]
Dtype = Annotated[str | None, typer.Option(help="bfloat16, for example, or fastest.", show_default=False)]
Compile = Annotated[bool, typer.Option("--compile", help="Decode by torch.compile, which takes a minute to begin.")]
DeviceMap = Annotated[str | None, typer.Option(help="Needs accelerate.", show_default=False)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit.", show_default=False)]
Offer = Annotated[
    list[str] | None,
    typer.Option(help="A further reward that may be chosen by this name; may be repeated.", show_default=False),
]


def loading_of(**options: Any) -> dict[str, Any]:
    """What is said of loading; what is not said is left to the library."""
    return {name: value for name, value in options.items() if value}


def terms_for(model: str, reward: str | None) -> list[Term]:
    """The terms of the named reward; of the model's own, if it has one, where none is named."""
    return terms_of(own_reward(model) if reward is None else reward)


def engine_of(
    model: str,
    terms: list[Term],
    *,
    loading: dict[str, Any],
    revision: str | None,
    compile: bool = False,
    **options: Any,
) -> na.Engine:
    """An engine with this model and the reward of these terms; `revision` and `compile` are the model's alone."""
    only_the_models = loading_of(revision=revision, compile=compile)
    loaded = na.LanguageModel.from_pretrained(model, **loading, **only_the_models)
    return na.Engine(model=loaded, reward=reward_of(terms, loading), **options)


def offered_reward(terms: list[Term], loading: dict[str, Any], name: str) -> na.Reward:
    """The reward of these terms.

    Raises:
        ConfigurationError: `none`, which is nothing to offer.
    """
    reward = reward_of(terms, loading)
    if reward is None:
        raise ConfigurationError(f"--offer {name!r} is no reward; expected for example --offer arithmetic.")
    return reward
