"""`nabla doctor`: which sandboxes contain untrusted Python here."""

from __future__ import annotations

from typing import Annotated

import typer

from nabla_agents.cli.app import NO_SANDBOX, app, command


@app.command()
@command
def doctor(
    build: Annotated[
        bool, typer.Option("--build", help="Build the WebAssembly sandbox first, about a minute; needs `[sandbox]`.")
    ] = False,
) -> None:
    """Show which sandboxes contain untrusted Python on this machine: each runs its self-test."""
    from nabla_agents import sandbox

    if build:
        sandbox.build_wasm(lambda step: print(f"building: {step}", flush=True))
    backends = sandbox.diagnosis()
    for each in backends:
        print(f"{each.backend:8}{'contains: ' + ', '.join(each.layers) if each.active else 'not used: ' + each.why}")
        for note in each.notes:
            print(f"{'':8}{note}")
    if not any(each.active for each in backends):
        raise typer.Exit(NO_SANDBOX)
