# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a model of sentences is worth: its outputs, metrics and predictions."""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import evaluate
import numpy as np
import torch
from task_data import TaskData

from ea_hf.training.local_files import written_whole
from ea_hf.training.task import Task, check_finite
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)

METRIC_MODULE = str(Path(__file__).with_name("glue_metric.py"))
# Names of the files that the GLUE server takes, by task and split.
SUBMISSION_FILES = {
    ("cola", "test"): "CoLA.tsv",
    ("mnli", "test_matched"): "MNLI-m.tsv",
    ("mnli", "test_mismatched"): "MNLI-mm.tsv",
    ("mnli", "ax"): "AX.tsv",
    ("mrpc", "test"): "MRPC.tsv",
    ("qnli", "test"): "QNLI.tsv",
    ("qqp", "test"): "QQP.tsv",
    ("rte", "test"): "RTE.tsv",
    ("sst2", "test"): "SST-2.tsv",
    ("stsb", "test"): "STS-B.tsv",
    ("wnli", "test"): "WNLI.tsv",
}
PREDICTIONS_FILE = "predictions.tsv"
# The server takes the names of these tasks' labels, and the indices of the others'.
NAMED_LABELS = ("mnli", "qnli", "rte")


@dataclass
class GlueTask(Task):
    """A task of GLUE, or one of local files; `datasets` have token ids, `labels` and a `length`."""

    data: TaskData

    @cached_property
    def metric(self) -> evaluate.EvaluationModule:
        return load_metric(self.args, self.data)

    @cached_property
    def references(self) -> dict[str, Sequence]:
        """The labels of all validation splits, as the metric takes them."""
        labels = {name: split["labels"] for name, split in self.datasets.items() if name.startswith("validation")}
        if self.data.labels is None:
            return labels
        return {name: to_task_labels(values, self.data) for name, values in labels.items()}

    def predict_logits(self, model: torch.nn.Module, name: str) -> np.ndarray:
        """(examples, labels), in the order of the split."""

        def forward(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> list[np.ndarray]:
            batch.pop("labels", None)
            return list(model(**batch).logits.float().cpu().numpy())

        logits = np.stack(self.run_model(model, name, forward, lengths=self.datasets[name]["length"]))
        finite = np.isfinite(logits).all(axis=1)
        check_finite(finite, f"examples of {name}", lambda index: f"example {index} (counted from 0)")
        return logits

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """Scores of all validation splits; MNLI's two give `accuracy` (matched) and `accuracy_mismatched`."""
        metrics = {}
        for name, references in self.references.items():
            predictions = to_predictions(self.predict_logits(model, name), self.data)
            values = self.metric.compute(predictions=predictions, references=references)
            suffix = "_mismatched" if name.endswith("_mismatched") else ""
            metrics |= {key + suffix: value for key, value in values.items()}
        return metrics

    def predict(self, model: torch.nn.Module) -> None:
        """Writes a tab-separated file per test split: `index`, `prediction`; for GLUE's tasks as the server takes them."""
        task_name, labels = self.args.task_name, self.data.task_labels
        for name in self.datasets:
            if not name.startswith("test") and name != "ax":
                continue
            predictions = to_predictions(self.predict_logits(model, name), self.data)
            if self.data.labels is None and task_name == "stsb":
                rows = [f"{min(max(value, 0.0), 5.0):.3f}" for value in predictions]
            elif self.data.labels is None:
                rows = [repr(float(value)) for value in predictions]
            elif task_name is None or task_name in NAMED_LABELS:
                rows = [labels[index] for index in predictions]
            else:
                rows = [str(index) for index in predictions]
            path = self.args.output_dir / SUBMISSION_FILES.get((task_name, name), PREDICTIONS_FILE)
            if self.accelerator.is_main_process:
                with written_whole(path, newline="") as file:
                    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
                    writer.writerow(("index", "prediction"))
                    writer.writerows(enumerate(rows))
            logger.info(f"Predictions of {name}: {path}")


def to_predictions(logits: np.ndarray, data: TaskData) -> np.ndarray:
    """Values, or indices of `data.task_labels`."""
    if data.labels is None:
        return logits[:, 0].astype(np.float64)
    return to_task_labels(logits.argmax(axis=1), data)


def to_task_labels(indices: Sequence[int], data: TaskData) -> np.ndarray:
    """From the model's order of the labels to the task's, in which GLUE's metrics and its server count."""
    return np.array([data.task_labels.index(label) for label in data.labels])[indices]


def metric_names(args: argparse.Namespace, data: TaskData) -> list[str]:
    """What an evaluation gives, the one that tells the best checkpoint first; nothing if there is nothing to evaluate on."""
    if not any(name.startswith("validation") for name in data.splits):
        return []
    names = list(load_metric(args, data).compute(predictions=[0, 1], references=[0, 1]))
    return names + [f"{name}_mismatched" for name in names if "validation_mismatched" in data.splits]


def load_metric(args: argparse.Namespace, data: TaskData) -> evaluate.EvaluationModule:
    local_files = "regression" if data.labels is None else "classification"
    return evaluate.load(METRIC_MODULE, args.task_name or local_files)
