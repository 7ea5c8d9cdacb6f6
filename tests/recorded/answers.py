"""What the embedded model answers, written down search by search: what a change of the engine must leave as it was.

    python tests/recorded/answers.py --out tests/recorded/answers.jsonl.gz

One line per search: every strategy with every reward on the first test problems, each alone. `text` is the answer,
`ids` and `rollouts` are hashes of its token ids and of all steps in words, `ledger` is the usage without clock, memory
and FLOPs, which `tests/test_flops.py` counts. On another processor a rounding may tip a sampled token; the file is of
x86-64.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from nabla_agents import (
    ArithmeticSteps,
    BestOfN,
    Budget,
    Engine,
    Greedy,
    LanguageModel,
    Nabla,
    NablaParallel,
    Result,
    Sampling,
    SelfConsistency,
)
from nabla_agents.rewards.learned.implicit import ImplicitReward
from nabla_agents.tiny import problems

FILE: Final = Path(__file__).with_name("answers.jsonl.gz")
STRATEGIES: Final[dict[str, Any]] = {
    "greedy": Greedy(),
    "best-of-n": BestOfN(n=8),
    "self-consistency": SelfConsistency(n=8),
    "nabla": Nabla(),
    "nabla-parallel": NablaParallel(),
}
LIMITS: Final[dict[str, Any]] = {"sampling": Sampling(max_tokens=192), "budget": Budget(rollouts=8)}
# What shares a batch adds padding to these, and takes prompts read twice from them.
_SHARED: Final = {"prefill_tokens", "lm_forward_tokens", "lm_backward_tokens", "reward_forward_tokens"}
_SHARED_TOO: Final = {"reward_backward_tokens", "draft_tokens", "accepted_draft_tokens"}


def engines() -> dict[str, Engine]:
    """One engine per reward, on one model."""
    model, process = LanguageModel.from_pretrained("tiny"), ImplicitReward.from_pretrained("tiny")
    rewards = {"process": process, "calculator": ArithmeticSteps(), "both": process + 2.0 * ArithmeticSteps()}
    return {name: Engine(model=model, reward=reward) for name, reward in rewards.items()}


def questions(count: int) -> list[str]:
    return [problem.question for problem in problems(count, seed=0, split="test")]


def written(result: Result, *, alone: bool = True) -> dict[str, Any]:
    """A result as its line has it; what others in a batch change is left out unless it was searched alone."""
    ledger = {k: v for k, v in result.usage.as_dict().items() if k not in ("seconds", "peak_memory_bytes", "flops")}
    steps = [
        # Of rollouts with equal texts, a rounding says which is the best.
        (s.kind, s.position, s.old_token, s.new_token, s.accepted if s.kind == "refine" else None, s.text)
        for s in result.trace
    ]
    if not alone:
        ledger = {k: v for k, v in ledger.items() if k not in _SHARED | _SHARED_TOO}
    return {
        "text": result.text,
        "finish": str(result.finish_reason),
        "ids": _hash(result.token_ids),
        "rollouts": _hash(steps),
        "ledger": ledger,
    }


def recorded(file: Path = FILE) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The lines of the file by reward, strategy and problem."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return {(line.pop("reward"), line.pop("strategy"), line.pop("problem")): line for line in found}


def shared(line: dict[str, Any]) -> dict[str, Any]:
    """A line without what others in a batch change."""
    return {**line, "ledger": {k: v for k, v in line["ledger"].items() if k not in _SHARED | _SHARED_TOO}}


def _hash(what: Any) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:12]


def _lines(count: int) -> Iterator[dict[str, Any]]:
    asked = questions(count)
    for reward, engine in engines().items():
        for name, strategy in STRATEGIES.items():
            for i, question in enumerate(asked):
                result = engine.generate(question, seed=i, strategy=strategy, **LIMITS)
                yield {"reward": reward, "strategy": name, "problem": i, **written(result)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with gzip.open(arguments.out, "wt", encoding="utf-8") as out:
        for line in _lines(arguments.problems):
            out.write(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
