"""Budgets and cost: what one answer may spend, what it spent, and what that is in money.

`Budget` and `Usage` have the same field names. A limit is never an error: the search returns the best answer that it
has, and says which limit ended it.

Real model and GPU: replace `Engine.tiny(...)` by `Engine(model="Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16", ...)`, and
`PRICE` by what your GPU costs.
"""

from nabla_agents import Budget, Engine, FinishReason, NablaParallel
from nabla_agents.tiny import is_correct, problems

PRICE = 2.0 / 3600  # dollars a second

engine = Engine.tiny(strategy=NablaParallel(min_promise=-6.0))  # tries much: a budget is what ends it
asked = problems(24, seed=0, split="test")
questions = [problem.question for problem in asked]

# 1. One limit at a time, each on its own terms.
limits = [Budget(rollouts=2), Budget(rollouts=None, generated_tokens=60), Budget(rollouts=None, flops=2e9)]
for limit in limits:
    result = engine.generate(questions[5], budget=limit)
    print(f"{result.finish_reason}: {result.detail.split(':')[0]}")
    assert result.text  # the best answer so far

# 2. Seconds are for a user who waits. The operation under way is finished, so allow for one rollout more.
waited = engine.generate(questions[5], budget=Budget(rollouts=None, seconds=0.05))
print(f"{waited.finish_reason}: {waited.detail.split()[0]}, with an answer: {bool(waited.text)}")

# 3. What does more budget buy? The same questions, the same seeds.
print("\nrollouts allowed   right   rollouts used   tokens   gradient passes")
right, dollars = {}, {}
for allowed in (1, 2, 4, 8):
    results = engine.generate_batch(questions, budget=Budget(rollouts=allowed))
    spent = sum((result.usage for result in results[1:]), results[0].usage)  # ledgers add
    right[allowed] = sum(is_correct(r.text, problem) for r, problem in zip(results, asked, strict=True))
    dollars[allowed] = spent.seconds * PRICE / len(results)
    print(
        f"{allowed:16}{right[allowed]:5}/{len(asked)}{spent.rollouts:13}{spent.generated_tokens:12}"
        f"{spent.gradient_passes:12}"
    )
    assert all(result.usage.rollouts <= allowed for result in results)
assert right[8] > right[1]

# 4. In money, and where the search itself saw no use in spending more.
print(f"\ncents an answer with 8 rollouts allowed: {100 * dollars[8]:.4f}")
stopped = sum(result.finish_reason is not FinishReason.BUDGET for result in results)
print(f"{stopped} of {len(results)} searches ended before their budget did")

# Prints:
# budget: rollouts 2/2
# budget: generated_tokens 49/60
# budget: flops ...
# budget: seconds, with an answer: True
#
# rollouts allowed   right   rollouts used   tokens   gradient passes
#                1   17/24           24         917           0
#                2   22/24           32        1040          24
#                4   22/24           39        1158          28
#                8   22/24           42        1209          29
#
# cents an answer with 8 rollouts allowed: ...
# 24 of 24 searches ended before their budget did
