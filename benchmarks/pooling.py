"""Tells right answers from wrong ones by a sibling's log-ratio: by its sum over the tokens, mean, or positive part.

    python benchmarks/pooling.py coder-1.5b.gguf coder-0.5b.gguf mbpp/config.toml --dtype bfloat16 --leave-out "*sib*"

The answers are those that a comparison by `nabla bench` has kept beside its file (`records.jsonl`), but for arms that
the sibling itself has led. Of each question that has right and wrong ones, every pair of a right and a wrong answer is
asked for the higher value: the share of pairs put right (ties count half), questions counting alike, with its 95 %
bootstrap interval over questions. How long the answers are, alone, is the control.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from rich.progress import track
from torch import Tensor

from nabla_agents import LanguageModel, Rollout
from nabla_agents.bench import BenchConfig, Record, bootstrap_interval
from nabla_agents.rewards.learned.pooling import POOLINGS, pooled

AT_ONCE = 16


@dataclass(frozen=True)
class Answer:
    """A text with the log-ratio of each of its tokens, in nats."""

    right: bool
    ratios: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("larger", help="folder, GGUF file or hub id")
    parser.add_argument("policy", help="the model whose answers they are")
    parser.add_argument("configs", type=Path, nargs="+", help="files of `nabla bench`, with their records beside them")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--leave-out", default="", help="arms whose answers do not count, as a glob")
    options = parser.parse_args()
    told = mixed([question for file in options.configs for question in answers(file, options.leave_out)])
    policy = LanguageModel.from_pretrained(options.policy, dtype=options.dtype)
    rollouts = [rollout(policy, prompt, text) for prompt, texts in told for text in texts]
    larger = LanguageModel.from_pretrained(options.larger, dtype=options.dtype)
    ratios = [a - b for a, b in zip(read(larger, rollouts), read(policy, rollouts), strict=True)]
    left = iter(ratios)
    judged = [[Answer(right, next(left)) for right in texts.values()] for _, texts in told]
    print(f"{len(judged)} questions, {len(ratios)} answers, {sum(a.right for each in judged for a in each)} right")
    for how in POOLINGS:
        show(how, judged, lambda ratios, how=how: pooled(ratios, how))
    show("length", judged, lambda ratios: float(len(ratios)))
    show("shortness", judged, lambda ratios: -float(len(ratios)))


def answers(file: Path, left_out: str) -> list[tuple[str, dict[str, bool]]]:
    """Of each question its different answers, and which of them are right."""
    config = BenchConfig.read(file)
    lines = file.with_name("records.jsonl").read_text(encoding="utf-8").splitlines()
    found: defaultdict[tuple[int, int], dict[str, bool]] = defaultdict(dict)
    for record in map(Record.from_line, lines):
        if not fnmatch(record.arm, left_out):
            found[record.seed, record.problem][record.text] = record.correct
    questions = {seed: config.the_task().draw(config.problems, seed) for seed in config.seeds}
    return [(questions[seed][problem].text, texts) for (seed, problem), texts in sorted(found.items())]


def mixed(questions: Sequence[tuple[str, dict[str, bool]]]) -> list[tuple[str, dict[str, bool]]]:
    return [(prompt, texts) for prompt, texts in questions if len({*texts.values()}) == 2]


def rollout(model: LanguageModel, prompt: str, text: str) -> Rollout:
    """The answer as the model would have written it, its end included."""
    ids = model.tokenizer.encode(model.tokenizer.delimiters.within(text))
    return Rollout(model.prompt(prompt), (*ids, model.tokenizer.eos_id), text)


def read(model: LanguageModel, rollouts: Sequence[Rollout]) -> list[Tensor]:
    batches = [rollouts[at : at + AT_ONCE] for at in range(0, len(rollouts), AT_ONCE)]
    return [log_probs for batch in track(batches, model.name) for log_probs, _ in model.token_log_probs(batch)]


def show(name: str, questions: Sequence[Sequence[Answer]], value: Callable[[Tensor], float]) -> None:
    shares = [share(each, value) for each in questions]
    low, high = bootstrap_interval(shares)
    print(f"{name:10}{100 * sum(shares) / len(shares):6.1f} % of pairs [{100 * low:.1f}, {100 * high:.1f}]")


def share(answers: Sequence[Answer], value: Callable[[Tensor], float]) -> float:
    """Of the pairs of a right and a wrong answer, those in which the right one has the higher value."""
    right, wrong = ([value(a.ratios) for a in answers if a.right is kind] for kind in (True, False))
    return sum((a > b) + (a == b) / 2 for a in right for b in wrong) / (len(right) * len(wrong))


if __name__ == "__main__":
    main()
