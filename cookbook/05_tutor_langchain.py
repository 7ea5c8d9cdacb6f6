"""A math tutor in LangChain: `create_agent` with `NablaSolve`; hints instead of answers, from verified working.

The agent's planner decides what to say; the tool does the hard, checkable step. The student never sees the worked
answer: it stands in the tool message, with the calculator's verdict, and the tutor hints from it step by step.

The embedded model cannot plan, so the planner here is a scripted double: it says what `tutor` below tells it, through
the same templates, tool calls and messages as any model. The working is the real search's.

Real model and GPU: `planner = init_chat_model("...")`, any chat model with tools, or
    ChatNabla(model="Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16"), and the same engine in `NablaSolve`. Drop `tutor`.
"""

import json
import re
from textwrap import shorten

from langchain.agents import create_agent
from langchain_core.messages import ToolMessage
from langgraph.checkpoint.memory import InMemorySaver

from langchain_nabla import ChatNabla, NablaSolve
from nabla_agents import ArithmeticSteps, Budget, Engine, Greedy, ImplicitReward
from nabla_agents.testing import scripted_model

TASK = "You are a math tutor. Solve the student's problem with the tool. Then give one hint at a time, no results."
QUESTION = (
    "At first Ella has 59 stamps. She sells 42. She sells 5. She then has 2 times as many. She loses 21. "
    "Ella finds 77 more. What is the number of stamps now?"
)


def tutor(prompt: str) -> str:
    """What a planner would say: call the tool first, then hint at the first step that the student has not done."""
    said = re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", prompt, re.DOTALL)
    said = [text for text in said if "<tool_response>" not in text]
    _, found, working = prompt.partition("<tool_response>\n")
    if not found:
        return f"<tool_call>\n{json.dumps({'name': 'nabla_solve', 'arguments': {'problem': said[-1]}})}\n</tool_call>"
    if "(Verified" not in working:
        return "I am not sure of this one myself. Let us write down what the problem says first."
    steps = re.findall(r"^(.+) = (\d+)$", working, re.MULTILINE)
    done = 0
    for text in said[1:]:  # each of the student's replies is an answer to the hint before it
        result = re.search(r"\d+", text)
        done += bool(result and result[0] == steps[done][1])
    if done == len(steps):
        return "Right, and that was the last step. Well done."
    right = len(said) == 1 or re.search(r"\d+", said[-1]) is None or (done and steps[done - 1][1] in said[-1])
    return f"{'' if right else 'Not quite. '}{'Next' if done else 'First'}: what is {steps[done][0]}?"


engine = Engine.tiny(reward=ImplicitReward.from_pretrained("tiny") + ArithmeticSteps(), budget=Budget(rollouts=8))
planner = ChatNabla(engine=Engine(model=scripted_model(tutor), strategy=Greedy()))
agent = create_agent(planner, [NablaSolve(engine=engine)], system_prompt=TASK, checkpointer=InMemorySaver())
thread = {"configurable": {"thread_id": "lesson-1"}}

for student in [QUESTION, "Is it 18?", "17", "12, I think", "24", "It is 3", "80"]:
    state = agent.invoke({"messages": [("human", student)]}, thread)
    print(f"student: {shorten(student, 60)}\ntutor:   {state['messages'][-1].text}")
    assert "Answer:" not in state["messages"][-1].text  # the worked answer stays in the tool message

[solved] = [message for message in state["messages"] if isinstance(message, ToolMessage)]
found = solved.artifact["nabla"]
print(f"\nverified: {found['verified']} - {found['explanation']}")
print(f"rollouts: {found['usage']['rollouts']}, revisions: {found['revisions']}, the tool was called once")

# Prints:
# student: At first Ella has 59 stamps. She sells 42. She sells [...]
# tutor:   First: what is 59 - 42?
# student: Is it 18?
# tutor:   Not quite. First: what is 59 - 42?
# student: 17
# tutor:   Next: what is 17 - 5?
# student: 12, I think
# tutor:   Next: what is 12 * 2?
# student: 24
# tutor:   Next: what is 24 - 21?
# student: It is 3
# tutor:   Next: what is 3 + 77?
# student: 80
# tutor:   Right, and that was the last step. Well done.
#
# verified: True - 5 equations right
# rollouts: 3, revisions: 2, the tool was called once
