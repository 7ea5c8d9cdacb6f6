"""What cannot work is refused with our own error, before any weight is read where possible, or ends with a reason."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from nabla_agents import (
    ArithmeticSteps,
    BestOfN,
    Budget,
    ConfigurationError,
    ContextOverflowError,
    Engine,
    Greedy,
    ImplicitReward,
    LanguageModel,
    Message,
    ModelLoadError,
    Nabla,
    NablaError,
    Prompt,
    PromptError,
    Sampling,
    SelfConsistency,
    VocabularyMismatchError,
)
from nabla_agents.testing import FixedReward, byte_tokenizer, random_model

WORDS = ("1", "2", "3", "4", "+", "=", "\n")
SHORT = Sampling(max_tokens=4)

pytestmark = pytest.mark.untyped


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return random_model(vocabulary=WORDS, width=16, layers=1)


@pytest.fixture(scope="module")
def engine(model: LanguageModel) -> Engine:
    return Engine(model=model, strategy=Greedy())


@pytest.fixture(scope="module")
def bytewise() -> Engine:
    """A tokenizer that reads any text, and a context of 64 tokens."""
    return Engine(model=random_model(width=16, layers=1, context_length=64), strategy=Greedy())


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Any attempt to read weights fails the test."""
    attempts: list[Any] = []

    def attempted(*args: Any, **options: Any) -> Any:
        attempts.append(args)
        raise OSError("weights were asked for")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", attempted)
    with pytest.raises(ModelLoadError, match="weights were asked for"):
        Engine.tiny()  # the watch sees it
    assert attempts
    attempts.clear()
    yield
    assert attempts == []


def saved(model: LanguageModel, folder: Path) -> Path:
    model.transformer.module.save_pretrained(folder)
    model.tokenizer.hf.save_pretrained(folder)
    return folder


# ── engines ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("make", [Engine.tiny, lambda **options: Engine(**{"model": "tiny", **options})])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bugdet": Budget()}, "bugdet = .*Known settings: dtype, device_map"),
        ({"dtype": "float99"}, "dtype = 'float99'.*expected a torch dtype"),
        ({"model": 3}, "model is 3; expected a hub id, a folder, 'tiny'"),
        ({"model": None}, "model is None"),
        ({"strategy": Nabla}, "strategy is <class.*expected a strategy object such as Nabla()"),
        ({"strategy": "nabla"}, "strategy is 'nabla'"),
        ({"strategy": object()}, "strategy is <object"),
        ({"budget": 8}, r"budget is 8; expected for example Budget\(rollouts=8\)"),
        ({"budget": {"rollouts": 8}}, "budget is {'rollouts': 8}"),
        ({"reward": lambda rollouts: [1.0]}, "reward is <function.*expected a Reward"),
        ({"reward": ArithmeticSteps}, "reward is <class.*expected a Reward such as ArithmeticSteps()"),
        ({"reward": 3.0}, "reward is 3.0"),
        ({"likelihood_weight": math.nan}, "likelihood_weight is nan; expected a finite number"),
        ({"likelihood_weight": -1.0}, "likelihood_weight is -1.0"),
        ({"likelihood_weight": "1"}, "likelihood_weight is '1'"),
        ({"rollouts": object()}, r"rollouts is <object.*expected an object with rollout\(jobs\)"),
        ({"rollouts": LanguageModel}, "rollouts is <class"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_an_engine_that_cannot_work_is_refused_before_weights_are_read(
    make: Callable[..., Engine], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make(**options)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", ["no-such-model", "/no/such/folder", Path("nowhere"), ""], ids=repr)
def test_an_unknown_model_is_refused_before_weights_are_read(name: str | Path) -> None:
    with pytest.raises(ModelLoadError, match=r"Give a folder with config\.json"):
        Engine(model=name)


def test_an_engine_needs_a_model() -> None:
    with pytest.raises(TypeError, match="model"):
        Engine()  # type: ignore[call-arg]


def test_loading_options_of_a_loaded_model_are_refused_by_name(model: LanguageModel) -> None:
    with pytest.raises(ConfigurationError, match="dtype, device_map: loading options need a model name"):
        Engine(model=model, dtype="bfloat16", device_map="auto")


@pytest.mark.parametrize("weighted", [lambda r: r, lambda r: 0.5 * r + ArithmeticSteps()], ids=["alone", "in a sum"])
def test_a_token_by_token_reward_of_another_vocabulary_is_refused(model: LanguageModel, weighted: Any) -> None:
    other = random_model(vocabulary=("x", "y"), width=16, layers=1)
    with pytest.raises(VocabularyMismatchError, match="different vocabularies"):
        Engine(model=model, reward=weighted(ImplicitReward(other)))


def test_without_chat_template_a_question_is_refused_and_verbatim_text_is_not(tmp_path: Path) -> None:
    bare = byte_tokenizer()
    bare.chat_template = None
    folder = saved(random_model(tokenizer=bare, width=16, layers=1), tmp_path)
    engine = Engine(model=folder, strategy=Greedy())
    with pytest.raises(PromptError, match="no chat template.*formatted=True"):
        engine.generate("Hello?")
    assert engine.generate("Hello?", formatted=True, sampling=SHORT).usage.rollouts == 1


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ([], "empty"),
        ([{"role": "user", "content": " "}], "empty"),
        ([{"role": "user", "content": None}], "empty"),
        ([Message("system", ""), Message("user", "")], "empty"),
        (None, "prompt is None; expected a string or a list of messages"),
        (12, "prompt is 12"),
        (1.5, "prompt is 1.5"),
        (b"12", "prompt is b'12'"),
        ({"role": "user", "content": "12"}, "prompt is {'role'.*expected a string or a list of messages"),
        (Message("user", "12"), "prompt is Message"),
        ({"12"}, "prompt is {'12'}"),
        ([1, 2], r"message is 1; expected Message\(role, content\) or a mapping with both"),
        (["1", "2"], "message is '1'"),
        ([None], "message is None"),
        ([{"content": "12"}], "message is {'content': '12'}"),
        ([{"role": "boss", "content": "12"}], "role is 'boss'; expected system, user, assistant or tool"),
        ([{"role": None, "content": "12"}], "role is None"),
        ([{"role": ["user"], "content": "12"}], r"role is \['user'\]"),
        ([{"role": "user", "content": 12}], "Content of the user message is 12; expected text"),
        ([{"role": "user", "content": b"12"}], "is b'12'; expected text"),
        ([{"role": "user", "content": [{"type": "text", "text": "12"}]}], r"is \[{'type'.*expected text"),
        ("abc", "tokenizer of random qwen2 cannot read the prompt"),
        ("1\ud8002", "cannot read the prompt"),
        (Prompt((), "", ()), "no token ids"),
    ],
    ids=repr,
)
def test_what_is_no_prompt_is_refused_on_every_way_in(engine: Engine, prompt: Any, said: str) -> None:
    for way in (engine.generate, engine.steps, lambda p: engine.generate_batch(["1", p]), engine.prompt):
        with pytest.raises(PromptError, match=said):
            way(prompt)


@pytest.mark.parametrize("content", [None, 3, ["12"]], ids=repr)
def test_a_message_without_text_is_refused(content: Any) -> None:
    with pytest.raises(PromptError, match="Content of the user message is .*; expected text"):
        Message("user", content)


@pytest.mark.parametrize("formatted", [True, False])
def test_half_a_surrogate_pair_is_refused_where_any_text_can_be_read(bytewise: Engine, formatted: bool) -> None:
    with pytest.raises(PromptError, match="cannot read the prompt.*whole characters"):
        bytewise.generate("a\ud800b", formatted=formatted)


@pytest.mark.parametrize("text", ["a\0b", "\0", "\x1b[31m", "\ufeff", "\U0001f642", "<eos>", "{{ 1/0 }}", "\r\n."])
def test_strange_characters_are_text(bytewise: Engine, text: str) -> None:
    result = bytewise.generate(text, sampling=SHORT)
    shown = text.replace("<eos>", "<\u200beos>")  # a text, and no end of its turn
    assert bytewise.prompt(text).text == f"<user>{shown}<eos><assistant>"
    assert result.usage.generated_tokens == len(result.token_ids) > 0


def test_a_turn_of_tool_calls_needs_no_content(engine: Engine) -> None:
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": None, "tool_calls": []}]
    assert engine.prompt(turns).messages[1] == Message("assistant", "", {"tool_calls": []})
    assert engine.generate(turns, sampling=SHORT).usage.rollouts == 1


@pytest.mark.parametrize("way", [lambda e, p: e.generate(p), lambda e, p: e.generate(e.prompt("1"), sampling=p)])
def test_a_prompt_that_leaves_one_token_has_a_completion_of_one_token(bytewise: Engine, way: Any) -> None:
    """Of 64 tokens, `<user>`, `<eos>` and `<assistant>` are three."""
    engine = Engine(model=bytewise.model, reward=FixedReward(lambda r: 1.0), strategy=Nabla(min_promise=-9.0))
    result = engine.generate("x" * 60)
    assert (result.prompt_tokens, len(result.token_ids)) == (63, 1)
    assert result.truncated == (result.token_ids[0] not in bytewise.model.eos_ids)
    for text in ("x" * 61, "x" * 62, "x" * 100_000):
        with pytest.raises(ContextOverflowError, match=f"{len(text) + 3} tokens.*64"):
            engine.generate(text)
    foreign = Prompt((), "", (0,) * 64)
    with pytest.raises(ContextOverflowError, match="64 tokens.*64"):
        engine.generate(foreign)


# ── options ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 1.0}, "seed is 1.0; expected a 64-bit integer"),
        ({"seed": True}, "seed is True"),
        ({"seed": None}, "seed is None"),
        ({"seed": "1"}, "seed is '1'"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616"),
        ({"seed": -(1 << 63) - 1}, "seed is -9223372036854775809"),
        ({"sampling": {"temperature": 0}}, r"sampling is {.*expected for example Sampling\(temperature=0.7\)"),
        ({"sampling": Sampling}, "sampling is <class"),
        ({"budget": 3}, "budget is 3"),
        ({"strategy": BestOfN}, "strategy is <class"),
        ({"strategy": "greedy"}, "strategy is 'greedy'"),
        ({"tools": "calculator"}, "tools is 'calculator'; expected a list of functions"),
        ({"tools": [3]}, r"tools is \[3\]; expected a list of functions"),
    ],
    ids=repr,
)
def test_a_wrong_option_is_refused_on_every_way_in(engine: Engine, options: dict[str, Any], said: str) -> None:
    batch = {"seeds" if k == "seed" else k: [v] if k == "seed" else v for k, v in options.items()}
    for way in (engine.generate, engine.steps):
        with pytest.raises(NablaError, match=said):
            way("1", **options)
    with pytest.raises(NablaError, match=said):
        engine.generate_batch(["1"], **batch)


def test_an_unknown_keyword_is_a_type_error(engine: Engine) -> None:
    for way in (engine.generate, engine.steps):
        with pytest.raises(TypeError, match="temperature"):
            way("1", temperature=0.5)
    with pytest.raises(TypeError, match="temperature"):
        engine.generate_batch(["1"], temperature=0.5)  # type: ignore[call-arg]


@pytest.mark.parametrize("seed", [-(1 << 63), -1, 0, (1 << 64) - 1])
def test_every_64_bit_integer_is_a_seed(engine: Engine, seed: int) -> None:
    assert engine.generate("1", seed=seed, sampling=SHORT).seed == seed


@pytest.mark.parametrize(
    ("prompts", "options", "said"),
    [
        ("12", {}, "generate_batch got '12'; expected a list of prompts"),
        (b"12", {}, "generate_batch got b'12'"),
        (None, {}, "generate_batch got None"),
        ({"12": 1}, {}, "generate_batch got {'12': 1}"),
        ({"12"}, {}, "generate_batch got {'12'}"),
        (iter(["12"]), {}, "generate_batch got <list_iterator"),
        (["12"], {"seeds": 5}, "seeds is 5; expected a list"),
        (["12"], {"seeds": [1, 2]}, "Got 2 seeds for 1 prompts"),
        (["12"], {"seeds": []}, "Got 0 seeds for 1 prompts"),
        (["12"], {"max_batch": 0}, "max_batch is 0; expected a whole number of at least 1"),
        (["12"], {"max_batch": 1.5}, "max_batch is 1.5"),
        (["12"], {"max_batch": "8"}, "max_batch is '8'"),
        (["12"], {"max_batch": True}, "max_batch is True"),
    ],
)
def test_what_is_no_batch_is_refused(engine: Engine, prompts: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        engine.generate_batch(prompts, **options)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Sampling(temperature=math.inf), "temperature = inf"),
        (lambda: Sampling(temperature=math.nan), "temperature = nan"),
        (lambda: Sampling(top_p=math.nan), "top_p = nan"),
        (lambda: Sampling(max_tokens=0), "max_tokens = 0"),
        (lambda: Sampling(stop=""), "a stop string is empty"),
        (lambda: Sampling(stop=["a", ""]), "a stop string is empty"),
        (lambda: Sampling(stop=5), "stop = 5.*expected text"),
        (lambda: Sampling(stop=[5]), r"stop.0 = 5"),
        (lambda: Sampling(stop=b"a"), "stop.0 = 97"),
        (lambda: Sampling(stop="\ud800"), "half a surrogate pair"),
        (lambda: BestOfN(n=0), "n = 0"),
        (lambda: SelfConsistency(n=0), "n = 0"),
        (lambda: BestOfN(temperature=math.inf), "temperature = inf"),
        (lambda: SelfConsistency(temperature=math.nan), "temperature = nan"),
        (lambda: Nabla(temperature=math.inf), "temperature = inf"),
        (lambda: Nabla(min_promise=math.nan), "min_promise = nan"),
        (lambda: Nabla(steps=3), "steps = 3.*Known settings: direction, dto"),
        (lambda: Budget(rollouts=0), "rollouts is 0.*at least 1"),
        (lambda: Budget(rollouts=1.5), "rollouts is 1.5.*whole number"),
        (lambda: Budget(seconds=-1.0), "seconds is -1.0.*at least 0"),
        (lambda: Budget(seconds=math.nan), "seconds is nan"),
        (lambda: Budget(flops="1"), "flops is '1'"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name_and_value(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make()


def test_torch_is_left_as_it_was(engine: Engine) -> None:
    """After an error too: gradients stay on for the caller."""
    with pytest.raises(PromptError):
        engine.generate("")
    engine.generate("1", sampling=SHORT)
    assert torch.is_grad_enabled()
