"""Your own tool as a reward: any function that can say what is wrong, and best of all where.

The calculator of the package vouches for every equation, and does not ask whether the numbers in it are those of the
question. This recipe adds a tool that does. It names the characters that are wrong and what should stand there: such a
verdict is a direction for the gradient, and a verdict on the whole answer decides what is kept.

Real model and GPU: the tool stays as it is; replace `Engine.tiny(...)` by
    Engine(model="Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16", reward=ArithmeticSteps() + numbers_of_question)
"""

import re

from nabla_agents import ArithmeticSteps, Engine, Rollout, Score, Span, reward


@reward(timeout_seconds=5.0)  # a call that raises or hangs is an explained "not judged", and the search goes on
def numbers_of_question(question: str, completion: str) -> Score:
    """Whether the steps use the numbers of the question, in its order."""
    known = re.findall(r"\d+", question)[1:]  # the first one is where the story starts
    used = list(re.finditer(r"[-+*/] (\d+) =", completion))
    wrong = [(n, right) for n, right in zip(used, known, strict=False) if n[1] != right]
    spans = [
        Span(n.start(1), n.end(1), -1.0, expected=right, explanation=f"the question says {right}", credit=20.0)
        for n, right in wrong
    ]
    fine = not wrong and len(used) == len(known)
    said = f"{wrong[0][0][1]} should be {wrong[0][1]}" if wrong else f"{len(used)} of {len(known)} numbers are used"
    return Score(1.0 if fine else -1.0, verdict=1.0 if fine else -1.0, verified=fine, spans=(*spans,), explanation=said)


QUESTION = (
    "Sara starts with 14 stickers. Each one is traded for 4. A friend brings 83 more. Sara gets 70 more. "
    "She gets 223 more. How many stickers are there in the end?"
)

# A tool is an object like any other: ask it by itself before a search trusts it.
[score] = numbers_of_question.score([Rollout.from_text(QUESTION, "14 * 4 = 56\n56 + 38 = 94")])
print("alone:", score.verified, "-", score.explanation)

calculator = Engine.tiny(reward=ArithmeticSteps()).generate(QUESTION)
print("\ncalculator:", calculator.score.verified, "-", calculator.score.explanation)
print(calculator.text)

both = Engine.tiny(reward=ArithmeticSteps() + numbers_of_question).generate(QUESTION)
print("\nboth:", both.score.verified, "-", both.score.explanation)
print(both.text)

# Prints:
# alone: False - 38 should be 83
#
# calculator: True - 4 equations right
# 14 * 4 = 56
# 56 + 83 = 139
# 139 + 70 = 209
# 209 + 22 = 231
# Answer: 231
#
# both: True - 4 equations right; 4 of 4 numbers are used
# 14 * 4 = 56
# 56 + 83 = 139
# 139 + 70 = 209
# 209 + 223 = 432
# Answer: 432
