"""`nabla solve`: one answer, refined while you watch."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import nabla_agents as na
from nabla_agents import tiny
from nabla_agents.cli.app import INTERRUPTED, app, command, spinner, terminal
from nabla_agents.cli.options import DeviceMap, Dtype, Revision, TrustRemoteCode, engine_of, loading_of, terms_for
from nabla_agents.errors import ConfigurationError
from nabla_agents.registry import LEARNED_REWARDS, REWARDS, STRATEGIES, known


@app.command()
@command
def solve(
    question: Annotated[
        str | None, typer.Argument(help="What to ask; `-`, and a pipe, is what stdin has.", show_default=False)
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Ask the N-th test problem and check the answer.")
    ] = None,
    model: Annotated[str, typer.Option(help="`tiny` (embedded), a folder, a GGUF file or a hub id.")] = "tiny",
    reward: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(REWARDS)}, none, {', '.join(f'{k}:MODEL' for k in LEARNED_REWARDS)}, or a sum such as "
            "`tiny+2*arithmetic`. Default: tiny for the tiny model, else none.",
            show_default=False,
        ),
    ] = None,
    strategy: Annotated[str, typer.Option(help=f"One of {', '.join(STRATEGIES)}.")] = "nabla",
    rollouts: Annotated[int, typer.Option(help="Completions that may be sampled.")] = 8,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Length limit of the answer.")] = 1024,
    temperature: Annotated[float | None, typer.Option(help="Default: the strategy's own.", show_default=False)] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.", show_default=False)] = None,
    formatted: Annotated[
        bool, typer.Option("--formatted", help="Take the question verbatim, without the chat template.")
    ] = False,
    likelihood_weight: Annotated[
        float, typer.Option(help="Weight of the log-likelihood beside the reward (1 / the paper's λ).")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write what was tried, and why, as one HTML page.", show_default=False)
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
) -> None:
    """Answer one question, and show how the answer is refined."""
    if question == "-" or (question is None and sample is None and not sys.stdin.isatty()):
        question = sys.stdin.read().strip() or None
    if (question is None) == (sample is None):
        raise ConfigurationError("Give either a question or --sample N, for example: nabla solve --sample 1")
    problem = None if sample is None else tiny.problems(sample, seed=0, split="test")[-1]
    question = problem.question if problem is not None else question or ""
    if formatted and system is not None:
        raise ConfigurationError("--formatted takes the question verbatim: write the system prompt into it.")
    if not question.strip():
        raise ConfigurationError("The question is empty; expected some text: nabla solve 'Tom has 12 apples. ...'")
    if report is not None and (report.is_dir() or not os.access(report.parent, os.W_OK)):
        raise ConfigurationError(f"--report {report} cannot be written; expected a file in a folder that can be.")
    make_strategy = known(STRATEGIES, strategy, "strategy")
    terms = terms_for(model, reward)
    budget = na.Budget(rollouts=rollouts)
    loading = loading_of(trust_remote_code=trust_remote_code, dtype=dtype, device_map=device_map)
    with spinner(f"Loading {model}"):
        sampling = na.Sampling(max_tokens=max_tokens, temperature=temperature)
        engine = engine_of(
            model,
            terms,
            loading=loading,
            revision=revision,
            strategy=make_strategy(rollouts),
            budget=budget,
            likelihood_weight=likelihood_weight,
        )
    messages = [na.Message("system", system)] if system is not None else []
    prompt = question if formatted else [*messages, na.Message("user", question)]
    run = engine.steps(prompt, seed=seed, sampling=sampling, formatted=formatted)
    from nabla_agents.report import JsonView, view_of

    seen = JsonView(question, problem) if as_json else None
    result = run.show(seen or view_of(question, problem, doing=lambda: run.doing, console=terminal()))
    if report is not None:
        _write_report(result, report)
    if result.finish_reason is na.FinishReason.INTERRUPTED:
        raise typer.Exit(INTERRUPTED)


def _write_report(result: na.Result, file: Path) -> None:
    try:
        file.write_text(result.trace.to_html(title="nabla solve"), encoding="utf-8")
    except OSError as e:
        raise ConfigurationError(f"--report {file} cannot be written ({e}).") from e
