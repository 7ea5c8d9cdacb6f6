"""Best-of-n or ∇? The study's comparison, small: same questions, reward and budget, and the control without gradient.

The configuration is the study's own, of which this takes some questions and one reward. The whole main figure is
    nabla bench benchmarks/results/main/config.toml --out mine
which goes on where it was stopped.

Real model and GPU: copy the study's file, and write `model = "Qwen/Qwen2.5-7B-Instruct"`, your rewards and
`task = {path = "questions.jsonl"}` into it.
"""

from pathlib import Path

from nabla_agents.bench import BenchConfig, Results, run

STUDY = Path(__file__).parent.parent / "benchmarks" / "results" / "main" / "config.toml"
ARMS = "greedy,best-of-8/calculator,nabla-none/calculator,nabla/calculator"

PAIRS = tuple(("nabla/calculator", other) for other in ("greedy", "best-of-8/calculator", "nabla-none/calculator"))

config = BenchConfig.read(STUDY).replace(problems=40, seeds=(0,), compare=PAIRS)
bench = config.bench(ARMS)
folder = Path("results")
records = list(run(bench, folder))  # each question of each arm, kept in the folder as soon as it is known

# Accuracy with its interval, and the mean number of completions that it took.
found = Results.of(records, PAIRS)
print(f"{'':22}{'right':>6}   {'95 % interval':>15}{'rollouts':>10}")
for arm in found.arms:
    low, high = arm.interval
    spent = "" if arm.oracle else f"{arm.usage['rollouts']:10.1f}"
    print(f"{arm.arm:22}{arm.accuracy:6.0%}   {f'[{low:.0%}, {high:.0%}]':>15}{spent}")

# Paired on the same questions. The loop without gradient has all that the reward and resampling give: what is above it
# is the gradient's. An interval that holds 0 says that so few questions cannot tell.
print()
for pair in found.comparisons:
    low, high = pair.interval
    told = "more often right than" if low > 0 else "less often right than" if high < 0 else "not to be told from"
    points = f"{100 * pair.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    print(f"{pair.arm} is {told} {pair.other}:\n    {points}, rollouts {pair.rollouts:+.1f}")

# The same as a table, as JSON and as pictures; with the extra `plots`, the study's main figure is accuracy.svg.
written = config.report(str(STUDY), ARMS).write(records, [*bench.arms.values()], folder)
print()
print(*sorted(Path(file).name for file in written))

# Prints:
#                        right     95 % interval  rollouts
# greedy                   65%        [50%, 78%]       1.0
# best-of-8/calculator     75%        [60%, 86%]       8.0
# pass@8                   80%        [65%, 90%]
# nabla-none/calculator    80%        [65%, 90%]       1.5
# nabla/calculator         92%        [80%, 97%]       1.4
#
# nabla/calculator is more often right than greedy:
#     +27.5 points [...], rollouts +0.3
# nabla/calculator is more often right than best-of-8/calculator:
#     +17.5 points [...], rollouts -6.7
# nabla/calculator is more often right than nabla-none/calculator:
#     +12.5 points [...], rollouts -0.2
#
# accuracy.svg allowed.svg cost.svg results.json rollouts.svg table.md
