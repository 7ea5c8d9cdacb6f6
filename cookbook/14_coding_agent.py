"""A coding agent whose answers run: unit tests judge each program before anybody reads it, and say what is wrong.

Three things happen to a turn, the cheap ones first. The agent writes one program. `NablaRefineMiddleware` runs the
tests that the task shows: where one fails, the search draws and changes programs until they pass. Where none does,
`ToldByTests` tells the model what the best of them returned, and it writes anew. That order is deliberate: a small
model that is told of its mistake at once mostly writes it again.

Real model and GPU: `COOKBOOK_MODEL=model.gguf` (or a folder, or a hub id); docs/agents.md has such a session.
"""

import os
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, hook_config
from langchain_core.messages import HumanMessage

from langchain_nabla import ChatNabla, NablaRefineMiddleware
from nabla_agents import BestOfN, Engine, NablaParallel, PythonTests, Rollout, prompt_assertions
from nabla_agents.tiny import code_tasks

MOST_REMARKS = 1
TESTS = PythonTests(prompt_assertions)


class ToldByTests(AgentMiddleware):
    """Where the tests refuse an answer, the model hears what failed and has another turn."""

    @hook_config(can_jump_to=["model"])
    def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        asked = [message for message in state["messages"] if message.type == "human"]
        [score] = TESTS.score([Rollout.from_text(asked[0].text, state["messages"][-1].text)])
        if score.verified or len(asked) > MOST_REMARKS:
            return None
        return {"messages": [HumanMessage(f"{score.feedback}\n\n{asked[0].text}")], "jump_to": "model"}


if model := os.environ.get("COOKBOOK_MODEL"):
    engine = Engine(model=model, dtype="fastest", reward=TESTS, strategy=BestOfN(n=4, width=1))
    tasks = [
        "Write odd_values_string(text): the text without the characters that have an odd index.\n"
        'assert odd_values_string("abcdef") == "ace"\nassert odd_values_string("") == ""',
        "Write unique_product(numbers): the product of the different numbers in a list.\n"
        "assert unique_product([10, 20, 30, 10]) == 6000\nassert unique_product([]) == 1",
        "Write longest_run(text): the longest run of one letter in a text, the first of equally long ones.\n"
        'assert longest_run("aabbbcc") == "bbb"\nassert longest_run("abab") == "a"\nassert longest_run("") == ""',
    ]
    system = "Answer with one Python function in a code block and nothing else."
else:
    engine = Engine(model="tiny", reward=10.0 * TESTS, strategy=NablaParallel())
    tasks = [code_tasks(20, seed=0, split="test")[i].question for i in (13, 12)]
    system = None

coder = ChatNabla(engine=engine, rollouts=1, max_tokens=200)
refiner = ChatNabla(engine=engine, rollouts=8, max_tokens=200)
agent = create_agent(coder, [], system_prompt=system, middleware=[ToldByTests(), NablaRefineMiddleware(refiner)])

for task in tasks:
    print(f"asked: {task}\n")
    state = agent.invoke({"messages": [("human", task)]})
    for message in state["messages"][1:]:
        remark = message.type == "human"
        print(f"tests: {message.text.splitlines()[0]}" if remark else f"agent: {message.text}")
    for found in state["nabla"]:
        print(f"verified: {found['verified']} - {found['explanation']}; {found['usage']['rollouts']} programs")
    print()

# Prints:
# asked: Define find(xs) in Python. With the list xs, keep every other one, halve each, then return the
# one in the middle.
#
# assert find([9, 3, 19, 5, 4]) == 9
# assert find([11, 13, 20, 0, 5]) == 10
# assert find([1, 14, 15, 16, 18]) == 7
#
# agent: ```python
# def find(xs):
#     xs = xs[::2]
#     xs = [x // 2 for x in xs]
#     return xs[len(xs) // 2]
# ```
# verified: True - 3 of 3 tests passed; 4 programs
#
# asked: Write run(xs) in Python. It must keep the odd numbers, keep those from 9 to 13, then return what is left.
#
# assert run([0, 10, 13, 16, 6, 4]) == []
# assert run([6, 5, 8, 14, 18, 13]) == []
# assert run([9, 9, 9, 4]) == [9, 9, 9]
#
# agent: ```python
# def run(xs):
#     xs = [x for x in xs if x % 2 == 0]
#     xs = [x for x in xs if x % 2 == 1]
#     return xs
# ```
# tests: 2 of 3 tests passed. run([9, 9, 9, 4]) returned [], expected [9, 9, 9].
# agent: ```python
# def run(xs):
#     xs = [x for x in xs if x % 2 == 0]
#     xs = [x for x in xs if x % 2 == 1]
#     return xs
# ```
# verified: False - 2 of 3 tests passed; run([9, 9, 9, 4]) gave [], expected [9, 9, 9]; 8 programs
# verified: False - 2 of 3 tests passed; run([9, 9, 9, 4]) gave [], expected [9, 9, 9]; 8 programs
