"""LlamaIndex's engines and agents over the embedded model: everything that does not depend on what is said.

It knows word problems only: what an agent does with a tool's result is tested with a scripted model, in files beside.
"""

from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, PromptTemplate, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, CodeActAgent, FunctionAgent, ReActAgent
from pydantic import BaseModel

from llama_index.llms.nabla import NablaLLM, NablaQueryEngine, numbers_in_sources, sandboxed
from nabla_agents import Engine

# Of LlamaIndex itself: its agents look at all their own attributes, and its memory leaves its data base open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
QUESTION = "How many hens has Anna?"


@pytest.fixture(scope="module")
def llm(engine: Engine) -> NablaLLM:
    return NablaLLM(engine=engine, max_tokens=24, seed=1)


@pytest.fixture(scope="module")
def index() -> VectorStoreIndex:
    facts = [Document(text="Anna has 12 hens."), Document(text="Ben has 30 ducks.")]
    return VectorStoreIndex.from_documents(facts, embed_model=MockEmbedding(embed_dim=8))


async def test_every_way_of_a_query_gives_the_same_answer(llm: NablaLLM, index: VectorStoreIndex) -> None:
    plain, streaming = (index.as_query_engine(llm=llm, streaming=streams) for streams in (False, True))
    answers: list[Any] = [plain.query(QUESTION), await plain.aquery(QUESTION)]
    stream: Any = streaming.query(QUESTION)
    astream: Any = await streaming.aquery(QUESTION)
    texts = [*map(str, answers), "".join(stream.response_gen), str(await astream.get_response())]
    assert texts[0]
    assert texts == texts[:1] * 4
    assert len(answers[0].source_nodes) == 2


def test_a_refined_answer_comes_with_its_verdict(llm: NablaLLM, index: VectorStoreIndex) -> None:
    response: Any = NablaQueryEngine(index.as_query_engine(llm=llm), verifier=numbers_in_sources).query(QUESTION)
    found = response.metadata["nabla"]
    assert str(response)
    assert found["calls"] == 2
    assert found["verified"] in (True, False, None)


def test_a_chat_engine_answers_turn_by_turn(llm: NablaLLM, index: VectorStoreIndex) -> None:
    engine = index.as_chat_engine(chat_mode="context", llm=llm)  # type: ignore[arg-type]
    assert str(engine.chat(QUESTION))
    assert "".join(engine.stream_chat("And Ben?").response_gen)
    assert [message.role.value for message in engine.chat_history] == ["user", "assistant"] * 2


class Sum(BaseModel):
    """Two numbers."""

    left: int
    right: int


def test_a_structured_answer_fits_its_class(llm: NablaLLM) -> None:
    asked = PromptTemplate("Which numbers are added in {text}?")
    assert isinstance(llm.with_options(max_tokens=60).structured_predict(Sum, asked, text="3 + 4"), Sum)


def add(left: int, right: int) -> int:
    """Adds two numbers."""
    return left + right


@pytest.mark.parametrize("kind", ["function", "react", "code", "hand-over"])
async def test_an_agent_comes_to_an_end(llm: NablaLLM, kind: str) -> None:
    """It says what this model says: that it is called, streams and ends is what needs no understanding."""
    first: Any = {
        "function": lambda: FunctionAgent(tools=[add], llm=llm),
        "react": lambda: ReActAgent(tools=[add], llm=llm),
        "code": lambda: CodeActAgent(code_execute_fn=sandboxed(), llm=llm),
        "hand-over": lambda: AgentWorkflow(
            agents=[FunctionAgent(name=n, description=n, llm=llm, tools=[add]) for n in ("first", "second")],
            root_agent="first",
        ),
    }[kind]()
    output = await first.run("What is 3 + 4?", max_iterations=2, early_stopping_method="generate")
    assert output.response.role.value == "assistant"
    assert output.raw["usage"]["completion_tokens"] > 0
