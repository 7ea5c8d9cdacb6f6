"""In agents, graphs and chains: `create_agent`, LangGraph, NablaSolve, NablaRefine, NablaRefineMiddleware, tracing."""

import subprocess
import sys
from typing import Annotated, Any, TypedDict
from unittest.mock import MagicMock

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelCallLimitMiddleware
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_core.tracers import LangChainTracer
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, TracePolicy, interrupt, omit_payload
from langsmith import Client
from langsmith.run_helpers import tracing_context
from pydantic import BaseModel

import langchain_nabla
from langchain_nabla import ChatNabla, NablaLLM, NablaRefine, NablaSolve
from langchain_nabla.middleware import NablaRefineMiddleware
from nabla_agents import ArithmeticSteps, Budget, ConfigurationError, Engine, Greedy, Nabla, Rollout, Score
from nabla_agents.testing import FixedReward

from .conftest import call

WRONG = "3 * 4 = 13\nAnswer: 13"
RIGHT = "3 * 4 = 12\nAnswer: 12"
QUESTION = "What is 3 * 4?"


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return f"Sunny in {location}."


class Answer(BaseModel):
    """The answer."""

    value: int


@pytest.fixture(scope="module")
def knowing(scripted: Any) -> Engine:
    """An engine that knows the right answer, judged by a calculator."""
    return scripted(lambda prompt: RIGHT, reward=ArithmeticSteps(), budget=Budget(rollouts=4))


@pytest.fixture(scope="module")
def erring(scripted: Any) -> ChatNabla:
    """A model that answers wrongly."""
    return ChatNabla(engine=scripted(lambda prompt: WRONG))


# ── create_agent and LangGraph ────────────────────────────────────────────────────────────────────────────────────


async def test_an_agent_calls_a_tool_and_answers_from_it(assisting: Engine) -> None:
    agent = create_agent(ChatNabla(engine=assisting), [get_weather])
    asked = {"messages": [HumanMessage("What is the weather in San Francisco?")]}
    for state in (agent.invoke(asked), await agent.ainvoke(asked)):
        assert [type(m).__name__ for m in state["messages"]] == [
            "HumanMessage",
            "AIMessage",
            "ToolMessage",
            "AIMessage",
        ]
        assert state["messages"][-1].content == "The tool says: Sunny in San Francisco, CA."


@pytest.mark.parametrize("with_tools", [False, True])
def test_an_agent_answers_in_a_format(scripted: Any, with_tools: bool) -> None:
    llm = ChatNabla(engine=scripted(lambda prompt: '{"value": 12}'))
    agent = create_agent(llm, [get_weather] if with_tools else [], response_format=Answer)
    assert agent.invoke({"messages": [HumanMessage(QUESTION)]})["structured_response"] == Answer(value=12)


def test_an_agents_tokens_and_steps_are_streamed(watched_engine: Engine, question: str) -> None:
    agent = create_agent(ChatNabla(engine=watched_engine, max_tokens=12), [])
    modes: dict[str, list[Any]] = {"messages": [], "custom": []}
    for mode, data in agent.stream({"messages": [HumanMessage(question)]}, stream_mode=["messages", "custom"]):
        modes[mode].append(data)
    chunks = [chunk for chunk, _ in modes["messages"]]
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    assert len([c for c in chunks if c.content]) > 2
    steps = [data["nabla_step"] for data in modes["custom"]]
    assert steps[-1]["done"]
    assert "".join(c.text for c in chunks) == steps[-1]["text"]


class Conversation(TypedDict):
    messages: Annotated[list[Any], add_messages]


def test_a_graph_is_checkpointed_interrupted_and_resumed(scripted: Any) -> None:
    llm = ChatNabla(engine=scripted(lambda prompt: f"turn {prompt.count('<|im_start|>user')}"))

    def ask(state: Conversation) -> Any:
        return {"messages": [llm.invoke(state["messages"])]}

    def approve(state: Conversation) -> Any:
        return {"messages": [HumanMessage(interrupt("Go on?"))]}

    graph = StateGraph(Conversation)
    graph.add_node("ask", ask)
    graph.add_node("approve", approve)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", "approve")
    app = graph.compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    paused = app.invoke({"messages": [HumanMessage("x")]}, config)
    assert paused["__interrupt__"][0].value == "Go on?"
    kept = app.get_state(config).values["messages"][-1]
    assert kept.response_metadata["nabla"]["usage"]["rollouts"] == 1
    app.invoke(Command(resume="yes"), config)
    state = app.invoke({"messages": [HumanMessage("y")]}, config)
    assert [m.content for m in state["messages"]] == ["x", "turn 1", "yes", "y", "turn 3"]


# ── NablaSolve ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_tool_returns_answer_verdict_and_trace(knowing: Engine) -> None:
    solve = NablaSolve(engine=knowing)
    request = {"type": "tool_call", "id": "1", "name": "nabla_solve", "args": {"problem": QUESTION}}
    for message in (solve.invoke(request), await solve.ainvoke(request)):
        assert isinstance(message, ToolMessage)
        assert message.content == f"{RIGHT}\n\n(Verified: 1 equations right)"
        assert message.artifact["answer"] == RIGHT
        assert message.artifact["nabla"]["verified"] is True
        assert message.artifact["trace"][-1]["done"]
    assert len(repr(solve)) < 1500
    assert "engine" not in solve.model_dump()


def test_a_search_that_fails_is_a_result_that_says_so(knowing: Engine, scripted: Any) -> None:
    too_long = NablaSolve(engine=knowing).invoke({"problem": "word " * 20000})
    assert too_long.startswith("This problem could not be solved: The prompt has")

    def broken(rollout: Rollout) -> Score:
        return Score.not_judged("the checker is down")

    silent = scripted(lambda prompt: "x", reward=FixedReward(broken))
    assert "Could not be judged: the checker is down" in NablaSolve(engine=silent).invoke({"problem": "x"})


async def test_progress_reaches_event_streams_and_graphs(knowing: Engine) -> None:
    solve = NablaSolve(engine=knowing)
    for chain in (
        RunnableLambda(lambda problem: {"problem": problem}) | solve,
        RunnableLambda(lambda problem: problem) | NablaLLM(engine=knowing),
    ):
        events = [e async for e in chain.astream_events(QUESTION, version="v2") if e["event"] == "on_custom_event"]
        assert {e["name"] for e in events} == {"nabla_step"}
        assert events[-1]["data"]["done"]
    graph = StateGraph(dict)
    graph.add_node("solve", lambda state: {"answer": solve.invoke({"problem": state["problem"]})})
    graph.add_edge(START, "solve")
    shown = list(graph.compile().stream({"problem": QUESTION}, stream_mode="custom"))
    assert shown[-1]["nabla_step"]["done"]
    assert solve.invoke({"problem": QUESTION}), "outside of any run it is silent"


def test_an_agent_uses_the_tool_for_its_hard_step(scripted: Any, knowing: Engine) -> None:
    def script(prompt: str) -> str:
        if "<tool_response>" in prompt:
            return "It is 12."
        return call("nabla_solve", f'{{"problem": "{QUESTION}"}}')

    agent = create_agent(ChatNabla(engine=scripted(script)), [NablaSolve(engine=knowing)])
    messages = agent.invoke({"messages": [HumanMessage(QUESTION)]})["messages"]
    assert messages[2].artifact["nabla"]["verified"] is True
    assert messages[-1].content == "It is 12."


# ── NablaRefine ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def correcting(scripted: Any) -> ChatNabla:
    """What it refines is corrected where the calculator says that it is wrong."""
    reward = ArithmeticSteps(credit=60.0)
    engine = scripted(lambda prompt: RIGHT, reward=reward, budget=Budget(rollouts=8), strategy=Nabla(min_promise=-99.0))
    return ChatNabla(engine=engine)


async def test_a_draft_is_refined_in_a_chain(correcting: ChatNabla, erring: ChatNabla) -> None:
    refine = NablaRefine(correcting)
    inputs: list[tuple[Any, Any]] = [
        (refine, {"question": QUESTION, "draft": WRONG}),
        (refine, {"question": [HumanMessage(QUESTION)], "draft": AIMessage(WRONG)}),
        (refine, [HumanMessage(QUESTION), AIMessage(WRONG)]),
        (refine, {"messages": [HumanMessage(QUESTION), AIMessage(WRONG)]}),
        (refine.after(erring), QUESTION),
        ({"question": RunnableLambda(lambda q: q), "draft": erring} | refine, QUESTION),
    ]
    for chain, given in inputs:
        message = chain.invoke(given)
        assert "12" in message.content
        assert message.response_metadata["nabla"]["verified"] is True
        assert (await chain.ainvoke(given)).content == message.content
        assert "".join(chunk.content for chunk in chain.stream(given)) == message.content


def test_a_right_draft_costs_its_check_only(correcting: ChatNabla) -> None:
    message = NablaRefine(correcting).invoke({"question": QUESTION, "draft": RIGHT})
    assert message.content == RIGHT
    assert message.response_metadata["nabla"]["usage"]["generated_tokens"] == 0


@pytest.mark.parametrize(
    "said", [{"finish_reason": "length"}, {"stop_reason": "max_tokens"}, {"done_reason": "length"}]
)
def test_a_draft_that_a_limit_cut_is_never_verified(scripted: Any, said: dict[str, str]) -> None:
    """However right what there is of it is; from a chain or from an agent's model."""
    judge = ChatNabla(engine=scripted(lambda prompt: "13", reward=ArithmeticSteps(), strategy=Greedy()))
    for metadata, verified in ((said, None), ({}, True)):
        draft = AIMessage(RIGHT, response_metadata=metadata)
        message = NablaRefine(judge).invoke([HumanMessage(QUESTION), draft])
        assert message.response_metadata["nabla"]["verified"] is verified
        hosted = FakeMessagesListChatModel(responses=[draft.model_copy()])
        state: Any = create_agent(hosted, [], middleware=[NablaRefineMiddleware(judge)]).invoke(
            {"messages": [HumanMessage(QUESTION)]}
        )
        assert state["nabla"][0]["verified"] is verified
        assert state["messages"][-1].text == RIGHT


def test_a_draft_without_its_question_is_refused(correcting: ChatNabla) -> None:
    refine = NablaRefine(correcting)
    for given in (AIMessage(WRONG), WRONG, [AIMessage(WRONG)], {"draft": WRONG}):
        with pytest.raises(ConfigurationError, match=r"refine\.after"):
            refine.invoke(given)
    for given in ({"question": QUESTION}, {"question": QUESTION, "draft": None}, {"question": QUESTION, "draft": []}):
        with pytest.raises(ConfigurationError, match="draft"):
            refine.invoke(given)
    with pytest.raises(ConfigurationError, match="one of the two"):
        NablaRefine(correcting, max_tokens=3)


# ── NablaRefineMiddleware ─────────────────────────────────────────────────────────────────────────────────────────


async def test_an_agents_answer_is_refined_and_its_cost_is_in_the_state(
    correcting: ChatNabla, erring: ChatNabla
) -> None:
    middleware = [NablaRefineMiddleware(correcting), ModelCallLimitMiddleware(run_limit=5)]
    agent = create_agent(erring, [], middleware=middleware)
    asked: Any = {"messages": [HumanMessage(QUESTION)]}
    for state in (agent.invoke(asked), await agent.ainvoke(asked)):
        assert "12" in state["messages"][-1].content
        assert len(state["messages"]) == 2
        [spent] = state["nabla"]
        assert spent["verified"] is True
        assert spent["usage"]["rollouts"] > 1


def test_readers_of_the_stream_never_see_the_draft(correcting: ChatNabla, erring: ChatNabla) -> None:
    agent = create_agent(erring, [], middleware=[NablaRefineMiddleware(correcting)])
    asked: Any = {"messages": [HumanMessage(QUESTION)]}
    text = "".join(chunk.text for chunk, _ in agent.stream(asked, stream_mode="messages"))
    assert "12" in text
    assert "13" not in text


@pytest.mark.filterwarnings("ignore:.*experimental", "ignore:.*beta")
def test_a_run_shows_each_turn_once(correcting: ChatNabla, erring: ChatNabla, assisting: Engine) -> None:
    """A refined answer, and a turn that calls a tool, which is no draft."""
    for llm, tools, question, turns in (
        (erring, [], QUESTION, 1),
        (ChatNabla(engine=assisting), [get_weather], "What is the weather in San Francisco?", 2),
    ):
        agent = create_agent(llm, tools, middleware=[NablaRefineMiddleware(correcting)])
        run = agent.stream_events({"messages": [HumanMessage(question)]}, version="v3")
        texts = [str(message.text) for message in run.messages]
        assert len(texts) == turns
        assert "13" not in texts[-1]
        assert texts[-1] == run.output["messages"][-1].text


def test_tool_turns_and_good_answers_are_left_alone(assisting: Engine, scripted: Any) -> None:
    content = ChatNabla(engine=scripted(lambda prompt: "Other.", reward=FixedReward(lambda rollout: 0.5)))
    agent = create_agent(
        ChatNabla(engine=assisting), [get_weather], middleware=[NablaRefineMiddleware(content, threshold=0.5)]
    )
    state: Any = agent.invoke({"messages": [HumanMessage("What is the weather in San Francisco?")]})
    assert state["messages"][-1].content == "The tool says: Sunny in San Francisco, CA."
    [spent] = state["nabla"]
    assert spent["usage"]["generated_tokens"] == 0, "the call was not judged, and the answer only judged"


def test_an_answer_without_text_is_no_draft(correcting: ChatNabla, scripted: Any) -> None:
    silent = ChatNabla(engine=scripted(lambda prompt: ""))
    agent = create_agent(silent, [], middleware=[NablaRefineMiddleware(correcting)])
    state: Any = agent.invoke({"messages": [HumanMessage(QUESTION)]})
    assert state["messages"][-1].content == ""
    assert state["nabla"] == []


# ── tracing and imports ───────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_traced_is_small_and_has_usage_and_no_engine(knowing: Engine) -> None:
    client = MagicMock(spec=Client)
    client.tracing_queue = None
    tracer = LangChainTracer(client=client)
    message = ChatNabla(engine=knowing).invoke(QUESTION, {"callbacks": [tracer]})
    [created] = [c.kwargs for c in client.create_run.call_args_list]
    [updated] = [c.kwargs for c in client.update_run.call_args_list]
    metadata = created["extra"]["metadata"]
    assert metadata["ls_provider"] == "nabla"
    assert metadata["ls_model_name"] == "scripted"
    traced = str(created) + str(updated)
    assert str(message.usage_metadata["total_tokens"]) in traced  # type: ignore[index]
    assert len(traced) < 20000
    assert "object at 0x" not in str(created["serialized"]) + str(updated["outputs"])


def test_the_trace_of_the_middleware_follows_its_policy(correcting: ChatNabla, erring: ChatNabla) -> None:
    client, middleware = MagicMock(spec=Client), NablaRefineMiddleware(correcting)
    middleware.trace_policy = TracePolicy(process_inputs=omit_payload)
    with tracing_context(enabled=True, client=client):
        create_agent(erring, [], middleware=[middleware]).invoke({"messages": [("human", "What is 2 + 3?")]})
    runs = [each.kwargs for each in client.create_run.call_args_list]
    assert [run["inputs"] for run in runs if run["name"] == "NablaRefineMiddleware.wrap_model_call"] == [{}]


def test_importing_and_constructing_need_neither_torch_nor_langchain() -> None:
    script = (
        "import sys; from langchain_nabla import ChatNabla, NablaLLM, NablaSolve, NablaRefine, __version__\n"
        "import langchain_nabla.llms as m; assert m.NablaLLM is NablaLLM\n"
        "ChatNabla(seed=1); NablaLLM(seed=1); NablaSolve(); NablaRefine(model='tiny')\n"
        "print(*{'torch', 'transformers', 'langgraph', 'langchain', 'llama_index'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_what_needs_langchain_itself_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "langchain_nabla.middleware")
    monkeypatch.setitem(sys.modules, "langchain.agents.middleware", None)
    with pytest.raises(ConfigurationError, match=r"nabla-agents\[langchain\]'.*in a clone.*langchain-nabla\[agents\]'"):
        getattr(langchain_nabla, "NablaRefineMiddleware")  # noqa: B009
