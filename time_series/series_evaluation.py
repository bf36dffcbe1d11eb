# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a model of series is worth: its outputs, metrics and predictions."""

import csv
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import log_softmax
from series_data import (
    CLASSIFICATION,
    REGRESSION,
    SeriesData,
)
from series_models import MASKED_IMPUTATION
from sklearn.metrics import f1_score, mean_absolute_error, root_mean_squared_error

from ea_hf import (
    EADCTransformerFeatureExtractor,
)
from ea_hf.training.loop import format_metrics
from ea_hf.training.task import Task, check_finite
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)

# What evaluations give, the one that tells the best checkpoint first. All but these are better when they are lower.
METRICS = {
    CLASSIFICATION: ("accuracy", "f1", "loss"),
    REGRESSION: ("rmse", "mae"),
    MASKED_IMPUTATION: ("loss",),
}
GREATER_IS_BETTER = ("accuracy", "f1")
PREDICTIONS_FILE = "predictions.csv"


@dataclass
class SeriesTask(Task):
    """Series with classes or targets, or gaps to fill; `datasets` are `SeriesDataset`s."""

    extractor: EADCTransformerFeatureExtractor
    data: SeriesData

    @property
    def can_predict(self) -> bool:
        return "test" in self.datasets

    def finite_rows(
        self,
        model: torch.nn.Module,
        name: str,
        forward: Callable[[torch.nn.Module, dict[str, torch.Tensor]], list[list[float]]],
    ) -> np.ndarray:
        """What `forward` gives for each series; raises ValueError if it is not finite."""
        dataset = self.datasets[name]
        rows = np.array(self.run_model(model, name, forward, lengths=[len(values) for values in dataset.values]))
        check_finite(np.isfinite(rows).all(axis=1), f"series of {name}", lambda index: dataset.split.names[index])
        return rows

    def compute_outputs(self, model: torch.nn.Module, name: str) -> np.ndarray:
        """The logits, (series, classes), or the predictions in the units of the targets, (series, targets)."""

        def forward(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> list[list[float]]:
            batch = {key: value for key, value in batch.items() if key != "labels"}
            return model(**batch).logits.float().cpu().tolist()

        rows = self.finite_rows(model, name, forward)
        return rows if self.extractor.target_mean is None else self.extractor.restore_targets(rows)

    def imputation_loss(self, model: torch.nn.Module) -> dict[str, float]:
        """The mean squared error at hidden values, which are always the same."""

        def forward(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> list[list[float]]:
            device = self.accelerator.device
            # Without names, the state of all devices would be kept, which takes memory on each of them.
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(0)
                mask = self.accelerator.unwrap_model(model).draw_mask(batch["past_values"])
            outputs = model(**batch, bool_masked_pos=mask)
            hidden = outputs.mask.bool()
            errors = (outputs.logits.float() - batch["labels"]).square().where(hidden, 0.0)
            return torch.stack([errors.sum((1, 2)), hidden.sum((1, 2))], dim=1).cpu().tolist()

        sums = self.finite_rows(model, "validation", forward).sum(axis=0)
        return {"loss": float(sums[0] / max(1.0, sums[1]))}

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        if self.data.task == MASKED_IMPUTATION:
            return self.imputation_loss(model)
        outputs = self.compute_outputs(model, "validation")
        return compute_metrics(self.data.task, outputs, self.datasets["validation"].split.labels)

    def predict(self, model: torch.nn.Module) -> dict[str, float]:
        """Writes predictions.csv: series, predictions, and the labels if they are known; then returns the scores."""
        outputs, split, labels = self.compute_outputs(model, "test"), self.datasets["test"].split, self.data.labels
        if self.data.task == CLASSIFICATION:
            columns = [("prediction", [labels[index] for index in outputs.argmax(axis=1)])]
            if split.labels is not None:
                columns.append(("label", [labels[index] for index in split.labels]))
        else:
            columns = [
                (f"{kind}" if len(labels) == 1 else f"{kind}_{name}", values[:, index].tolist())
                for kind, values in (("prediction", outputs), ("label", split.labels))
                if values is not None
                for index, name in enumerate(labels)
            ]
        path = self.args.output_dir / PREDICTIONS_FILE
        if self.accelerator.is_main_process:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["series", *(name for name, _ in columns)])
                writer.writerows(zip(split.names, *(values for _, values in columns), strict=True))
        logger.info(f"Predictions of test: {path}")
        if split.labels is None:
            return {}
        metrics = compute_metrics(self.data.task, outputs, split.labels)
        logger.info(f"Test: {format_metrics(metrics)}")
        return {f"test_{name}": value for name, value in metrics.items()}


def compute_metrics(task: str, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of logits, (series, classes), or of predictions, (series, targets).

    Of a classification: accuracy, F1 (the mean over the classes that occur) and the cross-entropy. Of a regression: the
    roots of the mean squared errors and the mean absolute errors, in the targets' units, their mean over the targets.
    """
    if task == CLASSIFICATION:
        predicted = outputs.argmax(axis=1)
        return {
            "accuracy": float((predicted == labels).mean()),
            "f1": float(f1_score(labels, predicted, average="macro", labels=np.unique(labels), zero_division=0)),
            "loss": float(-log_softmax(outputs, axis=1)[np.arange(len(labels)), labels].mean()),
        }
    return {
        "rmse": float(root_mean_squared_error(labels, outputs)),
        "mae": float(mean_absolute_error(labels, outputs)),
    }
