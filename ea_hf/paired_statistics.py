# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Statistics of runs that are paired by their seeds: intervals, corrections for many comparisons, and their power."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from scipy import optimize, stats


LEVEL, POWER = 0.05, 0.8
MINIMUM_SEEDS = 3  # for a verdict
Key = TypeVar("Key")


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of pairs, one a seed.

    Args:
        mean: of the differences.
        half_width: of the 95 % interval of the mean, Student's t.
        p: of the paired t test, two-sided; of the sign test where all differences are equal, as scores of few test items
            may be: without a spread the t test would take two such seeds for certain.
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
    freedom, mean, deviation = len(values) - 1, float(values.mean()), float(values.std(ddof=1))
    if deviation <= 1e-9 * abs(mean):  # all equal, but for rounding
        return Difference(mean, 0.0, 1.0 if mean == 0 else 0.5**freedom, len(values), 0.0)
    error = deviation / math.sqrt(len(values))
    half_width = float(stats.t.ppf(1 - LEVEL / 2, freedom) * error)
    p = float(2 * stats.t.sf(abs(mean) / error, freedom))
    return Difference(mean, half_width, p, len(values), visible_effect(deviation, len(values)))


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


def holm(values: Mapping[Key, float]) -> dict[Key, float]:
    """Holm's step-down correction of p values, by the same keys."""
    corrected, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(values) - rank) * p))
        corrected[name] = largest
    return {name: corrected[name] for name in values}
