"""Where the time of an answer goes: what each operation of the engine takes, one question at a time and many at once.

    python benchmarks/phases.py [--compile]

Rollouts are shown as their prefills and decode steps. "Search" is everything else: reading the prompts, the code of the
searches and of the scheduler.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nabla_agents import Budget, Engine, LanguageModel, Nabla, Sampling
from nabla_agents.models.decoding import Decoding
from nabla_agents.objective import Objective
from nabla_agents.search import proposals
from nabla_agents.tiny import problems

LIMIT = Sampling(max_tokens=192)
WATCHED = (
    (Objective, ("score", "gradient")),
    (proposals, ("best_changes",)),
    (Decoding, ("add", "step")),
)
NAMES = {"add": "rollouts: prefill", "step": "rollouts: decode", "best_changes": "proposals"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="of which the fastest is shown")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="decode by torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    engine = Engine.tiny(model=LanguageModel.from_pretrained("tiny", compile=arguments.compile), strategy=Nabla())
    asked = [p.question for p in problems(arguments.questions, seed=7, split="test")]
    budget = Budget(rollouts=8)

    def alone() -> None:
        for i, question in enumerate(asked):
            engine.generate(question, seed=i, sampling=LIMIT, budget=budget)

    def together() -> None:
        engine.generate_batch(asked, seeds=range(len(asked)), sampling=LIMIT, budget=budget, max_batch=len(asked))

    for title, run in (("one at a time", alone), (f"{len(asked)} at once", together)):
        run()  # warms up, and compiles
        show(title, min((phases(run) for _ in range(arguments.rounds)), key=lambda found: found["all"][0]))


def phases(run: Callable[[], None]) -> dict[str, tuple[float, int, int]]:
    """Seconds, calls and rows of each operation in a run, and of all of it."""
    seconds, calls, rows = defaultdict[str, float](float), defaultdict[str, int](int), defaultdict[str, int](int)

    def watch(owner: Any, name: str) -> Callable[[], None]:
        as_it_was: Any = getattr(owner, name)

        def timed(self: Any, *columns: Any, **options: Any) -> Any:
            began = time.perf_counter()
            rows[name] += next((len(c) for c in columns if isinstance(c, Sequence)), len(self) if name == "step" else 1)
            try:
                return as_it_was(self, *columns, **options)
            finally:
                seconds[name] += time.perf_counter() - began
                calls[name] += 1

        setattr(owner, name, timed)
        return lambda: setattr(owner, name, as_it_was)

    undo = [watch(owner, name) for owner, names in WATCHED for name in names]
    began = time.perf_counter()
    try:
        run()
    finally:
        for each in undo:
            each()
    took = time.perf_counter() - began
    found = {name: (seconds[name], calls[name], rows[name]) for name in sorted(seconds, key=lambda n: -seconds[n])}
    return {**found, "search": (took - sum(seconds.values()), 0, 0), "all": (took, 0, 0)}


def show(title: str, found: dict[str, tuple[float, int, int]]) -> None:
    table = Table(title=title, title_justify="left")
    for heading in ("operation", "s", "calls", "rows a call", "ms a call"):
        table.add_column(heading, justify="left" if heading == "operation" else "right")
    for name, (seconds, calls, rows) in found.items():
        each = (str(calls), f"{rows / calls:.1f}", f"{1e3 * seconds / calls:.2f}") if calls else ("", "", "")
        table.add_row(NAMES.get(name, name), f"{seconds:.2f}", *each)
    Console().print(table)


if __name__ == "__main__":
    main()
