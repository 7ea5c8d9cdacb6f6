"""Score heads: found on a model, or put on a transformer's body where transformers has no class for a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.modeling_outputs import TokenClassifierOutput

from nabla_agents.errors import ModelLoadError
from nabla_agents.functional import wide
from nabla_agents.models.precision import widened
from nabla_agents.models.transformer import Transformer
from nabla_agents.rewards.learned.formats import OutcomeFormat, StepFormat

HEAD_NAMES = ("score", "classifier", "v_head")


class ValueHead(nn.Module):
    """One number per token, named as TRL and Skywork's `PRM_MODEL` store it (`v_head.summary`)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.summary = nn.Linear(hidden_size, 1)

    def forward(self, hidden: Float[Tensor, "*n hidden"]) -> Float[Tensor, "*n one"]:
        return self.summary(hidden)


class VocabularyHead(nn.Module):
    """The rows of a language model's output head for a few tokens: their logits, soft-capped as the model does it."""

    def __init__(self, module: PreTrainedModel, tokens: tuple[int, ...]) -> None:
        super().__init__()
        output: Any = module.get_output_embeddings()
        if output is None:
            raise ModelLoadError(f"{type(module).__name__} has no output head; expected a causal language model.")
        index = torch.tensor(tokens, device=output.weight.device)
        bias = getattr(output, "bias", None)
        self.weight = nn.Parameter(wide(output.weight[index]).detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(wide(bias[index]).detach(), requires_grad=False)
        self.cap: float | None = getattr(module.config.get_text_config(decoder=True), "final_logit_softcapping", None)

    def forward(self, hidden: Float[Tensor, "*n hidden"]) -> Float[Tensor, "*n tokens"]:
        logits = nn.functional.linear(hidden, self.weight, self.bias)
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


@dataclass(frozen=True)
class HeadedModel:
    """Loads a transformer's body with a head of ours in place of its language model head.

    `two-layer` is `score` = linear, ReLU, linear, as in Qwen2.5-Math-PRM and -RM, whose own code needs an older
    transformers; `value` is `v_head`, as in Skywork-o1-Open-PRM. Used like one of transformers' auto classes.
    """

    layout: Literal["two-layer", "value"]
    labels: int = 1

    def from_pretrained(self, path: str, **options: Any) -> Any:
        about = {name: options[name] for name in ("revision", "trust_remote_code") if name in options}
        config = AutoConfig.from_pretrained(path, **about)
        return self.class_for(config).from_pretrained(path, config=config, **options)

    def from_config(self, config: Any) -> PreTrainedModel:
        """With random weights."""
        return self.class_for(config)(config)

    def class_for(self, config: Any) -> type[PreTrainedModel]:
        """The body of this architecture under `model`, and the head beside it.

        Raises:
            ValueError: transformers knows no such architecture.
        """
        if type(config) not in MODEL_MAPPING:
            raise ValueError(f"transformers has no body for {type(config).__name__}.")
        body: Any = MODEL_MAPPING[type(config)]
        parent: Any = next(c for c in body.__mro__[1:] if c.__name__.endswith("PreTrainedModel"))
        layout, labels = self.layout, self.labels

        class WithHead(parent):
            base_model_prefix = "model"
            _keys_to_ignore_on_load_unexpected: ClassVar[Any] = [r"lm_head\."]

            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self.model = body(config)
                size = config.hidden_size
                if layout == "value":
                    self.v_head = ValueHead(size)
                else:
                    self.score = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, labels))
                self.post_init()

            def forward(self, input_ids: Any = None, **inputs: Any) -> TokenClassifierOutput:
                hidden = self.model(input_ids=input_ids, **inputs).last_hidden_state
                head = self.v_head if layout == "value" else self.score
                return TokenClassifierOutput(logits=head(hidden))

        WithHead.__name__ = WithHead.__qualname__ = f"{body.__name__}With{layout.title().replace('-', '')}Head"
        return WithHead


def loader(format: OutcomeFormat | StepFormat) -> Any:
    """What loads a format's models: one of transformers' auto classes, or one that is used like them."""
    return {
        "linear": AutoModelForSequenceClassification,
        "classes": AutoModelForTokenClassification,
        "two-layer": HeadedModel("two-layer", 1 if isinstance(format, OutcomeFormat) else 2),
        "value": HeadedModel("value"),
        "tokens": AutoModelForCausalLM,
    }[format.head]


def score_head(module: PreTrainedModel) -> nn.Module:
    """The score head of a model, in fp32 or better: a linear layer, or several.

    Raises:
        ModelLoadError: there is none.
    """
    for name in HEAD_NAMES:
        head = getattr(module, name, None)
        if isinstance(head, nn.Linear | nn.Sequential | ValueHead):
            return widened(head) or head
    raise ModelLoadError(
        f"{type(module).__name__} has no linear head named `{'`, `'.join(HEAD_NAMES[:-1])}` or `{HEAD_NAMES[-1]}`; "
        "expected a sequence or token classification model, or one loaded by its format."
    )


def width_of(head: nn.Module) -> int:
    """How many numbers a head gives for one token."""
    return int([layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1].out_features)


@torch.no_grad()
def check_head(transformer: Transformer, head: nn.Module, columns: tuple[int, ...] | None = None) -> None:
    """Proves on a few tokens that the model's logits (or some columns) are its head applied to its last hidden states.

    Raises:
        ModelLoadError: they are not (an extra scaling or pooling?).
    """
    module = transformer.module
    ids = torch.arange(min(4, int(transformer.embedding.weight.shape[0])), device=transformer.device)[None]
    expected = module(input_ids=ids, use_cache=False).logits
    logits = applied(head, transformer.body(input_ids=ids, use_cache=False).last_hidden_state)
    expected = expected[..., list(columns)] if columns else expected
    logits = logits[:, -1] if expected.dim() == 2 else logits
    if logits.shape != expected.shape or not torch.allclose(logits, expected.to(logits), rtol=2e-2, atol=2e-2):
        raise ModelLoadError(
            f"The logits of {type(module).__name__} are not its head applied to its last hidden states, so its scores "
            "and gradient would be wrong. Choose another class or format."
        )


def applied(head: nn.Module, hidden: Float[Tensor, "*n hidden"]) -> Float[Tensor, "*n labels"]:
    """The head's output in fp32 or better, on whatever device it is."""
    parameter = next(head.parameters())
    return head(wide(hidden).to(parameter))
