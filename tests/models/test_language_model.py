"""Prompts and their ids, what the model refuses, and its head against transformers' logits."""

import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from nabla_agents import (
    ContextOverflowError,
    Engine,
    Greedy,
    LanguageModel,
    Message,
    ModelLoadError,
    Objective,
    PromptError,
    Sampling,
    Step,
)
from nabla_agents.testing import byte_tokenizer, random_model, random_outcome_reward, random_process_reward

TURNS = (
    Message("system", "ab"),
    Message("user", "cd"),
    Message("assistant", "efg"),
    Message("tool", "h"),
    Message("user", "i\n"),
)


def read_ids(module: torch.nn.Module) -> list[list[int]]:
    """Collects the ids that the embedding of a model reads, one list per call; batches of one row only."""
    calls: list[list[int]] = []
    module.get_input_embeddings().register_forward_pre_hook(lambda _, args: calls.append(args[0][0].tolist()))
    return calls


def test_a_conversation_has_the_ids_of_transformers(model) -> None:
    given = [m.as_template_input() for m in TURNS]
    expected = model.tokenizer.hf.apply_chat_template(given, add_generation_prompt=True)["input_ids"]
    prompt = model.prompt(TURNS)
    assert list(prompt.ids) == expected
    assert prompt.text == "<system>ab<eos><user>cd<eos><assistant>efg<eos><tool>h<eos><user>i\n<eos><assistant>"
    assert (prompt.messages, prompt.question) == (TURNS, "i\n")


def test_a_string_is_one_user_turn(qwen) -> None:
    assert qwen.prompt("ab") == qwen.prompt([Message("user", "ab")])


class Kept:
    """Greedy, whose pool can be looked at when it has ended."""

    rule = "objective"

    def __init__(self) -> None:
        self.pool: list[Any] = []

    async def steps(self, search: Any) -> AsyncIterator[Step]:
        async for step in Greedy().steps(search):
            yield step
        self.pool += search.pool

    def select(self, pool: Any) -> Any:
        return pool.best()


def test_the_same_ids_of_system_prompt_and_turns_reach_rollout_objective_and_rewards() -> None:
    """In the research code the objective lost the system prompt, and the reward all but one user turn."""
    words = ("ab", "cd", "efg", "h", "i", "\n")
    model = random_model(vocabulary=words)
    hf = model.tokenizer.hf
    rewards = [random_process_reward(hf), random_outcome_reward(hf, "llama")]
    engine = Engine(model=model, reward=rewards[0] + rewards[1], strategy=Greedy())
    reads = [read_ids(r.transformer.module) for r in (model, *rewards)]
    strategy = Kept()
    result = engine.generate(TURNS, sampling=Sampling(max_tokens=6), strategy=strategy)
    expected = hf.apply_chat_template([m.as_template_input() for m in TURNS], add_generation_prompt=True)["input_ids"]
    completion = list(result.token_ids)
    rolled, *scored = [[token for call in calls for token in call] for calls in reads]
    assert rolled == [*expected, *completion[:-1]]
    assert scored == [[*expected, *completion]] * 2
    for calls in reads:
        calls.clear()
    [entry] = strategy.pool
    anew = replace(entry.rollout, prompt=replace(entry.rollout.prompt))  # of this one rewards have read nothing yet
    engine.objective.gradient([anew], [entry.score], [0])
    likelihood, *rewarded = [[token for call in calls for token in call] for calls in reads]
    assert likelihood == [*expected, *completion[:-1]]
    assert rewarded == [[*expected, *completion]] * 2


def test_a_formatted_prompt_is_taken_verbatim(qwen) -> None:
    prompt = qwen.prompt("<user>ab<assistant>cd", formatted=True)
    words = qwen.tokenizer.hf.get_vocab()
    assert [*prompt.ids] == [words[w] for w in ("<user>", "a", "b", "<assistant>", "cd")]
    assert (prompt.messages, prompt.question) == ((), "<user>ab<assistant>cd")


def test_formatted_messages_are_refused(qwen) -> None:
    with pytest.raises(PromptError, match="verbatim: expected one string"):
        qwen.prompt(TURNS, formatted=True)


@pytest.mark.parametrize("empty", ["", " \n", [], [Message("user", "")], [Message("system", " ")]])
def test_an_empty_prompt_is_refused(qwen, empty) -> None:
    with pytest.raises(PromptError, match="prompt is empty"):
        qwen.prompt(empty)


def test_an_empty_formatted_prompt_is_refused(qwen) -> None:
    with pytest.raises(PromptError, match="prompt is empty"):
        qwen.prompt("", formatted=True)


def test_a_turn_without_text_but_with_tool_calls_is_no_empty_prompt() -> None:
    tokenizer = byte_tokenizer()
    call = {"name": "f", "arguments": {"x": 1}}
    prompt = random_model(tokenizer=tokenizer).prompt([Message("assistant", "", {"tool_calls": [call]})])
    assert '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>' in prompt.text


@pytest.mark.parametrize("call", [1, None, {}, {"function": 3}, {"name": 4}], ids=repr)
def test_a_tool_call_that_is_none_is_refused(call: object) -> None:
    model = random_model(tokenizer=byte_tokenizer())
    with pytest.raises(PromptError, match=r"A tool call of the conversation is .*expected a name and arguments"):
        model.prompt([Message("assistant", "", {"tool_calls": [call]})])


def test_a_prompt_that_leaves_no_room_for_one_token_is_refused_with_both_lengths() -> None:
    """Three markers and the text: 20 tokens fill the context, 19 leave one."""
    model = random_model(vocabulary=("a",), context_length=20)
    assert len(model.prompt("a" * 16).ids) == 19
    for characters in (17, 100):
        with pytest.raises(
            ContextOverflowError, match=rf"{characters + 3} tokens.*context of random qwen2 is 20 tokens"
        ):
            model.prompt("a" * characters)


def test_without_chat_template_a_conversation_is_refused_and_formatted_text_works() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    model = random_model(tokenizer=tokenizer)
    with pytest.raises(PromptError, match=r"no chat template.*formatted=True"):
        model.prompt("hello")
    assert model.tokenizer.decode(model.prompt("hello", formatted=True).ids) == "hello"


def test_a_refusal_of_the_template_names_it_and_the_roles() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(PromptError, match=r"\(user, user\): roles must alternate"):
        random_model(tokenizer=tokenizer).prompt([Message("user", "a"), Message("user", "b")])


def test_tools_reach_the_template() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ tools[0]['function']['name'] }}: {{ messages[0].content }}"
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    assert random_model(tokenizer=tokenizer).prompt("2 + 2", tools=[tool]).text == "add: 2 + 2"


def test_the_head_gives_the_logits_of_transformers(model, full_logits) -> None:
    """Gemma-2 caps them softly."""
    prompt = model.prompt("abcd")
    with torch.no_grad():
        hidden = model.transformer.body(input_ids=torch.tensor([prompt.ids]), use_cache=False).last_hidden_state[0]
    completion = prompt.ids  # any ids: the logits before the last token of the prompt are compared
    expected = full_logits(model, prompt, completion)[:1]
    assert torch.allclose(model.head(hidden[-1:]), expected, atol=1e-5)
    assert torch.equal(model.head(hidden).argmax(-1)[-1:], expected.argmax(-1))


SHAPE = {
    "vocab_size": 261,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}


def with_head(module: Any) -> Any:
    """Random weights in the head, so that logits are far from zero."""
    torch.nn.init.normal_(module.lm_head.weight, generator=torch.Generator().manual_seed(0))
    return module


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (GraniteConfig(**SHAPE, logits_scaling=8.0), GraniteForCausalLM),
        (CohereConfig(**SHAPE, logit_scale=0.0625), CohereForCausalLM),
    ],
    ids=["granite", "cohere"],
)
def test_a_constant_factor_of_the_logits_is_part_of_the_head(config: Any, architecture: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        module = with_head(architecture(config))
    model = LanguageModel(module, byte_tokenizer())
    ids = torch.tensor([[72, 105, 33, 10, 65]])
    with torch.no_grad():
        expected = module(input_ids=ids, use_cache=False).logits[0]
        hidden = model.transformer.body(input_ids=ids, use_cache=False).last_hidden_state[0]
    assert torch.allclose(model.head(hidden), expected, atol=1e-4)
    assert expected.std() > 0.1


def test_logits_that_are_not_the_heads_are_refused() -> None:
    """The gradient would be wrong by what comes after the head."""
    with torch.random.fork_rng(devices=[]):
        module = with_head(GraniteForCausalLM(GraniteConfig(**SHAPE)))

    def squared(_: Any, args: Any, output: Any) -> None:
        output.logits.square_()

    module.register_forward_hook(squared)
    with pytest.raises(ModelLoadError, match=r"GraniteForCausalLM.*gradient would be wrong"):
        LanguageModel(module, byte_tokenizer())


def test_a_body_of_another_shape_is_refused_by_name() -> None:
    module = random_model().transformer.module
    module.base_model.register_forward_hook(lambda *hook: hook[-1].to_tuple())
    with pytest.raises(ModelLoadError, match=r"Qwen2ForCausalLM is no decoder.*AttributeError"):
        LanguageModel(module, byte_tokenizer())


def test_a_model_that_names_no_length_has_a_bounded_one() -> None:
    """Bloom's positions have no limit; a rollout's random numbers must have one."""
    config = BloomConfig(vocab_size=261, hidden_size=32, n_layer=1, n_head=2, pad_token_id=None)
    with torch.random.fork_rng(devices=[]):
        model = LanguageModel(BloomForCausalLM(config), byte_tokenizer())
    assert model.context_length == 1 << 17
    result = Engine(model=model, strategy=Greedy()).generate("hi", sampling=Sampling(max_tokens=3))
    assert 1 <= len(result.token_ids) <= 3


def test_a_verbatim_prompt_begins_as_the_tokenizer_begins_every_text() -> None:
    """Base models were trained on texts that begin so; a prompt that has it already gets no second one."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    model = random_model(tokenizer=tokenizer)
    plain = tokenizer("What").input_ids
    assert plain[0] == bos
    assert list(model.prompt("What", formatted=True).ids) == plain
    assert list(model.prompt("<bos>What", formatted=True).ids) == plain


def test_eos_ids_are_those_of_the_tokenizer_and_of_the_generation_config() -> None:
    module = random_model(vocabulary=("a", "b")).transformer.module
    tokenizer = random_model(vocabulary=("a", "b")).tokenizer.hf
    for given, expected in [(1, {1, 2}), ([0, 1], {0, 1, 2}), (None, {2})]:
        module.generation_config.eos_token_id = given
        assert LanguageModel(module, tokenizer).eos_ids == expected


def test_weights_are_frozen_and_the_model_is_in_eval_mode(model) -> None:
    module = model.transformer.module
    assert not any(p.requires_grad for p in module.parameters())
    assert not module.training


def test_two_prompts_of_different_settings_share_no_state(qwen) -> None:
    first = qwen.prompt(TURNS)
    qwen.prompt("a")
    assert qwen.prompt(TURNS) == first


def test_an_objective_without_reward_runs() -> None:
    """No reward model was a KeyError in the research code."""
    model = random_model(vocabulary=("a", "b"))
    objective = Objective(model)
    strategy = Kept()
    Engine(model=model, strategy=strategy).generate("ab", sampling=Sampling(max_tokens=4))
    [entry] = strategy.pool
    assert objective.score([entry.rollout]) == [None]
    assert objective.value(entry.rollout, None) == entry.rollout.log_likelihood
    [gradient] = objective.gradient([entry.rollout], [None], [0])
    assert gradient.rows(range(len(entry.rollout.completion_ids))).isfinite().all()


def test_eight_threads_get_the_texts_that_one_gets() -> None:
    """Prompts, rollouts and decoding through one model at the same time."""
    model = random_model(vocabulary=("a", "b", "cd", "efg"))
    engine = Engine(model=model, strategy=Greedy())
    prompts = ["ab" * (i % 3 + 1) + "cd" * (i // 3) for i in range(8)]

    def answer(prompt: str) -> tuple[tuple[int, ...], str]:
        result = engine.generate(prompt, sampling=Sampling(max_tokens=8))
        return result.token_ids, result.text

    expected = [answer(p) for p in prompts]
    found: dict[int, tuple[tuple[int, ...], str]] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: answer(prompts[i])})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(8)] == expected
