"""What a real model costs here, beside what people would use instead: transformers' generate and llama.cpp.

    python benchmarks/real.py coder-0.5b.gguf --threads 2
    python benchmarks/real.py smollm2-135m.gguf --threads 2 --dtype bfloat16

A GGUF file; everything in one process on one model, one after the other, so that ratios hold: medians of `--repeats`.
All decode greedily, without an end token; llama.cpp is measured where its extra (`llama-cpp`) is installed.
The floor of a gradient pass is one forward and one backward of the body over prompt and answer, and the head's rows, by
hand. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nabla_agents import (
    BestOfN,
    Budget,
    Engine,
    Greedy,
    LanguageModel,
    LlamaCppRollouts,
    Nabla,
    NablaParallel,
    NoDirection,
    Pattern,
    Prompt,
    Sampling,
)
from nabla_agents.models.rows import RolloutJob

PROMPT = "Write a Python function that returns the squares of the even numbers of a list, and explain each line of it."
FORCED = -50.0  # nats: everything plausible is tried
Timed = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip-searches", action="store_true")
    parser.add_argument(
        "--no-repack", action="store_true", help="where llama.cpp's build does not run on the processor"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    model = LanguageModel.from_pretrained(arguments.file, dtype=arguments.dtype)
    model.eos_ids = frozenset()  # what is measured has one length
    prompt = model.prompt(PROMPT)
    threads = f"{arguments.threads} threads" if arguments.threads > 1 else "1 thread"
    print(f"{arguments.file.name}, {arguments.dtype}, {threads}, prompt of {len(prompt.ids)} tokens", flush=True)
    table = Table(box=None, header_style="bold")
    for heading in ("what", "seconds", "tokens/s", "ratio", "to"):
        table.add_column(heading, justify="left" if heading in ("what", "to") else "right")
    for row in [*writing(model, prompt, arguments), *passes(model, prompt, arguments)]:
        table.add_row(*row)
    if not arguments.skip_searches:
        for row in searches(model, prompt, arguments):
            table.add_row(*row)
    Console(width=120).print(table)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def writing(model: LanguageModel, prompt: Prompt, arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    """One and eight answers by each of us, in turns."""
    n, rows = arguments.tokens, list[tuple[str, ...]]()
    ours: dict[str, Any] = {"nabla": model}
    if importlib.util.find_spec("llama_cpp") is not None:
        ours["nabla, LlamaCppRollouts"] = LlamaCppRollouts(
            arguments.file, model, threads=arguments.threads, repack=not arguments.no_repack
        )
    for count in (1, 8):
        jobs = [RolloutJob(prompt, (), Sampling(temperature=0), n, torch.zeros(n)) for _ in range(count)]
        ways: dict[str, Timed] = {"transformers.generate": lambda count=count: generated(model, prompt, n, count)}
        ways |= {name: lambda who=who, jobs=jobs: who.rollout(jobs) for name, who in ours.items()}
        if count == 1 and len(ours) > 1:
            ways["llama.cpp"] = llama_cpp(arguments, prompt)
        seconds = medians(ways, arguments.repeats)
        for name, median in seconds.items():
            other = "llama.cpp" if "LlamaCpp" in name and "llama.cpp" in ways else "transformers.generate"
            ratio = ("", "") if name == other else (f"{median / seconds[other]:.2f}", other)
            rows.append((f"{name}, {count} of {n} tokens", f"{median:.2f}", f"{count * n / median:.1f}", *ratio))
    return rows


def generated(model: LanguageModel, prompt: Prompt, tokens: int, count: int) -> Any:
    module: Any = model.transformer.module
    ids = torch.tensor([prompt.ids] * count)
    settings: dict[str, Any] = {
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "do_sample": False,
        "pad_token_id": 0,
    }
    return module.generate(ids, attention_mask=torch.ones_like(ids), **settings)


def llama_cpp(arguments: argparse.Namespace, prompt: Prompt) -> Timed:
    library: Any = importlib.import_module("llama_cpp")
    loading = library.llama_model_default_params()
    loading.use_extra_bufts = not arguments.no_repack
    library.llama_cpp.llama_model_default_params = lambda: loading
    theirs = library.Llama(str(arguments.file), n_ctx=1024, n_threads=arguments.threads, verbose=False)

    def write() -> None:
        theirs.reset()
        tokens = theirs.generate(list(prompt.ids), temp=0.0)
        for _ in range(arguments.tokens):
            next(tokens)

    return write


def passes(model: LanguageModel, prompt: Prompt, arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    """Reading and differentiating one answer, beside the least that it takes."""
    n, transformer = 256, model.transformer
    [rollout] = model.rollout([RolloutJob(prompt, (), Sampling(temperature=0), n, torch.zeros(n))])
    fed = torch.tensor([[*prompt.ids, *rollout.completion_ids][:-1]])

    def forward() -> Any:
        with torch.no_grad():
            return transformer.body(input_ids=fed, use_cache=False).last_hidden_state

    def both() -> Any:
        embeddings = transformer.embed(fed).detach().requires_grad_()
        hidden = transformer.body(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        logits = model.head(hidden[0, -n:])
        logits.logsumexp(-1).sum().backward()
        return embeddings.grad

    ways: dict[str, Timed] = {
        "forward of the body": forward,
        "log π of the answer": lambda: model.token_log_probs([rollout]),
        "forward and backward, by hand": both,
        "gradient pass": lambda: model.likelihood_gradient([rollout], [0]),
    }
    seconds = medians(ways, arguments.repeats)
    first, floor = seconds["forward of the body"], seconds["forward and backward, by hand"]
    ratios = {
        "log π of the answer": (f"{seconds['log π of the answer'] / first:.2f}", "forward of the body"),
        "gradient pass": (f"{seconds['gradient pass'] / floor:.2f}", "forward and backward, by hand"),
    }
    length = fed.shape[1]
    return [
        (f"{name}, {length} tokens", f"{median:.2f}", f"{length / median:.0f}", *ratios.get(name, ("", "")))
        for name, median in seconds.items()
    ]


def searches(model: LanguageModel, prompt: Prompt, arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    """Whole answers, beside best-of-8. The reward is out of reach, so that no search ends before its budget does."""
    engine = Engine(model=model, reward=Pattern(r"no answer has this"), budget=Budget(rollouts=8))
    sampling = Sampling(max_tokens=arguments.tokens)
    strategies: dict[str, Any] = {
        "greedy": Greedy(),
        "best-of-8": BestOfN(n=8),
        "Nabla, 8 rollouts": Nabla(direction=NoDirection(), min_promise=FORCED),
        "NablaParallel, 8 rollouts": NablaParallel(direction=NoDirection(), min_promise=FORCED, width=7),
        "NablaParallel with gradient passes": NablaParallel(min_promise=FORCED, width=7),
    }
    rows: list[tuple[str, ...]] = []
    flops: dict[str, float] = {}

    def solved(name: str) -> None:
        flops[name] = engine.generate(prompt, strategy=strategies[name], sampling=sampling).usage.flops

    ways: dict[str, Timed] = {name: lambda name=name: solved(name) for name in strategies}
    seconds = medians(ways, max(1, arguments.repeats // 2))
    for name, median in seconds.items():
        ratio = f"{median / seconds['best-of-8']:.2f} s, {flops[name] / flops['best-of-8']:.2f} FLOPs"
        rows.append((name, f"{median:.2f}", "", ratio, "best-of-8"))
    return rows


def medians(ways: dict[str, Timed], repeats: int) -> dict[str, float]:
    """Seconds of each, taken in turns after one round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(repeats + 1):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if round_:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


if __name__ == "__main__":
    main()
