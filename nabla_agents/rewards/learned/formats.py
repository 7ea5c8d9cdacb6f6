"""What a reward model reads and where its verdict stands, declared; and the declarations of the known families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from nabla_agents.config import Settings
from nabla_agents.errors import ConfigurationError
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.rewards.learned.aggregation import Aggregation

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


class OutcomeFormat(Settings):
    """How an outcome reward model is read: at the last token of the conversation in its own chat template.

    `head`: `linear` is transformers' sequence classification; `two-layer` the head of Qwen2.5-Math-RM.
    `output`: the attribute of the model's output that is the score; another one than `logits` is read from the model's
    own forward pass, one text at a time. `system`: True keeps the conversation's system prompt, False leaves it out, a
    string goes in its place. `max_length` in tokens goes before a longer context of the model; longer texts are
    refused.
    """

    head: Literal["linear", "two-layer"] = "linear"
    output: Annotated[str, Field(min_length=1)] = "logits"
    system: bool | str = True
    max_length: Annotated[int, Field(ge=1)] | None = None


class StepFormat(Settings):
    """How a process reward model is read: what separates the steps it sees, and what scores each of them.

    Where steps end in the completion:
        split: the text between two steps.
    What the model sees:
        prompt: the text before the answer, with `{question}` in it (and `{bos}`); None is the model's chat template.
        system: as in `OutcomeFormat`; only with a chat template.
        separator: the token after each step, at which its score is read; None keeps the completion's text as it is,
            and the score is read at each step's last token.
        glue: text between a separator and the next step.
        apart: every step is tokenised on its own, and separators go in as ids.
        turns: each step is a user turn, answered by the positive token, and read where that token is predicted.
    What scores a step:
        head: `classes`, token classification with one label (sigmoid) or two (softmax, the second is right);
            `two-layer`, the same with two labels by the head of Qwen2.5-Math-PRM; `value`, `v_head` and a sigmoid;
            `tokens`, a language model's softmax over the tokens (`right`, `wrong`).
    Ids that are declared must be those which the tokenizer gives. Whatever the tokenizer has not as one token is
    refused before weights are loaded.
    """

    head: Literal["classes", "two-layer", "value", "tokens"] = "classes"
    split: Annotated[str, Field(min_length=1)] = "\n"
    prompt: str | None = None
    system: bool | str = True
    separator: Annotated[str, Field(min_length=1)] | None = None
    separator_id: int | None = None
    glue: str = ""
    apart: bool = False
    turns: bool = False
    right: Annotated[str, Field(min_length=1)] | None = None
    wrong: Annotated[str, Field(min_length=1)] | None = None
    right_id: int | None = None
    wrong_id: int | None = None
    max_length: Annotated[int, Field(ge=1)] | None = None
    aggregation: Aggregation = "last"

    @model_validator(mode="after")
    def _consistent(self) -> StepFormat:
        pair = [token is not None for token in (self.right, self.wrong)]
        plain = self.prompt is None and self.separator is None
        rules = [
            (all(pair) if self.head == "tokens" else not any(pair), "right and wrong belong to head='tokens', both"),
            (self.right is None or self.right != self.wrong, "right and wrong must differ"),
            (any(pair) or (self.right_id, self.wrong_id) == (None, None), "right_id and wrong_id need their tokens"),
            (not self.turns or (self.head == "tokens" and plain), "turns need head='tokens', no prompt, no separator"),
            (self.separator is not None or not (self.glue or self.apart), "glue and apart need a separator"),
            (self.separator is not None or self.separator_id is None, "separator_id needs a separator"),
            (self.prompt is None or "{question}" in self.prompt, "prompt must contain {question}"),
        ]
        for holds, rule in rules:
            if not holds:
                raise ValueError(rule)
        return self


@dataclass(frozen=True)
class StepTokens:
    """The ids of a format's tokens in one tokenizer; None for those that the format does not have."""

    separator: int | None = None
    right: int | None = None
    wrong: int | None = None

    @property
    def classes(self) -> tuple[int, int] | None:
        """The tokens whose logits are the classes of a step, wrong and right; None where a head of its own has them."""
        return None if self.wrong is None or self.right is None else (self.wrong, self.right)


def step_tokens(format: StepFormat, tokenizer: Tokenizer) -> StepTokens:
    """A format's tokens looked up.

    Raises:
        ConfigurationError: one of them is not one token, or another one than declared.
    """
    return StepTokens(
        separator=_one_token(tokenizer, "separator", format.separator, format.separator_id),
        right=_one_token(tokenizer, "right", format.right, format.right_id),
        wrong=_one_token(tokenizer, "wrong", format.wrong, format.wrong_id),
    )


def _one_token(tokenizer: Tokenizer, what: str, text: str | None, declared: int | None) -> int | None:
    """The id of a text on its own or, where tokenizers mark a word's beginning, after other text."""
    if text is None:
        return None
    alone = tokenizer.encode(text)
    token = alone[0] if len(alone) == 1 else None
    if token is None:
        ids, offsets = tokenizer.encode_located("1" + text)
        token = ids[-1] if offsets and offsets[-1] == (1, 1 + len(text)) else None
    if token is None or token == tokenizer.hf.unk_token_id:
        raise ConfigurationError(
            f"The format's {what} {text!r} is not one token of {tokenizer.name}: it gives the ids {alone}. Expected a "
            "tokenizer that has it; choose the format that this model was trained with, or add the token."
        )
    if declared is not None and token != declared:
        raise ConfigurationError(
            f"The format declares {what} {text!r} as id {declared}, but the tokenizer of {tokenizer.name} has it as "
            f"{token}. It is another model's tokenizer; use the model's own, or declare {what}_id={token}."
        )
    return token


# Aggregations are recommendations: the one that each family's authors report with.

TRL_PRM = StepFormat(split="\n", head="classes", aggregation="product")
"""Token classification as TRL's `PRMTrainer` trains it: steps end with a line break, and the last token of a step
carries its label; label 1 is right (https://huggingface.co/docs/trl/prm_trainer)."""

QWEN_MATH_PRM = StepFormat(
    head="two-layer",
    split="\n\n",
    system=BOXED,
    separator="<extra_0>",
    separator_id=151651,
    max_length=4096,
    aggregation="product",
)
"""Qwen2.5-Math-PRM-7B, -72B and Qwen2.5-Math-7B-PRM800K: steps joined and ended by `<extra_0>`, softmax of two classes
there (model card; Zhang et al. 2025, "The Lessons of Developing Process Reward Models", arXiv 2501.07301)."""

SKYWORK_O1_PRM = StepFormat(
    head="value", split="\n", prompt="{bos}{question}\n", separator="\n", apart=True, aggregation="mean"
)
"""Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B: every step tokenised alone and closed by a line break, at which `v_head`
is read through a sigmoid (github.com/SkyworkAI/skywork-o1-prm-inference, `prepare_input`). Empty lines, which that
code scores as steps of their own, are left out."""

MATH_SHEPHERD = StepFormat(
    head="tokens",
    split="\n\n",
    prompt="{question} ",
    separator=" ки",
    separator_id=12902,
    glue="\n",
    right=" +",
    wrong=" -",
    right_id=648,
    wrong_id=387,
    aggregation="min",
)
"""peiyi9979/math-shepherd-mistral-7b-prm: each step ends with ` ки`, where the softmax over `+` and `-` is read (model
card; Wang et al. 2023, arXiv 2312.08935 §3.4). Text between two steps is one line break, as in the card's example."""

RLHFLOW_PRM = StepFormat(head="tokens", split="\n\n", turns=True, right="+", wrong="-", aggregation="mean")
"""RLHFlow/Llama3.1-8B-PRM-Deepseek-Data (and -Mistral-Data, which splits at `ки\\n`): every step is a user turn, the
first one after the question, and each answer is `+`; the softmax over `+` and `-` is read where it is predicted
(github.com/RLHFlow/RLHF-Reward-Modeling, math-rm)."""

SEQUENCE_CLASSIFICATION = OutcomeFormat()
"""One label at the last token, as TRL's `RewardTrainer` trains it; the conversation's own system prompt is kept."""

SKYWORK_REWARD_V2 = OutcomeFormat(system=False, max_length=16384)
"""Skywork-Reward-V2 on Llama-3 and Qwen3, and v0.2: chat template without system prompt, one unbounded logit (model
cards; Liu et al. 2025, arXiv 2507.01352)."""

ARMORM = OutcomeFormat(output="score")
"""RLHFlow/ArmoRM-Llama3-8B-v0.1: `output.score`, a gated sum of objectives; needs trust_remote_code (model card; Wang
et al. 2024, arXiv 2406.12845)."""

QWEN_MATH_RM = OutcomeFormat(head="two-layer", system=BOXED)
"""Qwen2.5-Math-RM-72B: the system prompt of Qwen2.5-Math, one unbounded logit at the last token (model card)."""
