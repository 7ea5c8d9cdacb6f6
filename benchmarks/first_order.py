"""Does a gradient say what another token is worth? Predicted beside realised changes, on a real model and reward.

    python benchmarks/first_order.py coder.gguf outcome:verifier --questions gsm8k_test.jsonl --out first-order

Answers are sampled, and at random places of each a random token that the model finds plausible is put in the written
one's place. What the gradient of log π and of the reward predicts for that (g(new) - g(old), in nats) is ranked against
what happens: with the old tail kept, and with `--tails` tails written anew. The direct term is the one that needs no
backward pass; the embedding term goes through the embeddings of later positions. Reported is Spearman's correlation
with its 95 % interval (bootstrap over answers). Each answer's changes are kept; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from nabla_agents import LanguageModel, Prompt, Rollout, Sampling
from nabla_agents.functional import wide
from nabla_agents.models.rows import RolloutJob
from nabla_agents.objective import Objective
from nabla_agents.registry import reward_of, terms_of
from nabla_agents.search.positions import plausible

PROMPT = "{question}\nSolve it step by step with equations, and end with a line `Answer:` and the number."
FLOOR = 6.0  # nats below the written token's log-probability that a proposed one may be: the searches' own
TERMS = ("direct", "embedding")
TAILS = ("tail kept", "tail anew")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("reward", help="as for `nabla solve --reward`: a learned one, such as outcome:FOLDER")
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines with `question`")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--answers", type=int, default=40)
    parser.add_argument("--places", type=int, default=8, help="changes of an answer")
    parser.add_argument("--tails", type=int, default=2, help="written anew behind a change")
    parser.add_argument("--max-tokens", type=int, default=250)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "changes.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if (first := 1 + max((row["answer"] for row in done), default=-1)) < arguments.answers:
        loading = {"dtype": arguments.dtype}
        model = LanguageModel.from_pretrained(arguments.model, **loading)
        reward = reward_of(terms_of(arguments.reward), loading)
        objectives = {terms: Objective(model, reward, embedding_terms=terms) for terms in (True, False)}
        questions = [json.loads(line)["question"] for line in arguments.questions.read_text().splitlines()]
        random.Random(0).shuffle(questions)
        with file.open("a") as kept:
            for i in track(range(first, arguments.answers), "changing", console=Console(stderr=True)):
                prompt = model.prompt(arguments.prompt.format(question=questions[i]))
                rows = changes(model, objectives, prompt, i, arguments)
                done += rows
                kept.writelines(json.dumps(row) + "\n" for row in rows)
                kept.flush()
    found = table(done)
    (arguments.out / "table.md").write_text(found)
    print(found)


def changes(
    model: LanguageModel, objectives: Mapping[bool, Objective], prompt: Prompt, index: int, arguments: Any
) -> list[dict[str, Any]]:
    """What is predicted for some changes of one answer, and what came of them; none where it was cut."""
    generator, draw = torch.Generator().manual_seed(index), random.Random(index)
    sampling = Sampling(temperature=0.7)

    def job(prefix: tuple[int, ...]) -> RolloutJob:
        uniforms = torch.rand(arguments.max_tokens, generator=generator)
        return RolloutJob(prompt, prefix, sampling, arguments.max_tokens, uniforms)

    [answer] = model.reread(model.rollout([job(())]))
    if answer.cut:
        return []
    ids, (objective, direct_only) = answer.completion_ids, (objectives[True], objectives[False])
    [score] = objective.score([answer])
    [gradient] = objective.gradient([answer], [score], [0])
    [without] = direct_only.gradient([answer], [score], [0])
    chosen: list[tuple[int, int, dict[str, dict[str, float]]]] = []
    places = [*range(len(ids) - 1)]
    draw.shuffle(places)
    for place in places:
        if len(chosen) == arguments.places:
            break
        logits = gradient.logits([place])
        tokens = plausible(logits, torch.tensor([ids[place]]), FLOOR)[0].nonzero().flatten().tolist()
        tokens = [token for token in tokens if token not in model.eos_ids]
        if not tokens:
            continue
        new, old = draw.choice(tokens), ids[place]
        rows = {
            "likelihood direct": wide(logits).log_softmax(-1)[0],
            "likelihood both": gradient.likelihood.rows([place])[0],
            "J direct": without.rows([place])[0],
            "J both": gradient.rows([place])[0],
        }
        chosen.append((place, new, _terms({name: float(row[new] - row[old]) for name, row in rows.items()})))
    if not chosen:
        return []
    swapped = model.reread([_swapped(model, answer, place, new) for place, new, _ in chosen])
    jobs = [job((*ids[:place], new)) for place, new, _ in chosen for _ in range(arguments.tails)]
    tails = model.reread(model.rollout(jobs))
    values = [_values(objective, [answer])[0], *_values(objective, swapped), *_values(objective, tails)]
    (l0, r0), (one, several) = values[0], (values[1 : 1 + len(chosen)], values[1 + len(chosen) :])
    made: list[dict[str, Any]] = []
    for k, (place, new, predicted) in enumerate(chosen):
        mine = several[k * arguments.tails : (k + 1) * arguments.tails]
        mean = [sum(column) / len(mine) for column in zip(*mine, strict=True)]
        made.append(
            {
                "answer": index,
                "place": place,
                "of": len(ids),
                "token": model.tokenizer.token_text(new),
                "predicted": predicted,
                "tail kept": {"log π": one[k][0] - l0, "reward": one[k][1] - r0},
                "tail anew": {"log π": mean[0] - l0, "reward": mean[1] - r0},
            }
        )
    return made


def _terms(gains: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The terms of log π, and those of the reward: what is in J beside them."""
    likelihood = gains["likelihood direct"], gains["likelihood both"]
    reward = gains["J direct"] - likelihood[0], gains["J both"] - likelihood[1]
    named = {"reward": reward, "log π": likelihood}
    return {name: {"direct": direct, "embedding": both - direct} for name, (direct, both) in named.items()}


def _swapped(model: LanguageModel, answer: Rollout, place: int, new: int) -> Rollout:
    ids = (*answer.completion_ids[:place], new, *answer.completion_ids[place + 1 :])
    text = model.tokenizer.decode(ids[:-1] if ids[-1] in model.eos_ids else ids)
    return replace(answer, completion_ids=ids, text=text, log_probs=None)


def _values(objective: Objective, rollouts: Sequence[Rollout]) -> list[tuple[float, float]]:
    """log π and reward of each."""
    scores = objective.score(rollouts)
    return [(r.log_likelihood, float("nan") if s is None else s.value) for r, s in zip(rollouts, scores, strict=True)]


# ── what is reported ──────────────────────────────────────────────────────────────────────────────────────────────


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Spearman's correlations as Markdown."""
    lines = [
        f"{len(rows)} changes of {len({row['answer'] for row in rows})} answers",
        "",
        "| change of | predicted by | tail kept | tail anew |",
        "|---|---|---:|---:|",
    ]
    for quantity in ("log π", "reward", "J"):
        for name in (*TERMS, "both"):
            predicted = [sum(_of(row["predicted"], quantity, t) for t in TERMS if name in (t, "both")) for row in rows]
            cells = [_cell(rows, predicted, [_of(row[tail], quantity) for row in rows]) for tail in TAILS]
            lines.append(f"| {quantity} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _of(values: Mapping[str, Any], quantity: str, term: str | None = None) -> float:
    """A part of it; J is the sum of log π and reward."""
    parts = ("log π", "reward") if quantity == "J" else (quantity,)
    return sum(values[part] if term is None else values[part][term] for part in parts)


def _cell(rows: Sequence[Mapping[str, Any]], predicted: Sequence[float], found: Sequence[float]) -> str:
    x, y = torch.tensor(predicted, dtype=torch.float64), torch.tensor(found, dtype=torch.float64)
    judged = ~(x.isnan() | y.isnan())
    if float(x[judged].std()) == 0:
        return "none"
    answers: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        if judged[i]:
            answers.setdefault(row["answer"], []).append(i)
    draw, names, values = random.Random(0), list(answers), list[float]()
    for _ in range(1000):
        index = [i for name in draw.choices(names, k=len(names)) for i in answers[name]]
        values.append(spearman(x[index], y[index]))
    low, high = torch.tensor(values).quantile(torch.tensor([0.025, 0.975])).tolist()
    return f"{spearman(x[judged], y[judged]):.2f} [{low:.2f}, {high:.2f}]"


def spearman(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation of the ranks; those of equal values are their mean."""
    return float(torch.corrcoef(torch.stack([_ranks(x), _ranks(y)]))[0, 1])


def _ranks(x: Tensor) -> Tensor:
    _, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[inverse]


if __name__ == "__main__":
    main()
