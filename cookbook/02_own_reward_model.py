"""Your own reward model: plugged in, proven to read what it should, and measured before it is trusted.

A token classifier is trained for a few seconds on steps that are labelled right or wrong, as TRL's `PRMTrainer` does,
and saved as transformers saves it. `ProcessReward` reads such a folder or hub id, and its gradient comes with it. What
another family does differently is declared by `StepFormat(...)`, or `OutcomeFormat(...)` if it scores whole answers.

Real model and GPU: skip the training, and replace `Engine(model="tiny", ...)` by
    Engine(model="Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16", reward=ProcessReward.from_pretrained("your/model"))
"""

import re
from random import Random

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from nabla_agents import TRL_PRM, BestOfN, Engine, Greedy, ImplicitReward, ProcessReward, Reward, Rollout
from nabla_agents.tiny import LM_PATH, Problem, is_correct, problems

torch.manual_seed(0)
random = Random(0)


def spoiled(problem: Problem) -> tuple[Rollout, list[int]]:
    """A worked solution, each of its results spoiled with odds of 1 in 3, and which of its steps are right."""
    steps, labels = [], []
    for step in problem.solution.splitlines():
        wrong = re.sub(r"\d$", lambda digit: str((int(digit[0]) + random.randint(1, 9)) % 10), step)
        labels.append(int(step.startswith("Answer") or random.random() > 1 / 3))
        steps.append(step if labels[-1] else wrong)
    return Rollout.from_text(problem.question, "\n".join(steps)), labels


# 1. A model to train, and the reward that reads it: training sees exactly what the search will see.
tokenizer = AutoTokenizer.from_pretrained(LM_PATH)
module = AutoModelForTokenClassification.from_pretrained(LM_PATH, num_labels=2, dtype=torch.float32)
reward = ProcessReward(module, tokenizer, format=TRL_PRM)
optimizer = torch.optim.AdamW(module.requires_grad_(True).parameters(), lr=5e-4)
for number, problem in enumerate(problems(160, seed=3, split="train"), 1):
    rollout, labels = spoiled(problem)
    reading = reward.reading(rollout)
    logits = module(torch.tensor([reading.ids])).logits[0, list(reading.read_at)]
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
    if number % 8 == 0:
        optimizer.step()
        optimizer.zero_grad()
module.save_pretrained("prm")
tokenizer.save_pretrained("prm")

# 2. From now on it is a folder like any other. Stored scores tell later versions, dtypes and machines from this one.
answers = [(p.question, p.solution) for p in problems(4, seed=0, split="validation")]
reward.record("golden.json", answers)
own = ProcessReward.from_pretrained("prm", format=TRL_PRM)
print("reads as it was trained:", own.self_test("golden.json") < 1e-3)

# 3. Does it know right from wrong? AUC over steps that it has not seen: 0.5 is a coin.
held_out = [spoiled(problem) for problem in problems(60, seed=9, split="validation")]
said = [[span.value for span in score.spans] for score in own.score([rollout for rollout, _ in held_out])]
pairs = [
    (s, y) for scores, (_, labels) in zip(said, held_out, strict=True) for s, y in zip(scores, labels, strict=True)
]
right, wrong = ([s for s, y in pairs if y == label] for label in (1, 0))
auc = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong) / (len(right) * len(wrong))
print(f"AUC of a reward trained for seconds: {auc:.2f}, better than a coin: {auc > 0.5}")

# 4. Trust it as far as best-of-n by it beats greedy decoding. The embedded reward, trained for longer, is the standard.
asked = problems(24, seed=0, split="test")


def accuracy(strategy: BestOfN | Greedy, judge: Reward | None = None) -> float:
    results = Engine(model="tiny", reward=judge, strategy=strategy).generate_batch([p.question for p in asked])
    return sum(is_correct(r.text, p) for r, p in zip(results, asked, strict=True)) / len(asked)


greedy, best_of_8 = accuracy(Greedy()), BestOfN(n=8)
for name, judge in (("own", own), ("embedded", ImplicitReward.from_pretrained("tiny"))):
    gained = accuracy(best_of_8, judge) - greedy
    print(
        f"{name}: best-of-8 gains {gained:+.2f}:", "may steer a search" if gained > 0 else "needs more training first"
    )

# Prints:
# reads as it was trained: True
# AUC of a reward trained for seconds: 0..., better than a coin: True
# own: best-of-8 gains ...
# embedded: best-of-8 gains +0.17: may steer a search
