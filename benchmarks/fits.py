"""Which pairs of a language model and a reward fit into how much memory: computed by `Footprint`, not measured.

    python benchmarks/fits.py

Nothing is downloaded: the sizes of the models are those of their published configs, below.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from nabla_agents.models.footprint import Footprint, peak
from nabla_agents.models.shape import Shape

# model type, vocabulary, width, width of the MLP, layers, heads, heads of keys and values, width of a head, tied
SIZES: dict[str, tuple[str, int, int, int, int, int, int, int, bool]] = {
    "SmolLM2-135M": ("llama", 49_152, 576, 1536, 30, 9, 3, 64, True),
    "SmolLM2-1.7B": ("llama", 49_152, 2048, 8192, 24, 32, 32, 64, True),
    "Llama-3.2-1B": ("llama", 128_256, 2048, 8192, 16, 32, 8, 64, True),
    "Llama-3.2-3B": ("llama", 128_256, 3072, 8192, 28, 24, 8, 128, True),
    "Llama-3.1-8B": ("llama", 128_256, 4096, 14_336, 32, 32, 8, 128, False),
    "Mistral-7B": ("mistral", 32_000, 4096, 14_336, 32, 32, 8, 128, False),
    "Qwen2.5-0.5B": ("qwen2", 151_936, 896, 4864, 24, 14, 2, 64, True),
    "Qwen2.5-1.5B": ("qwen2", 151_936, 1536, 8960, 28, 12, 2, 128, True),
    "Qwen2.5-7B": ("qwen2", 152_064, 3584, 18_944, 28, 28, 4, 128, False),
    "Qwen3-0.6B": ("qwen3", 151_936, 1024, 3072, 28, 16, 8, 128, True),
    "Qwen3-1.7B": ("qwen3", 151_936, 2048, 6144, 28, 16, 8, 128, True),
    "Qwen3-4B": ("qwen3", 151_936, 2560, 9728, 36, 32, 8, 128, True),
    "Qwen3-8B": ("qwen3", 151_936, 4096, 12_288, 36, 32, 8, 128, False),
}
# language model, the model of whose size the reward is, its family, and whether it has an output head
PAIRS = (
    ("SmolLM2-135M", "SmolLM2-1.7B", "sibling", True),
    ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "sibling", True),
    ("Qwen3-0.6B", "Qwen3-0.6B", "Skywork-Reward-V2", False),
    ("Llama-3.2-1B", "Llama-3.2-1B", "Skywork-Reward-V2", False),
    ("Qwen2.5-1.5B", "Qwen2.5-1.5B", "Skywork-o1-PRM", False),
    ("Qwen3-1.7B", "Qwen3-1.7B", "Skywork-Reward-V2", False),
    ("Llama-3.2-3B", "Llama-3.2-3B", "Skywork-Reward-V2", False),
    ("Qwen3-4B", "Qwen3-4B", "Skywork-Reward-V2", False),
    ("Qwen2.5-1.5B", "Qwen2.5-7B", "Qwen2.5-Math-PRM", False),
    ("Llama-3.2-3B", "Llama-3.1-8B", "Skywork-Reward-V2", False),
    ("Mistral-7B", "Mistral-7B", "Math-Shepherd", True),
    ("Qwen2.5-7B", "Qwen2.5-7B", "Qwen2.5-Math-PRM", False),
    ("Qwen3-8B", "Qwen3-8B", "Skywork-Reward-V2", False),
    ("Llama-3.1-8B", "Llama-3.1-8B", "RLHFlow PRM", True),
)
MEMORIES = (8, 12, 16, 24, 48)  # GB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--tokens", type=int, default=512, help="of a completion")
    parser.add_argument("--rows", type=int, default=8, help="of the last column")
    arguments = parser.parse_args()
    dtype, lengths = getattr(torch, arguments.dtype), (arguments.prompt, arguments.tokens)
    heads = ["weights, GB", "1 row", "fits", "checkpointed", f"{arguments.rows} rows", "fits"]
    heads += ["in 4 bits: weights", "1 row", "fits"]
    print(f"| language model | reward | {' | '.join(heads)} |\n|---|---|{'---:|' * len(heads)}")
    for policy, reward, family, headed in PAIRS:
        models = [footprint(policy, dtype, True), footprint(reward, dtype, headed, headless=family != "sibling")]
        weights = sum(model.weights for model in models)
        one = peak(models, 1, *lengths)
        least, many = (peak(models, rows, *lengths, checkpointed=True) for rows in (1, arguments.rows))
        packed = [replace(model, bits=4) for model in models]
        few, fewest = sum(model.weights for model in packed), peak(packed, 1, *lengths)
        cells = [gb(weights), gb(one), fits(one), gb(least), gb(many), fits(many), gb(few), gb(fewest), fits(fewest)]
        print(f"| {policy} | {family} ({reward}) | {' | '.join(cells)} |")


@cache
def footprint(name: str, dtype: torch.dtype, headed: bool, *, headless: bool = False) -> Footprint:
    kind, vocab, hidden, intermediate, layers, heads, kv_heads, head_dim, tied = SIZES[name]
    config: Any = AutoConfig.for_model(
        kind,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tied,
    )
    auto_class = AutoModelForCausalLM if headed else AutoModelForSequenceClassification
    return Footprint(Shape.of_config(config, auto_class=auto_class), dtype, headless)


def gb(size: int) -> str:
    return f"{size / 1e9:.1f}"


def fits(size: int) -> str:
    return next((str(memory) for memory in MEMORIES if size <= memory * 1e9), "–")


if __name__ == "__main__":
    main()
