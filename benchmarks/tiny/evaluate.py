"""What the tiny models reach on the test split, with 95 % intervals: `python -m benchmarks.tiny.evaluate`.

Plain transformers, nothing of the engine: these figures are what the engine's own are held against.
"""

import argparse
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Final

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.tiny.model import complete, greedy_verdicts, is_right, load, prompt_of
from nabla_agents.tiny import WEIGHTS
from nabla_agents.tiny.code_tasks import CodeTask, code_tasks
from nabla_agents.tiny.word_problems import Problem, problems

SAMPLES: Final = 8
RESAMPLES: Final = 1000
LONG_PROMPT_TOKENS: Final = (0, 300, 1000, 3500)
LONG_PROMPT_PROBLEMS: Final = 100
_EQUATION: Final = re.compile(r"^([0-9]{1,9}) ([-+*/]) ([0-9]{1,9}) = ([0-9]{1,9})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sampled:
    """`SAMPLES` completions of each problem; every tensor is [problems, SAMPLES]."""

    correct: Tensor
    complete: Tensor  # whether the turn was ended
    reward: Tensor  # the implicit process reward with beta 1, in nats


def has_wrong_equation(text: str) -> bool:
    """Whether some line `a op b = c` of `text` is false in exact integers."""
    for left, operation, right, result in _EQUATION.findall(text):
        a, b, c = int(left), int(right), int(result)
        true = {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b != 0 and b * c == a}
        if not true[operation]:
            return True
    return False


@torch.inference_mode()
def log_likelihood(
    model: Qwen3ForCausalLM, prompts: Sequence[Sequence[int]], completions: Sequence[list[int]]
) -> Tensor:
    """The summed log-likelihood of each completion after its prompt, in nats: [rows]. One pass over the batch."""
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
    places = torch.arange(1, longest, device=model.device)
    starts = torch.tensor([len(prompt) for prompt in prompts], device=model.device)[:, None]
    ends = torch.tensor([len(row) for row in rows], device=model.device)[:, None]
    scored = (places >= starts) & (places < ends)  # padding is to the right, where a causal model does not look
    picked = model(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return picked.where(scored, 0.0).sum(-1)


def sample(
    lm: Qwen3ForCausalLM,
    tuned: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[Problem | CodeTask],
    *,
    temperature: float,
    seed: int,
    rows: int = 16,
) -> Sampled:
    """Samples and scores completions, `rows` problems at a time."""
    correct, ended, reward = [], [], []
    for start in range(0, len(asked), rows):
        some = [problem for problem in asked[start : start + rows] for _ in range(SAMPLES)]
        prompts = [prompt_of(problem, tokenizer) for problem in some]
        drawn = complete(lm, tokenizer, prompts, temperature=temperature, seed=seed + start)
        texts = tokenizer.batch_decode(drawn, skip_special_tokens=True)
        prompt_ids = [tokenizer(prompt).input_ids for prompt in prompts]
        correct.append(torch.tensor([is_right(text, problem) for text, problem in zip(texts, some, strict=True)]))
        ended.append(torch.tensor([completion[-1] == tokenizer.eos_token_id for completion in drawn]))
        reward.append((log_likelihood(tuned, prompt_ids, drawn) - log_likelihood(lm, prompt_ids, drawn)).cpu())
    return Sampled(*(torch.cat(parts).view(-1, SAMPLES) for parts in (correct, ended, reward)))


def auc(positive: Tensor, negative: Tensor) -> float:
    """The share of (positive, negative) pairs in which the positive scores higher; ties count one half."""
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive)
    not_above = torch.searchsorted(ordered, positive, right=True)
    return ((below + not_above).double().mean() / 2 / len(ordered)).item()


def figure(statistic: Callable[[Tensor], float], count: int) -> dict[str, Any]:
    """The statistic of all `count` problems, with the middle 95 % of its values on problems drawn with replacement."""
    generator = torch.Generator().manual_seed(0)
    values = [statistic(torch.randint(count, (count,), generator=generator)) for _ in range(RESAMPLES)]
    low, high = torch.tensor(values).double().quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return {"value": round(statistic(torch.arange(count)), 4), "interval": [round(low, 4), round(high, 4)]}


def measure(
    folder: Path, *, count: int = 500, temperatures: Sequence[float] = (0.7, 1.0), seed: int = 1
) -> dict[str, Any]:
    """All figures of the pair in `folder`, on `count` test problems. About ten minutes on two cores."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    (lm, tokenizer), (tuned, _) = load(folder / "lm", device), load(folder / "reward", device)
    asked = problems(count, seed=seed, split="test")
    verdicts = greedy_verdicts(lm, tokenizer, asked)
    greedy = torch.tensor([correct for _, correct in verdicts])
    tuned_greedy = torch.tensor([correct for _, correct in greedy_verdicts(tuned, tokenizer, asked)])
    slipped = torch.tensor([has_wrong_equation(text) for text, correct in verdicts if not correct])
    figures: dict[str, Any] = {
        "test_problems": count,
        "seed": seed,
        "lm_greedy_accuracy": figure(lambda rows: _mean(greedy[rows]), count),
        "tuned_greedy_accuracy": figure(lambda rows: _mean(tuned_greedy[rows]), count),
        "wrong_answers_with_wrong_equation": figure(lambda rows: _mean(slipped[rows]), len(slipped)),
    }
    for temperature in temperatures:
        drawn = sample(lm, tuned, tokenizer, asked, temperature=temperature, seed=seed)
        figures[f"temperature_{temperature}"] = _sampled_figures(drawn, greedy)
    figures["code"] = _code_figures(lm, tuned, tokenizer, code_tasks(count, seed=seed, split="test"), seed=seed)
    figures["behind_system_prompt"] = {
        tokens: round(_mean(_behind(lm, tokenizer, asked[:LONG_PROMPT_PROBLEMS], tokens)), 4)
        for tokens in LONG_PROMPT_TOKENS
    }
    return figures


def running_text(tokenizer: PreTrainedTokenizerFast, tokens: int) -> str:
    """The first `tokens` tokens of the Python reference: English, code and tables that no training text comes from."""
    return str(
        tokenizer.decode(tokenizer("\n\n".join(topics[key] for key in sorted(topics))[: 8 * tokens]).input_ids[:tokens])
    )


def write_figures(folder: Path, *, training: dict[str, Any]) -> dict[str, Any]:
    """Measures the pair in `folder` and writes `figures.json` beside it, with what is known of its training."""
    figures = {"training": training, **measure(folder)}
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def _behind(lm: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, asked: Sequence[Problem], tokens: int) -> Tensor:
    verdicts = greedy_verdicts(lm, tokenizer, asked, system=running_text(tokenizer, tokens), rows=20)
    return torch.tensor([correct for _, correct in verdicts])


def _code_figures(
    lm: Qwen3ForCausalLM,
    tuned: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[CodeTask],
    *,
    seed: int,
) -> dict[str, Any]:
    """How often the reference program itself is written; another may be as good, so that these are lower bounds."""
    greedy = torch.tensor([right for _, right in greedy_verdicts(lm, tokenizer, asked)])
    drawn = sample(lm, tuned, tokenizer, asked, temperature=1.0, seed=seed)
    return {
        "test_tasks": len(asked),
        "lm_greedy_accuracy": figure(lambda rows: _mean(greedy[rows]), len(asked)),
        "accuracy": figure(lambda rows: _mean(drawn.correct[rows]), len(asked)),
        "pass_at_8": figure(lambda rows: _mean(drawn.correct[rows].any(dim=1)), len(asked)),
    }


def _mean(values: Tensor) -> float:
    return values.double().mean().item()


def _sampled_figures(drawn: Sampled, greedy: Tensor) -> dict[str, Any]:
    count = len(greedy)
    passed = drawn.correct.any(dim=1)
    best = drawn.correct.gather(1, drawn.reward.argmax(dim=1, keepdim=True))[:, 0]

    def separation(rows: Tensor) -> float:
        correct, ended, reward = drawn.correct[rows], drawn.complete[rows], drawn.reward[rows]
        return auc(reward[correct & ended], reward[~correct & ended])

    return {
        "complete_answers": round(_mean(drawn.complete), 4),
        "accuracy": figure(lambda rows: _mean(drawn.correct[rows]), count),
        "pass_at_8": figure(lambda rows: _mean(passed[rows]), count),
        "best_of_8": figure(lambda rows: _mean(best[rows]), count),
        "best_of_8_minus_greedy": figure(lambda rows: _mean(best[rows]) - _mean(greedy[rows]), count),
        "reward_auc": figure(separation, count),
    }


def main() -> None:
    """The command line: measure the shipped pair, keeping what `figures.json` says of its training."""
    parser = argparse.ArgumentParser(description="Measure the tiny language model and its reward on test problems.")
    parser.add_argument("--folder", type=Path, default=WEIGHTS, help="where the folders lm and reward are")
    folder: Path = parser.parse_args().folder
    disable_progress_bar()
    torch.set_num_threads(os.cpu_count() or 1)
    file = folder / "figures.json"
    training = json.loads(file.read_text(encoding="utf-8"))["training"] if file.exists() else {}
    Console().print_json(data=write_figures(folder, training=training))


if __name__ == "__main__":
    main()
