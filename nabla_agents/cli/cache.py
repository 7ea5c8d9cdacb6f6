"""`nabla cache`: the unpacked copies of GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nabla_agents.cli.app import app, command
from nabla_agents.registry import known


@app.command()
@command
def cache(action: Annotated[str, typer.Argument(help="`list` or `clear`.")] = "list") -> None:
    """List the unpacked copies of GGUF files (size, precision, when it was made, of which file), or remove them all: a
    file that is used again is unpacked again.
    """
    known({"list": None, "clear": None}, action, "action")
    from nabla_agents.models.gguf_copy import clear_copies, copies

    if action == "clear":
        print(f"{_gigabytes(clear_copies())} are free again.")
        return
    for copy in copies():
        gone = "" if not copy.source or Path(copy.source).exists() else " (no longer there)"
        made = f"{copy.made.astimezone():%Y-%m-%d %H:%M}"
        print(f"{_gigabytes(copy.size):>9}  {copy.dtype:8}  {made}  {copy.source or 'unfinished'}{gone}")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
