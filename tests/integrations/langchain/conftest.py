"""Scripted engines: what is said is decided by a function of the prompt, everything else is real."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from nabla_agents import ArithmeticSteps, Budget, Engine, Nabla
from nabla_agents.testing import scripted_model

JOKE = '{"setup": "Why was the cat on the computer?", "punchline": "To watch the mouse."}'


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def assistant(prompt: str) -> str:
    """A model that reads: it calls the tool that it is offered and asked for, and answers from what a tool returned."""
    asked = prompt.rpartition("<|im_start|>user")[2]
    offered = re.findall(r'"function": \{"name": "(\w+)"', prompt)
    if "<tool_response>" in asked:
        return "The tool says: " + asked.partition("<tool_response>\n")[2].partition("\n</tool_response>")[0]
    if "magic_function_no_args" in offered:
        return call("magic_function_no_args", "{}")
    if "magic_function" in offered and "Hello" not in asked:
        return call("magic_function", '{"input": 3}')
    if "get_weather" in offered and "weather" in asked:
        return "I look it up.\n" + call("get_weather", '{"location": "San Francisco, CA"}')
    if "greeting_generator" in offered:
        return call("greeting_generator", '{"answer_style": "pirate"}')
    if "unicode_customer" in offered:
        name = "你好啊集团" if "你好" in asked else "こんにちは株式会社"
        return call("unicode_customer", f'{{"customer_name": "{name}", "description": "会社"}}')
    if "my_adder_tool" in offered:
        return call("my_adder_tool", '{"a": 3, "b": 4}')
    if joke := re.search(r'"name": "(\w*[Jj]oke\w*)"', prompt):
        return call(joke[1], JOKE)
    if "joke" in asked:
        return JOKE
    return "<think>A greeting.</think>\nHello, how are you?" if "Think" in asked else "Hello, how are you?"


@pytest.fixture(scope="session")
def scripted() -> Callable[..., Engine]:
    """An engine whose model follows a script."""

    def make(script: Callable[[str], str] = assistant, **parts: Any) -> Engine:
        return Engine(**{"model": scripted_model(script), "strategy": Nabla(), "budget": Budget(rollouts=2), **parts})

    return make


@pytest.fixture(scope="session")
def assisting(scripted: Callable[..., Engine]) -> Engine:
    """One engine with the script above and a calculator as its reward."""
    return scripted(reward=ArithmeticSteps())


def merged(chunks: list[Any]) -> Any:
    """The chunks of a stream, added up."""
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return whole


async def six_ways(llm: Any, prompt: Any, **kwargs: Any) -> list[Any]:
    """invoke, stream, batch, ainvoke, astream, abatch; of a chat or text model."""
    return [
        llm.invoke(prompt, **kwargs),
        merged(list(llm.stream(prompt, **kwargs))),
        *llm.batch([prompt], **kwargs),
        await llm.ainvoke(prompt, **kwargs),
        merged([chunk async for chunk in llm.astream(prompt, **kwargs)]),
        *await llm.abatch([prompt], **kwargs),
    ]


def text(answer: Any) -> str:
    """What a chat or text model said."""
    return answer if isinstance(answer, str) else answer.text
