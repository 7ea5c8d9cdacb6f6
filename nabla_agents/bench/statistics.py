"""95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.959963984540054  # of a normal distribution, 95 % two-sided


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Of a proportion (Wilson 1927): sensible for few trials and at 0 and 1, where a bootstrap has no width."""
    if n == 0:
        return (0.0, 1.0)
    p, z2 = successes / n, _Z * _Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return (max(0.0, centre - half), min(1.0, centre + half))


def bootstrap_interval(values: Sequence[int | float], *, seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """Of the mean: 2.5th and 97.5th percentile over resamples with replacement. For paired arms, `values` are the
    differences per problem.

    Values repeat (differences of two verdicts are -1, 0 or 1), so a resample is one multinomial draw of their counts.
    """
    n = len(values)
    if n == 0:
        return (-math.inf, math.inf)
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    low, high = np.percentile(draws @ distinct / n, [2.5, 97.5])
    return (float(low), float(high))
