"""What a pass needs in memory beside the weights: computed by `Footprint`, and measured.

    python benchmarks/memory.py tiny qwen2.5-coder-0.5b.gguf

Each pass runs in a process of its own, which loads the model and makes a short pass first, so that libraries are there;
what is measured is the highest resident memory over what was resident before. Linux only. Left to itself, glibc keeps
what is freed for what is to come, in pieces that often do not fit; `--heap glibc` shows how much that adds.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

PASSES = ("decode", "score", "gradient", "checkpointed")
_HEAP = {"glibc": {}, "mapped": {"MALLOC_MMAP_THRESHOLD_": str(1 << 18)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="`tiny`, folders, GGUF files or hub ids")
    parser.add_argument("--passes", default=",".join(PASSES), help="a comma list")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--tokens", type=int, default=128, help="of a completion")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="of weights, by bitsandbytes")
    parser.add_argument(
        "--heap", choices=tuple(_HEAP), default="mapped", help="glibc's own way, or none of it for 256 KB and more"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return print(json.dumps(measured(arguments)))
    print("| model | pass | computed, MB | measured, MB | ratio | CPU s |\n|---|---|---:|---:|---:|---:|", flush=True)
    for model in arguments.models:
        for which in arguments.passes.split(","):
            options = {name: getattr(arguments, name) for name in ("rows", "prompt", "tokens", "dtype", "bits")}
            flags = [f"--{name}={value}" for name, value in options.items() if value is not None]
            done = subprocess.run(
                [sys.executable, __file__, model, f"--passes={which}", *flags, "--child"],
                env={**os.environ, **_HEAP[arguments.heap]},
                stdout=subprocess.PIPE,
                check=True,
            )
            computed, resident, seconds = json.loads(done.stdout.splitlines()[-1])
            ratio = f"{computed / 1e6:.1f} | {resident / 1e6:.1f} | {computed / resident:.2f} | {seconds:.1f}"
            print(f"| {Path(model).name} | {which} | {ratio} |", flush=True)


def measured(arguments: argparse.Namespace) -> tuple[int, int, float]:
    """Bytes by the formula, bytes of resident memory, and processor seconds of a pass."""
    import torch
    from transformers import BitsAndBytesConfig

    from nabla_agents import LanguageModel, Prompt, Rollout, Sampling, tiny
    from nabla_agents.models.footprint import Footprint
    from nabla_agents.models.gguf_copy import gguf_copy
    from nabla_agents.models.loading import Loading
    from nabla_agents.models.rows import RolloutJob

    [name], [which], dtype = arguments.models, arguments.passes.split(","), arguments.dtype
    shape = arguments.rows, arguments.prompt, arguments.tokens
    fewer: dict[str, object] = {}
    if arguments.bits is not None:
        name, _ = gguf_copy(Path(name), getattr(torch, dtype))
        fewer["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=arguments.bits == 4, load_in_8bit=arguments.bits == 8, bnb_4bit_quant_type="nf4"
        )
    needs = Footprint.of(name, Loading(dtype=dtype, **fewer), tiny_path=tiny.LM_PATH)
    checkpointed = which == "checkpointed"
    model = LanguageModel.from_pretrained(name, dtype=dtype, activation_checkpointing=checkpointed, **fewer)
    model.eos_ids = frozenset()  # completions are as long as they may be

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(model.vocab_size // 4, model.vocab_size // 2, (count,)).tolist())

    def work(rows: int, length: int, tokens: int) -> object:
        prompt = Prompt((), "", ids(length))
        model.read_prompts([prompt], longest=length + tokens)
        if which == "decode":
            sampling = Sampling(temperature=0.7)
            return model.rollout([RolloutJob(prompt, (), sampling, tokens, torch.rand(tokens)) for _ in range(rows)])
        rollouts = [Rollout(prompt, ids(tokens), "") for _ in range(rows)]
        if which == "score":
            return model.token_log_probs(rollouts)
        return model.likelihood_gradient(rollouts, [0] * rows)

    for weight in model.transformer.module.parameters():
        weight.sum()  # what is mapped from a file is resident once it was read
    work(1, 4, 4)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest from here on
    begun = time.process_time()
    work(*shape)
    seconds, resident = time.process_time() - begun, _resident("VmHWM") - before
    gradient = partial(needs.gradient, checkpointed=checkpointed)
    computed = {"decode": needs.decode, "score": needs.score}.get(which, gradient)(*shape)
    return computed + needs.unpacked, resident, seconds


def _resident(which: str) -> int:
    """Bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{which}:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
