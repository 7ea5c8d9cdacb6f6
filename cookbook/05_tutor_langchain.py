"""A math tutor in LangChain: `create_agent` with `NablaSolve`; hints instead of answers, from verified working.

The problem goes to the tool first, whatever the planner thinks of it: the working stands in the tool message, with the
calculator's verdict, where the student never sees it. What the planner says then is judged before anybody reads it:
`keeps_results` refuses a hint with a result that the student has not found, and `NablaRefineMiddleware` draws another.

The embedded model cannot plan, so the planner here is a scripted double: it says what `tutor` below tells it, through
the same templates, tool calls and messages as any model. The working is the real search's.

Real model: `COOKBOOK_MODEL=model.gguf` (or a folder, or a hub id) plans and solves by itself; docs/tutor.md has such a
lesson. Another planner is any chat model with tools: `planner = init_chat_model("...")`.
"""

import json
import os
import re
from textwrap import shorten

from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.messages import ToolMessage
from langgraph.checkpoint.memory import InMemorySaver

from langchain_nabla import ChatNabla, NablaRefineMiddleware, NablaSolve
from nabla_agents import ArithmeticSteps, BestOfN, Budget, Engine, Greedy, ImplicitReward, Rollout, reward
from nabla_agents.testing import scripted_model

TASK = (
    "You are a math tutor. The tool has worked out the student's problem; the student does not see it. Say whether the "
    "student's last reply is the result of the next step, then ask for the step after it, in one short sentence. Never "
    "say a result yourself."
)
QUESTION = (
    "At first Ella has 59 stamps. She sells 42. She sells 5. She then has 2 times as many. She loses 21. "
    "Ella finds 77 more. What is the number of stamps now?"
)
UNSAID = "Read the problem again: what happens next, and what do you have to calculate for it?"


@wrap_model_call
def work_first(request, handler):
    """The tool is called before anything is said."""
    worked = any(isinstance(message, ToolMessage) for message in request.messages)
    return handler(request if worked else request.override(tool_choice="nabla_solve"))


@reward
def keeps_results(rollout: Rollout):
    """Whether a hint leaves out what the student has yet to find."""
    said = " ".join(message.content for message in rollout.prompt.messages if message.role == "user")
    working = " ".join(message.content for message in rollout.prompt.messages if message.role == "tool")
    secret = set(re.findall(r"=\s*(\d+)", working)) - set(re.findall(r"\d+", said))
    told = [number for number in re.findall(r"\d+", rollout.text) if number in secret]
    return not told, f"Do not say {', '.join(told)}: the student has to find it." if told else ""


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


if model := os.environ.get("COOKBOOK_MODEL"):
    engine = Engine(model=model, dtype="fastest", reward=ArithmeticSteps(), strategy=BestOfN(n=4, width=1))
    planner = ChatNabla(engine=engine, strategy=Greedy(), max_tokens=80)
    checked = ChatNabla(engine=engine.with_reward(keeps_results), max_tokens=80)
else:
    engine = Engine.tiny(reward=ImplicitReward.from_pretrained("tiny") + ArithmeticSteps(), budget=Budget(rollouts=8))
    planner = ChatNabla(engine=Engine(model=scripted_model(tutor), strategy=Greedy()))
    checked = ChatNabla(
        engine=Engine(model=scripted_model(tutor), reward=keeps_results, strategy=BestOfN(n=4, width=1))
    )
middleware = [work_first, NablaRefineMiddleware(checked)]
agent = create_agent(
    planner, [NablaSolve(engine=engine)], system_prompt=TASK, middleware=middleware, checkpointer=InMemorySaver()
)
thread = {"configurable": {"thread_id": "lesson-1"}}

for student in [QUESTION, "Is it 18?", "17", "12, I think", "24", "It is 3", "80"]:
    state = agent.invoke({"messages": [("human", student)]}, thread)
    hint, judged = state["messages"][-1].text, state["nabla"][-1]
    print(f"student: {shorten(student, 60)}\ntutor:   {hint if judged['verified'] else UNSAID}")
    if model:
        print(f"         ({judged['usage']['rollouts']} drawn, {judged['usage']['seconds']:.0f} s)")

solved = next(message for message in state["messages"] if isinstance(message, ToolMessage))
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
