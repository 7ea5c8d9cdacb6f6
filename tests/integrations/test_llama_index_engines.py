"""Query engines, chat engines, policy, evaluator, sandbox, tool spec, workflows. A scripted model decides what is said;
everything else is the real engine under LlamaIndex's own components.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import llama_index.core
import pytest
from llama_index.core import MockEmbedding, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import CodeActAgent, FunctionAgent
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.evaluation import BaseEvaluator, BatchEvalRunner
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.llms import ChatMessage
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.query_engine import (
    CitationQueryEngine,
    FLAREInstructQueryEngine,
    RetryQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool
from llama_index.core.types import Thread
from pydantic import Field
from workflows.errors import WorkflowCancelledByUser, WorkflowTimeoutError

from llama_index.llms.nabla import (
    NablaEvaluator,
    NablaLLM,
    NablaProgress,
    NablaQueryEngine,
    NablaToolSpec,
    RefineWorkflow,
    TraceBudget,
    nabla_options,
    numbers_in_sources,
    sandboxed,
)
from llama_index.llms.nabla.callers import Caller, is_final
from nabla_agents import ArithmeticSteps, BestOfN, Budget, ConfigurationError, Engine, Limits, Nabla, Score, reward
from nabla_agents.testing import scripted_model

# Of LlamaIndex itself: its agents look at all their own attributes, and its memory leaves its data base open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FACTS = ["Anna has 12 hens.", "Ben has 30 ducks.", "Carl has 5 geese."]
QUESTION = "How many hens has Anna?"


def answering(prompt: str) -> str:
    """Ranks, asks or answers, as it is told."""
    if "Document 1" in prompt:
        return "Doc: 1, Relevance: 9\nDoc: 2, Relevance: 8\nDoc: 3, Relevance: 7"
    if "choices are given" in prompt:
        return '[{"choice": 1, "reason": "facts"}]'
    if "Skill 1" in prompt:
        return "done" if "12 hens" in prompt else "[Search(How many hens has Anna?)]"
    if "sub-questions" in prompt:
        asked = [{"sub_question": f"{name}?", "tool_name": "facts"} for name in ("Anna", "Ben")]
        return "```json\n" + json.dumps({"items": asked}) + "\n```"
    return "Anna has 12 hens."


class Searches(BaseEventHandler):
    """Whether each search that began was to be refined, and the events of all."""

    refined: list[bool] = Field(default_factory=list)
    seen: list[Any] = Field(default_factory=list)

    def handle(self, event: Any, **kwargs: Any) -> None:
        if type(event).__name__.startswith("NablaRefine"):
            self.seen.append(event)
        if type(event).__name__ == "NablaRefineStartEvent":
            self.refined.append(event.refined)


@pytest.fixture
def searches() -> Any:
    root, handler = get_dispatcher(), Searches()
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


def model(script: Callable[[str], str] = answering, **parts: Any) -> NablaLLM:
    given = {"strategy": BestOfN(n=2), "budget": Budget(rollouts=4), **parts}
    return NablaLLM(engine=Engine(model=scripted_model(script), **{"strategy": Nabla(), **given}), max_tokens=120)


@pytest.fixture(scope="module")
def llm() -> NablaLLM:
    return model()


@pytest.fixture(scope="module")
def index() -> VectorStoreIndex:
    nodes = [TextNode(text=fact, id_=str(i)) for i, fact in enumerate(FACTS)]
    return VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=8))


# ── refinement policy ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["query", "aquery", "stream"])
async def test_a_query_is_answered_and_its_answer_refined(
    llm: NablaLLM, index: VectorStoreIndex, searches: Any, way: str
) -> None:
    engine = index.as_query_engine(llm=llm, streaming=way == "stream")
    response: Any = await engine.aquery(QUESTION) if way == "aquery" else engine.query(QUESTION)
    text = "".join(response.response_gen) if way == "stream" else str(response)
    assert text == "Anna has 12 hens."
    assert searches.refined == [True]


@pytest.mark.parametrize(("mode", "refined"), [("refine", [False, False, True]), ("tree_summarize", [True])])
def test_of_several_calls_the_last_alone_is_refined(
    llm: NablaLLM, searches: Any, mode: Any, refined: list[bool]
) -> None:
    nodes = [NodeWithScore(node=TextNode(text=fact), score=1.0) for fact in FACTS]
    get_response_synthesizer(llm=llm, response_mode=mode).synthesize(QUESTION, nodes)
    assert searches.refined == refined


def test_the_leaves_of_a_summary_are_not_refined_and_its_root_is(
    searches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = model(lambda prompt: "Animals.").model_copy(update={"context_window": 700, "max_tokens": 100})
    monkeypatch.setattr(llama_index.core, "global_tokenizer", llm.tokenizer_fn)
    nodes = [NodeWithScore(node=TextNode(text=f"{fact} " * 40), score=1.0) for fact in FACTS]
    get_response_synthesizer(llm=llm, response_mode="tree_summarize").synthesize(QUESTION, nodes)  # type: ignore[arg-type]
    assert len(searches.refined) > 2
    assert searches.refined == [False] * (len(searches.refined) - 1) + [True]


def test_of_a_chunk_that_is_read_in_parts_the_last_part_is_final(llm: NablaLLM) -> None:
    """A synthesizer splits what does not fit into one prompt: no call reads the whole of the last chunk."""
    refine: Any = get_response_synthesizer(llm=llm, response_mode="refine")  # type: ignore[arg-type]
    around = [Caller("1", refine, None, ("first chunk", "one two three four five six seven eight"))]
    parts = ["Context: one two three four", "Context: five six\nseven eight\nAnswer:"]
    assert [is_final(part, around) for part in ("first chunk", *parts)] == [False, False, True]


def test_a_reranker_is_not_refined(llm: NablaLLM, index: VectorStoreIndex, searches: Any) -> None:
    rerank = LLMRerank(llm=llm, top_n=1)
    index.as_query_engine(llm=llm, node_postprocessors=[rerank]).query(QUESTION)
    assert searches.refined == [False, True]


def test_sub_questions_and_their_answers_are_not_refined(llm: NablaLLM, index: VectorStoreIndex, searches: Any) -> None:
    tool = QueryEngineTool.from_defaults(index.as_query_engine(llm=llm), name="facts", description="facts")
    engine = SubQuestionQueryEngine.from_defaults(
        [tool],
        llm=llm,
        question_gen=LLMQuestionGenerator.from_defaults(llm=llm),
        response_synthesizer=get_response_synthesizer(llm=llm),
        use_async=False,
    )
    engine.query("Who has more, Anna or Ben?")
    assert searches.refined == [False, False, False, True]


@pytest.mark.parametrize(
    ("policy", "refined", "rollouts"),
    [("always", [True, True], 2), ("final_only", [False, True], 2), ("never", [False, False], 1)],
)
def test_a_policy_says_which_calls_are_refined(
    llm: NablaLLM, index: VectorStoreIndex, searches: Any, policy: Any, refined: list[bool], rollouts: int
) -> None:
    calm = llm.with_options(refine_policy=policy)
    index.as_query_engine(llm=calm, node_postprocessors=[LLMRerank(llm=calm, top_n=1)]).query(QUESTION)
    assert searches.refined == refined
    assert searches.seen[-1].summary["usage"]["rollouts"] == rollouts


@pytest.mark.parametrize(
    ("policy", "verdict", "rollouts"),
    [
        ("on_failure", False, 3),
        ("on_failure", True, 1),
        ("on_failure", 0.1, 1),
        ("when_verifier_present", False, 3),
        ("when_verifier_present", 0.1, 1),
    ],
)
@pytest.mark.parametrize("way", ["chat", "achat", "stream"])
async def test_a_draft_decides_whether_the_search_goes_on(policy: Any, verdict: Any, rollouts: int, way: str) -> None:
    """One rollout for the draft; BestOfN then samples two."""
    llm = model(reward=reward(lambda completion: verdict)).with_options(refine_policy=policy)
    messages = [ChatMessage(role="user", content=QUESTION)]
    if way == "stream":
        response = list(llm.stream_chat(messages))[-1]
    else:
        response = await llm.achat(messages) if way == "achat" else llm.chat(messages)
    assert response.raw["nabla"]["usage"]["rollouts"] == rollouts


def test_a_trace_has_one_budget_for_all_its_calls(llm: NablaLLM, searches: Any) -> None:
    nodes = [NodeWithScore(node=TextNode(text=fact), score=1.0) for fact in FACTS]
    for allowed, refined in (
        (TraceBudget(refinements=2), [True, True, False]),
        (TraceBudget(rollouts=1), [True, False, False]),
        (TraceBudget(seconds=0.0), [False, False, False]),
    ):
        searches.refined.clear()
        limited = llm.with_options(refine_policy="always", trace_budget=allowed)
        for _ in range(2):  # another query is another trace
            get_response_synthesizer(llm=limited, response_mode="refine").synthesize(QUESTION, nodes)  # type: ignore[arg-type]
        assert searches.refined == refined * 2
    with pytest.raises(ConfigurationError, match=r"TraceBudget.rollouts is -1"):
        TraceBudget(rollouts=-1)


async def test_an_agent_run_is_one_trace(searches: Any) -> None:
    """Two calls of the model a run: one asks for the tool, one answers."""

    def script(prompt: str) -> str:
        asks = '<tool_call>\n{"name": "hens", "arguments": {"name": "Anna"}}\n</tool_call>'
        return "Anna has 12 hens." if "<tool_response>" in prompt else asks

    def hens(name: str) -> int:
        """How many hens somebody has."""
        return 12

    llm = model(script).with_options(refine_policy="always", trace_budget=TraceBudget(refinements=1))
    for _ in range(2):
        assert str(await FunctionAgent(llm=llm, tools=[hens]).run(QUESTION)) == "Anna has 12 hens."
    assert searches.refined == [True, False] * 2


def engines_of_llama_index(llm: NablaLLM, index: VectorStoreIndex) -> dict[str, tuple[BaseQueryEngine, list[bool]]]:
    """Engines that ask more than once, and which of their calls the user's answer comes from."""
    inner = index.as_query_engine(llm=llm)
    tools = [QueryEngineTool.from_defaults(inner, name="facts", description="facts")] * 2
    selector = LLMSingleSelector.from_defaults(llm=llm)
    return {
        "router": (RouterQueryEngine(selector, tools, llm=llm), [False, True]),
        "citation": (CitationQueryEngine.from_args(index, llm=llm), [True]),
        "HyDE": (TransformQueryEngine(inner, HyDEQueryTransform(llm=llm)), [False, True]),
        "FLARE": (FLAREInstructQueryEngine(inner, llm=llm, max_iterations=3), [True, False, True, True]),
    }


@pytest.mark.parametrize("kind", ["router", "citation", "HyDE", "FLARE"])
def test_an_engine_that_asks_more_than_once_refines_what_the_user_reads(
    llm: NablaLLM, index: VectorStoreIndex, searches: Any, kind: str
) -> None:
    engine, refined = engines_of_llama_index(llm, index)[kind]
    assert str(engine.query(QUESTION)).strip() == "Anna has 12 hens."
    assert searches.refined == refined


def test_a_retrying_engine_asks_again_until_the_reward_is_content(
    index: VectorStoreIndex, searches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers wrong twice; its feedback transform reads the global model, which it does not use."""

    @reward
    def knows(completion: str) -> Score:
        right = "12" in completion
        return Score(float(right), verified=right, explanation="" if right else "the number is wrong")

    llm = model(lambda prompt: "12 hens." if prompt.count("the number is wrong") == 2 else "13 hens.", reward=knows)
    monkeypatch.setattr(Settings, "_llm", llm)
    engine = RetryQueryEngine(index.as_query_engine(llm=llm), NablaEvaluator(knows))
    assert str(engine.query(QUESTION)) == "12 hens."
    assert searches.refined == [True] * 3


def test_a_scope_reaches_the_calls_of_a_query_engine(llm: NablaLLM, index: VectorStoreIndex, searches: Any) -> None:
    with nabla_options(final=False):
        index.as_query_engine(llm=llm).query(QUESTION)
    assert searches.refined == [False]


# ── instrumentation ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_events_have_the_span_of_their_model_call_on_every_thread(llm: NablaLLM, searches: Any) -> None:
    await asyncio.gather(*(llm.acomplete(f"{i}?") for i in range(4)))
    by_span: dict[str, list[str]] = {}
    for event in searches.seen:
        by_span.setdefault(event.span_id, []).append(type(event).__name__)
        json.dumps(event.model_dump(mode="json"))
    assert len(by_span) == 4
    for span, names in by_span.items():
        assert span.startswith("NablaLLM.acomplete-")
        assert (names[0], names[-1]) == ("NablaRefineStartEvent", "NablaRefineEndEvent")

    seen: list[str | None] = []
    token = active_span_id.set("a query")
    thread = Thread(target=lambda: seen.append(active_span_id.get()))
    thread.start()
    thread.join()
    active_span_id.reset(token)
    assert seen == ["a query"]


async def test_awaited_calls_run_in_fewer_batches_and_say_what_each_says_alone(
    llm: NablaLLM, widths: list[int]
) -> None:
    alone = [llm.complete(f"{i}?").text for i in range(8)]
    widths.clear()
    together = await asyncio.gather(*(llm.acomplete(f"{i}?") for i in range(8)))
    assert [response.text for response in together] == alone
    assert max(widths) > 2


# ── NablaQueryEngine ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("way", ["query", "aquery"])
async def test_the_last_answer_alone_is_refined_and_its_verdict_is_in_the_metadata(
    index: VectorStoreIndex, searches: Any, way: str, streaming: bool
) -> None:
    llm = model()
    rerank = LLMRerank(llm=llm, top_n=3)
    inner = index.as_query_engine(llm=llm, similarity_top_k=3, node_postprocessors=[rerank], streaming=streaming)
    engine = NablaQueryEngine(inner, verifier=numbers_in_sources)
    response: Any = await engine.aquery(QUESTION) if way == "aquery" else engine.query(QUESTION)
    if streaming:
        response = await response.get_response() if way == "aquery" else response.get_response()
    assert str(response) == "Anna has 12 hens."
    assert searches.refined == [False, False, True]
    found = response.metadata["nabla"]
    assert (found["verified"], found["draft"], found["calls"]) == (True, "Anna has 12 hens.", 3)
    json.dumps(found)
    assert len(response.source_nodes) == 3


def test_an_answer_that_the_sources_do_not_bear_out_is_marked(index: VectorStoreIndex) -> None:
    engine = NablaQueryEngine(
        index.as_query_engine(llm=model(lambda prompt: "She has 13 hens.")), verifier=numbers_in_sources
    )
    response: Any = engine.query(QUESTION)
    assert response.metadata["nabla"]["verified"] is False
    assert "13" in response.metadata["nabla"]["explanation"]


def test_numbers_are_looked_up_in_sources_and_question() -> None:
    nodes = [NodeWithScore(node=TextNode(text="It cost 1,200 in 1999."), score=1.0)]
    right = numbers_in_sources("After 7 years?", "1200 after 7 years.", nodes)
    wrong = numbers_in_sources("After 7 years?", "1300 after 7 years.", nodes)
    assert right is not None
    assert wrong is not None
    assert (right.value, right.verified) == (1.0, True)
    assert (wrong.value, wrong.verified) == (0.5, False)
    assert [(span.start, span.end) for span in wrong.spans] == [(0, 4)]
    assert numbers_in_sources("Who?", "Nobody.", nodes) is None


# ── evaluator, sandbox, tool spec ─────────────────────────────────────────────────────────────────────────────────


async def test_a_reward_is_an_evaluator() -> None:
    evaluator = NablaEvaluator(ArithmeticSteps())
    assert isinstance(evaluator, BaseEvaluator)
    right, wrong, unjudged = [
        await evaluator.aevaluate(query="q", response=text) for text in ("3 * 4 = 12", "3 * 4 = 13", "Hello.")
    ]
    assert (right.passing, wrong.passing) == (True, False)
    assert "12" in (wrong.feedback or "")
    assert unjudged.passing is False
    assert evaluator.evaluate(query="q", response="3 * 4 = 12").passing is True
    with pytest.raises(ValueError, match="no response"):
        await evaluator.aevaluate(query="q")
    results = await BatchEvalRunner({"sums": evaluator}).aevaluate_response_strs(
        queries=["q", "q"], response_strs=["1 + 1 = 2", "1 + 1 = 3"]
    )
    assert [r.passing for r in results["sums"]] == [True, False]


async def test_a_reward_that_breaks_is_an_invalid_result_with_its_reason() -> None:
    @reward
    def broken(completion: str) -> float:
        raise OSError("no disk")

    result = await NablaEvaluator(broken).aevaluate(query="q", response="x")
    assert (result.invalid_result, result.passing, result.score) == (True, False, None)
    assert "no disk" in (result.invalid_reason or "")


async def test_a_code_act_agent_runs_its_code_in_the_sandbox() -> None:
    """The best sandbox of this machine, whichever that is; what it confines has tests of its own."""
    execute = sandboxed(limits=Limits(cpu_seconds=20, wall_seconds=60))
    assert await execute("print(6 * 7)") == {"success": True, "output": "42\n", "error": "", "status": "ok"}
    failed = await execute("left = 1\nprint(left)\nunknown")
    assert (failed["success"], failed["output"], failed["status"]) == (False, "1\n", "error")
    assert failed["error"].startswith("NameError: name 'unknown' is not defined")
    assert failed["error"].endswith("(line 3)")
    assert "NameError" in (await execute("print(left)"))["error"], "every run begins anew"
    assert not (await execute("open('/etc/passwd').read()"))["success"]

    def script(prompt: str) -> str:
        return "It is 42." if "42\\n" in prompt else "<execute>\nprint(6 * 7)\n</execute>"

    agent = CodeActAgent(code_execute_fn=execute, llm=model(script))
    assert str(await agent.run("What is 6 * 7?")) == "It is 42."


async def test_the_tool_spec_verifies_refines_and_runs() -> None:
    llm = model(lambda prompt: "3 * 4 = 12", reward=ArithmeticSteps())
    tools = {tool.metadata.name: tool for tool in NablaToolSpec(llm).to_tool_list()}
    assert set(tools) == {"verify_answer", "refine_answer", "run_python"}
    assert tools["verify_answer"](question="q", answer="3 * 4 = 13").raw_output["verified"] is False
    refined = await tools["refine_answer"].acall(question="What is 3 * 4?", draft="3 * 4 = 13")
    assert refined.raw_output["answer"] == "3 * 4 = 12"
    assert refined.raw_output["verified"] is True
    assert tools["run_python"](code="print(6 * 7)").raw_output["output"] == "42\n"


# ── workflows ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_workflow_refines_a_doubtful_draft_and_shows_its_progress() -> None:
    llm = model(lambda prompt: "3 * 4 = 12", reward=ArithmeticSteps())
    drafter = model(lambda prompt: "3 * 4 = 13")
    handler = RefineWorkflow(llm, drafter=drafter).run(question="What is 3 * 4?")
    progress = [event async for event in handler.stream_events() if isinstance(event, NablaProgress)]
    result = await handler
    assert (result["draft"], result["answer"], result["verified"]) == ("3 * 4 = 13", "3 * 4 = 12", True)
    assert progress
    kept = await RefineWorkflow(llm).run(question="What is 3 * 4?")
    assert (kept["answer"], kept["refined"]) == ("3 * 4 = 12", False)


async def test_a_workflows_timeout_fires_in_time_and_stops_the_engine(
    watched_engine: Engine, backend: Any, question: str
) -> None:
    backend.seconds = 0.2
    strategy: Any = type(watched_engine.strategy)(tokens=1)
    llm = NablaLLM(engine=watched_engine, max_tokens=24, strategy=strategy)
    with pytest.raises(WorkflowTimeoutError):
        await RefineWorkflow(llm, drafter=model(lambda prompt: "1 2 3 4 5 6 7 8"), timeout=1.0).run(question=question)
    await strategy.ended()
    calls = backend.calls
    await asyncio.sleep(0.5)
    assert backend.calls == calls


@pytest.mark.parametrize("what", ["workflow", "agent"])
async def test_a_cancelled_run_stops_the_engine_within_one_operation(
    watched_engine: Engine, backend: Any, question: str, what: str
) -> None:
    backend.seconds = 0.03
    strategy: Any = type(watched_engine.strategy)(tokens=1)
    llm = NablaLLM(engine=watched_engine, max_tokens=24, strategy=strategy, refine_policy="always")
    if what == "workflow":
        handler: Any = RefineWorkflow(llm, drafter=model(lambda prompt: "1 2 3 4 5 6 7 8")).run(question=question)
    else:
        handler = FunctionAgent(llm=llm).run(question)
    while backend.calls < 2 and not handler.done():
        await asyncio.sleep(0.005)
    assert not handler.done()
    await handler.cancel_run()
    calls = backend.calls
    with pytest.raises((asyncio.CancelledError, WorkflowCancelledByUser)):
        await handler
    await strategy.ended()
    await asyncio.sleep(0.2)
    assert backend.calls <= calls + 1


# ── chat engines ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["context", "condense_plus_context", "condense_question", "simple"])
def test_a_chat_engine_refines_its_answers_and_not_its_questions(
    llm: NablaLLM, index: VectorStoreIndex, searches: Any, mode: Any
) -> None:
    engine = index.as_chat_engine(chat_mode=mode, llm=llm)
    for _ in range(2):
        assert str(engine.chat(QUESTION)) == "Anna has 12 hens."
    condensing = mode.startswith("condense")
    assert searches.refined == ([True, False, True] if condensing else [True, True])
