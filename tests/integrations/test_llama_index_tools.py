"""Tools, agents and structured answers. A scripted model decides what is said; templates, tokens, grammars, decoding,
search and ledger are the engine's own.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.agent.workflow import AgentStream, AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ThinkingBlock, ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field, field_validator

from llama_index.llms.nabla import NablaLLM, StructuredAnswerError
from nabla_agents import ArithmeticSteps, Budget, ConfigurationError, Engine, Nabla
from nabla_agents.testing import scripted_model

# Of LlamaIndex itself: its agents look at all their own attributes, and its memory leaves its data base open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def multiply(a: int, b: int) -> int:
    """Multiplies two numbers."""
    return a * b


def scripted(script: Callable[[str], str]) -> NablaLLM:
    engine = Engine(model=scripted_model(script), strategy=Nabla(), budget=Budget(rollouts=2))
    return NablaLLM(engine=engine, max_tokens=200)


def turn(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


TOOL = FunctionTool.from_defaults(multiply)
OFFERED = [TOOL.metadata.to_openai_tool()]


def calculating(prompt: str) -> str:
    """Calls the tool once, and says what it returned."""
    if "<tool_response>" in prompt:
        result = re.findall(r"<tool_response>\n(.*?)\n</tool_response>", prompt, re.DOTALL)[-1]
        return f"It is {result}."
    return "<think>A product.</think>\n" + call("multiply", '{"a": 6, "b": 7}')


@pytest.fixture(scope="module")
def calculator() -> NablaLLM:
    return scripted(calculating)


async def test_thoughts_and_calls_become_blocks_the_same_in_every_chat_method(calculator: NablaLLM) -> None:
    given: Any = {"tools": OFFERED}
    stream = list(calculator.stream_chat(turn("What is 6 * 7?"), **given))
    astream = [c async for c in await calculator.astream_chat(turn("What is 6 * 7?"), **given)]
    whole = [
        calculator.chat(turn("What is 6 * 7?"), **given),
        await calculator.achat(turn("What is 6 * 7?"), **given),
        stream[-1],
        astream[-1],
    ]
    for response in whole:
        thought, *_, called = response.message.blocks
        assert isinstance(thought, ThinkingBlock)
        assert thought.content == "A product."
        assert isinstance(called, ToolCallBlock)
        assert (called.tool_name, called.tool_kwargs) == ("multiply", {"a": 6, "b": 7})
        assert response.message.content in (None, "")
        assert response.message.additional_kwargs == {}
        assert response.raw["finish_reason"] == "tool_calls"
    assert len({response.message.blocks[-1].tool_call_id for response in whole}) == 1
    assert "".join(c.additional_kwargs.get("thinking_delta", "") for c in stream) == "A product."


def test_two_calls_of_one_tool_have_two_ids_and_one_call_is_one_without_parallel_calls() -> None:
    twice = call("multiply", '{"a": 1, "b": 2}') + "\n" + call("multiply", '{"a": 3, "b": 4}')
    llm = scripted(lambda prompt: twice)
    response = llm.chat_with_tools([TOOL], "x", allow_parallel_tool_calls=True)
    first, second = llm.get_tool_calls_from_response(response)
    assert (first.tool_kwargs, second.tool_kwargs) == ({"a": 1, "b": 2}, {"a": 3, "b": 4})
    assert first.tool_id != second.tool_id
    assert len(llm.get_tool_calls_from_response(llm.chat_with_tools([TOOL], "x", tool_required=True))) == 1


def test_a_required_tool_is_called_by_a_model_that_would_rather_talk_and_the_history_is_left_alone() -> None:
    llm = scripted(lambda prompt: "I would rather talk.")
    history = turn("Hello")
    free = llm.chat_with_tools([TOOL], "x", chat_history=history)
    assert free.message.content == "I would rather talk."
    assert llm.get_tool_calls_from_response(free, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match="tool_required"):
        llm.get_tool_calls_from_response(free)
    forced = llm.chat_with_tools([TOOL], "x", chat_history=history, tool_required=True)
    (selected,) = llm.get_tool_calls_from_response(forced)
    assert selected.tool_name == "multiply"
    assert {type(v) for v in selected.tool_kwargs.values()} == {int}
    assert len(history) == 1


def test_a_choice_of_an_unknown_tool_is_refused(calculator: NablaLLM) -> None:
    with pytest.raises(ConfigurationError, match="tool_choice is 'divide'"):
        calculator.chat(turn("x"), tools=OFFERED, tool_choice="divide")


@pytest.mark.parametrize("calls_tools", [True, False])
async def test_predict_and_call_calls_the_tool_with_and_without_tool_calling(calls_tools: bool) -> None:
    react = "Thought: I need a tool.\nAction: multiply\nAction Input: " + '{"a": 6, "b": 7}'
    llm = scripted(lambda prompt: calculating(prompt) if calls_tools else react)
    llm = llm.model_copy(update={"is_function_calling": calls_tools})
    assert str(llm.predict_and_call([TOOL], user_msg="What is 6 * 7?")) == "42"
    assert str(await llm.apredict_and_call([TOOL], user_msg="What is 6 * 7?")) == "42"


async def test_a_function_agent_calls_the_tool_and_its_raw_has_the_usage(calculator: NablaLLM) -> None:
    handler = FunctionAgent(tools=[multiply], llm=calculator).run("What is 6 * 7?")
    streamed = [event async for event in handler.stream_events() if isinstance(event, AgentStream)]
    output = await handler
    assert str(output) == "It is 42."
    assert output.raw["usage"]["completion_tokens"] > 0
    json.dumps(output.raw)
    assert "".join(event.thinking_delta or "" for event in streamed) == "A product."


async def test_a_react_agent_reads_its_action_beside_a_thought_that_names_another() -> None:
    def script(prompt: str) -> str:
        if "Observation: 42" in prompt:
            return "Thought: I can answer.\nAnswer: It is 42."
        action = 'Action: multiply\nAction Input: {"a": 6, "b": 7}'
        return f"<think>Action: none</think>\nThought: I need a tool.\n{action}\nObservation: invented"

    llm = scripted(script).with_options(stop=["\nObservation:"])
    assert str(await ReActAgent(tools=[multiply], llm=llm).run("What is 6 * 7?")) == "It is 42."


async def test_one_agent_hands_over_to_another() -> None:
    def script(prompt: str) -> str:
        if "<tool_response>\n42" in prompt:
            return "It is 42."
        if "You calculate" in prompt:
            return call("multiply", '{"a": 6, "b": 7}')
        return call("handoff", '{"to_agent": "second", "reason": "it calculates"}')

    llm = scripted(script).with_options(max_tokens=100)
    first = FunctionAgent(name="first", description="asks", system_prompt="Ask.", llm=llm, can_handoff_to=["second"])
    second = FunctionAgent(
        name="second", description="calculates", system_prompt="You calculate.", llm=llm, tools=[multiply]
    )
    output = await AgentWorkflow(agents=[first, second], root_agent="first").run("What is 6 * 7?")
    assert (str(output), output.current_agent_name) == ("It is 42.", "second")


# ── structured answers ────────────────────────────────────────────────────────────────────────────────────────────


class Person(BaseModel):
    """A person."""

    name: str
    age: int = Field(ge=0)

    @field_validator("name")
    @classmethod
    def _is_capital(cls, value: str) -> str:
        if not value[:1].isupper():
            raise ValueError("a name begins with a capital letter")
        return value


PROMPT = PromptTemplate("Who is {who}?")
ANN = '{"name": "Ann", "age": 7}'


async def structured(llm: NablaLLM, method: str, **given: Any) -> Any:
    returned = getattr(llm, method)(Person, PROMPT, who="she", **given)
    returned = await returned if method.startswith("a") else returned
    if "stream" not in method:
        return returned
    parts = [p async for p in returned] if method.startswith("a") else list(returned)
    assert len(parts) >= 1
    return parts[-1]


METHODS = ["structured_predict", "astructured_predict", "stream_structured_predict", "astream_structured_predict"]


@pytest.mark.parametrize("method", METHODS)
async def test_every_way_gives_the_object_and_the_model_is_told_its_true_schema(method: str) -> None:
    prompts: list[str] = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return ANN

    llm = scripted(script).model_copy(update={"system_prompt": "Be brief."})
    assert await structured(llm, method, llm_kwargs={"tool_choice": None}) == Person(name="Ann", age=7)
    assert '"age": {"minimum": 0, "title": "Age", "type": "integer"}' in prompts[0]
    assert "Be brief." in prompts[0]
    assert "{{" not in prompts[0]


@pytest.mark.parametrize("method", METHODS)
async def test_a_validator_steers_the_next_attempt(method: str) -> None:
    llm = scripted(lambda p: ANN if "begins with a capital" in p else '{"name": "ann", "age": 7}')
    assert await structured(llm, method) == Person(name="Ann", age=7)
    with pytest.raises(StructuredAnswerError, match="Raise structured_retries"):
        await structured(llm.model_copy(update={"structured_retries": 0}), method)


def test_a_prompt_that_is_no_conversation_is_searched_as_it_is() -> None:
    engine = scripted(lambda p: '{"name": "ann", "age": 7}').engine
    plain = Engine(model=engine.model, budget=Budget(rollouts=2), reward=ArithmeticSteps())
    llm = NablaLLM(engine=plain, max_tokens=200, messages_to_prompt=lambda m: m[-1].content, structured_retries=0)
    with pytest.raises(StructuredAnswerError, match="capital"):
        llm.structured_predict(Person, PROMPT, who="she")


class Share(BaseModel):
    """A part of a whole; its validator breaks where there is none."""

    part: int
    whole: int

    @field_validator("whole")
    @classmethod
    def _is_a_share(cls, value: int, info: Any) -> int:
        return info.data["part"] / value and value


def test_a_validator_that_breaks_is_told_to_the_model_and_is_the_cause_at_last() -> None:
    llm = scripted(lambda p: f'{{"part": 1, "whole": {2 if "ZeroDivisionError" in p else 0}}}')
    assert llm.structured_predict(Share, PROMPT, who="she") == Share(part=1, whole=2)
    with pytest.raises(StructuredAnswerError, match="division by zero") as caught:
        llm.model_copy(update={"structured_retries": 0}).structured_predict(Share, PROMPT, who="she")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("said", ["nope", '{"name": "Ann"}', '{"name": "Ann", "age": "seven"}', "Ann is 7."])
def test_an_answer_that_does_not_fit_the_schema_cannot_be_said(said: str) -> None:
    llm = scripted(lambda prompt: said)
    response = llm.chat(turn("x"), response_format={"type": "json_object", "schema": Person.model_json_schema()})
    read = json.loads(response.message.content or "")
    assert (type(read["name"]), type(read["age"])) == (str, int)


def test_a_structured_llm_is_one_in_every_place() -> None:
    llm = scripted(lambda prompt: ANN)
    response = llm.as_structured_llm(Person).chat(turn("Who is {she}?"))
    assert response.raw == Person(name="Ann", age=7)
