"""Reading a trace: what was tried, what the gradient promised for it, what it gave, and who objected to what.

`result.trace` is a tuple of steps. The same as a page: `nabla solve --report out.html`, `result.trace.to_html()`, or
`result` as the last line of a notebook cell.

Real model and GPU: replace `Engine.tiny(...)` by
    Engine(model="Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16", reward=your_reward + ArithmeticSteps())
"""

from pathlib import Path

from nabla_agents import ArithmeticSteps, Budget, Engine, ImplicitReward, NablaParallel
from nabla_agents.tiny import problems

process, calculator = ImplicitReward.from_pretrained("tiny"), ArithmeticSteps()
engine = Engine.tiny(reward=process + calculator, strategy=NablaParallel(min_promise=-5.0), budget=Budget(rollouts=8))
question = problems(28, seed=0, split="test")[-1].question
result = engine.generate(question, seed=3)

# 1. The timeline. The draft is the first step; each `refine` changes one token of the best answer so far.
for number, step in enumerate(result.trace, 1):
    if step.kind == "rollout":
        print(f"{number}. draft: {step.score.explanation}")
    if step.kind == "refine":
        kept = "kept" if step.accepted else "not kept"
        print(f"{number}. token {step.position}: {step.old_token!r} -> {step.new_token!r}, {kept}")

# 2. Promise and truth. A gain is of the whole answer, tail included; the gradient speaks of one token, to first order.
#    Promises far from the gains mean: trust the acceptance test, not the gradient (or lower `dto.beta`).
for step in result.trace:
    if step.kind == "refine" and step.accepted:
        assert step.ranking_score > 0
        assert step.gain > 0  # nothing is kept that makes the objective worse

# 3. Over-optimisation shows as reward that grows while the likelihood falls, and as divergence from the model.
kept = [step for step in result.trace if step.accepted and step.kind != "commit"]
print("reward grows:", [round(step.score.value) for step in kept] == sorted(round(step.score.value) for step in kept))
print(f"likelihood paid for it: {kept[0].log_likelihood - kept[-1].log_likelihood:.1f} nats")
print(f"divergence of the changed rows: {sum(step.kl or 0 for step in kept):.1f} nats")

# 4. Evidence: what a tool said of which characters, and what it expected there.
for step in kept:
    for span in step.score.spans:
        if span.value < 0:
            print(f"in {step.text[span.start : span.end]!r}: expected {span.expected}")
print("finally:", result.score.verified, "-", result.score.explanation)

# 5. Where the gradient looked: the tokens of the draft with the highest ranking score.
looked = next(step for step in result.trace if step.gains)
hottest = max(looked.gains, key=lambda gain: gain.ranking_score)
print(f"hottest token: {kept[0].text[hottest.start : hottest.end]!r}, better {hottest.new!r}")

page = Path("trace.html")
page.write_text(result.trace.to_html(title="Reading a trace"), encoding="utf-8")
print(f"{page} has {'the answer' if result.text.splitlines()[-1] in page.read_text(encoding='utf-8') else 'no answer'}")

# Prints:
# 1. draft: 24 - 21 = 3, not 1
# 2. token 39: '1' -> '3', kept
# 3. token 40: '\n' -> '3', not kept
# 4. token 48: '7' -> '8', kept
# reward grows: True
# likelihood paid for it: 2.5 nats
# divergence of the changed rows: 3.2 nats
# in '1': expected 3
# in '70': expected 80
# finally: True - 5 equations right
# hottest token: '1', better '3'
# trace.html has the answer
