"""Trains a verifier: a linear head on a frozen language model that says how likely an answer is right.

    python benchmarks/verifier.py coder.gguf --questions gsm8k_train.jsonl --solutions labelled.jsonl --out verifier

What it learns from are labelled solutions (`question`, `solution`, `is_correct`) and the model's own answers to
`--count` questions (`question`, `answer` that ends in `#### 42`), judged by `MathAnswer`: an answer is read at its last
token by the chat template, as `OutcomeReward` reads it, and a logistic regression separates right from wrong. A fifth
of the questions, drawn by their hash, is held out for the AUC and for best-of-n; how strongly weights are held back is
chosen on the rest. The checkpoint is a plain sequence classification model, for `outcome:verifier` and
`OutcomeReward.from_pretrained("verifier")`; its score is the log-odds up to a constant. Answers and states are
kept in the folder: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from nabla_agents import Budget, Engine, Greedy, LanguageModel, MathAnswer, OutcomeReward, Rollout, Sampling
from nabla_agents.final_answer import extract_answer

PROMPT = "{question}\nSolve it step by step with equations, and end with a line `Answer:` and the number."
FOLDS = 5
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Labelled:
    question: str
    solution: str
    right: bool
    by: str

    @property
    def held_out(self) -> bool:
        return hashlib.sha256(self.question.encode()).digest()[0] % 5 == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder, GGUF file or hub id of a chat model")
    parser.add_argument("--questions", type=Path, help="JSON lines with question and answer")
    parser.add_argument("--solutions", type=Path, help="JSON lines with question, solution and is_correct")
    parser.add_argument("--count", type=int, default=200, help="questions that the model answers itself")
    parser.add_argument("--samples", type=int, default=4, help="answers to each of them")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--penalties", default="0.01,0.1,1,10,100", help="of which cross-validation chooses")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = LanguageModel.from_pretrained(arguments.model, dtype=arguments.dtype)
    labelled = [*_labelled(arguments.solutions, arguments.prompt)] if arguments.solutions else []
    if arguments.questions:
        labelled += own_answers(model, arguments)
    if not labelled:
        parser.error("expected --questions, --solutions or both")
    verifier = classifier(model)
    states = read(OutcomeReward(verifier, model.tokenizer.hf), labelled, arguments.out / "states.pt")
    weight, report = fitted(states, labelled, [float(penalty) for penalty in arguments.penalties.split(",")])
    verifier.score.weight.data = weight[None].to(verifier.score.weight)
    verifier.save_pretrained(arguments.out)
    model.tokenizer.hf.save_pretrained(arguments.out)
    (arguments.out / "report.json").write_text(json.dumps(report, indent=1))
    Console().print(report)


# ── what it learns from ───────────────────────────────────────────────────────────────────────────────────────────


def _labelled(file: Path, prompt: str) -> Iterator[Labelled]:
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        solution = re.sub(r"<<.*?>>", "", row["solution"])  # a calculator's notes
        yield Labelled(prompt.format(question=row["question"]), solution, row["is_correct"], row.get("by", "others"))


def own_answers(model: LanguageModel, arguments: argparse.Namespace) -> list[Labelled]:
    """The model's answers, kept question by question."""
    file = arguments.out / "answers.jsonl"
    done = [Labelled(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    known = {row.question for row in done}
    rows = [json.loads(line) for line in arguments.questions.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    asked = [(arguments.prompt.format(question=r["question"]), r["answer"]) for r in rows[: arguments.count]]
    engine = Engine(model=model, strategy=Greedy(), budget=Budget(rollouts=1))
    sampling = Sampling(temperature=0.7, max_tokens=arguments.max_tokens)
    missing = [(question, answer) for question, answer in asked if question not in known]
    with file.open("a", encoding="utf-8") as kept:
        for first in track(range(0, len(missing), 8), "answering", console=Console(stderr=True)):
            some = [pair for pair in missing[first : first + 8] for _ in range(arguments.samples)]
            seeds = list(range(first * arguments.samples, first * arguments.samples + len(some)))
            results = engine.generate_batch([q for q, _ in some], sampling=sampling, seeds=seeds, max_batch=len(some))
            for (question, answer), result in zip(some, results, strict=True):
                [judged] = MathAnswer(answer).score([Rollout.from_text(question, result.text)])
                if judged.verified is None or result.truncated:
                    continue
                done.append(Labelled(question, result.text, judged.verified, "itself"))
                kept.write(json.dumps(asdict(done[-1])) + "\n")
            kept.flush()
    return done


# ── what it sees ──────────────────────────────────────────────────────────────────────────────────────────────────


def classifier(model: LanguageModel) -> Any:
    """A sequence classification model with the language model's body, and a head that is not trained yet."""
    module: Any = model.transformer.module
    config = module.config.__class__.from_dict({**module.config.to_dict(), "num_labels": 1})
    with torch.device("meta"):
        verifier: Any = AutoModelForSequenceClassification.from_config(config)
    setattr(verifier, verifier.base_model_prefix, module.base_model)
    head = torch.nn.Linear(config.hidden_size, 1, bias=False)
    verifier.score = head.to(module.device, module.dtype)
    return verifier


@torch.no_grad()
def read(reward: OutcomeReward, labelled: Sequence[Labelled], file: Path) -> Tensor:
    """[n, hidden]: the state at the last token of each conversation; those that are in the file are not read again."""
    known: dict[str, Tensor] = torch.load(file) if file.exists() else {}
    keys = [hashlib.sha256(f"{row.question}\0{row.solution}".encode()).hexdigest() for row in labelled]
    ids = {
        key: reward.reading(Rollout.from_text(row.question, row.solution)).ids
        for key, row in zip(keys, labelled, strict=True)
        if key not in known
    }
    ordered = sorted(ids, key=lambda key: len(ids[key]))
    batches = [*_batches(ordered, [len(ids[key]) for key in ordered])]
    for i, batch in enumerate(track(batches, "reading", console=Console(stderr=True))):
        rows = [ids[key] for key in batch]
        _, hidden = reward.transformer.read(rows, [None] * len(rows), total_tokens=max(map(len, rows)))
        known |= zip(batch, hidden[:, -1].float().cpu().clone().unbind(), strict=True)
        if i % 20 == 19 or i == len(batches) - 1:
            torch.save(known, file)
    return torch.stack([known[key] for key in keys]).double()


def _batches(keys: Sequence[str], lengths: Sequence[int]) -> Iterator[list[str]]:
    """Rows of like length, so many tokens at once."""
    batch: list[str] = []
    for key, length in zip(keys, lengths, strict=True):
        if batch and (len(batch) + 1) * length > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch


# ── what it learns ────────────────────────────────────────────────────────────────────────────────────────────────


def fitted(states: Tensor, labelled: Sequence[Labelled], penalties: Sequence[float]) -> tuple[Tensor, dict[str, Any]]:
    """[hidden]: the head's weights; and how well they separate what they have not seen."""
    right = torch.tensor([row.right for row in labelled])
    held = torch.tensor([row.held_out for row in labelled])
    groups = [int(hashlib.sha256(row.question.encode()).hexdigest()[8:16], 16) % FOLDS for row in labelled]
    fold = torch.tensor(groups)
    scores = {}
    for penalty in penalties:
        found = torch.zeros(len(labelled), dtype=torch.float64)
        for k in range(FOLDS):
            inside, outside = ~held & (fold != k), ~held & (fold == k)
            found[outside] = states[outside] @ logistic(states[inside], right[inside], penalty)
        scores[penalty] = auc(found[~held], right[~held])
    best = max(scores, key=scores.__getitem__)
    weight = logistic(states[~held], right[~held], best)
    values = states @ weight
    report: dict[str, Any] = {"penalty": best, "auc by penalty": {str(p): round(a, 4) for p, a in scores.items()}}
    for by in ("all", *sorted({row.by for row in labelled})):
        some = held & torch.tensor([by in ("all", row.by) for row in labelled])
        questions = [row.question for row, chosen in zip(labelled, some.tolist(), strict=True) if chosen]
        if 0 < int(right[some].sum()) < int(some.sum()):
            report[f"held out, {by}"] = {
                "n": int(some.sum()),
                "right": round(float(right[some].double().mean()), 4),
                "auc": round(auc(values[some], right[some]), 4),
                "interval": interval(values[some], right[some], questions),
                **best_of_n([row for row, chosen in zip(labelled, some.tolist(), strict=True) if chosen], values[some]),
            }
    return weight, report


def best_of_n(labelled: Sequence[Labelled], values: Tensor) -> dict[str, Any]:
    """Of the questions with several answers, % right: any of them, the one of most votes, the one of the highest score;
    and by how much the last is ahead, with 95 % bootstrap intervals over questions.
    """
    answers: dict[str, list[tuple[Labelled, float]]] = {}
    for row, value in zip(labelled, values.tolist(), strict=True):
        answers.setdefault(row.question, []).append((row, value))
    found: list[tuple[float, float, float]] = []
    for several in (each for each in answers.values() if len(each) > 1):
        votes = Counter(extract_answer(row.solution) for row, _ in several)
        voted = next(row for row, _ in several if extract_answer(row.solution) == votes.most_common(1)[0][0])
        best = max(several, key=lambda pair: pair[1])[0]
        found.append((sum(row.right for row, _ in several) / len(several), float(voted.right), float(best.right)))
    if not found:
        return {}
    table = 100 * torch.tensor(found)
    drawn = torch.randint(len(found), (2000, len(found)), generator=torch.Generator().manual_seed(0))
    gains = (table[:, 2:] - table[:, :2])[drawn].mean(1).quantile(torch.tensor([0.025, 0.975]), dim=0)
    names = ("any", "majority", "best by it")
    means = {name: round(float(mean), 1) for name, mean in zip(names, table.mean(0), strict=True)}
    ahead = {f"ahead of {name}": [round(x, 1) for x in gains[:, i].tolist()] for i, name in enumerate(names[:2])}
    return {"questions": len(found), "answers": len(labelled), **means, **ahead}


def logistic(states: Tensor, right: Tensor, penalty: float) -> Tensor:
    """Weights of a logistic regression with an L2 penalty on standardised states; its constant is left out."""
    mean, spread = states.mean(0), states.std(0).clamp_min(1e-6)
    x, y = (states - mean) / spread, right.double()
    parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = x @ parameters[1:] + parameters[0]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
        value = value + penalty * parameters[1:].square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    return parameters.detach()[1:] / spread


def auc(values: Tensor, right: Tensor) -> float:
    """The chance that a right answer has the higher score than a wrong one."""
    order = values.argsort()
    ranks = torch.empty(len(values), dtype=torch.float64)
    ranks[order] = torch.arange(1, len(values) + 1, dtype=torch.float64)
    positive = int(right.sum())
    above = float(ranks[right].sum()) - positive * (positive + 1) / 2
    return above / (positive * (len(values) - positive))


def interval(values: Tensor, right: Tensor, questions: Sequence[str]) -> list[float]:
    """The 95 % bootstrap interval over questions."""
    members: dict[str, list[int]] = {}
    for i, question in enumerate(questions):
        members.setdefault(question, []).append(i)
    names, draw, found = list(members), random.Random(0), list[float]()
    for _ in range(500):
        index = [i for name in draw.choices(names, k=len(names)) for i in members[name]]
        if 0 < int(right[index].sum()) < len(index):
            found.append(auc(values[index], right[index]))
    low, high = torch.tensor(found).quantile(torch.tensor([0.025, 0.975])).tolist()
    return [round(low, 4), round(high, 4)]


if __name__ == "__main__":
    main()
