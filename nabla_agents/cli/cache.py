"""`nabla cache`: the unpacked copies of GGUF files."""

from __future__ import annotations

from pathlib import Path

import typer

from nabla_agents.cli.app import app, command

cache = typer.Typer(help="The unpacked copies of GGUF files: list or remove them.", invoke_without_command=True)
app.add_typer(cache, name="cache")


@cache.callback()
@command
def list_copies(context: typer.Context) -> None:
    """List the unpacked copies of GGUF files: size, precision, when it was made, and of which file."""
    if context.invoked_subcommand is not None:
        return
    from nabla_agents.models.gguf_copy import copies

    for copy in copies():
        source = copy.source or "unfinished"
        gone = "" if not copy.source or Path(copy.source).exists() else " (no longer there)"
        print(
            f"{_gigabytes(copy.size):>9}  {copy.dtype or '-':9} {copy.made.astimezone():%Y-%m-%d %H:%M}  {source}{gone}"
        )


@cache.command()
@command
def clear() -> None:
    """Remove every copy; a file that is used again is unpacked again."""
    from nabla_agents.models.gguf_copy import clear_copies

    print(f"{_gigabytes(clear_copies())} are free again.")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
