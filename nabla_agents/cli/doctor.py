"""`nabla doctor`: what this machine can do: sandboxes that contain untrusted Python, threads, models that fit."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nabla_agents import tiny
from nabla_agents.cli.app import NO_SANDBOX, app, command, spinner, terminal
from nabla_agents.cli.options import Dtype, Revision, TrustRemoteCode, loading_of, terms_for
from nabla_agents.errors import ConfigurationError
from nabla_agents.registry import LEARNED_REWARDS, REWARDS

if TYPE_CHECKING:
    from nabla_agents.models.footprint import Footprint

_LANGUAGE_MODELS = ("implicit", "sibling")  # rewards that read with an output head
_HEAD_UNUSED = ("math-shepherd", "rlhflow-prm")  # but for a few of its rows


@app.command()
@command
def doctor(
    build: Annotated[
        bool, typer.Option("--build", help="Build the WebAssembly sandbox first, about a minute; needs `[sandbox]`.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="Show what memory this model needs, and nothing else: `tiny`, a folder, a GGUF file or a hub id. No "
            "weight is loaded.",
            show_default=False,
        ),
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="Beside the model, as in `nabla solve`: `process:MODEL`.", show_default=False)
    ] = None,
    dtype: Dtype = None,
    bits: Annotated[
        int | None,
        typer.Option(help="Of weights of linear layers, by bitsandbytes: 4 or 8. Default: those of the checkpoint."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Completions that share a pass.")] = 8,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 256,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a completion.")] = 512,
    trust_remote_code: TrustRemoteCode = False,
    revision: Revision = None,
) -> None:
    """Show which sandboxes contain untrusted Python on this machine (each runs its self-test) and how many threads
    compute; or, with --model, what a model needs in memory.
    """
    if bits not in (None, 4, 8):
        raise ConfigurationError(f"--bits is {bits}; expected 4 or 8.")
    if model is not None:
        loading = loading_of(dtype=dtype, trust_remote_code=trust_remote_code)
        with spinner(f"Reading the sizes of {model}"):
            footprints = [
                (n, replace(f, bits=bits or f.bits)) for n, f in _footprints(model, reward, loading, revision)
            ]
        return _show(footprints, rows, prompt, tokens)
    from nabla_agents import sandbox

    if build:
        sandbox.build_wasm(lambda step: print(f"building: {step}", flush=True))
    backends = sandbox.diagnosis()
    for each in backends:
        print(f"{each.backend:8}{'contains: ' + ', '.join(each.layers) if each.active else 'not used: ' + each.why}")
        for note in each.notes:
            print(f"{'':8}{note}")
    _show_cpu()
    if not any(each.active for each in backends):
        raise typer.Exit(NO_SANDBOX)


def _show_cpu() -> None:
    import torch

    from nabla_agents.models.cores import Cores, keep_to_quota
    from nabla_agents.models.precision import bfloat16_units

    keep_to_quota()
    cores, variable = Cores.of_process(), os.environ.get
    quota = "no cgroup has a quota" if cores.quota is None else f"a cgroup's quota pays for {cores.quota:g}"
    threads = variable("OMP_NUM_THREADS")
    chosen = f"OMP_NUM_THREADS is {threads}" if threads else "OMP_NUM_THREADS is not set"
    print(f"threads {torch.get_num_threads()}: {chosen}, the affinity has {cores.affinity} cores, {quota}")
    waits = f"OMP_WAIT_POLICY={variable('OMP_WAIT_POLICY')}"
    waits = waits if variable("OMP_WAIT_POLICY") else f"they sleep after {variable('GOMP_SPINCOUNT')} looks"
    print(f"{'':8}waiting for each other: {waits} (GOMP_SPINCOUNT); give processes that share cores one thread each")
    units = ", ".join(bfloat16_units())
    how = f"computes bfloat16 ({units}): try --dtype bfloat16" if units else "is not known to compute bfloat16"
    print(f"{'dtype':8}float32 unless told otherwise; this CPU {how}")


def _footprints(
    model: str, reward: str | None, loading: dict[str, Any], revision: str | None
) -> list[tuple[str, Footprint]]:
    """What the language model and each reward model of the expression need, by their names."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from nabla_agents.models.footprint import Footprint
    from nabla_agents.models.loading import Loading

    ours = {**loading, "revision": revision}
    footprints = [(Path(model).name, Footprint.of(model, Loading(**ours), tiny_path=tiny.LM_PATH))]
    for _, make, names in terms_for(model, reward):
        kind = next((kind for kind, each in LEARNED_REWARDS.items() if each is make), "implicit")
        headless = kind not in _LANGUAGE_MODELS
        auto_class = AutoModelForSequenceClassification if headless else AutoModelForCausalLM
        auto_class = AutoModelForCausalLM if kind in _HEAD_UNUSED else auto_class
        for name in names or ["tiny"] * (make is REWARDS["tiny"]):
            parts: dict[str, Any] = {"tiny_path": tiny.REWARD_PATH, "auto_class": auto_class, "headless": headless}
            footprints.append((f"reward {Path(name).name}", Footprint.of(name, Loading(**loading), **parts)))
    return footprints


def _column(name: str, needs: Footprint) -> str:
    fewer = "" if needs.bits is None else f", layers in {needs.bits} bits"
    return f"{name}, {str(needs.dtype).removeprefix('torch.')}{fewer}"


def _show(footprints: list[tuple[str, Footprint]], rows: int, prompt: int, tokens: int) -> None:
    from rich.table import Table

    from nabla_agents.models.footprint import LIBRARIES, peak

    needs = [footprint for _, footprint in footprints]
    table = Table("GB", *(_column(*each) for each in footprints))
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"

    def add(what: str, values: list[int]) -> None:
        table.add_row(what, *(f"{value / 1e9:.3f}" for value in values))

    add("weights", [f.weights for f in needs])
    add(f"keys and values, {prompt} + {tokens} tokens", [f.keys_and_values(prompt + tokens) for f in needs])
    add("rows over the vocabulary, refined", [f.vocabulary(tokens) for f in needs])
    for count in dict.fromkeys((1, rows)):
        table.add_section()
        of = f"{count} row{'s' * (count > 1)}"
        add(f"decode, {of}", [f.decode(count, prompt, tokens) for f in needs])
        add(f"score by prefill, {of}", [f.score(count, prompt, tokens) for f in needs])
        add(f"gradient pass, {of}", [f.gradient(count, prompt, tokens) for f in needs])
        add(f"gradient pass, {of}, checkpointed", [f.gradient(count, prompt, tokens, checkpointed=True) for f in needs])
    console = terminal()
    console.print(table)
    console.print(
        f"Passes are beside the weights. All weights, the largest pass and {LIBRARIES / 1e9:.1f} GB for libraries:"
    )
    for count in dict.fromkeys((1, rows)):
        plain, checkpointed = (peak(needs, count, prompt, tokens, checkpointed=way) / 1e9 for way in (False, True))
        console.print(f"{plain:.2f} GB with {count} row{'s' * (count > 1)}, {checkpointed:.2f} GB checkpointed")
