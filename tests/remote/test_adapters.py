"""LangChain's and LlamaIndex's models on an endpoint: what they say is what they say on the engine itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.load import dumps
from langchain_core.messages import HumanMessage
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from langchain_nabla import ChatNabla
from langchain_nabla import NablaLLM as LangChainLLM
from llama_index.llms.nabla import NablaLLM
from nabla_agents import BestOfN, ConfigurationError, Engine, RemoteEngine
from nabla_agents.adapters import shared_engines
from nabla_agents.serve import Server
from tests.serve.serving import WEATHER

pytestmark = pytest.mark.enable_socket
ASKED = "What is the weather in Oslo?"


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def there(server: Server) -> Iterator[dict[str, Any]]:
    """Settings of a model on the endpoint."""
    yield {"base_url": f"http://127.0.0.1:{server.port}/v1", "model": "scripted", "max_tokens": 128}
    for key in [
        key for key in shared_engines._loaded if "base_url" in dict(key)
    ]:  # kept to the process's end otherwise
        engine: Any = shared_engines._loaded.pop(key)
        engine.close()


def weather(city: str) -> str:
    """The weather of a city."""
    return "rain"


def test_langchain_chat(there: dict[str, Any], local: dict[str, Engine]) -> None:
    chat, here = ChatNabla(**there), ChatNabla(engine=local["scripted"], max_tokens=128)
    whole = chat.invoke(ASKED)
    assert whole.content == here.invoke(ASKED).content == "It rains in Oslo."
    assert whole.usage_metadata == here.invoke(ASKED).usage_metadata
    assert whole.response_metadata["nabla"]["usage"]["rollouts"] == 1
    assert "".join(str(chunk.content) for chunk in chat.stream(ASKED)) == "It rains in Oslo."
    [call] = chat.bind_tools([WEATHER]).invoke(ASKED).tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Oslo"})
    assert chat.with_structured_output(Person).invoke("Who is it?") == Person(name="Ada", age=36)
    assert chat.get_num_tokens(ASKED) == here.get_num_tokens(ASKED)


async def test_langchain_many_at_a_time(there: dict[str, Any]) -> None:
    chat = ChatNabla(**there)
    answers = await asyncio.gather(*(chat.ainvoke(f"{ASKED} {i}") for i in range(5)))
    assert {answer.content for answer in answers} == {"It rains in Oslo."}
    assert "".join([str(chunk.content) async for chunk in chat.astream(ASKED)]) == "It rains in Oslo."
    assert len((await chat.agenerate([[HumanMessage(ASKED)]], n=2)).generations[0]) == 2


def test_langchain_llm_with_a_strategy(there: dict[str, Any], local: dict[str, Engine]) -> None:
    settings = {"strategy": BestOfN(n=2), "rollouts": 2, "max_tokens": 32, "seed": 3}
    endpoint = LangChainLLM(**{**there, "model": "tiny", **settings})
    assert endpoint.invoke("1 + 1") == LangChainLLM(engine=local["tiny"], **settings).invoke("1 + 1")
    assert endpoint.batch(["1 + 1", "2 + 2"]) == [endpoint.invoke("1 + 1"), endpoint.invoke("2 + 2")]


def test_other_tokens_than_the_chosen_ones_are_refused_before_a_search(there: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="top_logprobs is 2"):
        ChatNabla(**there, logprobs=True, top_logprobs=2).invoke("How many?")


def test_langchain_keeps_the_key_to_itself(there: dict[str, Any]) -> None:
    chat = ChatNabla(**there, api_key="very-secret")
    assert "very-secret" not in repr(chat) + dumps(chat) + str(chat._get_llm_string())
    with pytest.raises(ConfigurationError, match="dtype: a server loads its models itself"):
        ChatNabla(**there, dtype="bfloat16").invoke(ASKED)
    with pytest.raises(ConfigurationError, match="does not exist here"):
        ChatNabla(**{**there, "model": "gpt-4"}).invoke(ASKED)


def test_llama_index(there: dict[str, Any], local: dict[str, Engine]) -> None:
    llm, here = NablaLLM(**there), NablaLLM(engine=local["scripted"], max_tokens=128)
    assert llm.complete(ASKED).text == here.complete(ASKED).text == "It rains in Oslo."
    assert llm.complete(ASKED).raw["usage"] == here.complete(ASKED).raw["usage"]
    messages = [ChatMessage(role=MessageRole.USER, content=ASKED)]
    assert [r.message.content for r in llm.stream_chat(messages)][-1] == "It rains in Oslo."
    tool = FunctionTool.from_defaults(weather)
    [call] = llm.get_tool_calls_from_response(llm.chat_with_tools([tool], ASKED))
    assert (call.tool_name, call.tool_kwargs) == ("weather", {"city": "Oslo"})
    who = PromptTemplate("Who is it?")
    assert llm.structured_predict(Person, who) == here.structured_predict(Person, who) == Person(name="Ada", age=36)
    assert llm.metadata.context_window == here.metadata.context_window
    assert llm.complete_batch([ASKED] * 2)[1].text == "It rains in Oslo."


async def test_llama_index_policies(there: dict[str, Any]) -> None:
    """What is not refined is one rollout; what a draft settles ends with it."""
    settings = {**there, "model": "tiny", "max_tokens": 32, "strategy": BestOfN(n=3)}
    drafted = await NablaLLM(**settings, refine_policy="never").acomplete("1 + 1")
    assert drafted.raw["nabla"]["usage"]["rollouts"] == 1
    refined = await NablaLLM(**settings, refine_policy="always").acomplete("1 + 1")
    assert refined.raw["nabla"]["usage"]["rollouts"] == 3
    settled = await NablaLLM(**settings, refine_policy="on_failure").acomplete("1 + 1")
    assert settled.raw["nabla"]["detail"] == "good enough"


def test_a_remote_engine_is_shared_like_a_local_one(there: dict[str, Any]) -> None:
    engine: Any = RemoteEngine(there["base_url"], model="scripted")
    try:
        assert ChatNabla(engine=engine).invoke(ASKED).content == "It rains in Oslo."
        assert NablaLLM(engine=engine).complete(ASKED).text == "It rains in Oslo."
    finally:
        engine.close()
