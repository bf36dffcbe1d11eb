# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks/variants.py` needs beside `ea_hf.paired_statistics`: ranks over tasks, and equal time."""

import math

import numpy as np
from scipy import stats

from ea_hf.paired_statistics import LEVEL


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
