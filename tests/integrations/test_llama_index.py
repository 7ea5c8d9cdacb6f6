"""`llama_index.llms.nabla.NablaLLM`. Texts are compared between paths, never with literals: the weights may change."""

import asyncio
import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ImageBlock, TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage, CustomLLM, MessageRole
from llama_index.core.llms.function_calling import FunctionCallingLLM
from pydantic import Field, ValidationError

import nabla_agents
from llama_index.llms.nabla import NablaLLM, nabla_options
from llama_index.llms.nabla.messages import conversation
from nabla_agents import (
    BestOfN,
    Budget,
    ConfigurationError,
    ContextOverflowError,
    Engine,
    ModelLoadError,
    PromptError,
)
from nabla_agents.adapters import shared_engines

QUESTIONS = [
    "Tom has 3 boxes with 4 apples each. He eats 5 apples. How many apples are left?",
    "Ann has 7 pens and buys 5 more. How many pens does she have?",
    "What is 12 * 7 + 9?",
]
METHODS = [
    *("chat", "stream_chat", "achat", "astream_chat"),
    *("complete", "stream_complete", "acomplete", "astream_complete"),
]


def turn(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


def text_of(response: Any) -> str:
    return response.message.content if hasattr(response, "message") else response.text


async def responses(llm: NablaLLM, method: str, prompt: str, **kwargs: Any) -> list[Any]:
    """All responses of one of the eight methods: one, or the chunks of a stream."""
    given = turn(prompt) if "chat" in method else prompt
    returned = getattr(llm, method)(given, **kwargs)
    if method.startswith("a"):
        returned = await returned
    if method.startswith("astream"):
        return [chunk async for chunk in returned]
    return list(returned) if method.startswith("stream") else [returned]


async def text_by(llm: NablaLLM, method: str, prompt: str, **kwargs: Any) -> str:
    return text_of((await responses(llm, method, prompt, **kwargs))[-1])


class Events(BaseEventHandler):
    """Names of the model-call events that were dispatched."""

    seen: list[Any] = Field(default_factory=list)

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.seen.append(event)

    def count(self, name: str) -> int:
        return sum(type(event).__name__ == name for event in self.seen)


@pytest.fixture
def events() -> Iterator[Events]:
    root, handler = get_dispatcher(), Events()
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


# ── the eight methods ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("options", [{"temperature": 1.0, "seed": 3}, {"strategy": BestOfN(n=2), "seed": 1}])
async def test_eight_methods_give_the_text_of_the_engine(engine: Engine, options: dict[str, Any]) -> None:
    llm = NablaLLM(engine=engine, max_tokens=6, **options)
    sampling = nabla_agents.Sampling(max_tokens=6, temperature=options.get("temperature"))
    expected = engine.generate(
        QUESTIONS[0], seed=options["seed"], sampling=sampling, strategy=options.get("strategy")
    ).text
    assert [await text_by(llm, method, QUESTIONS[0]) for method in METHODS] == [expected] * 8


@pytest.mark.parametrize("method", METHODS)
async def test_every_call_has_one_start_and_one_end_and_its_usage_is_counted(
    watched_engine: Engine, events: Events, question: str, method: str
) -> None:
    counter = TokenCountingHandler(tokenizer=watched_engine.model.tokenizer.encode)
    llm = NablaLLM(engine=watched_engine, max_tokens=8, callback_manager=CallbackManager([counter]))
    *pieces, last = await responses(llm, method, question)
    kind, other = ("Chat", "Completion") if "chat" in method else ("Completion", "Chat")
    assert (events.count(f"LLM{kind}StartEvent"), events.count(f"LLM{kind}EndEvent")) == (1, 1)
    assert (events.count(f"LLM{other}StartEvent"), events.count(f"LLM{other}EndEvent")) == (0, 0)
    sampling = nabla_agents.Sampling(max_tokens=8)
    result = watched_engine.generate(question, sampling=sampling)
    usage = last.raw["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (result.prompt_tokens, len(result.token_ids))
    assert counter.prompt_llm_token_count == usage["prompt_tokens"]
    assert counter.completion_llm_token_count == usage["completion_tokens"]
    assert len(counter.llm_token_counts) == 1
    assert last.raw["nabla"]["usage"]["rollouts"] == result.usage.rollouts
    json.dumps(last.raw, allow_nan=False)
    assert all(piece.raw is None for piece in pieces)


@pytest.mark.parametrize("method", METHODS)
async def test_log_probs_are_those_of_the_returned_tokens(engine: Engine, method: str) -> None:
    llm = NablaLLM(engine=engine, max_tokens=6, logprobs=True)
    last = (await responses(llm, method, QUESTIONS[0]))[-1]
    result = engine.generate(QUESTIONS[0], sampling=nabla_agents.Sampling(max_tokens=6))
    assert [entry.logprob for (entry,) in last.logprobs] == pytest.approx(list(result.log_probs))
    assert "".join(entry.token for (entry,) in last.logprobs).startswith(result.text)


def test_it_is_a_function_calling_llm_by_class_and_by_metadata_unless_told_otherwise(engine: Engine) -> None:
    assert issubclass(NablaLLM, FunctionCallingLLM)
    assert not issubclass(NablaLLM, CustomLLM)
    assert NablaLLM.class_name() == "NablaLLM"
    assert NablaLLM(engine=engine).metadata.is_function_calling_model
    assert not NablaLLM(engine=engine, is_function_calling=False).metadata.is_function_calling_model


@pytest.mark.parametrize("method", [m for m in METHODS if "stream" in m])
async def test_a_stream_is_cumulative_append_only_and_ends_complete(
    watched_engine: Engine, question: str, method: str
) -> None:
    llm = NablaLLM(engine=watched_engine, max_tokens=12)
    chunks = await responses(llm, method, question)
    so_far = ""
    for chunk in chunks:
        so_far += chunk.delta
        assert text_of(chunk) == so_far
    assert len(chunks) > 3
    assert chunks[-1].delta == ""
    assert so_far == llm.complete(question).text


@pytest.mark.parametrize("method", [m for m in METHODS if "stream" in m])
async def test_an_error_in_the_engine_reaches_the_consumer(
    watched_engine: Engine, backend: Any, question: str, method: str
) -> None:
    backend.error_at = (3, RuntimeError("broken device"))
    with pytest.raises(RuntimeError, match="broken device"):
        await responses(NablaLLM(engine=watched_engine, max_tokens=12), method, question)


# ── batches ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_is_one_engine_batch_with_one_event_pair_for_each_prompt(
    engine: Engine, widths: list[int], events: Events
) -> None:
    counter = TokenCountingHandler(tokenizer=engine.model.tokenizer.encode)
    llm = NablaLLM(engine=engine, max_tokens=6, seed=5, temperature=0.9, callback_manager=CallbackManager([counter]))
    completions = llm.complete_batch(QUESTIONS)
    assert widths[0] == len(QUESTIONS)
    widths.clear()
    chats = llm.chat_batch([turn(question) for question in QUESTIONS])
    assert widths[0] == len(QUESTIONS)
    assert events.count("LLMCompletionEndEvent") == events.count("LLMChatStartEvent") == len(QUESTIONS)
    assert counter.completion_llm_token_count == sum(
        response.raw["usage"]["completion_tokens"] for response in (*completions, *chats)
    )
    assert [r.text for r in completions] == [r.message.content for r in chats]
    assert [r.text for r in completions] == [llm.complete(question).text for question in QUESTIONS]


# ── async ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", [m for m in METHODS if m.startswith("a")])
async def test_the_loop_stays_free(
    watched_engine: Engine, backend: Any, drip: Any, task: Any, question: str, method: str, ticks_during: Any
) -> None:
    """Each of at least 3 rollouts sleeps 30 ms; a blocked loop would tick at most once between rollouts."""
    backend.seconds = 0.03
    task.set(method)
    llm = NablaLLM(engine=watched_engine, max_tokens=8)
    assert await ticks_during(responses(llm, method, question)) > 2 * 3
    assert drip.tasks == {method}


@pytest.mark.parametrize("method", [m for m in METHODS if m.startswith("a")])
async def test_a_cancelled_task_stops_the_engine_within_one_operation(
    watched_engine: Engine, backend: Any, question: str, method: str
) -> None:
    backend.seconds = 0.03
    strategy: Any = type(watched_engine.strategy)(tokens=1)
    llm = NablaLLM(engine=watched_engine, max_tokens=24, strategy=strategy)
    task = asyncio.create_task(responses(llm, method, question))
    while backend.calls < 2:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    calls = backend.calls
    await strategy.ended()
    assert backend.calls <= calls + 1


async def test_a_stream_left_early_stops_the_engine(watched_engine: Engine, backend: Any, question: str) -> None:
    stream = await NablaLLM(engine=watched_engine, max_tokens=16).astream_complete(question)
    async for _ in stream:
        break
    await stream.aclose()
    await asyncio.sleep(0.05)
    assert backend.calls == 2


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("method", ["chat", "complete", "stream_chat", "stream_complete", "complete_batch"])
def test_ctrl_c_ends_the_program_and_not_only_the_call(
    watched_engine: Engine, backend: Any, question: str, method: str
) -> None:
    backend.error_at = (2, KeyboardInterrupt())
    given: Any = turn(question) if "chat" in method else [question] if "batch" in method else question
    with pytest.raises(KeyboardInterrupt):
        list(getattr(NablaLLM(engine=watched_engine, max_tokens=12), method)(given))


# ── options ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", ["constructor", "call", "with_options", "scope"])
async def test_a_stop_string_holds_from_every_place_in_every_method(
    watched_engine: Engine, stop_case: tuple[str, str], question: str, place: str
) -> None:
    stop, expected = stop_case
    llm = NablaLLM(engine=watched_engine, max_tokens=12, stop=[stop] if place == "constructor" else ["never said"])
    if place == "with_options":
        llm = llm.with_options(stop=stop)
    in_call = {"stop": [stop]} if place == "call" else {}
    with nabla_options(**({"stop": [stop]} if place == "scope" else {})):
        assert [await text_by(llm, method, question, **in_call) for method in METHODS] == [expected] * 8


async def test_the_call_goes_before_the_scope_and_the_scope_before_the_instance(engine: Engine, question: str) -> None:
    llm = NablaLLM(engine=engine, max_tokens=3, rollouts=1)

    def tokens(**options: Any) -> int:
        return llm.complete(question, **options).raw["usage"]["completion_tokens"]

    assert tokens() == 3
    with nabla_options(max_tokens=2):
        assert (tokens(), tokens(max_tokens=1)) == (2, 1)
        with nabla_options(seed=9):
            assert tokens() == 2
            assert llm.complete(question).raw["nabla"]["seed"] == 9
        assert llm.complete(question).raw["nabla"]["seed"] == 0
        assert len(engine.model.tokenizer.encode(llm.predict(PromptTemplate(question)))) <= 2
        stream = llm.stream_complete(question)
    assert tokens() == 3
    assert list(stream)[-1].raw["usage"]["completion_tokens"] == 2, "the scope at the time of the call counts"

    async def scoped(n: int) -> int:
        with nabla_options(max_tokens=n):
            await asyncio.sleep(0.001)
            return (await llm.acomplete(question)).raw["usage"]["completion_tokens"]

    assert await asyncio.gather(*map(scoped, (1, 2, 3))) == [1, 2, 3]


def test_a_copy_with_options_shares_the_engine_and_leaves_the_original(engine: Engine) -> None:
    llm = NablaLLM(engine=engine, max_tokens=3)
    changed = llm.with_options(seed=4, budget=Budget(rollouts=1))
    assert (changed.seed, changed.max_tokens, llm.seed) == (4, 3, 0)
    assert changed.load() is llm.model_copy(update={"seed": 5}).load() is engine
    assert changed.callback_manager is llm.callback_manager


@pytest.mark.parametrize("method", [*METHODS, "complete_batch", "chat_batch"])
async def test_unknown_options_are_errors(engine: Engine, method: str) -> None:
    llm = NablaLLM(engine=engine, max_tokens=1, rollouts=1)
    with pytest.raises(TypeError, match=r"typo.*Known: temperature"):
        await responses(llm, method, "x", typo=1)
    if "batch" not in method:
        await responses(llm, method, "x", tools=[], tool_choice=None)


def test_wrong_values_are_refused_everywhere(engine: Engine) -> None:
    llm = NablaLLM(engine=engine)
    for make in (lambda **o: NablaLLM(**o), llm.with_options, lambda **o: llm.complete("x", **o)):
        for wrong in ({"temperature": -1}, {"max_tokens": 0}, {"seed": -1}, {"budget": {"rollouts": 0}}):
            with pytest.raises(ValidationError, match=next(iter(wrong))):
                make(**wrong)
    with pytest.raises(ValidationError, match="typo"):
        NablaLLM(typo=1)
    for refused in (llm.with_options, nabla_options):
        with pytest.raises(TypeError, match="model"), refused(model="another"):
            pass


# ── metadata ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_metadata_tells_the_models_own_numbers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = engine.model.context_length
    metadata = NablaLLM(engine=engine).metadata
    assert (metadata.context_window, metadata.num_output) == (limit, 256)
    assert metadata.is_chat_model
    assert metadata.model_name == engine.model.name
    smaller = NablaLLM(engine=engine, context_window=600, max_tokens=32).metadata
    assert (smaller.context_window, smaller.num_output) == (600, 32)
    assert NablaLLM(engine=engine, context_window=10 * limit).metadata.context_window == limit
    monkeypatch.setattr(engine.model.tokenizer.hf, "chat_template", None)
    assert not NablaLLM(engine=engine).metadata.is_chat_model


def test_an_answer_as_long_as_the_context_is_refused_early(engine: Engine) -> None:
    with pytest.raises(ConfigurationError, match=r"max_tokens is 600.*600 tokens"):
        NablaLLM(context_window=600, max_tokens=600)
    with pytest.raises(ConfigurationError, match=str(engine.model.context_length)):
        NablaLLM(engine=engine, max_tokens=engine.model.context_length)
    with pytest.raises(ConfigurationError, match="Lower max_tokens"):
        NablaLLM(engine=engine, context_window=600).with_options(max_tokens=700)
    lazy = NablaLLM(model="tiny", max_tokens=engine.model.context_length)  # knows the context when it has loaded
    with pytest.raises(ConfigurationError, match="Lower max_tokens"):
        lazy.complete("What is 3 * 4?")


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", METHODS)
async def test_the_engine_reads_the_chat_template_unless_formatted(
    watched_engine: Engine, backend: Any, method: str
) -> None:
    llm = NablaLLM(engine=watched_engine, max_tokens=1, system_prompt="not for direct calls")
    await responses(llm, method, "Hello")
    assert set(backend.prompts) == {watched_engine.prompt("Hello").text} != {"Hello"}
    if "complete" in method:
        backend.reset()
        await responses(llm, method, "Hello", formatted=True)
        own = llm.model_copy(update={"completion_to_prompt": lambda text: f"Q: {text}"})
        await responses(own, method, "Hello")
        assert backend.prompts == ["Hello", "Q: Hello"]


def test_without_chat_template_or_with_a_function_of_the_users_the_rendering_is_plain(
    watched_engine: Engine, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = NablaLLM(engine=watched_engine, max_tokens=1)
    llm.model_copy(update={"messages_to_prompt": lambda messages: "own"}).chat(turn("Hello"))
    monkeypatch.setattr(watched_engine.model.tokenizer.hf, "chat_template", None)
    llm.complete("Hello")
    llm.chat(turn("Hello"))
    assert backend.prompts[:2] == ["own", "Hello"]
    assert backend.prompts[2].startswith("user: Hello")


def test_every_role_renders_and_only_blocks_are_read() -> None:
    roles = [conversation([ChatMessage(role=role, content="x")])[0].role for role in MessageRole]
    assert roles == ["system", "system", "user", "assistant", "tool", "tool", "assistant", "assistant"]
    blocks = [ThinkingBlock(content="hm"), TextBlock(text="a"), TextBlock(text="b")]
    call = ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs={"x": 1})
    message = ChatMessage(role="assistant", blocks=[*blocks, call], additional_kwargs={"secret": "leaks"})
    (converted,) = conversation([message])
    assert converted.content == "a\nb"
    function = {"name": "add", "arguments": {"x": 1}}
    assert converted.extra == {"tool_calls": [{"id": "1", "type": "function", "function": function}]}
    with pytest.raises(PromptError, match="ImageBlock"):
        conversation([ChatMessage(role="user", blocks=[ImageBlock(url="http://localhost/x.png")])])


def test_a_template_that_refuses_system_or_equal_neighbours_gets_the_conversation_folded(
    watched_engine: Engine, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = (
        "{% for m in messages %}{% if m.role != ['user', 'assistant'][loop.index0 % 2] %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    monkeypatch.setattr(watched_engine.model.tokenizer.hf, "chat_template", strict)
    said = [("system", "S"), ("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")]
    llm = NablaLLM(engine=watched_engine, max_tokens=1)
    llm.chat([ChatMessage(role=role, content=content) for role, content in said])
    assert backend.prompts == ["<user>S\n\na\n\nb<assistant>c<user>d"]
    with pytest.raises(PromptError, match="roles must alternate"):
        llm.chat([ChatMessage(role="assistant", content="first")])


def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers(engine: Engine) -> None:
    llm = NablaLLM(engine=engine, context_window=40, max_tokens=8)
    with pytest.raises(ContextOverflowError, match=r"prompt has \d+ tokens, but context_window is 40"):
        llm.complete("one two three " * 20)
    with pytest.raises(ContextOverflowError):
        llm.with_options(max_tokens=2).chat(turn("word " * 2 * engine.model.context_length))
    with pytest.raises(PromptError, match="empty"):
        llm.complete("")


# ── loading, copies, serialisation ────────────────────────────────────────────────────────────────────────────────


def test_equal_settings_load_once_and_only_when_used(
    engine: Engine, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    def tiny(**options: Any) -> Engine:
        made.append(options)
        return engine

    monkeypatch.setattr(shared_engines, "_loaded", {})
    monkeypatch.setattr(nabla_agents.Engine, "tiny", tiny)
    llms = [NablaLLM(max_tokens=1, seed=i) for i in range(10)]
    llms[0].to_payload(), llms[0].to_dict(), llms[0].with_options(seed=1), copy.deepcopy(llms[0])
    assert made == []
    for llm in llms[:3]:
        llm.complete(question)
    assert made == [{}]
    assert NablaLLM(dtype="float32").metadata.context_window == engine.model.context_length
    assert made == [{}, {"dtype": "float32"}]


def test_copies_and_pickles_share_the_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = NablaLLM(engine=engine, max_tokens=3, stop=["x"], strategy=BestOfN(n=2))
    copies = [copy.deepcopy(llm), copy.copy(llm), llm.model_copy(deep=True), pickle.loads(pickle.dumps(llm))]
    for copied in copies:
        assert copied.load() is engine
        assert (copied.max_tokens, copied.stop, copied.strategy) == (3, ["x"], BestOfN(n=2))
    pickled = pickle.dumps(llm)
    assert len(pickled) < 5000
    assert pickle.loads(pickle.dumps(NablaLLM(seed=4))).seed == 4
    monkeypatch.setattr(shared_engines, "_shared", {})
    with pytest.raises(ModelLoadError, match="model name instead"):
        pickle.loads(pickled)


def test_as_a_dictionary_it_is_json_and_comes_back() -> None:
    llm = NablaLLM(max_tokens=5, stop=["x"], budget=Budget(rollouts=2), system_prompt="Be brief.")
    data = json.loads(json.dumps(llm.to_dict()))
    assert NablaLLM.from_dict(data).to_dict() == llm.to_dict()
    assert data["class_name"] == "NablaLLM"
    json.dumps(llm.to_payload())


def test_an_engine_excludes_loading_settings_and_another_model(engine: Engine) -> None:
    with pytest.raises(ConfigurationError, match="dtype: loading settings"):
        NablaLLM(engine=engine, dtype="float16")
    with pytest.raises(ConfigurationError, match="give one"):
        NablaLLM(engine=engine, model="another")


def test_importing_and_constructing_need_no_torch() -> None:
    script = (
        "import sys; from llama_index.llms.nabla import NablaLLM; import llama_index.llms.nabla.base as m\n"
        "assert m.NablaLLM is NablaLLM and NablaLLM(seed=1).class_name() == 'NablaLLM'\n"
        "print(*{'torch', 'transformers', 'langchain_core'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
