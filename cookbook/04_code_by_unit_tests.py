"""Code that is verified by unit tests: the question shows them, a sandbox runs them, the search goes on till they pass.

Every program of the model runs in a process of its own, without files, network or the host's environment, and with
limits of time and memory (`nabla doctor` shows what your machine offers). What it returns is compared outside.

Real model and GPU: replace `Engine(model="tiny", ...)` by
    Engine(model="Qwen/Qwen2.5-Coder-7B-Instruct", dtype="bfloat16", reward=tests, strategy=NablaParallel())
"""

from nabla_agents import Budget, Engine, NablaParallel, PythonTests, Rollout, prompt_assertions
from nabla_agents.tiny import code_tasks

# Tests may be given as pairs of arguments and result. An answer is judged without any search:
adding = PythonTests(tests=[((1, 2), 3), ((-1, 1), 0)], entry="add")
drafts = ["def add(a, b):\n    return a - b", "def add(a, b):\n    return a + b", "import os\nos.listdir('/')"]
for score in adding.score([Rollout.from_text("Write add(a, b).", draft) for draft in drafts]):
    print(score.verified, "-", score.explanation)

# Or they are the `assert` lines that each question shows: one reward for many questions.
tests = 10.0 * PythonTests(prompt_assertions)
engine = Engine(model="tiny", reward=tests, strategy=NablaParallel(), budget=Budget(rollouts=8))

task = code_tasks(20, seed=0, split="test")[13]
print(f"\n{task.question}\n")
result = engine.generate(task.question)
print(result.text)
print("\ndraft:", result.trace[0].score.explanation)
print("answer:", result.score.explanation)
print("ended:", result.finish_reason, "after", result.usage.rollouts, "rollouts")

# Tests that no question shows tell a right program from one that only passes what it has seen.
hidden = PythonTests([(arguments, expected) for arguments, expected in task.hidden_tests], entry=task.entry)
[score] = hidden.score([Rollout.from_text(task.question, result.text)])
print("hidden tests:", score.explanation)

# Prints:
# False - 0 of 2 tests passed; add(1, 2) gave -1, expected 3
# True - 2 of 2 tests passed
# False - 0 of 2 tests passed; ...
#
# Define find(xs) in Python. With the list xs, keep every other one, halve each, then return the one in the middle.
#
# assert find([9, 3, 19, 5, 4]) == 9
# assert find([11, 13, 20, 0, 5]) == 10
# assert find([1, 14, 15, 16, 18]) == 7
#
# ```python
# def find(xs):
#     xs = xs[::2]
#     xs = [x // 2 for x in xs]
#     return xs[len(xs) // 2]
# ```
#
# draft: 0 of 3 tests passed; find([9, 3, 19, 5, 4]) gave 2, expected 9
# answer: 3 of 3 tests passed
# ended: verified after 4 rollouts
# hidden tests: 8 of 8 tests passed
