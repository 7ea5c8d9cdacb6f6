"""Refine only what needs it: a model decides by its likelihoods which turns are worth a search.

`NablaDecision` reads a question once for each option and never writes; LangChain's `ModelRouterMiddleware` sends the
turn where its answer says: to one cheap completion, or to the search with its calculator. Both are the same engine.

The embedded model knows word problems only and decides nothing, so the decider here is a scripted double, read by the
same likelihoods as any model.

Real model and GPU: `COOKBOOK_MODEL=model.gguf` (or a folder, or a hub id) decides and answers by itself. It takes 1.5 B
parameters or so: one of 0.5 B holds all options nearly equally likely.
"""

import os
import re

from langchain.agents import create_agent
from langchain.agents.middleware import ModelChoice, ModelRouterMiddleware

from langchain_nabla import ChatNabla, NablaDecision
from nabla_agents import ArithmeticSteps, BestOfN, Engine, Greedy
from nabla_agents.testing import scripted_model

EASY = "Mia has 34 apples. She buys 27 more. Then 12 are taken away. How many apples are left?"
HARD = (
    "At first Ella has 59 stamps. She sells 42. She sells 5. She then has 2 times as many. She loses 21. "
    "Ella finds 77 more. What is the number of stamps now?"
)


def decider(prompt: str) -> str:
    """What a decider would say: the letter of the option that fits, by how often something happens."""
    letters = {name: letter for letter, name in re.findall(r"^([AB])\. (few steps|many steps)", prompt, re.MULTILINE)}
    happens = len(re.findall(r"\d+", prompt.partition("How many steps")[0]))
    return letters["many steps" if happens > 3 else "few steps"]


if model := os.environ.get("COOKBOOK_MODEL"):
    engine = Engine(model=model, dtype="fastest", reward=ArithmeticSteps(), strategy=BestOfN(n=4, width=1))
    decision = NablaDecision(ChatNabla(engine=engine))
else:
    engine = Engine.tiny(reward=ArithmeticSteps())
    decision = NablaDecision(ChatNabla(engine=Engine(model=scripted_model(decider), strategy=Greedy())))

plain = ChatNabla(engine=engine, strategy=Greedy(), max_tokens=200)
refined = ChatNabla(engine=engine, rollouts=8, max_tokens=200)
router = ModelRouterMiddleware(
    choices={"few steps": ModelChoice(plain, None), "many steps": ModelChoice(refined, None)},
    instructions="How many steps of calculation does it take to answer?",
    classifier=decision,
)
agent = create_agent(plain, middleware=[router])

for question in (EASY, HARD):
    state = agent.invoke({"messages": [("human", question)]})
    route, message = state["model_route"], state["messages"][-1]
    found = message.response_metadata["nabla"]
    print(f"{route.choice}, likely by {route.probabilities[route.choice]:.2f}: {found['usage']['rollouts']} rollouts")
    print(f"{message.text}\nverified: {found['verified']}\n")

# Prints:
# few steps, likely by 1.00: 1 rollouts
# 34 + 27 = 61
# 61 - 12 = 49
# Answer: 49
# verified: True
#
# many steps, likely by 1.00: 3 rollouts
# 59 - 42 = 17
# 17 - 5 = 12
# 12 * 2 = 24
# 24 - 21 = 3
# 3 + 77 = 80
# Answer: 80
# verified: True
