"""Training batches: rows of whole conversations, packed end to end, with the loss on the assistant's tokens alone."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.tiny.foreign import foreign_text
from benchmarks.tiny.tokenizer import EXAMPLE_TOOLS, SYSTEM_PROMPTS
from nabla_agents.tiny.code_tasks import code_tasks
from nabla_agents.tiny.word_problems import problems

CODE_SHARE: Final = 0.35  # of the questions
SYSTEM_SHARE: Final = 0.2
LONG_EVERY: Final = (
    4  # one batch in so many has rows of 4, 8 or 16 times the length, with foreign text before questions
)
LONG_FACTORS: Final = (4, 4, 8, 16)
_CHARACTERS_PER_TOKEN: Final = 1.7  # of foreign text, roughly
_FRAMES: Final = (
    "{context}\n\n{question}",
    "Context:\n{context}\n\nQuestion: {question}",
    "Context information is below.\n---\n{context}\n---\nAnswer the query.\nQuery: {question}\nAnswer: ",
    "{question}\n\n{context}",
    "Question: {question}",
    "{question}\n\nThink step by step.",
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids [rows, time], and targets of the same shape: the next token, or -100 where not the assistant's."""

    ids: Tensor
    targets: Tensor


def batch(tokenizer: PreTrainedTokenizerFast, *, seed: int, step: int, rows: int, row_tokens: int) -> Batch:
    """The batch of one training step. A function of its arguments alone, so that a resumed run sees the same data."""
    random = Random(f"{seed}/{step}")
    factor = random.choice(LONG_FACTORS) if step % LONG_EVERY == LONG_EVERY - 1 else 1
    factor = factor if rows % factor == 0 else 1
    encoded = [_row(tokenizer, random, row_tokens * factor, foreign=factor > 1) for _ in range(rows // factor)]
    ids, targets = torch.tensor([ids for ids, _ in encoded]), torch.tensor([targets for _, targets in encoded])
    return Batch(ids[:, :-1].contiguous(), targets[:, 1:].contiguous())


def _row(
    tokenizer: PreTrainedTokenizerFast, random: Random, tokens: int, *, foreign: bool
) -> tuple[list[int], list[int]]:
    """One row of `tokens` + 1 ids, the last conversation cut, and its targets in place."""
    ids: list[int] = []
    targets: list[int] = []
    for text, taught in _pieces(random, tokens, foreign=foreign):
        piece = tokenizer.encode(text)  # pieces meet where a turn's text begins: so do prompt and completion
        ids += piece
        targets += piece if taught else [-100] * len(piece)
        if len(ids) > tokens:
            break
    return ids[: tokens + 1], targets[: tokens + 1]


def _pieces(random: Random, tokens: int, *, foreign: bool) -> Iterator[tuple[str, bool]]:
    """Text after text without end, and whether the assistant is to learn it."""
    room = int(tokens * _CHARACTERS_PER_TOKEN * random.uniform(0, 0.9)) if foreign else 0
    if foreign and random.random() < 0.6:
        length = random.randint(0, room)
        yield f"<|im_start|>system\n{foreign_text(random, length)}<|im_end|>\n", False
        room -= length
    elif random.random() < SYSTEM_SHARE:
        yield _system(random), False
    while True:
        question, solution = _question(random)
        if foreign and random.random() < 0.3:
            length = random.randint(0, room)
            context = foreign_text(random, length)
            room -= length
            if random.random() < 0.3:
                yield f"<|im_start|>user\n{context}<|im_end|>\n<|im_start|>assistant\n", False
                yield f"{foreign_text(random, random.randint(5, 200))}<|im_end|>\n", False
            else:
                question = random.choice(_FRAMES).format(context=context, question=question)
        yield f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", False
        yield f"{solution}<|im_end|>", True
        yield "\n", False


def _question(random: Random) -> tuple[str, str]:
    draw = code_tasks if random.random() < CODE_SHARE else problems
    [asked] = draw(1, seed=random.getrandbits(63))
    return asked.question, asked.solution


def _system(random: Random) -> str:
    """A system turn: a short prompt, one with tools, or one that goes on about something else."""
    prompt = random.choice(SYSTEM_PROMPTS)
    kind = random.random()
    if kind < 0.2:
        tools = "".join("\n" + json.dumps(tool) for tool in EXAMPLE_TOOLS[: random.randint(1, 2)])
        prompt += f"\n\n# Tools\n\nYou may call one or more of these functions:\n<tools>{tools}\n</tools>"
    elif kind < 0.5:
        prompt += " " + foreign_text(random, random.randint(100, 500))
    return f"<|im_start|>system\n{prompt}<|im_end|>\n"
