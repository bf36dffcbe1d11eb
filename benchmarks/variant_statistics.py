# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks/variants.py` needs beside `ea_hf.paired_statistics`: ranks and means over tasks, equal time, and many variants of few seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from ea_hf.paired_statistics import LEVEL, POWER, Difference, paired


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


def mean_of_tasks(differences: Sequence[Sequence[float]]) -> Difference | None:
    """The mean, over tasks, of each task's mean difference; `None` if a task has fewer than two.

    The tasks are fixed and their seeds independent, so errors add up in squares, with Satterthwaite's degrees of freedom
    (Welch 1947). `seeds` is the least of the tasks'.
    """
    if len(differences) < 2:
        return paired(differences[0]) if differences else None
    counts = [len(values) for values in differences]
    if min(counts) < 2:
        return None
    mean = statistics.fmean(map(statistics.fmean, differences))
    squares = [statistics.variance(values) / len(values) for values in differences]
    error = math.sqrt(sum(squares)) / len(differences)
    if error <= 1e-9 * abs(mean):  # see `paired`
        return Difference(mean, 0.0, 1.0 if mean == 0 else 0.5 ** (min(counts) - 1), min(counts), 0.0)
    freedom = sum(squares) ** 2 / sum(square**2 / (count - 1) for square, count in zip(squares, counts, strict=True))
    quantile = float(stats.t.ppf(1 - LEVEL / 2, freedom))
    p = float(2 * stats.t.sf(abs(mean) / error, freedom))
    visible = (quantile + float(stats.t.ppf(POWER, freedom))) * error
    return Difference(mean, quantile * error, p, min(counts), visible)


class SeedsAndVariants:
    """Values as the sum of what a seed and what a variant adds, and noise whose size is the same for all variants.

    That is a randomized block design. A few seeds of many variants then tell the size of the noise better than those of one
    variant would, as in Dunnett's comparisons with a control.

    Args:
        values: by variant and seed; larger is better. A variant may lack seeds.
    """

    def __init__(self, values: Mapping[str, Mapping[int, float]]):
        self.values = {name: dict(own) for name, own in values.items() if own}
        self.names = list(self.values)
        seeds = sorted({seed for own in self.values.values() for seed in own})
        cells = [(name, seed) for name, own in self.values.items() for seed in own]
        design = np.zeros((len(cells), len(self.names) + len(seeds)))
        for row, (name, seed) in enumerate(cells):
            design[row, self.names.index(name)] = design[row, len(self.names) + seeds.index(seed)] = 1
        observed = np.array([self.values[name][seed] for name, seed in cells])
        self.inverse = np.linalg.pinv(design.T @ design)
        self.effects = self.inverse @ design.T @ observed
        self.freedom = len(cells) - int(np.linalg.matrix_rank(design)) if cells else 0
        residuals = observed - design @ self.effects
        self.variance = float(residuals @ residuals) / self.freedom if self.freedom > 0 else math.nan

    def difference(self, name: str, other: str) -> Difference | None:
        """Of two variants; `None` if they or the degrees of freedom are too few."""
        if name not in self.values or other not in self.values or self.freedom < 1:
            return None
        contrast = np.zeros(len(self.effects))
        contrast[self.names.index(name)], contrast[self.names.index(other)] = 1, -1
        mean = float(contrast @ self.effects)
        error = math.sqrt(self.variance * float(contrast @ self.inverse @ contrast))
        quantile = float(stats.t.ppf(1 - LEVEL / 2, self.freedom))
        p = float(2 * stats.t.sf(abs(mean) / error, self.freedom)) if error > 0 else float(mean == 0)
        visible = (quantile + float(stats.t.ppf(POWER, self.freedom))) * error
        seeds = len(set(self.values[name]) & set(self.values[other]))
        return Difference(mean, quantile * error, p, seeds, visible)
