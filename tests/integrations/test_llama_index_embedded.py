"""LlamaIndex's engines and agents over the embedded model: everything that does not depend on what is said.

It knows word problems only: what an agent does with a tool's result is tested with a scripted model, in files beside.
"""

import asyncio
from typing import Any, ClassVar

import pytest
from llama_index.core import Document, MockEmbedding, PromptTemplate, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, CodeActAgent, FunctionAgent, ReActAgent
from pydantic import BaseModel, Field, field_validator, model_validator

from llama_index.llms.nabla import (
    NablaLLM,
    NablaQueryEngine,
    RefineWorkflow,
    StructuredAnswerError,
    numbers_in_sources,
    sandboxed,
)
from nabla_agents import ArithmeticSteps, Budget, Engine, Nabla, Reward

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


class Picked(BaseModel):
    """Two numbers, some of which are forbidden in a way that no grammar knows."""

    forbidden: ClassVar[list[Any]] = []
    left: int = Field(ge=0, le=99)
    right: int = Field(ge=0, le=99)


class Named(Picked):
    """Says which field is wrong."""

    @field_validator("right")
    @classmethod
    def _is_allowed(cls, right: int) -> int:
        if right in [one.right for one in cls.forbidden]:
            raise ValueError("another number, please")
        return right


class Whole(Picked):
    """Says that the whole is wrong."""

    @model_validator(mode="after")
    def _is_allowed(self) -> "Whole":
        if (self.left, self.right) in [(one.left, one.right) for one in self.forbidden]:
            raise ValueError("other numbers, please")
        return self


PICK = PromptTemplate("Pick two numbers for {text}.")
OTHERWISE = [("refine_policy", "never"), ("refine_constrained", True)]


@pytest.mark.parametrize(
    ("cls", "own"), [(Named, ArithmeticSteps()), (Whole, None)], ids=["a reward that knows no JSON", "no reward"]
)
async def test_a_search_finds_what_the_validators_accept_without_asking_again(
    engine: Engine, own: Reward | None, cls: type[Picked], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forbidden is what an unrefined answer and the same search without the class say, whatever the weights."""
    searching = engine.with_reward(own)
    llm = NablaLLM(engine=searching, max_tokens=40, structured_retries=0, budget=Budget(rollouts=24), strategy=Nabla())
    shape = {"type": "json_schema", "json_schema": {"schema": cls.model_json_schema()}}
    asked: Any = {"messages": llm._get_messages(PICK, text="Ann"), "response_format": shape}
    answers = [llm.chat(**asked, **{policy: value}) for policy, value in OTHERWISE]
    monkeypatch.setattr(Picked, "forbidden", [Picked.model_validate_json(a.message.content or "") for a in answers])

    found = llm.structured_predict(cls, PICK, text="Ann")
    assert await llm.astructured_predict(cls, PICK, text="Ann") == found
    assert list(llm.stream_structured_predict(cls, PICK, text="Ann"))[-1] == found
    assert isinstance(llm.as_structured_llm(cls).complete("Pick two.").raw, cls)
    with pytest.raises(StructuredAnswerError, match="please"):
        llm.with_options(refine_policy="never").structured_predict(cls, PICK, text="Ann")


async def test_awaited_answers_of_one_class_are_one_batch(engine: Engine, widths: list[int]) -> None:
    llm = NablaLLM(engine=engine, max_tokens=40)
    alone = [llm.structured_predict(Picked, PICK, text=str(i)) for i in range(4)]
    widths.clear()
    together = await asyncio.gather(*(llm.astructured_predict(Picked, PICK, text=str(i)) for i in range(4)))
    assert together == alone
    assert max(widths) > 2


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


async def test_what_max_tokens_cuts_is_never_verified() -> None:
    """Neither the answer of a query engine, which is refined from what was cut, nor a workflow's draft."""
    problem = "Mia has 34 apples. She buys 27 more. Then 12 are taken away. How many apples are left?"
    llm = NablaLLM(engine=Engine.tiny(reward=ArithmeticSteps()), max_tokens=12, rollouts=2)
    index = VectorStoreIndex.from_documents([Document(text=problem)], embed_model=MockEmbedding(embed_dim=8))
    template = PromptTemplate("{context_str}")
    response: Any = NablaQueryEngine(index.as_query_engine(llm=llm, text_qa_template=template)).query("Mia?")
    found = response.metadata["nabla"]
    assert "34 + 27 = 61" in str(response)
    assert (found["verified"], "cut off" in found["explanation"]) == (None, True)
    done = await RefineWorkflow(llm).run(question=problem)
    assert (done["verified"], done["refined"]) == (None, True)
