"""How many questions a second a device answers, by model and budget, from constants that were measured on it.

    python benchmarks/gpu.py --json figures.json    on the GPU in question: rates, gradient pass, memory
    python deploy/sizing.py figures.json --tokens 300 --rollouts 1,4,8,16

A question costs `rollouts` completions of `tokens` tokens at the rate of the widest batch that was measured, since a
server joins what runs at the same time, and a gradient pass for every `--rollouts-per-pass` of them, whose measured
seconds are taken for `tokens` in proportion to the tokens that they were measured at. Prompts are left out: with prefix
caches they are a few per cent. Latency is the same at the rate of one completion at a time.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Constants:
    """What was measured of one shape: tokens/s by batch, seconds of a gradient pass over `pass_tokens`, peak memory."""

    shape: str
    tokens_per_second: Mapping[int, float]
    pass_seconds: float
    pass_tokens: int
    peak_gb: float

    @staticmethod
    def read(figures: Sequence[Mapping[str, Any]]) -> list[Constants]:
        """The constants of each shape in what `benchmarks/gpu.py --json` wrote."""
        found: list[Constants] = []
        for shape in dict.fromkeys(figure["shape"] for figure in figures):
            mine = [figure for figure in figures if figure["shape"] == shape]
            rates = {
                int(batch[1]): float(f["value"])
                for f in mine
                if f["unit"] == "tokens/s" and (batch := re.fullmatch(r"rollouts, batch of (\d+)", f["what"]))
            }
            [(seconds, tokens)] = [
                (float(f["value"]), int(of[1]))
                for f in mine
                if f["unit"] == "s" and (of := re.fullmatch(r"gradient pass, (\d+) tokens", f["what"]))
            ]
            peak = max((float(f["value"]) for f in mine if f["unit"] == "GB peak"), default=0.0)
            found.append(Constants(shape, rates, seconds, tokens, peak))
        return found

    def seconds(self, *, rollouts: int, tokens: int, rollouts_per_pass: float, batch: int) -> float:
        """Seconds that a question takes of the device where `batch` completions are written side by side."""
        passes = max(0.0, rollouts - 1) / rollouts_per_pass
        return (
            rollouts * tokens / self.tokens_per_second[batch] + passes * self.pass_seconds * tokens / self.pass_tokens
        )


def gigabytes(peak: float) -> str:
    """Shown as it is; a CPU's memory is not measured."""
    return f"{peak:.1f}" if peak else "–"


def table(constants: Sequence[Constants], *, rollouts: Sequence[int], tokens: int, rollouts_per_pass: float) -> str:
    """The sizing table, as Markdown."""
    lines = ["| model | peak GB | rollouts | questions/s | seconds alone |", "|---|---:|---:|---:|---:|"]
    for one in constants:
        widest, narrowest = max(one.tokens_per_second), min(one.tokens_per_second)
        for count in rollouts:
            asked = {"rollouts": count, "tokens": tokens, "rollouts_per_pass": rollouts_per_pass}
            together, alone = one.seconds(**asked, batch=widest), one.seconds(**asked, batch=narrowest)
            lines.append(f"| {one.shape} | {gigabytes(one.peak_gb)} | {count} | {1 / together:.2f} | {alone:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="what benchmarks/gpu.py --json wrote")
    parser.add_argument("--tokens", type=int, default=300, help="tokens of an answer")
    parser.add_argument("--rollouts", default="1,4,8,16", help="a comma list of budgets")
    parser.add_argument("--rollouts-per-pass", type=float, default=2.0, help="as the server's metrics tell")
    arguments = parser.parse_args()
    constants = Constants.read(json.loads(arguments.figures.read_text(encoding="utf-8")))
    rollouts = [int(count) for count in arguments.rollouts.split(",")]
    print(table(constants, rollouts=rollouts, tokens=arguments.tokens, rollouts_per_pass=arguments.rollouts_per_pass))


if __name__ == "__main__":
    main()
