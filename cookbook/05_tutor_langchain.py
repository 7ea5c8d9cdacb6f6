"""A math tutor in LangChain: hints instead of answers, from verified working, judged before the student reads them.

What has to be right is computed: `Lesson` works the problem out once, where the student never sees it, compares each
reply with the verified steps, and tells the model what to say. The model only finds the words, and `is_a_hint` refuses
words that give a result away, forget the question, or praise what is wrong: `NablaRefineMiddleware` then draws others.
Where none will do, the question stands alone; where the working is not verified, the model says nothing at all.

The embedded model cannot speak to a student, so here a scripted double does, through the same templates and messages as
any model. The working is the real search's.

Real model and GPU: `COOKBOOK_MODEL=model.gguf` (or a folder, or a hub id) solves and speaks; docs/tutor.md has such a
lesson, and what becomes of one where the model decides.
"""

import os
import re
from textwrap import shorten
from typing import Any, NotRequired

from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import AgentMiddleware, ModelResponse
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from langchain_nabla import ChatNabla, NablaRefineMiddleware
from nabla_agents import ArithmeticSteps, BestOfN, Engine, Greedy, ImplicitReward, Rollout, Sampling, reward
from nabla_agents.testing import scripted_model

QUESTION = (
    "At first Ella has 59 stamps. She sells 42. She sells 5. She then has 2 times as many. She loses 21. "
    "Ella finds 77 more. What is the number of stamps now?"
)
UNSURE = "I am not sure of this one myself. Write down what the problem says first, a line for each thing."
NUMBER, STEP = re.compile(r"\d+"), re.compile(r"(\d+ *[-+*/x×÷] *\d+) *= *(\d+)")


class LessonState(AgentState):
    """The worked problem: what to calculate and the result of each step, and what the search found."""

    steps: NotRequired[list[tuple[str, str]]]
    solved: NotRequired[dict[str, Any]]


class Lesson(AgentMiddleware):
    """Works the problem out once, and tells the model what to say of each reply."""

    state_schema = LessonState

    def __init__(self, engine: Engine, sampling: Sampling, form: str = "") -> None:
        self.engine, self.sampling, self.form = engine, sampling, form

    def before_agent(self, state, runtime):
        if "steps" in state:
            return None
        found = self.engine.generate(state["messages"][0].text + self.form, sampling=self.sampling)
        steps = STEP.findall(found.text.replace(r"\times", "×")) if found.score.verified else []
        return {"steps": steps, "solved": found.summary()}

    def wrap_model_call(self, request, handler):
        steps, replies = request.state["steps"], [m.text for m in request.messages[1:] if m.type == "human"]
        if not steps:
            return ModelResponse(result=[AIMessage(UNSURE)])
        done, right = 0, True
        for reply in replies:
            number = NUMBER.search(reply)
            right = number is not None and done < len(steps) and number[0] == steps[done][1]
            done += right
        say = "Write one short friendly sentence to the student that "
        if replies:
            say = f"A student answered {replies[-1]!r}, which is {'right' if right else 'not right'}. {say}says so and "
        say += f"asks: what is {steps[done][0]}?" if done < len(steps) else "says that this was the last step."
        response = handler(request.override(messages=[HumanMessage(say)]))
        if response.result[-1].response_metadata["nabla"]["verified"]:
            return response
        plain = f"What is {steps[done][0]}?" if done < len(steps) else "That was the last step."
        return ModelResponse(result=[AIMessage(plain if right else f"Not yet. {plain}")])


@reward
def is_a_hint(rollout: Rollout):
    """Whether a sentence to the student asks what it should, says no new number, and calls wrong what is wrong."""
    say, said = rollout.prompt.question, rollout.text
    asked = set(NUMBER.findall(say.partition("what is ")[2]))
    if missing := asked - set(NUMBER.findall(said)):
        return False, f"Ask about {', '.join(sorted(missing))} too."
    if told := [number for number in NUMBER.findall(said) if number not in NUMBER.findall(say)]:
        return False, f"Do not say {', '.join(told)}: the student has to find it."
    objects = re.search(r"\bnot\b|n't|wrong|again", said.lower()) is not None
    return objects == ("which is not right" in say), "Say whether the student is right."


def speaks(prompt: str) -> str:
    """What a model would make of what it is told."""
    asked, last = re.search(r"what is (.+)\?", prompt), "Right, and that was the last step. Well done."
    return last if asked is None else f"{'Not quite. ' if 'which is not right' in prompt else ''}What is {asked[1]}?"


if model := os.environ.get("COOKBOOK_MODEL"):
    engine = Engine(model=model, dtype="fastest", reward=ArithmeticSteps(), strategy=BestOfN(n=4, width=1))
    form = "\nReply with the calculations alone, one equation a line, for example 3 + 4 = 7."
    lesson = Lesson(engine, Sampling(max_tokens=250, stop=("```",)), form)
    speaker = engine.with_reward(is_a_hint)
else:
    engine = Engine.tiny(reward=ImplicitReward.from_pretrained("tiny") + ArithmeticSteps())
    lesson = Lesson(engine, Sampling(max_tokens=192))
    speaker = Engine(model=scripted_model(speaks), reward=is_a_hint, strategy=BestOfN(n=4, width=1))
hints = ChatNabla(engine=speaker, max_tokens=60)
agent = create_agent(
    ChatNabla(engine=speaker, strategy=Greedy(), max_tokens=60),
    middleware=[lesson, NablaRefineMiddleware(hints)],
    checkpointer=InMemorySaver(),
)
thread = {"configurable": {"thread_id": "lesson-1"}}

for student in [QUESTION, "Is it 18?", "17", "12, I think", "24", "It is 3", "80"]:
    state = agent.invoke({"messages": [("human", student)]}, thread)
    print(f"student: {shorten(student, 60)}")
    print(f"tutor:   {state['messages'][-1].text}")
    if model and state["steps"]:
        judged = state["nabla"][-1]
        print(f"         ({judged['usage']['rollouts']} drawn, {judged['usage']['seconds']:.0f} s)")

found = state["solved"]
print(f"\nverified: {found['verified']} - {found['explanation']}")
print(f"rollouts: {found['usage']['rollouts']}, revisions: {found['revisions']}")

# Prints:
# student: At first Ella has 59 stamps. She sells 42. She sells [...]
# tutor:   What is 59 - 42?
# student: Is it 18?
# tutor:   Not quite. What is 59 - 42?
# student: 17
# tutor:   What is 17 - 5?
# student: 12, I think
# tutor:   What is 12 * 2?
# student: 24
# tutor:   What is 24 - 21?
# student: It is 3
# tutor:   What is 3 + 77?
# student: 80
# tutor:   Right, and that was the last step. Well done.
#
# verified: True - 5 equations right
# rollouts: 3, revisions: 2
