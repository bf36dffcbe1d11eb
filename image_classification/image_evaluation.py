# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a model of images is worth: its classes, metrics and predictions."""

import csv
import time
from dataclasses import dataclass

import numpy as np
import torch

from ea_hf.training.task import Task, check_finite
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)


@dataclass
class ImageTask(Task):
    """Images with classes, whose names are `labels`; `datasets` are `ImageDataset`s."""

    labels: list[str]

    def classify(self, model: torch.nn.Module, name: str) -> np.ndarray:
        """The predicted class of each image, and how many classes came before the right one, (images, 2)."""

        def forward(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
            logits = model(pixel_values=batch["pixel_values"]).logits.float()
            ranks = torch.zeros(len(logits), dtype=torch.long)
            if "labels" in batch:
                ranks = (logits > logits.gather(1, batch["labels"][:, None])).sum(1)
            finite = torch.isfinite(logits).all(1)
            rows = torch.stack([logits.argmax(1).cpu(), torch.where(finite.cpu(), ranks.cpu(), -1)], dim=1)
            return rows.tolist()

        started = time.perf_counter()
        rows = np.array(self.run_model(model, name, forward))
        seconds = time.perf_counter() - started
        logger.info(
            f"Classified {len(rows)} images of {name} in {seconds:.1f} s, {len(rows) / seconds:.0f} per second."
        )
        check_finite(rows[:, 1] >= 0, f"images of {name}", lambda index: self.datasets[name].split.names[index])
        return rows

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        labels = self.datasets["validation"].split.labels
        return accuracies(self.classify(model, "validation"), labels, len(self.labels))

    def predict(self, model: torch.nn.Module) -> dict[str, float]:
        """Writes predictions.csv: image, predicted class, and the right one if it is known; returns the accuracy."""
        rows = self.classify(model, "test")
        split = self.datasets["test"].split
        path = self.args.output_dir / "predictions.csv"
        if self.accelerator.is_main_process:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(("image", "prediction") if split.labels is None else ("image", "prediction", "label"))
                for index, (prediction, _) in enumerate(rows):
                    known = [] if split.labels is None else [self.labels[split.labels[index]]]
                    writer.writerow([split.names[index], self.labels[prediction], *known])
        logger.info(f"Predictions of test: {path}")
        if split.labels is None:
            return {}
        scores = accuracies(rows, split.labels, len(self.labels))
        return {f"test_{name}": value for name, value in scores.items()}


def metric_names(num_labels: int) -> list[str]:
    """What an evaluation gives, the one that tells the best checkpoint first."""
    return ["accuracy"] + ["top5_accuracy"] * (num_labels > 5)


def accuracies(rows: np.ndarray, labels: np.ndarray, num_labels: int) -> dict[str, float]:
    """Share of images whose class is the first one, and, with more than five classes, one of the first five."""
    metrics = {"accuracy": float((rows[:, 0] == labels).mean())}
    if num_labels > 5:
        metrics["top5_accuracy"] = float((rows[:, 1] < 5).mean())
    return metrics
