"""`nabla mcp`: refined answers as tools of the Model Context Protocol."""

from __future__ import annotations

import os
from typing import Annotated

import typer

import nabla_agents as na
from nabla_agents.cli.app import app, command, spinner, terminal
from nabla_agents.cli.options import (
    Compile,
    DeviceMap,
    Dtype,
    Offer,
    Revision,
    TrustRemoteCode,
    engine_of,
    loading_of,
    offered_reward,
    terms_for,
)
from nabla_agents.registry import STRATEGIES, known, terms_of


@app.command()
@command
def mcp(
    transport: Annotated[str, typer.Option(help="`stdio`, for one client, or `http`, for many, at /mcp.")] = "stdio",
    host: Annotated[
        str, typer.Option(help="Of `http`. Elsewhere than on loopback NABLA_MCP_KEY is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of `http`.")] = 8001,
    model: Annotated[str, typer.Option(help="`tiny` (embedded), a folder, a GGUF file or a hub id.")] = "tiny",
    reward: Annotated[str | None, typer.Option(help="What judges, as in `nabla solve`.", show_default=False)] = None,
    offer: Offer = None,
    strategy: Annotated[str, typer.Option(help=f"Unless a call chooses: one of {', '.join(STRATEGIES)}.")] = "nabla",
    rollouts: Annotated[int, typer.Option(help="Completions per call, unless it asks for another number.")] = 8,
    max_rollouts: Annotated[int, typer.Option(min=1, help="The most that a call may ask for.")] = 64,
    concurrent: Annotated[int, typer.Option(min=1, help="Calls that run at the same time.")] = 8,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    compile: Compile = False,
    revision: Revision = None,
) -> None:
    """Offer `solve` and `verify` as tools to any MCP client. Without --offer, a call may choose `arithmetic`."""
    known({"stdio": None, "http": None}, transport, "transport")
    make_strategy = known(STRATEGIES, strategy, "strategy")
    terms = terms_for(model, reward)
    offered = {name: terms_of(name) for name in (["arithmetic"] if offer is None else offer)}
    budget = na.Budget(rollouts=rollouts)
    loading = loading_of(trust_remote_code=trust_remote_code, dtype=dtype, device_map=device_map)
    with spinner(f"Loading {model}"):
        from nabla_agents.serve import mcp as serving

        keys = [key] if (key := os.environ.get("NABLA_MCP_KEY")) else []
        if transport == "http":
            serving.check_keys(host, keys)
        engine = engine_of(
            model,
            terms,
            loading=loading,
            revision=revision,
            compile=compile,
            strategy=make_strategy(rollouts),
            budget=budget,
        )
        tools = serving.NablaTools(
            engine,
            rewards={name: offered_reward(each, loading, name) for name, each in offered.items()},
            strategies={name: make(rollouts) for name, make in STRATEGIES.items()},
            max_rollouts=max_rollouts,
            concurrent=concurrent,
        )
    if transport == "stdio":
        serving.run_stdio(tools)
    else:
        terminal(stderr=True).print(f"MCP at http://{host}:{port}/mcp", highlight=False)
        serving.run_http(tools, host=host, port=port, keys=keys)
