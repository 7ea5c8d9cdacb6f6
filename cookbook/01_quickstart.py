"""Quickstart: one question, one refined answer.

The embedded model drafts an answer, the gradient says which of its digits the reward objects to, and the answer is
completed anew from there. What is kept is better by the objective, and everything that it cost is in a ledger.

Real model and GPU: replace `Engine.tiny()` by
    Engine(model="Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16",
           reward=ProcessReward.from_pretrained("Qwen/Qwen2.5-Math-PRM-7B", format=QWEN_MATH_PRM, dtype="bfloat16"))
"""

from nabla_agents import Engine

QUESTION = (
    "At first Ella has 59 stamps. She sells 42. She sells 5. She then has 2 times as many. She loses 21. "
    "Ella finds 77 more. What is the number of stamps now?"
)

engine = Engine.tiny()  # a language model and a process reward, both in the package: nothing is downloaded

# Watch the search: each step is a whole completion, or one changed token with all that follows from it.
run = engine.steps(QUESTION, seed=0)
for step in run:
    if step.kind == "refine":
        print(f"{step.old_token!r} -> {step.new_token!r}, {'kept' if step.accepted else 'not kept'}")

result = run.result
print(result.text)
print("revisions:", result.summary()["revisions"], "of", len(result.trace) - 1, "steps")
print("rollouts:", result.usage.rollouts, "gradient passes:", result.usage.gradient_passes)

# The same seed gives the same answer, and `generate` is `steps` run to its end.
assert engine.generate(QUESTION, seed=0).text == result.text

# Prints:
# '1' -> '3', kept
# '7' -> '8', kept
# 59 - 42 = 17
# 17 - 5 = 12
# 12 * 2 = 24
# 24 - 21 = 3
# 3 + 77 = 80
# Answer: 80
# revisions: 2 of 3 steps
# rollouts: 3 gradient passes: 3
