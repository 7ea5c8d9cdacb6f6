"""What weights in fewer bits keep of a model's gradient, and what they take: bytes and processor time.

    python benchmarks/quantised.py smollm2-135m.gguf

Greedy answers of the float32 model are read by each format; the cosine is that of all rows of their log-likelihood's
gradient. A format that is not installed, or has no gradient, says so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import BitsAndBytesConfig, TorchAoConfig

from nabla_agents import Engine, Greedy, LanguageModel, NablaError, Prompt, Sampling
from nabla_agents.models.gguf_copy import gguf_copy
from nabla_agents.models.rows import RolloutJob

QUESTIONS = ("What is the capital of France?", "What is 17 + 25?", "Name three colours.", "Why is the sky blue?")
Answers = list[tuple[Prompt, tuple[int, ...]]]


def torchao(config: str) -> Callable[[], TorchAoConfig]:
    def made() -> TorchAoConfig:
        from torchao import quantization  # type: ignore[import-not-found]  # no extra has it

        return TorchAoConfig(getattr(quantization, config)())

    return made


FORMATS: dict[str, tuple[str, Callable[[], Any]]] = {
    "bfloat16": ("bfloat16", lambda: None),
    "bitsandbytes NF4": ("bfloat16", lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "bitsandbytes int8": ("float32", lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "torchao int8": ("float32", torchao("Int8WeightOnlyConfig")),
    "torchao int8, dynamic": ("float32", torchao("Int8DynamicActivationInt8WeightConfig")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a GGUF file")
    torch.set_num_threads(1)
    folder, _ = gguf_copy(parser.parse_args().file, torch.float32)
    plain = LanguageModel.from_pretrained(folder)
    engine, limit = Engine(model=plain, strategy=Greedy()), Sampling(max_tokens=48)
    answers = [(plain.prompt(q), engine.generate(q, sampling=limit).token_ids) for q in QUESTIONS]
    expected, seconds = gradient(plain, answers)
    table = Table("format", "layers, MB", "cosine", "processor time, ×")
    table.add_row("float32", f"{megabytes(plain):.1f}", "1", "1")
    for name, (dtype, config) in FORMATS.items():
        try:
            model = LanguageModel.from_pretrained(folder, dtype=dtype, quantization_config=config())
        except (NablaError, ImportError, ValueError) as e:
            table.add_row(name, "", type(e).__name__, str(e).replace(str(folder), "")[:80])
            continue
        found, taken = gradient(model, answers)
        cosine = torch.nn.functional.cosine_similarity(found, expected, dim=0)
        table.add_row(name, f"{megabytes(model):.1f}", f"{cosine:.3f}", f"{taken / seconds:.2f}")
    Console().print(table)


def gradient(model: LanguageModel, answers: Answers) -> tuple[Tensor, float]:
    """All rows in one vector, and the processor seconds of the passes that lead to them."""
    rows, began = list[Tensor](), time.process_time()
    for prompt, ids in answers:
        [rollout] = model.rollout([RolloutJob(prompt, ids, Sampling(temperature=0), len(ids), torch.zeros(len(ids)))])
        [found] = model.likelihood_gradient([rollout], [0])
        rows.append(found.gradient.rows(range(len(ids))).double().flatten())
    return torch.cat(rows), time.process_time() - began


def megabytes(model: LanguageModel) -> float:
    """Of the weights of all layers, as they are stored."""
    parts = (getattr(p, name, None) for p in model.transformer.body.layers.parameters() for name in ("qdata", "scale"))
    inner = [part for part in parts if isinstance(part, Tensor)]
    plain = [p for p in model.transformer.body.layers.parameters() if not hasattr(p, "qdata")]
    return sum(t.numel() * t.element_size() for t in (*inner, *plain)) / 1e6


if __name__ == "__main__":
    main()
