"""The architecture of the tiny models, their folders on disk, and batched completion of problems."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from benchmarks.tiny.tokenizer import CONTEXT_TOKENS
from nabla_agents.models.kv_cache import cache_argument
from nabla_agents.tiny.code_tasks import CodeTask
from nabla_agents.tiny.word_problems import Problem, is_correct

MAX_NEW_TOKENS: Final = 112  # the longest possible solution has 105


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, layers: int, width: int, heads: int, inner: int
) -> Qwen3ForCausalLM:
    """A model with fresh weights, drawn from torch's global generator."""
    end, pad = cast(int, tokenizer.eos_token_id), cast(int, tokenizer.pad_token_id)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, eos_token_id=end, pad_token_id=pad)
    return model


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes weights, rounded to bfloat16, and tokenizer as a transformers folder; `model` stays as it is."""
    rounded = copy.deepcopy(model)
    torch.nn.Module.to(rounded, torch.bfloat16)
    rounded.generation_config = model.generation_config
    rounded.save_pretrained(folder)
    tokenizer.backend_tokenizer.no_padding()  # padding a batch leaves its length in the tokenizer's file
    tokenizer.save_pretrained(folder, save_jinja_files=False)


def load(folder: Path, device: torch.device | str = "cpu") -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """The model of a folder in float32 (its weights are bfloat16 values) and its tokenizer."""
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.nn.Module.to(model, device)
    return model, AutoTokenizer.from_pretrained(folder)


def prompt_of(asked: Problem | CodeTask, tokenizer: PreTrainedTokenizerFast, *, system: str = "") -> str:
    """The chat-templated prompt that asks for a solution, behind a system prompt if there is one."""
    turns = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": asked.question}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


@torch.inference_mode()
def complete(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """One completion per prompt as token ids, its end-of-turn token included where it was reached.

    Temperature 0 is greedy. Costs one prefill and up to MAX_NEW_TOKENS decoding passes over the whole batch.
    """
    device = model.device
    generator = torch.Generator(device).manual_seed(seed)
    pad = torch.tensor(tokenizer.pad_token_id, device=device)
    encoded = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(device)
    mask, ids, cache = (
        encoded.attention_mask,
        encoded.input_ids,
        {cache_argument(model): DynamicCache(config=model.config)},
    )
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    columns: list[Tensor] = []
    running = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for _ in range(MAX_NEW_TOKENS):
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, **cache)
        logits = out.logits[:, -1].float()
        if temperature > 0:
            chosen = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
        else:
            chosen = logits.argmax(-1)
        chosen = torch.where(running, chosen, pad)
        columns.append(chosen)
        running = running & (chosen != tokenizer.eos_token_id)
        if not running.any():
            break
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    rows = torch.stack(columns, dim=1).tolist()
    return [row[: row.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in row else row for row in rows]


def greedy_verdicts(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[Problem | CodeTask],
    *,
    system: str = "",
    rows: int = 128,
) -> list[tuple[str, bool]]:
    """The greedy completion of each problem or task and whether it is right, `rows` of them at a time.

    Nothing is run here: of a task only the reference program is right, although another could do the same.
    """
    texts: list[str] = []
    for start in range(0, len(asked), rows):
        prompts = [prompt_of(one, tokenizer, system=system) for one in asked[start : start + rows]]
        texts += tokenizer.batch_decode(complete(model, tokenizer, prompts), skip_special_tokens=True)
    return [(text, is_right(text, one)) for text, one in zip(texts, asked, strict=True)]


def is_right(text: str, asked: Problem | CodeTask) -> bool:
    """Whether a text has the problem's answer, or is the task's reference program."""
    return text == asked.solution if isinstance(asked, CodeTask) else is_correct(text, asked)
