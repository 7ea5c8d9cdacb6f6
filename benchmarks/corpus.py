"""What each sandbox contains and covers, and how often MathAnswer abstains: counts over the tests' corpora.

    python benchmarks/corpus.py [BACKEND ...]

Hostile programs: contained, with an accepted status and no effect outside. Harmless ones: those that print what CPython
prints. Pairs of answers: those judged as labelled, wrongly, or not at all. The tests assert the same.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from nabla_agents import MathAnswer, Rollout
from nabla_agents.errors import SandboxError
from nabla_agents.sandbox import Limits, Program, Status, backends

TESTS = Path(__file__).resolve().parent.parent / "tests"
DATA = TESTS / "data" / "sandbox"
LIMITS = Limits(fuel=100_000_000_000, cpu_seconds=10, wall_seconds=10.0, memory_bytes=512 << 20)
RIG_SECONDS = 600


def main(*names: str) -> None:
    for name in names or backends.BACKENDS:
        try:
            with backends.proven(backends.BACKENDS[name], workers=1) as executor:
                print(f"{name}: hostile programs: {hostile(name)}; harmless ones: {harmless(executor)}")
        except SandboxError as e:
            print(f"{name}: {e}")
    print(f"pairs of answers: {pairs()}")


def hostile(backend: str) -> str:
    """Each runs in a process of its own session, which the tests' rig watches from outside."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, str(TESTS / "sandbox" / "rig.py"), backend, scratch, "--hazards"]
        paths = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
        done = subprocess.run(
            command, cwd=scratch, env=paths, capture_output=True, text=True, timeout=RIG_SECONDS, start_new_session=True
        )
    broken = dict(map(json.loads, done.stdout.splitlines()))
    contained = sum(not rules for rules in broken.values())
    return f"{contained} of {len(broken)} contained" + "".join(f", {n}: {r}" for n, r in broken.items() if r)


def harmless(executor: backends.Executor) -> str:
    found: Counter[str] = Counter()
    for line in map(json.loads, (DATA / "coverage.jsonl").read_text().splitlines()):
        done = executor.run(Program(line["code"]), LIMITS)
        same = done.status is Status.OK and done.stdout == line["stdout"]
        found["as CPython" if same else "unsupported" if done.status is Status.UNSUPPORTED else "wrong"] += 1
    return ", ".join(f"{found[what]} {what}" for what in ("as CPython", "unsupported", "wrong"))


def pairs() -> str:
    found: Counter[str] = Counter()
    for pair in map(json.loads, (DATA / "math_pairs.jsonl").read_text().splitlines()):
        if pair["contested"] or pair["hostile"]:
            continue
        [score] = MathAnswer(pair["gold"]).score([Rollout.from_text("?", pair["answer"])])
        right = score.verified is (pair["label"] == "equal")
        found["abstains" if not score.judged else "right" if right else "wrong"] += 1
    return ", ".join(f"{found[what]} {what}" for what in ("right", "wrong", "abstains")) + f" of {found.total()}"


if __name__ == "__main__":
    main(*sys.argv[1:])
