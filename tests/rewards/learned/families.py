"""The declared families on small random models, and each one's own recipe written out with plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nabla_agents import (
    MATH_SHEPHERD,
    QWEN_MATH_PRM,
    RLHFLOW_PRM,
    SKYWORK_O1_PRM,
    ProcessReward,
    StepFormat,
)
from nabla_agents.rewards.learned.formats import BOXED
from nabla_agents.testing import byte_tokenizer, random_process_reward
from tests.rewards.learned.answers import bytes_with_bos, ids_of, separated, shepherd_tokenizer

QUESTION = "How much is 2+3?"


@dataclass(frozen=True)
class Family:
    """A format on small random models, and its authors' recipe: ids, positions, probabilities from hidden states."""

    format: StepFormat
    architecture: Any
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    ids: Callable[[PreTrainedTokenizerBase, list[str]], tuple[list[int], list[int]]]
    probabilities: Callable[[Any, PreTrainedTokenizerBase, Tensor], Tensor]

    def reward(self, **options: Any) -> ProcessReward:
        return random_process_reward(
            self.tokenizer(), self.architecture, **{"format": self.format, "width": 16, "seed": 5, **options}
        )

    def truth(self, reward: ProcessReward, steps: list[str]) -> list[float]:
        ids, positions = self.ids(reward.tokenizer.hf, steps)
        hidden = reward.transformer.module.model(input_ids=torch.tensor([ids])).last_hidden_state[0, positions]
        return self.probabilities(reward.transformer.module, reward.tokenizer.hf, hidden).tolist()


def qwen_ids(hf: PreTrainedTokenizerBase, steps: list[str]) -> tuple[list[int], list[int]]:
    messages = [
        {"role": "system", "content": BOXED},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
    ]
    ids = ids_of(hf, str(hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)))
    return ids, [i for i, t in enumerate(ids) if t == hf.convert_tokens_to_ids("<extra_0>")]


def qwen_probabilities(module: Any, hf: PreTrainedTokenizerBase, hidden: Tensor) -> Tensor:
    first, _, second = module.score
    hidden = torch.relu(hidden @ first.weight.T + first.bias)
    return torch.softmax(hidden @ second.weight.T + second.bias, -1)[:, 1]


def classes_probabilities(module: Any, hf: PreTrainedTokenizerBase, hidden: Tensor) -> Tensor:
    return torch.softmax(hidden @ module.score.weight.T + module.score.bias, -1)[:, 1]


def plain_ids(hf: PreTrainedTokenizerBase, steps: list[str]) -> tuple[list[int], list[int]]:
    """Token classification with a separator, and the conversation's own (no) system prompt."""
    text = f"<user>{QUESTION}<eos><assistant>" + "".join(s + "<extra_0>" for s in steps)
    ids = ids_of(hf, text)
    return ids, [i for i, t in enumerate(ids) if t == hf.convert_tokens_to_ids("<extra_0>")]


def skywork_ids(hf: PreTrainedTokenizerBase, steps: list[str]) -> tuple[list[int], list[int]]:
    ids = hf.encode(f"{hf.bos_token or ''}{QUESTION}\n")
    flags: list[int] = []
    for step in steps:
        ids += [*hf.encode(step), hf.encode("\n")[-1]]
        flags.append(len(ids) - 1)
    return ids, flags


def skywork_probabilities(module: Any, hf: PreTrainedTokenizerBase, hidden: Tensor) -> Tensor:
    return torch.sigmoid((hidden @ module.v_head.summary.weight.T + module.v_head.summary.bias)[:, 0])


def shepherd_ids(hf: PreTrainedTokenizerBase, steps: list[str]) -> tuple[list[int], list[int]]:
    ids = ids_of(hf, f"{QUESTION} " + "\n".join(s + " ки" for s in steps))
    return ids, [i for i, t in enumerate(ids) if t == hf.convert_tokens_to_ids("▁ки")]


def candidates(module: Any, hidden: Tensor, right: int, wrong: int) -> Tensor:
    return torch.softmax((hidden @ module.lm_head.weight.T)[:, [right, wrong]], -1)[:, 0]


def shepherd_probabilities(module: Any, hf: PreTrainedTokenizerBase, hidden: Tensor) -> Tensor:
    right, wrong = hf.encode("+ -", add_special_tokens=False)  # as the model card takes its candidates
    return candidates(module, hidden, right, wrong)


def rlhflow_ids(hf: PreTrainedTokenizerBase, steps: list[str]) -> tuple[list[int], list[int]]:
    messages: list[dict[str, str]] = []
    for i, step in enumerate(steps):
        messages += [
            {"role": "user", "content": f"{QUESTION} {step}" if i == 0 else step},
            {"role": "assistant", "content": "+"},
        ]
    ids = ids_of(hf, str(hf.apply_chat_template(messages, tokenize=False)))
    assistant = hf.convert_tokens_to_ids("<assistant>")
    return ids, [i for i, t in enumerate(ids) if t == assistant]  # this template's last token before the `+`


def rlhflow_probabilities(module: Any, hf: PreTrainedTokenizerBase, hidden: Tensor) -> Tensor:
    return candidates(module, hidden, hf.encode("+")[-1], hf.encode("-")[-1])


FAMILIES = {
    "Qwen2.5-Math-PRM": Family(
        QWEN_MATH_PRM.replace(separator_id=None), "qwen2", separated, qwen_ids, qwen_probabilities
    ),
    "token classes at a separator": Family(
        StepFormat(split="\n\n", separator="<extra_0>"), "qwen2", separated, plain_ids, classes_probabilities
    ),
    "Skywork-o1-PRM": Family(
        SKYWORK_O1_PRM.replace(split="\n\n"), "qwen2", bytes_with_bos, skywork_ids, skywork_probabilities
    ),
    "Skywork-o1-PRM without bos": Family(
        SKYWORK_O1_PRM.replace(split="\n\n"), "qwen2", byte_tokenizer, skywork_ids, skywork_probabilities
    ),
    "Math-Shepherd": Family(
        MATH_SHEPHERD.replace(separator_id=None, right_id=None, wrong_id=None),
        "mistral",
        shepherd_tokenizer,
        shepherd_ids,
        shepherd_probabilities,
    ),
    "RLHFlow": Family(RLHFLOW_PRM, "llama", byte_tokenizer, rlhflow_ids, rlhflow_probabilities),
}
