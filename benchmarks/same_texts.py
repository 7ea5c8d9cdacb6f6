"""Whether what saves time changes answers: the same questions and seeds alone, compiled, and joined to batches.

    python benchmarks/same_texts.py [--dtype bfloat16]

Test problems of the embedded model, 8 rollouts at most; prints how many answers are right, how many have the very text
that they have alone, and the rollouts of all. Exits with 1 where a text differs, which in half precision it does.
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.table import Table

from nabla_agents import Budget, Engine, LanguageModel, Sampling
from nabla_agents.tiny import is_correct, problems

LIMITS = {"sampling": Sampling(max_tokens=192), "budget": Budget(rollouts=8)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    chosen = problems(arguments.questions, seed=0, split="test")
    asked = [problem.question for problem in chosen]
    engine = Engine.tiny(model=LanguageModel.from_pretrained("tiny", dtype=arguments.dtype))
    compiled = Engine.tiny(model=LanguageModel.from_pretrained("tiny", dtype=arguments.dtype, compile=True))
    with Console(stderr=True).status("answering"):
        alone = [engine.generate(question, seed=i, **LIMITS) for i, question in enumerate(asked)]
        ways = {
            "alone": alone,
            "compiled": [compiled.generate(question, seed=i, **LIMITS) for i, question in enumerate(asked)],
            f"batches of {arguments.batch}": engine.generate_batch(
                asked, seeds=range(len(asked)), max_batch=arguments.batch, **LIMITS
            ),
        }
    table, differ = Table(f"{len(asked)} questions", "right", "same text", "rollouts"), 0
    for way, results in ways.items():
        right = sum(is_correct(result.text, problem) for result, problem in zip(results, chosen, strict=True))
        same = sum(result.text == its.text for result, its in zip(results, alone, strict=True))
        differ += len(asked) - same
        table.add_row(way, str(right), str(same), str(sum(result.usage.rollouts for result in results)))
    Console().print(table)
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
