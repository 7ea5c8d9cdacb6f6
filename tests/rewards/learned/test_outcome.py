"""Outcome reward models of every kind of head, against plain transformers on texts that are written out by hand."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaModel,
    LlamaPreTrainedModel,
)
from transformers.utils import ModelOutput

from nabla_agents import (
    ARMORM,
    QWEN_MATH_RM,
    SKYWORK_REWARD_V2,
    ConfigurationError,
    Message,
    ModelLoadError,
    OutcomeFormat,
    OutcomeReward,
    ProcessReward,
    Rollout,
    StepFormat,
)
from nabla_agents.rewards.learned.formats import BOXED
from nabla_agents.testing import byte_tokenizer, random_model, random_outcome_reward
from tests.rewards.learned.answers import by_one_hot, bytes_with_bos, completed, ids_of

QUESTION, ANSWERS = "2+3?", ("It is 5.", "7", "Let me see.\nFive, I think.")


# ── a head at the last token ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_skywork_reward_v2(architecture: Any) -> None:
    """The card's recipe: the template's text with its bos taken off, tokenised with special tokens, `logits[0][0]`."""
    tokenizer = bytes_with_bos(adds=True, writes=True)
    reward = random_outcome_reward(tokenizer, architecture, format=SKYWORK_REWARD_V2, width=16)
    expected = []
    for answer in ANSWERS:
        messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False)).removeprefix("<bos>")
        with torch.no_grad():
            output = reward.transformer.module(**tokenizer(text, return_tensors="pt"))
        expected.append(float(output.logits[0][0]))
    rollouts = [Rollout.from_text([Message("system", "Be brief."), Message("user", QUESTION)], a) for a in ANSWERS]
    for scores in (reward.score(rollouts), [reward.score([r])[0] for r in rollouts]):
        assert [s.value for s in scores] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_answers_that_ended_or_were_cut_are_read_at_their_last_token(architecture: Any) -> None:
    """Nothing but an end is an answer, and may be judged; nothing at all is none."""
    policy = random_model(width=16, layers=1)
    reward = random_outcome_reward(policy.tokenizer.hf, architecture, width=16)
    bound, cases = reward.bind(policy), [("abc", True), ("", True), ("cc\na", False), ("b", False)]
    rollouts = [completed(policy, text, ended=ended) for text, ended in cases]
    with torch.no_grad():
        expected = [
            float(reward.transformer.module(torch.tensor([[*r.prompt.ids, *r.completion_ids]])).logits[0, 0])
            for r in rollouts
        ]
    assert len({round(v, 3) for v in expected}) == 4
    *scores, empty = bound.score([*rollouts, completed(policy, "", ended=False)])
    assert [s.value for s in scores] == pytest.approx(expected, abs=1e-5)
    assert [bound.score([r])[0].value for r in rollouts] == pytest.approx(expected, abs=1e-5)
    assert (empty.judged, "empty" in empty.explanation) == (False, True)


def test_qwen_math_rm_reads_two_layers_at_the_last_token() -> None:
    reward = random_outcome_reward(byte_tokenizer(), format=QWEN_MATH_RM, width=16)
    module: Any = reward.transformer.module
    first, _, second = module.score
    expected = []
    for answer in ANSWERS:
        text = f"<system>{BOXED}<eos><user>{QUESTION}<eos><assistant>{answer}<eos>"
        hidden = module.model(input_ids=torch.tensor([ids_of(reward.tokenizer.hf, text)])).last_hidden_state[0, -1]
        expected.append(float(second.weight @ torch.relu(first.weight @ hidden + first.bias) + second.bias))
    scores = reward.score([Rollout.from_text(QUESTION, a) for a in ANSWERS])
    assert [s.value for s in scores] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("format", [SKYWORK_REWARD_V2, QWEN_MATH_RM], ids=["linear", "two-layer"])
def test_the_gradient_equals_autograd_over_one_hot_ids(architecture: Any, format: OutcomeFormat) -> None:
    policy = random_model(width=16, layers=1)
    reward = random_outcome_reward(byte_tokenizer(), architecture, format=format, width=16, dtype=torch.float64)
    rollout = completed(policy, ANSWERS[2], QUESTION)
    [gradient] = reward.bind(policy).gradient([rollout], [0], [])
    assert gradient is not None
    rows = gradient.gradient.rows(range(len(rollout.completion_ids)))
    module: Any = reward.transformer.module
    system = f"<system>{format.system}<eos>" if isinstance(format.system, str) else ""
    ids = ids_of(reward.tokenizer.hf, f"{system}<user>{QUESTION}<eos><assistant>{ANSWERS[2]}<eos>")

    def value(embeddings: torch.Tensor) -> torch.Tensor:
        logits = module(inputs_embeds=embeddings).logits
        return logits[0, -1, 0] if logits.dim() == 3 else logits[0, 0]

    truth = by_one_hot(module, ids, value)
    expected = truth[-len(rollout.completion_ids) :]
    assert float((rows - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_half_precision_weights_are_scored_in_single() -> None:
    """A bf16 score of 23 moves in steps of 0.125; the head runs in fp32 on the same states."""
    reward = random_outcome_reward(byte_tokenizer(), width=16, dtype=torch.bfloat16, scale=20.0)
    values = [s.value for s in reward.score([Rollout.from_text(QUESTION, a) for a in ANSWERS])]
    assert any(float(torch.tensor(v).bfloat16()) != v for v in values)
    assert reward.transformer.module.score.weight.dtype == torch.bfloat16


# ── a score that is another attribute of the output ───────────────────────────────────────────────────────────────────


@dataclass
class GatedOutput(ModelOutput):
    score: torch.Tensor | None = None
    rewards: torch.Tensor | None = None


class GatedReward(LlamaPreTrainedModel):
    """In ArmoRM's way: several objectives at the last token, mixed by a gate on the same state, in `output.score`."""

    config_class = LlamaConfig
    base_model_prefix = "model"
    needs_ids = False

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        self.objectives = nn.Linear(config.hidden_size, 3)
        self.gate = nn.Linear(config.hidden_size, 3)
        self.post_init()

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, attention_mask: Any = None) -> GatedOutput:
        if self.needs_ids:
            assert input_ids.shape[1] > 0  # as ArmoRM, which looks for the end of the prompt in the ids
        hidden = self.model(input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
        last = hidden.last_hidden_state[:, -1]
        rewards = self.objectives(last)
        return GatedOutput(score=(rewards * self.gate(last).softmax(-1)).sum(-1), rewards=rewards)


class GatedByIds(GatedReward):
    needs_ids = True


def gated(kind: type[GatedReward] = GatedReward, *, dtype: torch.dtype = torch.float32) -> GatedReward:
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer()), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=256,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = kind(config)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.5)
    return module.to(dtype).eval()


TEXTS = [f"<user>{QUESTION}<eos><assistant>{a}<eos>" for a in ANSWERS]


@pytest.mark.parametrize("kind", [GatedReward, GatedByIds])
def test_the_named_attribute_is_the_score(kind: type[GatedReward]) -> None:
    module, tokenizer = gated(kind), byte_tokenizer()
    reward = OutcomeReward(module, tokenizer, format=ARMORM)
    with torch.no_grad():
        expected = [float(module(input_ids=torch.tensor([ids_of(tokenizer, t)])).score) for t in TEXTS]  # type: ignore[arg-type]
    rollouts = [Rollout.from_text(QUESTION, a) for a in ANSWERS]
    scores = reward.score(rollouts)
    assert [s.value for s in scores] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1
    assert [s.usage.reward_forward_tokens for s in scores] == [len(ids_of(tokenizer, t)) for t in TEXTS]


def test_a_forward_pass_that_takes_embeddings_is_differentiated() -> None:
    module, policy = gated(dtype=torch.float64), random_model(width=16, layers=1)
    reward = OutcomeReward(module, byte_tokenizer(), format=ARMORM)
    bound = reward.bind(policy)
    rollouts = [completed(policy, a, QUESTION) for a in ANSWERS]
    for start in (0, 1):
        gradients = bound.gradient(rollouts, [start] * 3, [])
        for gradient, rollout, text in zip(gradients, rollouts, TEXTS, strict=True):
            assert gradient is not None
            ids = ids_of(byte_tokenizer(), text)
            truth = by_one_hot(module, ids, lambda embeddings: module(inputs_embeds=embeddings).score)
            expected = truth[len(ids) - len(rollout.completion_ids) + start :]
            rows = gradient.gradient.rows(range(start, len(rollout.completion_ids)))
            assert float((rows - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_a_forward_pass_that_needs_ids_scores_only_and_says_so() -> None:
    reward = OutcomeReward(gated(GatedByIds), byte_tokenizer(), format=ARMORM, name="armo")
    policy = random_model(width=16, layers=1)
    with pytest.warns(UserWarning, match="armo is not a function of embeddings.*does not steer"):
        bound = reward.bind(policy)
    rollout = completed(policy, ANSWERS[0], QUESTION)
    [score] = bound.score([rollout])
    assert score.judged
    assert (score.coverage[0].vocabulary, score.coverage[0].tokens) == (0.0, 0.0)
    assert bound.gradient([rollout], [0], []) == [None]


def test_an_attribute_that_is_no_score_is_refused_with_those_that_are() -> None:
    for output in ("logits_", "rewards"):
        with pytest.raises(ModelLoadError, match=rf"`{output}`; expected one number.*score, rewards"):
            OutcomeReward(gated(), byte_tokenizer(), format=OutcomeFormat(output=output))


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


def saved(path: Path, module: Any) -> Path:
    module.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def test_a_checkpoint_without_a_score_head_is_refused(tmp_path: Path) -> None:
    """Transformers would make the head up at random and only log it."""
    saved(tmp_path, random_model(width=16, layers=1).transformer.module)
    with pytest.raises(ConfigurationError, match=r"one label.* 2"):  # before weights: the config's default
        OutcomeReward.from_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"no weights for score\.bias, score\.weight"):
        ProcessReward.from_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"no weights for score\.0\.bias, score\.0\.weight"):
        OutcomeReward.from_pretrained(tmp_path, format=QWEN_MATH_RM)
    with pytest.raises(ModelLoadError, match=r"no weights for v_head\.summary\.bias"):
        ProcessReward.from_pretrained(tmp_path, format=StepFormat(head="value"))


def of_its_own(path: Path, code: str) -> None:
    """A saved checkpoint whose architecture is in `own.py`."""
    config = json.loads((path / "config.json").read_text())
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnReward"}
    changed = {"model_type": "of_its_own", "architectures": ["OwnReward"], "auto_map": auto_map}
    (path / "config.json").write_text(json.dumps({**config, **changed}))
    (path / "own.py").write_text(code)


def test_code_of_a_checkpoints_own_needs_consent(tmp_path: Path) -> None:
    of_its_own(saved(tmp_path, gated()), "raise SystemExit('ran without consent')")
    with pytest.raises(ModelLoadError, match=r"consent with trust_remote_code=True"):
        OutcomeReward.from_pretrained(tmp_path, format=ARMORM)


OWN = f"""
from dataclasses import dataclass
from typing import Any
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel
from transformers.utils import ModelOutput

@dataclass
{inspect.getsource(GatedOutput).removeprefix("@dataclass")}

{inspect.getsource(GatedReward)}

class OwnConfig(LlamaConfig):
    model_type = "of_its_own"

class OwnReward(GatedReward):
    config_class = OwnConfig
"""


def test_code_of_a_checkpoints_own_runs_with_consent_and_scores_as_its_model_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights in a class that is known here are the truth, for scores and for the gradient."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    module = gated()
    of_its_own(saved(tmp_path, module), OWN)
    reward = OutcomeReward.from_pretrained(tmp_path, format=ARMORM, trust_remote_code=True)
    assert type(reward.transformer.module).__name__ == "OwnReward"
    known = OutcomeReward(module, byte_tokenizer(), format=ARMORM)
    policy = random_model(width=16, layers=1)
    rollouts = [completed(policy, a, QUESTION) for a in ANSWERS]
    expected = [score.value for score in known.score(rollouts)]
    assert [score.value for score in reward.score(rollouts)] == pytest.approx(expected, abs=1e-6)
    for got, truth in zip(*(r.bind(policy).gradient(rollouts, [0] * 3, []) for r in (reward, known)), strict=True):
        assert got is not None
        assert truth is not None
        torch.testing.assert_close(got.gradient.rows([0, 1]), truth.gradient.rows([0, 1]), rtol=1e-5, atol=1e-7)
