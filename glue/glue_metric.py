# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""GLUE's metrics as a local `evaluate` module: `evaluate.load("glue/glue_metric.py", "mrpc")` needs no network.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", ICLR 2019,
https://arxiv.org/abs/1804.07461, table 1.
"""

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def accuracy(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    return {"accuracy": float(accuracy_score(references, predictions))}


def accuracy_and_f1(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    return {**accuracy(predictions, references), "f1": float(f1_score(references, predictions, zero_division=0.0))}


def accuracy_and_macro_f1(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    f1 = f1_score(references, predictions, average="macro", zero_division=0.0)
    return {**accuracy(predictions, references), "macro_f1": float(f1)}


def matthews(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}


def correlations(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """0 where one side is constant, and a correlation is not defined."""
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return {"pearson": 0.0, "spearmanr": 0.0}
    return {
        "pearson": float(pearsonr(predictions, references)[0]),
        "spearmanr": float(spearmanr(predictions, references)[0]),
    }


def correlations_and_error(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    error = float(np.mean((predictions - references) ** 2))
    return {**correlations(predictions, references), "mse": error}


METRICS = {
    "cola": matthews,
    "sst2": accuracy,
    "mrpc": accuracy_and_f1,
    "qqp": accuracy_and_f1,
    "stsb": correlations,
    "mnli": accuracy,
    "mnli_matched": accuracy,
    "mnli_mismatched": accuracy,
    "qnli": accuracy,
    "rte": accuracy,
    "wnli": accuracy,
    # For local files.
    "classification": accuracy_and_macro_f1,
    "regression": correlations_and_error,
}
REGRESSION = ("stsb", "regression")


class GlueMetric(evaluate.Metric):
    """Takes predicted and reference labels (int), or values (float) for stsb and regression."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in METRICS:
            raise KeyError(f"There is no GLUE task {self.config_name!r}; choose one of {', '.join(METRICS)}.")
        value = datasets.Value("float64" if self.config_name in REGRESSION else "int64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=GlueMetric.__doc__,
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        if len(references) == 0:
            raise ValueError("There are no predictions to score.")
        return METRICS[self.config_name](np.asarray(predictions), np.asarray(references))
