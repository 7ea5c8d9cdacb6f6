"""Outcome reward models of every kind of head, against plain transformers on texts that are written out by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaModel,
    LlamaPreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import ModelOutput

from nabla_agents import (
    ARMORM,
    QWEN_MATH_RM,
    SKYWORK_REWARD_V2,
    ConfigurationError,
    ContextOverflowError,
    LanguageModel,
    Message,
    ModelLoadError,
    OutcomeFormat,
    OutcomeReward,
    ProcessReward,
    Rollout,
    StepFormat,
)
from nabla_agents.rewards.learned.formats import BOXED
from nabla_agents.testing import byte_tokenizer, random_model, random_outcome_reward, random_process_reward

QUESTION, ANSWERS = "2+3?", ("It is 5.", "7", "Let me see.\nFive, I think.")
CONVERSATION = [
    Message("system", "Be brief."),
    Message("user", "hi"),
    Message("assistant", "yes"),
    Message("user", "2?"),
]


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def completed(model: LanguageModel, answer: str, question: Any = QUESTION) -> Rollout:
    eos = model.tokenizer.eos_id
    assert eos is not None
    return Rollout(model.prompt(question), (*model.tokenizer.encode(answer), eos), answer)


# ── a head at the last token ──────────────────────────────────────────────────────────────────────────────────────────


def with_bos() -> Any:
    """As Llama 3 has it: the template writes the bos, and the tokenizer adds it too."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    bos = int(tokenizer.bos_token_id or 0)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    tokenizer.chat_template = "<bos>" + str(tokenizer.chat_template)
    return tokenizer


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_skywork_reward_v2(architecture: Any) -> None:
    """The card's recipe: the template's text with its bos taken off, tokenised with special tokens, `logits[0][0]`."""
    tokenizer = with_bos()
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


def test_a_system_prompt_is_kept_left_out_or_replaced() -> None:
    turns = "<user>hi<eos><assistant>yes<eos><user>2?<eos><assistant>5<eos>"
    for system, text in ((True, "<system>Be brief.<eos>"), (False, ""), ("Be exact.", "<system>Be exact.<eos>")):
        reward = random_outcome_reward(byte_tokenizer(), format=OutcomeFormat(system=system), width=16)
        ids = reward.reading(Rollout.from_text(CONVERSATION, "5")).ids
        assert list(ids) == ids_of(reward.tokenizer.hf, text + turns)
        policy = random_model(width=16, layers=1)
        assert reward.bind(policy).reading(completed(policy, "5", CONVERSATION)).ids == ids  # type: ignore[attr-defined]


def test_the_template_closes_the_answer_as_in_training() -> None:
    """Qwen's ends with `<|im_end|>` and a line break, and the score stands at that line break."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<' + m.role + '>\n' + m.content + '<eos>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>\n{% endif %}"
    )
    reward = random_outcome_reward(tokenizer, width=16)
    policy = random_model(tokenizer=tokenizer, width=16, layers=1)
    ids = ids_of(tokenizer, "<user>\n2+3?<eos>\n<assistant>\n7<eos>\n")
    with torch.no_grad():
        expected = float(reward.transformer.module(input_ids=torch.tensor([ids])).logits[0, 0])
    bound = reward.bind(policy)
    for rollout in (Rollout.from_text(QUESTION, "7"), completed(policy, "7")):
        assert bound.score([rollout])[0].value == pytest.approx(expected, abs=1e-5)
    [gradient] = bound.gradient([completed(policy, "7")], [0], [])
    assert gradient is not None
    assert bool(gradient.carrier.rows([0, 1]).any(-1).all())  # the closing token is the language model's own


def test_a_template_that_ends_in_a_space_is_read_at_its_last_token() -> None:
    """Tokenizers that split at spaces have no token for the last one."""
    words = ["<eos>", "<system>", "<user>", "<assistant>", "<tool>", "two", "plus", "four", "five"]
    raw = RawTokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<eos>"))
    raw.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<' + m.role + '> ' + m.content + ' <eos> ' }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    reward = random_outcome_reward(tokenizer, width=16)
    ids = ids_of(tokenizer, "<user> two plus two <eos> <assistant> four <eos>")
    with torch.no_grad():
        expected = float(reward.transformer.module(torch.tensor([ids])).logits[0, 0])
    [score] = reward.score([Rollout.from_text("two plus two", "four")])
    assert score.value == pytest.approx(expected, abs=1e-5)


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
    rollout = completed(policy, ANSWERS[2])
    [gradient] = reward.bind(policy).gradient([rollout], [0], [])
    assert gradient is not None
    rows = gradient.carrier.rows(range(len(rollout.completion_ids)))
    module: Any = reward.transformer.module
    system = f"<system>{format.system}<eos>" if isinstance(format.system, str) else ""
    ids = ids_of(reward.tokenizer.hf, f"{system}<user>{QUESTION}<eos><assistant>{ANSWERS[2]}<eos>")
    table = module.get_input_embeddings().weight
    one_hot = torch.nn.functional.one_hot(torch.tensor(ids), len(table)).double().requires_grad_()
    logits = module(inputs_embeds=(one_hot @ table)[None]).logits
    (truth,) = torch.autograd.grad(logits[0, -1, 0] if logits.dim() == 3 else logits[0, 0], one_hot)
    expected = truth[-len(rollout.completion_ids) :]
    assert float((rows - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_a_saved_folder_of_two_layers_loads_by_its_format(tmp_path: Path) -> None:
    reward = random_outcome_reward(byte_tokenizer(), format=QWEN_MATH_RM, width=16)
    reward.transformer.module.save_pretrained(tmp_path)
    reward.tokenizer.hf.save_pretrained(tmp_path)
    loaded = OutcomeReward.from_pretrained(tmp_path, format=QWEN_MATH_RM)
    rollout = Rollout.from_text(QUESTION, ANSWERS[0])
    assert loaded.score([rollout])[0].value == pytest.approx(reward.score([rollout])[0].value, abs=1e-6)


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
    rollouts = [completed(policy, a) for a in ANSWERS]
    for start in (0, 1):
        gradients = bound.gradient(rollouts, [start] * 3, [])
        for gradient, rollout, text in zip(gradients, rollouts, TEXTS, strict=True):
            assert gradient is not None
            ids = ids_of(byte_tokenizer(), text)
            table = module.get_input_embeddings().weight
            one_hot = torch.nn.functional.one_hot(torch.tensor(ids), len(table)).double().requires_grad_()
            (truth,) = torch.autograd.grad(module(inputs_embeds=(one_hot @ table)[None]).score, one_hot)
            expected = truth[len(ids) - len(rollout.completion_ids) + start :]
            rows = gradient.carrier.rows(range(start, len(rollout.completion_ids)))
            assert float((rows - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_a_forward_pass_that_needs_ids_scores_only_and_says_so() -> None:
    reward = OutcomeReward(gated(GatedByIds), byte_tokenizer(), format=ARMORM, name="armo")
    policy = random_model(width=16, layers=1)
    with pytest.warns(UserWarning, match="armo is not a function of embeddings.*does not steer"):
        bound = reward.bind(policy)
    rollout = completed(policy, ANSWERS[0])
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


def test_code_of_a_checkpoints_own_needs_consent(tmp_path: Path) -> None:
    saved(tmp_path, gated())
    config = json.loads((tmp_path / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnReward"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "of_its_own", "auto_map": own}))
    (tmp_path / "own.py").write_text("raise SystemExit('ran without consent')")
    with pytest.raises(ModelLoadError, match=r"consent with trust_remote_code=True"):
        OutcomeReward.from_pretrained(tmp_path, format=ARMORM)


OWN = """
from dataclasses import dataclass
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel
from transformers.utils import ModelOutput

class OwnConfig(LlamaConfig):
    model_type = "of_its_own"

@dataclass
class OwnOutput(ModelOutput):
    score: torch.Tensor | None = None
    rewards: torch.Tensor | None = None

class OwnReward(LlamaPreTrainedModel):
    config_class = OwnConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.objectives = nn.Linear(config.hidden_size, 3)
        self.gate = nn.Linear(config.hidden_size, 3)
        self.post_init()

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, **_):
        hidden = self.model(input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
        last = hidden.last_hidden_state[:, -1]
        rewards = self.objectives(last)
        return OwnOutput(score=(rewards * self.gate(last).softmax(-1)).sum(-1), rewards=rewards)
"""


def test_code_of_a_checkpoints_own_runs_with_consent_and_scores_as_its_model_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights in a class that is known here are the truth, for scores and for the gradient."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    module = gated()
    saved(tmp_path, module)
    config = json.loads((tmp_path / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnReward"}
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "model_type": "of_its_own", "architectures": ["OwnReward"], "auto_map": own})
    )
    (tmp_path / "own.py").write_text(OWN)
    reward = OutcomeReward.from_pretrained(tmp_path, format=ARMORM, trust_remote_code=True)
    assert type(reward.transformer.module).__name__ == "OwnReward"
    known = OutcomeReward(module, byte_tokenizer(), format=ARMORM)
    policy = random_model(width=16, layers=1)
    rollouts = [completed(policy, a) for a in ANSWERS]
    expected = [score.value for score in known.score(rollouts)]
    assert [score.value for score in reward.score(rollouts)] == pytest.approx(expected, abs=1e-6)
    for got, truth in zip(*(r.bind(policy).gradient(rollouts, [0] * 3, []) for r in (reward, known)), strict=True):
        assert got is not None
        assert truth is not None
        torch.testing.assert_close(got.carrier.rows([0, 1]), truth.carrier.rows([0, 1]), rtol=1e-5, atol=1e-7)


def test_a_head_that_is_not_applied_to_the_last_states_is_refused() -> None:
    module: Any = random_outcome_reward(byte_tokenizer(), width=16).transformer.module
    forward = module.forward

    def doubled(*args: Any, **inputs: Any) -> Any:
        output = forward(*args, **inputs)
        output.logits = 2 * output.logits
        return output

    module.forward = doubled
    with pytest.raises(ModelLoadError, match="not its head applied"):
        OutcomeReward(module, byte_tokenizer())


def test_a_text_beyond_the_context_is_refused_with_both_numbers() -> None:
    reward = random_outcome_reward(byte_tokenizer(), width=16, context_length=64)
    fits, long = Rollout.from_text(QUESTION, "7"), Rollout.from_text(QUESTION, "7 " * 40)
    assert reward.score([fits])[0].judged
    with pytest.raises(ContextOverflowError, match=rf"{len(reward.reading(long).ids)} tokens.*64"):
        reward.score([long])


def test_a_template_that_does_not_show_the_answer_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    reward = random_outcome_reward(tokenizer, width=16)
    with pytest.raises(ValueError, match="does not show each turn's content once"):
        reward.score([Rollout.from_text(QUESTION, "7")])


@pytest.mark.untyped
@pytest.mark.parametrize("bad", [{"output": ""}, {"head": "value"}, {"max_length": 0}, {"name": "x"}], ids=repr)
def test_outcome_formats_that_cannot_work_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="OutcomeFormat"):
        OutcomeFormat(**bad)


def test_a_process_model_is_no_outcome_model() -> None:
    module = random_process_reward(byte_tokenizer(), width=16).transformer.module
    with pytest.raises(ConfigurationError, match=r"one label.* 2.*ProcessReward"):
        OutcomeReward(module, byte_tokenizer())
