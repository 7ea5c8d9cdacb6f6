"""Training batches: rows of whole conversations, packed end to end, with the loss on the assistant's tokens alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from nabla_agents.tiny.tokenizer import EXAMPLE_TOOLS, SYSTEM_PROMPTS
from nabla_agents.tiny.word_problems import Problem, problems

SYSTEM_SHARE: Final = 0.2
LONG_EVERY: Final = 16  # one batch in so many has rows of four times the length
LONG_FACTOR: Final = 4
_FILLER: Final = (
    "the user a question and then write one step answer line of with please help you are careful work out show your "
    "think on each last end form number problem problems word show finish be brief is for not or in to as"
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids [rows, time], and targets of the same shape: the next token, or -100 where not the assistant's."""

    ids: Tensor
    targets: Tensor


def batch(tokenizer: PreTrainedTokenizerFast, *, seed: int, step: int, rows: int, row_tokens: int) -> Batch:
    """The batch of one training step. A function of its arguments alone, so that a resumed run sees the same data."""
    random = Random(f"{seed}/{step}")
    if step % LONG_EVERY == LONG_EVERY - 1 and rows % LONG_FACTOR == 0:
        rows, row_tokens = rows // LONG_FACTOR, row_tokens * LONG_FACTOR
    per_row = row_tokens // 60 + 1  # more turns than fit: the last one is cut
    turns = problems(rows * per_row, seed=random.getrandbits(63))
    texts = [
        (_system(random) if random.random() < SYSTEM_SHARE else "") + _turns(turns[row * per_row : (row + 1) * per_row])
        for row in range(rows)
    ]
    header = tokenizer.encode("assistant\n")
    encoded = [tokenizer.encode(text)[: row_tokens + 1] for text in texts]
    ids = torch.tensor(encoded)
    targets = torch.tensor([_targets(row, header, tokenizer) for row in encoded])
    return Batch(ids[:, :-1].contiguous(), targets[:, 1:].contiguous())


def _targets(ids: Sequence[int], header: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Each id where the assistant writes it, its turn's end included; -100 elsewhere."""
    start = [tokenizer.convert_tokens_to_ids("<|im_start|>"), *header]
    end = tokenizer.eos_token_id
    targets, writing = [], False
    for place, token in enumerate(ids):
        targets.append(token if writing else -100)
        if token == end:
            writing = False
        elif token == start[-1] and list(ids[place + 1 - len(start) : place + 1]) == start:
            writing = True
    return targets


def _turns(row: Sequence[Problem]) -> str:
    return "".join(
        f"<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n{problem.solution}<|im_end|>\n"
        for problem in row
    )


def _system(random: Random) -> str:
    """A system turn: a short prompt, one with tools, or a long text that says nothing about the task."""
    prompt = random.choice(SYSTEM_PROMPTS)
    kind = random.random()
    if kind < 0.2:
        tools = "".join("\n" + json.dumps(tool) for tool in EXAMPLE_TOOLS[: random.randint(1, 2)])
        prompt += f"\n\n# Tools\n\nYou may call one or more of these functions:\n<tools>{tools}\n</tools>"
    elif kind < 0.5:
        words = _FILLER.split()
        prompt += " " + " ".join(random.choice(words) for _ in range(random.randint(20, 120)))
    return f"<|im_start|>system\n{prompt}<|im_end|>\n"
