"""Does the search sample from the KL-regularised optimum? Computed exactly, on sequences few enough to list.

The paper's duality: refining logits by the gradient of λ·r + log π samples from q(y) ∝ π(y)·exp(λ·r(y)). Here every
completion of at most `--length` tokens is listed, with π, the reward and the gradient at it. The left-to-right loop
(draw a token from the refined row, complete it anew, keep it or not) is then a chain whose distribution is summed up
without sampling. Reported is its total variation distance to q, with and without the gradient, with and without
acceptance. Models and rewards are random; a reward has standard deviation 1 under its model. `--check N` also runs the
engine's own `Nabla` N times and compares.

    python benchmarks/duality.py --out benchmarks/results/duality
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nabla_agents import AdamDTO, Budget, Engine, ImplicitReward, MirrorDTO, Nabla, Rollout, Sampling
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.objective import Objective, ObjectiveGradient
from nabla_agents.rewards.base import Reward
from nabla_agents.testing import random_model, random_outcome_reward
from nabla_agents.types import FinishReason

WORDS = "abcd"
LAMBDAS = (0.25, 0.5, 1.0, 2.0, 4.0)
Ids = tuple[int, ...]


@dataclass(frozen=True)
class World:
    """Every completion with log π, reward, and for each position the model's row and the rows of its gradient."""

    completions: list[Ids]
    log_p: torch.Tensor  # [n] log π(y), in nats
    reward: torch.Tensor  # [n]
    logits: list[torch.Tensor]  # [length, vocab] each: the language model's rows
    likelihood: list[torch.Tensor]  # the same shape: gradient of log π
    gain: list[torch.Tensor]  # the same shape: gradient of the reward
    direct: list[torch.Tensor]  # the same shape: the part of it that needs no backward pass

    @property
    def length(self) -> int:
        return max(map(len, self.completions))

    def optimum(self, lam: float) -> torch.Tensor:
        """q(y) ∝ π(y)·exp(λ·r(y))."""
        return (self.log_p + lam * self.reward).softmax(0)


@dataclass(frozen=True)
class Sampler:
    """What draws tokens (None: the model's own rows) and what keeps a change: nothing asked, J, or the reward."""

    name: str
    dto: Callable[[float], MirrorDTO | AdamDTO] | None
    accepts: str
    likelihood: bool = False  # whether the gradient of log π, over λ, is in the direction
    embeddings: bool = True  # whether the terms that go through the embeddings are

    def rows(self, world: World, y: int, lam: float) -> torch.Tensor:
        """[length, vocab]: the distribution that each token of completion y is drawn from."""
        logits = world.logits[y]
        if self.dto is None:
            return logits.softmax(-1)
        g = world.gain[y] if self.embeddings else world.direct[y]
        g = g + world.likelihood[y] / lam if self.likelihood else g
        return self.dto(lam).refine(logits, g).softmax(-1)

    def better(self, world: World, lam: float) -> torch.Tensor:
        """[n]: the value whose growth keeps a change; constant where nothing is asked."""
        return world.log_p / lam + world.reward if self.accepts == "J" else world.reward


SAMPLERS = (
    Sampler("no gradient", None, "always"),
    Sampler("no gradient, kept if J grows", None, "J"),
    Sampler("gradient of r, β = λ", lambda lam: MirrorDTO(beta=lam), "always"),
    Sampler("its direct term alone, β = λ", lambda lam: MirrorDTO(beta=lam), "always", embeddings=False),
    Sampler("gradient of r, β = λ, kept if J grows", lambda lam: MirrorDTO(beta=lam), "J"),
    Sampler("AdamDTO on J, kept if r grows (paper)", lambda lam: AdamDTO(temperature=1.0), "reward", likelihood=True),
)


def enumerated(model: LanguageModel, reward: Reward, length: int) -> World:
    """The world of a model and a reward, with completions of at most so many tokens."""
    eos = model.tokenizer.eos_id
    tokens = range(model.vocab_size)
    done, open_ = list[Ids](), [()]
    for _ in range(length):
        grown = [(*ids, t) for ids in open_ for t in tokens]
        done += [ids for ids in grown if ids[-1] == eos]
        open_ = [ids for ids in grown if ids[-1] != eos]
    completions = [*done, *open_]
    prompt = model.prompt("a")
    bare = [
        Rollout(
            prompt,
            ids,
            model.tokenizer.decode([i for i in ids if i != eos]),
            None,
            FinishReason.STOP if ids[-1] == eos else FinishReason.LENGTH,
        )
        for ids in completions
    ]
    known = [log_probs for log_probs, _ in model.token_log_probs(bare)]
    rollouts = [replace(r, log_probs=log_probs) for r, log_probs in zip(bare, known, strict=True)]
    positions = [range(len(ids)) for ids in completions]
    scores = Objective(model, reward).score(rollouts)

    def gradients(*, embedding_terms: bool) -> list[ObjectiveGradient]:
        objective = Objective(model, reward, embedding_terms=embedding_terms)
        return objective.gradient(rollouts, scores, [0] * len(rollouts))

    whole, direct = gradients(embedding_terms=True), gradients(embedding_terms=False)
    return World(
        completions=completions,
        log_p=torch.stack([p.double().sum() for p in known]),
        reward=torch.tensor([s.value for s in scores if s is not None], dtype=torch.float64),
        logits=[g.logits(p).double() for g, p in zip(whole, positions, strict=True)],
        likelihood=[g.likelihood.rows(p).double() for g, p in zip(whole, positions, strict=True)],
        gain=_of_the_reward(whole, positions),
        direct=_of_the_reward(direct, positions),
    )


def _of_the_reward(gradients: Sequence[ObjectiveGradient], positions: Sequence[range]) -> list[torch.Tensor]:
    pairs = zip(gradients, positions, strict=True)
    return [(g.rows(p).double() - g.likelihood.rows(p).double()) for g, p in pairs]


def reached(world: World, sampler: Sampler, lam: float) -> torch.Tensor:
    """The exact distribution over completions when the loop has gone from left to right once, from a draw of π."""
    p, value = world.log_p.exp(), sampler.better(world, lam)
    rows = [sampler.rows(world, i, lam) for i in range(len(world.completions))]
    state = p.clone()
    for t in range(world.length):
        following = state.clone()
        for members in alike(world.completions, t).values():
            tokens = torch.tensor([world.completions[i][t] for i in members])
            same = tokens[:, None] == tokens
            tail = p[members] / (same * p[members]).sum(-1)  # of each completion, given its beginning up to t
            drawn = torch.stack([rows[i][t] for i in members])[:, tokens]  # from the row of one, the token of another
            kept = value[members] > value[members][:, None] if sampler.accepts != "always" else torch.ones_like(same)
            flow = state[members][:, None] * drawn * tail * (kept & ~same)
            following[members] += flow.sum(0) - flow.sum(1)
        state = following
    return state


def alike(completions: Sequence[Ids], t: int) -> dict[Ids, list[int]]:
    """The completions with more than t tokens by their first t."""
    groups: dict[Ids, list[int]] = {}
    for i, ids in enumerate(completions):
        if len(ids) > t:
            groups.setdefault(ids[:t], []).append(i)
    return groups


def best_of(world: World, n: int) -> torch.Tensor:
    """The exact distribution of the completion with the largest reward among n draws of π."""
    order = world.reward.argsort()
    below = world.log_p.exp()[order].cumsum(0).clamp(max=1.0)
    result = torch.zeros_like(below)
    result[order] = below.pow(n).diff(prepend=torch.zeros(1, dtype=below.dtype))
    return result


def total_variation(a: torch.Tensor, b: torch.Tensor) -> float:
    return 0.5 * float((a - b).abs().sum())


def figures(world: World, reached_: torch.Tensor, lam: float) -> dict[str, float]:
    """Distance to the optimum, and where the distribution lies between reward and divergence from π."""
    kl = torch.where(reached_ > 0, reached_ * (reached_.clamp_min(1e-300).log() - world.log_p), 0.0).sum()
    return {
        "total_variation": total_variation(reached_, world.optimum(lam)),
        "kl": float(kl),
        "reward": float(reached_ @ world.reward),
    }


def checked(model: LanguageModel, reward: Reward, world: World, runs: int, lam: float) -> dict[str, float]:
    """How far the engine's own answers are from the exact distribution, and how far as many exact draws would be."""
    strategy = Nabla(
        dto=MirrorDTO(beta=lam),
        resample=Sampling(temperature=1.0),
        temperature=1.0,
        plausibility_floor=None,
        stop_when_verified=False,
        reopen=False,
        outcome_weight=0.0,
    )
    engine = Engine(
        model=model, reward=reward, strategy=strategy, budget=Budget(rollouts=64), likelihood_weight=1 / lam
    )
    results = engine.generate_batch(["a"] * runs, sampling=Sampling(max_tokens=world.length), max_batch=64)
    counts = Counter(r.token_ids for r in results)
    found = torch.tensor([counts[ids] / runs for ids in world.completions], dtype=torch.float64)
    with_likelihood = Sampler("", lambda lam: MirrorDTO(beta=lam), "J", likelihood=True)
    exact = reached(world, with_likelihood, lam)
    draws = torch.distributions.Multinomial(runs, exact).sample()
    return {
        "runs": runs,
        "engine_to_exact": total_variation(found, exact),
        "draws_to_exact": total_variation(draws / runs, exact),
    }


def measured(pairs: int, length: int, runs: int) -> dict[str, Any]:
    torch.manual_seed(0)
    found: dict[str, Any] = {"words": len(WORDS), "length": length, "pairs": pairs, "rewards": {}}
    for kind in ("implicit", "outcome"):
        per: dict[str, dict[str, list[dict[str, float]]]] = {}
        for seed in range(pairs):
            model = random_model(vocabulary=list(WORDS), width=16, layers=2, seed=2 * seed)
            reward = _reward(kind, model, length, 2 * seed + 1)
            world = enumerated(model, reward, length)
            for lam in LAMBDAS:
                rows = {s.name: reached(world, s, lam) for s in SAMPLERS if s.embeddings or kind == "implicit"}
                rows["best of 8 by r"] = best_of(world, 8)
                rows["the optimum q"] = world.optimum(lam)
                for name, distribution in rows.items():
                    per.setdefault(name, {}).setdefault(f"{lam:g}", []).append(figures(world, distribution, lam))
            if seed == 0 and runs:
                found[f"check, {kind}"] = checked(model, reward, world, runs, 1.0)
        found["rewards"][kind] = {
            name: {lam: _mean(each) for lam, each in by_lam.items()} for name, by_lam in per.items()
        }
        found["completions"] = len(world.completions)
    return found


def _reward(kind: str, model: LanguageModel, length: int, seed: int) -> Reward:
    """A random reward whose standard deviation under the model is 1; an empty text counts 0."""
    if kind == "implicit":
        plain: Reward = ImplicitReward(random_model(vocabulary=list(WORDS), width=16, layers=2, seed=seed))
    else:
        plain = random_outcome_reward(model.tokenizer.hf, width=16, layers=2, seed=seed).otherwise(0.0)
    world = enumerated(model, plain, length)
    p = world.log_p.exp()
    variance = float(p @ world.reward.square() - (p @ world.reward).square())
    return variance**-0.5 * plain


def _mean(each: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over pairs, and the standard error of the distance."""
    n = len(each)
    mean = {k: sum(e[k] for e in each) / n for k in each[0]}
    spread = math.sqrt(sum((e["total_variation"] - mean["total_variation"]) ** 2 for e in each) / max(1, n - 1) / n)
    return {k: round(v, 4) for k, v in {**mean, "total_variation_se": spread}.items()}


def table(found: dict[str, Any]) -> str:
    """Total variation to q as Markdown."""
    lines: list[str] = []
    for kind, samplers in found["rewards"].items():
        heads = " | ".join(f"λ = {x:g}" for x in LAMBDAS)
        lines += [
            f"Total variation to q, reward: {kind}",
            "",
            f"| sampler | {heads} |",
            "|---|" + "---:|" * len(LAMBDAS),
        ]
        for name, by_lam in samplers.items():
            at = [by_lam[f"{x:g}"] for x in LAMBDAS]
            cells = [f"{p['total_variation']:.3f} ± {p['total_variation_se']:.3f}" for p in at]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def draw(found: dict[str, Any], file: Path) -> None:
    """Distance against λ, and reward against divergence, for both rewards."""
    import matplotlib
    from matplotlib.figure import Figure

    from nabla_agents.bench.plots import COLOURS, STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 7))
        panels = figure.subplots(2, 2)
        names = dict.fromkeys(name for samplers in found["rewards"].values() for name in samplers)
        colours = dict(zip(names, COLOURS, strict=False))
        for row, (kind, samplers) in zip(panels, found["rewards"].items(), strict=True):
            for name, by_lam in samplers.items():
                style: dict[str, Any] = {"color": colours[name], "marker": "o", "markersize": 4, "label": name}
                style |= {"linestyle": ":"} if name == "the optimum q" else {}
                at = [by_lam[f"{x:g}"] for x in LAMBDAS]
                row[0].plot(LAMBDAS, [p["total_variation"] for p in at], **style)
                row[1].plot([p["kl"] for p in at], [p["reward"] for p in at], **style)
            row[0].set(xscale="log", xlabel="λ", ylabel="total variation to q", title=f"{kind} reward")
            row[0].set_xticks(LAMBDAS, [f"{x:g}" for x in LAMBDAS])
            row[0].minorticks_off()
            row[1].set(xlabel="KL from π in nats", ylabel="expected reward", title="each line: λ from 0.25 to 4")
        panels[0][1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8)
        figure.tight_layout()
        figure.savefig(file, bbox_inches="tight", metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="random pairs of a model and a reward")
    parser.add_argument("--length", type=int, default=3, help="most tokens of a completion")
    parser.add_argument("--check", type=int, default=0, help="runs of the engine's own search to compare with")
    parser.add_argument("--out", type=Path, help="folder for results.json, table.md and duality.svg")
    options = parser.parse_args()
    torch.set_num_threads(1)
    Rollout.cut = property(lambda rollout: False)  # in this world a text of --length tokens has ended
    found = measured(options.pairs, options.length, options.check)
    print(table(found))
    print(json.dumps({k: v for k, v in found.items() if k != "rewards"}))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (options.out / "table.md").write_text(table(found), encoding="utf-8")
        draw(found, options.out / "duality.svg")


if __name__ == "__main__":
    main()
