"""A LangGraph loop: draft, verify, refine, with a checkpoint after every node.

The draft is one cheap completion. A tool judges it, and only what it rejects is refined, from the draft on. The graph
is stopped before the first refinement, as a restart or an approval would stop it, and goes on from its checkpoint.

Real model and GPU: `COOKBOOK_MODEL=model.gguf` (or a folder, or a hub id). Replace `InMemorySaver()` by `SqliteSaver`
or `PostgresSaver` to go on in another process. The draft may come from any other chat model.
"""

import os
from typing import TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from langchain_nabla import ChatNabla, NablaRefine
from nabla_agents import ArithmeticSteps, Engine, Rollout

MOST_ROUNDS = 3
calculator = ArithmeticSteps()
if model := os.environ.get("COOKBOOK_MODEL"):
    engine = Engine(model=model, dtype="fastest", reward=calculator)
else:
    engine = Engine.tiny(reward=calculator)
drafter = ChatNabla(engine=engine, rollouts=1)
refiner = NablaRefine(ChatNabla(engine=engine, rollouts=4))


class State(TypedDict, total=False):
    """What the checkpoint holds: plain values, so that any saver can store it."""

    question: str
    answer: str
    verified: bool
    why: str
    rounds: int


def draft(state: State) -> State:
    return {"answer": drafter.invoke(state["question"]).text, "rounds": 0}


def verify(state: State) -> State:
    [score] = calculator.score([Rollout.from_text(state["question"], state["answer"])])
    return {"verified": bool(score.verified), "why": score.explanation}


def refine(state: State) -> State:
    """The search starts from the answer so far; another round draws other random numbers."""
    given = {"question": state["question"], "draft": state["answer"]}
    return {"answer": refiner.invoke(given, seed=state["rounds"]).text, "rounds": state["rounds"] + 1}


def decide(state: State) -> str:
    return END if state["verified"] or state["rounds"] == MOST_ROUNDS else "refine"


graph = StateGraph(State)
for name, node in {"draft": draft, "verify": verify, "refine": refine}.items():
    graph.add_node(name, node)
graph.add_edge(START, "draft")
graph.add_edge("draft", "verify")
graph.add_conditional_edges("verify", decide, ["refine", END])
graph.add_edge("refine", "verify")
app = graph.compile(checkpointer=InMemorySaver(), interrupt_before=["refine"])

thread = {"configurable": {"thread_id": "ella"}}
question = (
    "At first Ella has 59 stamps. She sells 42. She sells 5. She then has 2 times as many. She loses 21. "
    "Ella finds 77 more. What is the number of stamps now?"
)
state = app.invoke({"question": question}, thread)
print(state["answer"])
print(f"verified: {state['verified']} - {state['why']}")
print("stopped before:", *app.get_state(thread).next)

# A new process would build the same graph over the same saver, and go on: `None` means "from the checkpoint".
while app.get_state(thread).next:
    state = app.invoke(None, thread)
print()
print(state["answer"])
print(f"verified: {state['verified']} - {state['why']}")
print(f"rounds: {state['rounds']}, checkpoints: {len(list(app.get_state_history(thread)))}")

# Prints:
# 59 - 42 = 17
# 17 - 5 = 12
# 12 * 2 = 24
# 24 - 21 = 1
# 1 + 77 = 78
# Answer: 78
# verified: False - 24 - 21 = 3, not 1
# stopped before: refine
#
# 59 - 42 = 17
# 17 - 5 = 12
# 12 * 2 = 24
# 24 - 21 = 3
# 3 + 77 = 80
# Answer: 80
# verified: True - 5 equations right
# rounds: 1, checkpoints: 6
