"""`python -m nabla_agents.scale questions.jsonl answers.jsonl`: a completion for every row of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nabla_agents.errors import NablaError
from nabla_agents.scale.dataset import DatasetSettings, complete_dataset, on_ray, on_this_machine
from nabla_agents.scale.engines import engine_maker, needs_ray
from nabla_agents.scale.files import kind_of


def main(
    source: Annotated[Path, typer.Argument(help="Rows, as .jsonl or .parquet.")],
    out: Annotated[Path, typer.Argument(help="Where they go with their completions: .jsonl or .parquet.")],
    model: Annotated[str, typer.Option(help="`tiny` (embedded), a folder or a hub id.")] = "tiny",
    engine: Annotated[str | None, typer.Option(help="package.module:function that makes the engine instead.")] = None,
    question: Annotated[str, typer.Option(help="The field with the question.")] = "question",
    rollouts: Annotated[int | None, typer.Option(help="Completions per row; the engine's own if left out.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Length limit of a completion.")] = None,
    seed: Annotated[int, typer.Option(help="Row i is searched with this seed + i.")] = 0,
    shard: Annotated[int, typer.Option(help="Rows in one piece of work.")] = 32,
    ray: Annotated[str | None, typer.Option(help="A cluster's address, `auto` for the one that runs here.")] = None,
    workers: Annotated[int, typer.Option(help="Engines on the cluster.")] = 1,
    num_cpus: Annotated[float, typer.Option(help="Of each.")] = 1.0,
    num_gpus: Annotated[float, typer.Option(help="Of each.")] = 0.0,
) -> None:
    """Complete every row of a file. The same command goes on where one was stopped."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    console = Console(stderr=True, highlight=False)
    try:
        kind_of(out)
        settings = DatasetSettings(
            question=question,
            seed=seed,
            shard=shard,
            rollouts=rollouts,
            max_tokens=max_tokens,
            workers=workers,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
        )
        make_engine = engine_maker(model, engine=engine)
        if ray is not None:
            needs_ray().init(address=ray, log_to_driver=False)
        run = on_this_machine if ray is None else on_ray
        for done, total in complete_dataset(source, out, make_engine, settings, run=run):
            console.print(f"{done}/{total} shards")
    except NablaError as e:
        console.print(f"error: {e}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from e
    except KeyboardInterrupt:
        console.print("Interrupted; the same command goes on from here.", style="yellow")
        raise typer.Exit(130) from None


if __name__ == "__main__":
    typer.run(main)
