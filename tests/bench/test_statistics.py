"""Intervals against published values, exact distributions, and the coverage they promise."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from nabla_agents.bench import bootstrap_interval, wilson_interval

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
