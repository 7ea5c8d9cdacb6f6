"""How the time of a question grows with the length of its answer: linearly, or this fails.

    python benchmarks/scaling.py

A question is what the search does: a rollout of T tokens, its score, one gradient pass and ten refined positions, then
a changed rollout that reads the old one as its draft. Lengths take turns; the exponent is the slope of log seconds over
log T by least squares: 1 is linear. Seconds are those of one CPU thread, so that other work on the machine counts
little. The research code differentiates the tail anew for each position it visits, which are the more the longer an
answer is: its exponent is 2. Exits with 1 where the exponent is above `--most`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nabla_agents import Budget, Engine, ImplicitReward, NablaParallel, Sampling
from nabla_agents.testing import random_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="64,128,256,512", help="tokens of an answer")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most", type=float, default=1.2, help="the largest exponent that passes")
    arguments = parser.parse_args()
    lengths = [int(length) for length in arguments.lengths.split(",")]
    if len(set(lengths)) < 2 or min(lengths) < 1:
        parser.error(f"--lengths is {arguments.lengths!r}; expected at least two different numbers of tokens")
    torch.set_num_threads(1)
    engine = made(arguments, 2 * max(lengths) + 64)
    seconds: dict[int, list[float]] = {length: [] for length in lengths}
    tokens: dict[int, int] = {}
    for turn, length in track(
        [(turn, length) for turn in range(1 + arguments.repeats) for length in lengths],
        "measuring",
        console=Console(stderr=True),
    ):
        began = time.process_time()
        result = engine.generate("w1 w2 w3 ", sampling=Sampling(max_tokens=length, temperature=1.0), seed=0)
        if turn:  # the first is for warming up
            seconds[length].append(time.process_time() - began)
        tokens[length] = len(result.token_ids)
    exponent = slope(lengths, [statistics.median(seconds[length]) for length in lengths])
    table = Table("T", "tokens of the answer", "CPU s / question", "ms / token", title=f"exponent {exponent:.2f}")
    for length in lengths:
        median = statistics.median(seconds[length])
        table.add_row(str(length), str(tokens[length]), f"{median:.3f}", f"{1000 * median / length:.2f}")
    Console().print(table)
    if exponent > arguments.most:
        raise SystemExit(f"Time grows as T to the power of {exponent:.2f}; at most {arguments.most} was expected.")


def made(arguments: argparse.Namespace, context: int) -> Engine:
    """Random models that seldom end a text, so that answers have the length that was asked for."""
    words = [f"w{i} " for i in range(4096)]
    shape = {"layers": arguments.layers, "width": arguments.width, "context_length": context, "vocabulary": words}
    return Engine(
        model=random_model(scale=1.0, **shape),
        reward=ImplicitReward(random_model(scale=1.0, seed=1, **shape)),
        strategy=NablaParallel(min_promise=-50.0, width=arguments.rollouts - 1),
        budget=Budget(rollouts=arguments.rollouts),
    )


def slope(lengths: list[int], seconds: list[float]) -> float:
    """Of log seconds over log length, by least squares."""
    x, y = [math.log(length) for length in lengths], [math.log(s) for s in seconds]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


if __name__ == "__main__":
    main()
