"""`nabla serve` and `nabla serve-key`: refined answers behind OpenAI's API, and keys for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import nabla_agents as na
from nabla_agents.cli.app import app, command, spinner
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
from nabla_agents.errors import ConfigurationError
from nabla_agents.registry import STRATEGIES, known, terms_of


@app.command()
@command
def serve(
    model: Annotated[
        list[str] | None, typer.Option(help="`tiny` (embedded), a folder, a GGUF file or a hub id; may be repeated.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen.  [default: 127.0.0.1]", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free one.  [default: 8000]", show_default=False)] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="What answers are judged by, as for `solve`. Default: tiny for the tiny model, else none."),
    ] = None,
    offer: Offer = None,
    strategy: Annotated[str, typer.Option(help=f"Unless a request names another: {', '.join(STRATEGIES)}.")] = "nabla",
    rollouts: Annotated[int, typer.Option(help="Completions per answer, unless a request says otherwise.")] = 8,
    upstream: Annotated[
        str | None,
        typer.Option(
            help="Another server, as http://127.0.0.1:8080/v1: it answers, and what asks for it is refined here.",
            show_default=False,
        ),
    ] = None,
    upstream_key: Annotated[
        str | None, typer.Option(help="The environment variable with its API key.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file of server settings: keys, limits, caps.", show_default=False)
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    compile: Compile = False,
    revision: Revision = None,
) -> None:
    """Serve refined answers behind OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models.

    Further settings come from --config and from the environment, as NABLA_SERVE_MAX_CONCURRENT=32. On an address that
    other machines reach it needs API keys, from `nabla serve-key`. Ctrl-C and SIGTERM let running answers end.
    """
    from nabla_agents import serve as serving

    if upstream_key is not None and not os.environ.get(upstream_key):
        raise ConfigurationError(
            f"--upstream-key {upstream_key!r} is no environment variable with a key: export one, and give its name."
        )
    key = None if upstream_key is None else os.environ[upstream_key]
    options = {"host": host, "port": port, "upstream": upstream, "upstream_key": key}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    settings = serving.ServeSettings.read(config, **given)
    models = model or ["tiny"]
    make_strategy = known(STRATEGIES, strategy, "strategy")
    offered = {name: terms_of(name) for name in offer or []}
    terms = {name: terms_for(name, reward) for name in models}
    loading = loading_of(trust_remote_code=trust_remote_code, dtype=dtype, device_map=device_map)
    with spinner(f"Loading {', '.join(models)}"):
        engines = {
            name: engine_of(
                name,
                terms[name],
                loading=loading,
                revision=revision,
                compile=compile,
                strategy=make_strategy(rollouts),
                budget=na.Budget(rollouts=rollouts),
            )
            for name in models
        }
        strategies = {name: make(rollouts) for name, make in STRATEGIES.items()}
        rewards = {name: offered_reward(of, loading, name) for name, of in offered.items()}
        application = serving.create_app(engines, settings, rewards=rewards, strategies=strategies)
    serving.serve(application, settings)


@app.command("serve-key")
@command
def serve_key(
    name: Annotated[str, typer.Argument(help="Whose key it is, for logs and metrics.", show_default=False)],
    days: Annotated[int | None, typer.Option(min=1, help="Until it expires.", show_default=False)] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, show_default=False)] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Answers at a time.", show_default=False)] = None,
    rollouts: Annotated[int | None, typer.Option(min=1, help="Completions per answer.", show_default=False)] = None,
) -> None:
    """Make an API key. It is shown once, on stderr; stdout has the entry for the server's --config file, with its hash:

    nabla serve-key alice --days 90 >> serve.toml
    """
    from datetime import UTC, datetime, timedelta

    from nabla_agents import serve as serving

    key = serving.new_key()
    expires = None if days is None else (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)
    limits = {"requests_per_minute": requests_per_minute, "concurrent": concurrent, "rollouts": rollouts}
    serving.ApiKey(id=name, sha256=serving.digest(key), expires=expires, **limits)
    print(f'\n[[keys]]\nid = "{name}"\nsha256 = "{serving.digest(key)}"')
    if expires is not None:
        print(f"expires = {expires.isoformat()}")
    for limit, value in limits.items():
        if value is not None:
            print(f"{limit} = {value}")
    print(f"The key, which is not kept anywhere: {key}", file=sys.stderr)
