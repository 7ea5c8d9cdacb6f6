"""`nabla bench`: strategies, rewards and budgets, compared on many questions."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from nabla_agents.cli.app import INTERRUPTED, app, command, spinner, terminal


@app.command()
@command
def bench(
    config: Annotated[
        Path | None, typer.Argument(help="A TOML file that says what is compared.", show_default=False)
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What is asked without a file: `words` (default) or `code`.", show_default=False)
    ] = None,
    problems: Annotated[
        int | None, typer.Option(help="How many test problems; default 300.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the problems and of the sampling; default 0.", show_default=False)
    ] = None,
    arms: Annotated[
        str,
        typer.Option(
            help="Comma list of arms or globs; `--list` shows them. `ARM@X` sets min_promise=X, `ARM[a=1,b.c=2]` any "
            "setting of the strategy, or likelihood_weight or embedding_terms: "
            "`greedy,nabla*@-1,nabla/none@-5,nabla[dto.beta=0.3]`."
        ),
    ] = "*",
    rollouts: Annotated[
        int | None, typer.Option(help="Budget of every question; default 8.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Length limit of an answer; default 192.", show_default=False)
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Questions that run together; default 64.", show_default=False)
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default 1.", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the results; an unfinished run in it goes on. Default: the file's, else bench-results.",
            show_default=False,
        ),
    ] = None,
    list_arms: Annotated[bool, typer.Option("--list", help="List the arms and exit.")] = False,
) -> None:
    """Measure strategies and their controls: accuracy with intervals, and what it costs.

    On test problems of the embedded model, or with a CONFIG on any questions, model and rewards; options go before what
    it says. Ctrl-C keeps what is done; the same command goes on from there. OUT gets records.jsonl, results.json,
    table.md and, with the extra `plots`, pictures.
    """
    options = {
        "task": task,
        "problems": problems,
        "seeds": seed,
        "budgets": rollouts,
        "max_tokens": max_tokens,
        "batch": batch,
        "workers": workers,
    }
    options = {name: value for name, value in options.items() if value is not None}
    with spinner("Loading the arms"):
        from nabla_agents import bench as benches
        from nabla_agents.bench.report import follow

        settings = (benches.BenchConfig() if config is None else benches.BenchConfig.read(config)).replace(**options)
        chosen = benches.choose(arms, settings.arms())
    if list_arms:
        print("\n".join(arm.name for arm in chosen))
        return
    with spinner(f"Loading {settings.model}"):
        ready = settings.bench(arms)
    folder = out or (Path("bench-results") if config is None else config.parent)
    records = benches.run(ready, folder, recipe=functools.partial(settings.bench, arms))
    report = settings.report(config.as_posix() if config is not None else None, arms)
    if not follow(records, terminal(), bench=ready, out=folder, report=report):
        raise typer.Exit(INTERRUPTED)
