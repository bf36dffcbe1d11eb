# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The statistics of `benchmarks/variants.py`: paired by seed, corrected for many comparisons, and with their power."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize, stats


LEVEL, POWER = 0.05, 0.8


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of pairs, one a seed.

    Args:
        mean: of the differences.
        half_width: of the 95 % interval of the mean, Student's t.
        p: of the paired t test, two-sided.
        seeds: how many pairs.
        visible: smallest true difference that the test would find in 80 of 100 such studies.
    """

    mean: float
    half_width: float
    p: float
    seeds: int
    visible: float

    @property
    def is_apart(self) -> bool:
        """Whether the interval leaves 0 out."""
        return abs(self.mean) > self.half_width


def paired(differences: Sequence[float]) -> Difference | None:
    """`None` for fewer than two differences, which have no spread."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return None
    freedom, error = len(values) - 1, values.std(ddof=1) / math.sqrt(len(values))
    mean = float(values.mean())
    half_width = float(stats.t.ppf(1 - LEVEL / 2, freedom) * error)
    p = float(2 * stats.t.sf(abs(mean) / error, freedom)) if error > 0 else float(mean == 0)
    return Difference(mean, half_width, p, len(values), visible_effect(float(values.std(ddof=1)), len(values)))


def power(effect: float, deviation: float, seeds: int) -> float:
    """Probability that a two-sided paired t test finds a true mean difference."""
    freedom = seeds - 1
    # Over the quantiles of the deviation that a study measures: scipy's noncentral t is NaN for few degrees of freedom.
    quantiles = (np.arange(2000) + 0.5) / 2000
    limits = stats.t.ppf(1 - LEVEL / 2, freedom) * np.sqrt(stats.chi2.ppf(quantiles, freedom) / freedom)
    shift = effect / deviation * math.sqrt(seeds)
    return float(np.mean(stats.norm.sf(limits - shift) + stats.norm.cdf(-limits - shift)))


@functools.cache
def _visible_deviations(seeds: int) -> float:
    return float(optimize.brentq(lambda effect: power(effect, 1.0, seeds) - POWER, 1e-3, 100.0))


def visible_effect(deviation: float, seeds: int) -> float:
    """The smallest mean difference with the power of 80 %."""
    return deviation * _visible_deviations(seeds)


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction of p values, by the same keys."""
    corrected, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(values) - rank) * p))
        corrected[name] = largest
    return {name: corrected[name] for name in values}


def mean_ranks(scores: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Ranks of variants over tasks; 1 is best.

    Args:
        scores: (task, variant), larger is better.

    Returns:
        Mean rank of each variant; the p value of Friedman's test (1 for fewer than three variants); the critical
        difference of Nemenyi's test, by which two mean ranks have to differ.
    """
    tasks, variants = scores.shape
    ranks = stats.rankdata(-scores, axis=1).mean(axis=0)
    p = float(stats.friedmanchisquare(*scores.T).pvalue) if variants > 2 and tasks > 1 else 1.0
    quantile = stats.studentized_range.ppf(1 - LEVEL, variants, 1e6) / math.sqrt(2)
    return ranks, p, float(quantile * math.sqrt(variants * (variants + 1) / (6 * tasks)))


def time_matched(vanilla: float, longer: float, factor: float, cost: float) -> float:
    """Vanilla's value had it been trained for `cost` times its time: between its own and that of `factor` times the steps.

    It is linear in the logarithm of the steps, and outside of what was measured the nearer of the two.
    """
    share = min(1.0, max(0.0, math.log(cost) / math.log(factor)))
    return vanilla + share * (longer - vanilla)
