"""What rollouts, gradient passes and whole questions cost on a GPU, with models of the true sizes.

    python benchmarks/gpu.py                       Qwen2 shapes of 0.5B, 1.5B and 7B parameters
    python benchmarks/gpu.py --shapes smoke        a check of this script in seconds, on any machine
    python benchmarks/gpu.py --device cpu --shapes 0.5B --batches 1,8 --prompt 64 --tokens 64 --questions 1 --repeats 1

Weights are random, so nothing is downloaded and no answer means anything; times and memory do not depend on that. The
vocabulary is the true one, 151,936 tokens. Language model and outcome reward have the same shape each. The floor of a
gradient pass is the FLOPs that the ledger counts for it at the rate of a large matrix product on the same device.
"Forced" searches try everything plausible, up to 8 rollouts, as best-of-8 does; "as it stops" is the default.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast, Qwen2Config

from nabla_agents import (
    BestOfN,
    Budget,
    Engine,
    LanguageModel,
    Nabla,
    NablaParallel,
    Objective,
    OutcomeReward,
    Sampling,
    Usage,
)
from nabla_agents.models.rows import RolloutJob

VOCABULARY = 151_936
FORCED = -50.0  # nats: everything plausible is tried
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message.role + '> ' + message.content + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A Qwen2 decoder. `prompt` and `tokens` are the lengths that it is measured at."""

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool
    vocabulary: int = VOCABULARY
    prompt: int = 256
    tokens: int = 512


SHAPES = {
    "0.5B": Shape(896, 4864, 24, 14, 2, tied=True),
    "1.5B": Shape(1536, 8960, 28, 12, 2, tied=True),
    "7B": Shape(3584, 18944, 28, 28, 4, tied=False),
    "smoke": Shape(32, 64, 2, 4, 2, tied=True, vocabulary=512, prompt=8, tokens=12),
}


@dataclass(frozen=True)
class Measured:
    """One figure: what was measured, and how much, in the unit that its name ends in."""

    shape: str
    what: str
    value: float
    unit: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="0.5B,1.5B,7B", help=f"a comma list of {', '.join(SHAPES)}")
    parser.add_argument("--device", help="cuda where there is one; cpu only if you say so")
    parser.add_argument("--batches", default="1,8,64", help="rollouts at once")
    parser.add_argument("--prompt", type=int, help="tokens of a prompt; else those of the shape")
    parser.add_argument("--tokens", type=int, help="tokens of an answer; else those of the shape")
    parser.add_argument("--questions", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true", help="decode by torch.compile")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    chosen = [name.strip() for name in arguments.shapes.split(",")]
    if unknown := [name for name in chosen if name not in SHAPES]:
        parser.error(f"no shape {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    if arguments.device is None and not torch.cuda.is_available() and chosen != ["smoke"]:
        raise SystemExit(
            "There is no GPU here (torch.cuda.is_available() is False), and these shapes would take hours without.\n"
            "Run this where there is one, check the script with --shapes smoke, or say --device cpu and measure less."
        )
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    warnings.simplefilter("ignore")
    rate = matrix_rate(arguments.device, side=8192 if arguments.device != "cpu" else 512)
    name = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "CPU"
    print(f"{name}: {rate / 1e12:.3g} TFLOP/s in a matrix product of {dtype_of(arguments.device)}", flush=True)
    found: list[Measured] = []
    for shape in chosen:
        found += measured(shape, arguments, rate)
    show(found)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(m) for m in found], indent=1))


def measured(name: str, arguments: argparse.Namespace, rate: float) -> list[Measured]:
    """Every figure of one shape."""
    shape, device = SHAPES[name], arguments.device
    shape = replace(shape, prompt=arguments.prompt or shape.prompt, tokens=arguments.tokens or shape.tokens)
    model, reward = made(shape, device, checkpointing=arguments.activation_checkpointing, compiled=arguments.compile)
    prompts = [model.prompt(" ".join(f"w{(i * 7 + q) % 100}" for i in range(shape.prompt))) for q in range(64)]
    found: list[Measured] = []

    def take(what: str, run: Callable[[], Any], figures: Callable[[float, Any], Sequence[tuple[float, str]]]) -> None:
        seconds, memory, result = timed(run, device, arguments.repeats)
        found.extend(Measured(name, what, value, unit) for value, unit in figures(seconds, result))
        if memory:
            found.append(Measured(name, what, memory / 1e9, "GB peak"))

    for batch in map(int, arguments.batches.split(",")):
        jobs = [job(prompts[i % 64], shape.tokens, seed=i) for i in range(batch)]
        take(
            f"rollouts, batch of {batch}",
            lambda jobs=jobs: model.rollout(jobs),
            lambda s, made: [(sum(r.usage.generated_tokens for r in made) / s, "tokens/s")],
        )
    [rollout] = model.rollout([job(prompts[0], shape.tokens, seed=0)])
    objective = Objective(model, reward)
    model.read_prompts([prompts[0]])
    take(
        f"gradient pass, {shape.tokens} tokens",
        lambda: objective.gradient([rollout], [None], [0]),
        lambda s, made: [(s, "s"), (s / (made[0].usage.flops / rate), "× its FLOP floor")],
    )
    [gradient] = objective.gradient([rollout], [None], [0])
    take("10 rows of the gradient", lambda: gradient.rows(range(10)), lambda s, _: [(s, "s")])
    found += questions(name, shape, Engine(model=model, reward=reward), prompts, arguments)
    return found


def questions(
    name: str, shape: Shape, engine: Engine, prompts: Sequence[Any], arguments: argparse.Namespace
) -> list[Measured]:
    """Seconds per question, end to end, and ratios to best-of-8 by the same models."""
    sampling, budget = Sampling(max_tokens=shape.tokens), Budget(rollouts=8)
    asked = prompts[: arguments.questions]
    arms: dict[str, Any] = {
        "best-of-8": BestOfN(n=8),
        "nabla, forced": Nabla(min_promise=FORCED),
        "parallel, forced": NablaParallel(min_promise=FORCED),
        "nabla, as it stops": Nabla(),
        "parallel, as it stops": NablaParallel(),
    }
    found: list[Measured] = []
    first: tuple[float, float] | None = None
    for arm, strategy in arms.items():

        def run(strategy: Any = strategy) -> Usage:
            results = [engine.generate(p, strategy=strategy, sampling=sampling, budget=budget) for p in asked]
            return sum((r.usage for r in results), Usage())

        seconds, memory, usage = timed(run, arguments.device, 1)
        first = first or (seconds, usage.flops)
        figures = (
            (seconds / len(asked), "s/question"),
            (seconds / first[0], "× best-of-8 seconds"),
            (usage.flops / first[1], "× best-of-8 FLOPs"),
            (usage.rollouts / len(asked), "rollouts"),
            (memory / 1e9, "GB peak"),
        )
        found += [Measured(name, arm, value, unit) for value, unit in figures if value or unit != "GB peak"]
    return found


def made(shape: Shape, device: str, *, checkpointing: bool, compiled: bool) -> tuple[LanguageModel, OutcomeReward]:
    """A language model and an outcome reward of one shape, with random weights."""
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=32_768,
        num_labels=1,
        pad_token_id=0,
        eos_token_id=0,
    )
    words = ["<eos>", "<system>", "<user>", "<assistant>", "<tool>"]
    words += [f"w{i}" for i in range(shape.vocabulary - len(words))]
    raw = RawTokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    hf = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", chat_template=TEMPLATE)
    parts: list[Any] = []
    for seed, auto_class in enumerate((AutoModelForCausalLM, AutoModelForSequenceClassification)):
        torch.manual_seed(seed)
        with torch.device(device):
            module = auto_class.from_config(config, dtype=dtype_of(device))
        if checkpointing:
            from nabla_agents.models.checkpointing import checkpoint_layers

            checkpoint_layers(module)
        parts.append(module)
    if compiled:
        from nabla_agents.models.compiled import compile_passes

        compile_passes(parts[0])
    return LanguageModel(parts[0], hf), OutcomeReward(parts[1], hf)


def job(prompt: Any, tokens: int, *, seed: int) -> RolloutJob:
    uniforms = torch.rand(tokens, generator=torch.Generator().manual_seed(seed))
    return RolloutJob(prompt, (), Sampling(temperature=1.0), tokens, uniforms)


def timed(run: Callable[[], Any], device: str, repeats: int) -> tuple[float, float, Any]:
    """Median seconds after one warm-up, the highest memory in bytes (of the GPU; 0 on a CPU), and the result."""
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    result: Any = None
    for _ in range(1 + repeats):
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        result = run()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:]), float(torch.cuda.max_memory_allocated()) if cuda else 0.0, result


def matrix_rate(device: str, *, side: int) -> float:
    """FLOP/s of a square matrix product in the dtype of the models."""
    a = torch.randn(side, side, device=device, dtype=dtype_of(device))
    seconds, _, _ = timed(lambda: a @ a, device, 5)
    return 2 * side**3 / seconds


def dtype_of(device: str) -> torch.dtype:
    return torch.float32 if device == "cpu" else torch.bfloat16


def show(found: Sequence[Measured]) -> None:
    table = Table("shape", "what", "figures")
    rows: dict[tuple[str, str], list[str]] = {}
    for m in found:
        rows.setdefault((m.shape, m.what), []).append(f"{m.value:.4g} {m.unit}")
    for (shape, what), figures in rows.items():
        table.add_row(shape, what, " · ".join(figures))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main()
