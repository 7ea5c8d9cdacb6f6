"""What refinement costs beside best-of-8, and what many questions at once gain, on the embedded models.

    python benchmarks/throughput.py

Every figure is a ratio of medians over rounds in which all arms take turns, in one process. "Forced" searches try
everything plausible, up to 8 rollouts (`min_promise` far below zero), so that arms compare at like rollouts; "as it
stops" is the search with its default threshold.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nabla_agents import BestOfN, Budget, Engine, LanguageModel, Nabla, NablaParallel, Result, Sampling, Usage
from nabla_agents.tiny import problems

FORCED = -50.0  # nats: everything plausible is tried
ALL = Budget(rollouts=8)
LIMIT = Sampling(max_tokens=192)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="decode by torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    engine = Engine.tiny(model=LanguageModel.from_pretrained("tiny", compile=arguments.compile), budget=ALL)
    asked = [p.question for p in problems(arguments.questions, seed=7, split="test")]
    arms = _arms(engine, asked)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    results: dict[str, Sequence[Result]] = {}
    if arguments.compile:
        for name in track([*arms], "compiling", console=Console(stderr=True)):
            arms[name]()
    for name in track([*arms] * arguments.rounds, "measuring", console=Console(stderr=True)):
        began = time.perf_counter()
        results[name] = arms[name]()
        seconds[name].append(time.perf_counter() - began)
    _show(seconds, results, arguments.questions)


def _arms(engine: Engine, asked: Sequence[str]) -> dict[str, Callable[[], Sequence[Result]]]:
    def single(strategy: object) -> Callable[[], Sequence[Result]]:
        return lambda: [engine.generate(q, seed=i, strategy=strategy, sampling=LIMIT) for i, q in enumerate(asked)]

    def batched(strategy: object) -> Callable[[], Sequence[Result]]:
        return lambda: engine.generate_batch(
            asked, seeds=range(len(asked)), strategy=strategy, sampling=LIMIT, max_batch=len(asked)
        )

    def one_by_one() -> Sequence[Result]:
        """Best-of-8 as research code samples it: rollout after rollout."""
        return [
            engine.generate(q, seed=8 * i + k, strategy=BestOfN(n=1), sampling=LIMIT)
            for i, q in enumerate(asked)
            for k in range(8)
        ]

    forced, parallel = Nabla(min_promise=FORCED), NablaParallel(min_promise=FORCED)
    in_two = NablaParallel(min_promise=FORCED, width=7)  # all 8 rollouts in two batches
    return {
        "best-of-8, one rollout at a time": one_by_one,
        "best-of-8": single(BestOfN(n=8)),
        "nabla, forced": single(forced),
        "parallel, forced": single(parallel),
        "parallel 7 wide, forced": single(in_two),
        "nabla, as it stops": single(Nabla()),
        "parallel, as it stops": single(NablaParallel()),
        "best-of-8, batch": batched(BestOfN(n=8)),
        "nabla, as it stops, batch": batched(Nabla()),
        "parallel, as it stops, batch": batched(NablaParallel()),
    }


def _show(seconds: dict[str, list[float]], results: dict[str, Sequence[Result]], questions: int) -> None:
    spent = {name: sum((r.usage for r in found), Usage()) for name, found in results.items()}
    median = {name: statistics.median(times) for name, times in seconds.items()}
    table = Table(title=f"{questions} questions, medians of {len(seconds['best-of-8'])} rounds")
    for heading in (
        "arm",
        "s / question",
        "× best-of-8",
        "FLOPs",
        "FLOPs ×",
        "rollouts",
        "drafted",
        "accepted",
        "vs. one by one",
    ):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for name, usage in spent.items():
        alone = median.get(name.removesuffix(", batch")) if name.endswith(", batch") else None
        table.add_row(
            name,
            f"{median[name] / questions:.3f}",
            f"{median[name] / median['best-of-8']:.2f}",
            f"{usage.flops:.2e}",
            f"{usage.flops / spent['best-of-8'].flops:.2f}",
            f"{usage.rollouts / questions:.2f}",
            f"{usage.draft_tokens / questions:.0f}",
            f"{usage.accepted_draft_tokens / questions:.0f}",
            f"{alone / median[name]:.1f}× faster" if alone else "",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
