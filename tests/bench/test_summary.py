"""Figures of hand-made records, and the tables that show them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from nabla_agents import ConfigurationError, Usage
from nabla_agents.bench import Arm, Record, Results, bootstrap_interval, compare, summarise, trust, wilson_interval
from nabla_agents.bench.report import Report, cells, markdown, table
from nabla_agents.bench.summary import by_cost, course
from nabla_agents.search import BestOfN, Greedy, Nabla


def records(arm: str, verdicts: Sequence[int], *, pool: Sequence[int] | None = None, first: int = 0) -> list[Record]:
    """Record i cost i+1 rollouts; a verdict is 0 or 1."""
    return [
        Record(
            arm=arm,
            problem=first + i,
            correct=bool(right),
            pool_correct=bool(right if pool is None else pool[i]),
            text="",
            finish_reason="stop",
            usage=Usage(rollouts=i + 1, lm_forward_tokens=10, reward_forward_tokens=5, flops=1.5e9, seconds=0.25),
            proposed=2,
            accepted=right,
        )
        for i, right in enumerate(verdicts)
    ]


def test_accuracy_cost_and_gain_by_hand() -> None:
    greedy, nabla = summarise(records("greedy", [1, 0, 0, 1]) + records("nabla", [1, 1, 0, 1], pool=[1, 1, 1, 1]))
    assert (greedy.arm, greedy.problems, greedy.accuracy, greedy.gain, greedy.gain_interval) == (
        "greedy",
        4,
        0.5,
        None,
        None,
    )
    assert greedy.interval == wilson_interval(2, 4)
    assert nabla.accuracy == 0.75
    assert nabla.gain == 0.25
    assert nabla.gain_interval == bootstrap_interval([0, 1, 0, 0])
    assert nabla.pool_accuracy == 1.0
    assert (nabla.proposed, nabla.accepted) == (2.0, 0.75)
    assert nabla.usage["rollouts"] == 2.5
    assert nabla.usage["flops"] == 1.5e9
    assert nabla.rollouts_interval == bootstrap_interval([1, 2, 3, 4])


def test_the_gain_is_taken_on_problems_that_both_have_done() -> None:
    """Greedy has done problems 0 to 2, the other 1 to 4: differences on 1 and 2 are +1 and -1."""
    _, other = summarise(records("greedy", [1, 0, 1]) + records("nabla", [1, 0, 1, 1], first=1))
    assert other.accuracy == 0.75
    assert other.gain == 0.0
    assert other.gain_interval == bootstrap_interval([1, -1])


def test_without_greedy_or_common_problems_there_is_no_gain() -> None:
    [alone] = summarise(records("nabla", [1, 0]))
    _, apart = summarise(records("greedy", [1, 0]) + records("nabla", [1, 0], first=7))
    assert alone.gain is None
    assert apart.gain is None
    assert apart.gain_interval is None
    assert summarise([]) == []


def test_best_of_n_is_followed_by_its_oracle() -> None:
    found = summarise(
        records("greedy", [0, 0]) + records("best-of-3", [1, 0], pool=[1, 1]) + records("best-of-3/both", [1, 0])
    )
    assert [s.arm for s in found] == ["greedy", "best-of-3", "pass@3", "best-of-3/both"]
    assert [s.oracle for s in found] == [False, False, True, False]
    assert found[2].accuracy == 1.0
    assert found[2].gain == 1.0


@pytest.mark.parametrize(
    ("right", "says"),
    [
        ([1] * 30, "beats greedy (+50.0 points, 95 % interval +33.3 to +66.7)"),
        ([1, 0] * 14 + [1, 1], "is not shown to beat greedy (+3.3 points"),
        ([1, 0] * 15, "does not beat greedy (+0.0 points, 95 % interval +0.0 to +0.0): do not trust this reward."),
        ([0] * 30, "does not beat greedy (-50.0 points"),
    ],
)
def test_a_reward_is_trusted_only_as_far_as_best_of_n_by_it_beats_greedy(right: list[int], says: str) -> None:
    [line] = trust(records("greedy", [1, 0] * 15) + records("best-of-8/arithmetic", right))
    assert line.startswith(f"Reward arithmetic: best-of-8/arithmetic by it {says}")


def test_only_best_of_n_speaks_of_a_reward() -> None:
    assert trust(records("greedy", [1, 0]) + records("nabla", [1, 1]) + records("majority@8", [1, 1])) == []
    assert trust(records("best-of-8", [1, 0])) == []
    [line] = trust(records("greedy", [1, 0]) + records("best-of-8", [1, 1]))
    assert line.startswith("Reward process: best-of-8 by it")


def three() -> list[Record]:
    return records("greedy", [1, 0]) + records("nabla/random/arithmetic", [1, 1]) + records("best-of-8", [1, 0])


def test_a_row_in_words() -> None:
    _, nabla, _, oracle = summarise(three())
    low, high = wilson_interval(2, 2)
    assert cells(nabla) == (
        "nabla/random/arithmetic",
        "2",
        f"100.0 [{100 * low:.1f}, {100 * high:.1f}]",
        "0.0",
        "+50.0 [+0.0, +100.0]",
        "100.0",
        "1.50",
        "0",
        "15",
        "0",
        "0.00",
        "1.50e9",
        "0.25",
    )
    assert cells(oracle)[0] == "pass@8 (oracle)"


def printed(width: int, rows: Sequence[Record] | None = None) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(table(summarise(rows or three()), width=width))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_an_arm_with_a_changed_setting_keeps_it_in_its_name() -> None:
    assert "nabla[dto.beta=0.3]" in printed(200, records("nabla[dto.beta=0.3]", [1, 0]))


@pytest.mark.parametrize(
    ("width", "headings", "gone"),
    [
        (200, ["n", "accuracy %", "− greedy", "pool", "passes", "FLOPs", "s"], []),
        (120, ["n", "accuracy %", "− greedy", "rollouts", "backward", "FLOPs", "s"], ["pool", "passes", "generated"]),
        (90, ["accuracy %", "− greedy", "rollouts", "FLOPs"], ["forward", "pool"]),
        (72, ["accuracy %", "− greedy"], ["rollouts", "FLOPs"]),
        (45, ["accuracy %"], ["− greedy", "rollouts"]),
    ],
)
def test_a_table_has_the_columns_that_fit_and_cuts_none(width: int, headings: list[str], gone: list[str]) -> None:
    lines = printed(width).splitlines()
    assert all(heading in lines[0] for heading in headings)
    assert not any(heading in lines[0] for heading in gone)
    assert "…" not in "".join(lines)
    assert len(lines) == 1 + 4  # no row wraps
    assert all(len(line.rstrip()) <= width for line in lines)


def test_the_report_says_what_was_run_and_has_a_row_for_each_arm() -> None:
    text = markdown(Results.of(three(), [("best-of-8", "greedy")]), "nabla bench --task words --problems 2", "Notes.")
    lines = text.splitlines()
    assert lines[0].startswith("**Reward process: best-of-8 by it")
    assert "`nabla bench --task words --problems 2`" in lines
    assert lines[-1] == "Notes."
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 4 + 2 + 1
    assert {row.count("|") for row in rows[:6]} == {13}
    assert rows[0].startswith("| arm | n | accuracy % |")
    assert rows[5].startswith("| pass@8 (oracle) |")
    assert rows[8] == "| best-of-8 − greedy | 2 | +0.0 [+0.0, +0.0] | +0.00 [+0.00, +0.00] |"


def test_claims_have_a_column_where_there_are_any() -> None:
    text = markdown(
        Results.of([*records("greedy", [1]), replace(records("nabla", [0])[0], claimed=True)]), "nabla bench"
    )
    assert "| arm | n | accuracy % | claimed % |" in text
    assert "| nabla | 1 | 0.0 [0.0, 79.3] | 100.0 |" in text
    assert "“claimed” are answers" in text
    assert "claimed" not in markdown(Results.of(three()), "nabla bench")


def test_the_report_of_arms_without_best_of_n_begins_with_the_command() -> None:
    assert markdown(Results.of(records("greedy", [1])), "nabla bench").startswith("`nabla bench`")


ARMS = [
    Arm("greedy", Greedy()),
    Arm("nabla/random/arithmetic", Nabla(), "both"),
    Arm("best-of-8", BestOfN(), "process"),
]


def test_results_json_has_every_figure_and_every_outcome(tmp_path: Path) -> None:
    written = Report("nabla bench", {"problems": 2}, curves=()).write(three(), ARMS, tmp_path)
    assert written == ["results.json", "table.md", "accuracy.svg", "cost.svg"]
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert found["settings"] == {"problems": 2}
    assert found["trust"] == trust(three())
    assert [arm["arm"] for arm in found["arms"]] == [s.arm for s in summarise(three())]
    assert found["arms"][1]["gain"] == 0.5
    assert found["arms"][0]["gain"] is None
    assert found["arms"][0]["outcomes"] == {"0": "10"}
    assert found["arms"][1]["reward"] == "both"
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == markdown(Results.of(three()), "nabla bench")


def test_an_arm_is_compared_on_the_cases_that_both_have_done() -> None:
    """Of problems 0 to 3 and 2 to 4, the last two of the first: +1 and 0 right, two rollouts more on each."""
    [found] = compare(records("a", [0, 0, 1, 1]) + records("b", [0, 1, 1], first=2), [("a", "b")])
    assert (found.cases, found.difference, found.rollouts) == (2, 0.5, 2.0)
    assert found.interval == bootstrap_interval([1.0, 0.0])
    assert found.rollouts_interval == (2.0, 2.0)
    assert compare(records("a", [1]) + records("b", [1], first=5), [("a", "b")]) == []


def test_globs_compare_arm_by_arm_and_one_with_each() -> None:
    found = [r for name in ("x/p", "x/q", "y/p", "y/q", "z[a=1]/p") for r in records(name, [1])]
    pairs = compare(found, [("x/*", "y/*"), ("x/p", "y/*"), ("z[a=1]/p", "x/q"), ("no*", "y/*")])
    assert [(c.arm, c.other) for c in pairs] == [
        ("x/p", "y/p"),
        ("x/q", "y/q"),
        ("x/p", "y/p"),
        ("x/p", "y/q"),
        ("z[a=1]/p", "x/q"),
    ]
    with pytest.raises(ConfigurationError, match=r"'\*/p' with 3 arms .*'y/\*' with 2"):
        compare(found, [("*/p", "y/*")])


def test_seeds_of_one_question_are_resampled_together() -> None:
    """Two questions, two seeds each: the bootstrap sees two values, not four."""
    both = [
        replace(r, seed=seed, question=f"q{r.problem}")
        for seed, right in ((0, [1, 0]), (1, [1, 0]))
        for r in records("a", right)
    ]
    none = [replace(r, arm="b", correct=False) for r in both]
    [a, _] = summarise(both + none)
    assert a.problems == 4
    assert a.interval == bootstrap_interval([1.0, 0.0])
    [found] = compare(both + none, [("a", "b")])
    assert found.cases == 4
    assert found.interval == bootstrap_interval([1.0, 0.0])


def test_the_course_goes_on_with_what_was_found_where_a_search_has_ended() -> None:
    short, long = (
        replace(records("a", [1])[0], curve=curve)
        for curve in (((True, 2.0, -1.0),), ((False, 0.0, -2.0), (False, None, -4.0), (True, 1.0, -3.0)))
    )
    first, second, third = course([short, replace(long, problem=1)])
    assert first == {"accuracy": 0.5, "reward": 1.0, "log_likelihood": -1.5, "searching": 1.0}
    assert second == {"accuracy": 0.5, "reward": 2.0, "log_likelihood": -2.5, "searching": 0.5}
    assert third == {"accuracy": 1.0, "reward": 1.5, "log_likelihood": -2.0, "searching": 0.5}


def test_accuracy_by_cost_counts_what_would_have_been_returned_for_so_much() -> None:
    early, late = (
        replace(records("a", [1])[0], problem=i, curve=curve, costs=costs)
        for i, (curve, costs) in enumerate(
            [
                (((True, 1.0, -1.0),), ((10.0, 1e6),)),
                (((False, 0.0, -1.0), (True, 1.0, -1.0)), ((20.0, 2e6), (40.0, 8e6))),
            ]
        )
    )
    by_tokens, by_flops = by_cost([early, late], 0), by_cost([early, late], 1)
    assert [(x, y) for x, y, *_ in by_tokens] == [(k, 0.0 if k < 10 else 0.5 if k < 40 else 1.0) for k in range(1, 41)]
    assert by_tokens[9][2:] == tuple(round(edge, 5) for edge in wilson_interval(1, 2))
    assert [y for _, y, *_ in by_flops] == [0.0] * 4 + [0.5] * 35 + [1.0]
    assert by_cost(records("a", [1]), 0) == []


# ── intervals against published values, exact distributions, and the coverage they promise ────────────────────────

Z = 1.959963984540054


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_the_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_the_ends_of_wilson_are_where_the_score_test_just_rejects(n: int) -> None:
    """|k/n - p| = z √(p(1-p)/n) defines them."""
    for successes in {0, 1, n // 2, n}:
        interval = wilson_interval(successes, n)
        assert 0 <= interval[0] <= successes / n + 1e-12
        assert successes / n - 1e-12 <= interval[1] <= 1
        for p in interval:
            assert abs(successes / n - p) == pytest.approx(Z * math.sqrt(p * (1 - p) / n), abs=1e-7)
    assert wilson_interval(0, n)[0] == pytest.approx(0, abs=1e-12)
    assert wilson_interval(n, n)[1] == pytest.approx(1, abs=1e-12)


def test_without_trials_nothing_is_known() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert bootstrap_interval([]) == (-math.inf, math.inf)


def test_the_bootstrap_of_verdicts_has_the_quantiles_of_a_binomial() -> None:
    """Resampling n verdicts with k right draws Binomial(n, k/n). A percentile of 10,000 draws is off by more than one
    step of 1/n with odds below 1 in 10,000 (its standard error is 0.1 steps here), and the seed is fixed anyway.
    """
    n, k = 40, 13
    p = k / n
    distribution = np.cumsum([math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(n + 1)])
    exact = [int(np.searchsorted(distribution, q)) / n for q in (0.025, 0.975)]
    assert bootstrap_interval([1.0] * k + [0.0] * (n - k)) == pytest.approx(exact, abs=1 / n + 1e-9)


def test_the_bootstrap_of_four_differences_equals_all_resamples() -> None:
    """Among all 4^4 resamples, means of -0.75 or less have odds 5/256 = 2.0 %, of -0.5 or less 19/256 = 7.4 %, and
    of 1 1/16: the percentiles are -0.5 and 1. To miss the first, 10,000 draws must be off by 4 standard errors.
    """
    values = [-1.0, 0.0, 1.0, 1.0]
    means = [sum(draw) / 4 for draw in product(values, repeat=4)]
    assert bootstrap_interval(values) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1e-12)


def test_the_bootstrap_covers_the_mean_as_often_as_it_says() -> None:
    """400 samples of 100 differences: the percentile bootstrap covers in 94 to 95 % of cases; fewer than 90 % or more
    than 99 % have odds below 1 in 1,000.
    """
    random, truth = np.random.default_rng(0), 0.3 - 0.1
    covered = 0
    for _ in range(400):
        values = random.choice([-1.0, 0.0, 1.0], size=100, p=[0.1, 0.6, 0.3])
        low, high = bootstrap_interval(values.tolist(), resamples=1000)
        covered += low <= truth <= high
    assert 360 <= covered <= 396


def test_the_same_values_give_the_same_interval_in_any_order() -> None:
    values = [1.0, 0.0, -1.0, 1.0, 0.0, 0.0, 1.0]
    assert bootstrap_interval(values) == bootstrap_interval(values[::-1]) == bootstrap_interval(values, seed=0)
    assert bootstrap_interval([8, 8, 8]) == (8.0, 8.0)
