# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The metrics of GLUE's tasks."""

import math

import evaluate
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from glue_evaluation import METRIC_MODULE
from glue_metric import METRICS
from tiny_bert import SCRIPT  # noqa: F401  (tells where the script's modules are)


# GLUE's metrics


def metric(task: str, predictions: list, references: list) -> dict[str, float]:
    return evaluate.load(METRIC_MODULE, task).compute(predictions=predictions, references=references)


PREDICTED, TRUE = [1, 0, 1, 1, 0, 1, 0, 1], [1, 0, 0, 1, 0, 1, 1, 0]  # 3 true and 2 false positives, 1 false negative
VALUES, TRUE_VALUES = [0.1, 2.5, 2.4, 4.0, -1.0, 5.5], [0.0, 3.0, 2.0, 2.0, 1.0, 5.0]


def test_metrics_equal_scikit_learn_and_scipy():
    accuracy, f1 = 5 / 8, 2 * 3 / (2 * 3 + 2 + 1)
    for task in ("sst2", "mnli", "mnli_matched", "mnli_mismatched", "qnli", "rte", "wnli"):
        assert metric(task, PREDICTED, TRUE) == {"accuracy": accuracy}
    for task in ("mrpc", "qqp"):
        assert metric(task, PREDICTED, TRUE) == pytest.approx({"accuracy": accuracy, "f1": f1})
    assert f1 == pytest.approx(sklearn.metrics.f1_score(TRUE, PREDICTED))
    matthews = (3 * 2 - 2 * 1) / math.sqrt(5 * 4 * 4 * 3)
    assert matthews == pytest.approx(sklearn.metrics.matthews_corrcoef(TRUE, PREDICTED))
    assert metric("cola", PREDICTED, TRUE) == {"matthews_correlation": pytest.approx(matthews)}
    correlations = {
        "pearson": np.corrcoef(VALUES, TRUE_VALUES)[0, 1],
        "spearmanr": np.corrcoef(scipy.stats.rankdata(VALUES), scipy.stats.rankdata(TRUE_VALUES))[0, 1],
    }
    assert metric("stsb", VALUES, TRUE_VALUES) == pytest.approx(correlations)
    error = sum((a - b) ** 2 for a, b in zip(VALUES, TRUE_VALUES, strict=True)) / 6
    assert metric("regression", VALUES, TRUE_VALUES) == pytest.approx({**correlations, "mse": error})
    three, true_three = [0, 1, 2, 2, 1, 0], [0, 2, 2, 1, 1, 1]
    f1s = [2 * 1 / (2 + 1), 2 * 1 / (2 + 3), 2 * 1 / (2 + 2)]
    assert metric("classification", three, true_three) == pytest.approx({"accuracy": 3 / 6, "macro_f1": sum(f1s) / 3})


@pytest.mark.parametrize("task", METRICS)
def test_constant_predictions_have_a_score(task):
    for predictions, references in (([1] * 4, [0, 1, 1, 0]), ([0, 1, 1, 0], [0] * 4), ([1] * 4, [1] * 4)):
        scores = metric(task, predictions, references)
        assert all(math.isfinite(value) for value in scores.values())
        if "pearson" in scores:
            assert scores["pearson"] == scores["spearmanr"] == 0


def test_nothing_to_score_and_an_unknown_task_are_errors():
    with pytest.raises(ValueError, match="no predictions to score"):
        metric("sst2", [], [])
    with pytest.raises(KeyError, match="no GLUE task 'sst3'; choose one of cola, sst2"):
        metric("sst3", [1], [1])
