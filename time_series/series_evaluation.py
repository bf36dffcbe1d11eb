# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a model of series is worth: its outputs, metrics and predictions."""

import argparse
import csv
import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from scipy.special import log_softmax
from series_data import (
    CLASSIFICATION,
    REGRESSION,
    SeriesData,
)
from series_models import MASKED_IMPUTATION, SeriesDataset, collate
from sklearn.metrics import f1_score, mean_absolute_error, root_mean_squared_error

from ea_hf import (
    EADCTransformerFeatureExtractor,
)
from ea_hf.training.batching import predict
from ea_hf.training.loop import format_metrics


logger = logging.getLogger(__name__)

# What evaluations give, the one that tells the best checkpoint first. All but these are better when they are lower.
METRICS = {
    CLASSIFICATION: ("accuracy", "f1", "loss"),
    REGRESSION: ("rmse", "mae"),
    MASKED_IMPUTATION: ("loss",),
}
GREATER_IS_BETTER = ("accuracy", "f1")
PREDICTIONS_FILE = "predictions.csv"


def find_best_metric(args: argparse.Namespace, task: str) -> str:
    """Which metric tells the best checkpoint."""
    names = METRICS[task]
    if args.metric_for_best_model not in (None, *names):
        raise ValueError(
            f"--metric_for_best_model is {args.metric_for_best_model!r}, but the evaluation gives {', '.join(names)}."
        )
    return args.metric_for_best_model or names[0]


def run_model(
    args: argparse.Namespace,
    accelerator: Accelerator,
    dataset: SeriesDataset,
    extractor: EADCTransformerFeatureExtractor,
    name: str,
    forward: Callable[[torch.nn.Module, dict[str, torch.Tensor]], list[list[float]]],
    model: torch.nn.Module,
) -> np.ndarray:
    """What `forward` gives for each series; raises ValueError if it is not finite."""
    rows = np.array(
        predict(
            accelerator,
            model,
            dataset,
            partial(collate, extractor),
            args.per_device_eval_batch_size,
            forward,
            lengths=[len(values) for values in dataset.values],
            num_workers=args.dataloader_num_workers,
        )
    )
    wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(wrong) > 0:
        raise ValueError(
            f"The model gives NaN or infinity for {len(wrong)} of {len(rows)} series of {name}, first for "
            f"{dataset.split.names[int(wrong[0])]}."
        )
    return rows


def compute_outputs(
    args: argparse.Namespace,
    accelerator: Accelerator,
    dataset: SeriesDataset,
    extractor: EADCTransformerFeatureExtractor,
    name: str,
    model: torch.nn.Module,
) -> np.ndarray:
    """The logits, (series, classes), or the predictions in the units of the targets, (series, targets)."""

    def forward(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> list[list[float]]:
        batch = {key: value for key, value in batch.items() if key != "labels"}
        return model(**batch).logits.float().cpu().tolist()

    rows = run_model(args, accelerator, dataset, extractor, name, forward, model)
    return rows if extractor.target_mean is None else extractor.restore_targets(rows)


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


def imputation_loss(
    args: argparse.Namespace,
    accelerator: Accelerator,
    dataset: SeriesDataset,
    extractor: EADCTransformerFeatureExtractor,
    model: torch.nn.Module,
) -> dict[str, float]:
    """The mean squared error at hidden values, which are always the same."""

    def forward(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> list[list[float]]:
        # Without names, the state of all devices would be kept, which takes memory on each of them.
        with torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []):
            torch.manual_seed(0)
            mask = accelerator.unwrap_model(model).draw_mask(batch["past_values"])
        outputs = model(**batch, bool_masked_pos=mask)
        hidden = outputs.mask.bool()
        errors = (outputs.logits.float() - batch["labels"]).square().where(hidden, 0.0)
        return torch.stack([errors.sum((1, 2)), hidden.sum((1, 2))], dim=1).cpu().tolist()

    sums = run_model(args, accelerator, dataset, extractor, "validation", forward, model).sum(axis=0)
    return {"loss": float(sums[0] / max(1.0, sums[1]))}


def evaluate(
    args: argparse.Namespace,
    accelerator: Accelerator,
    dataset: SeriesDataset,
    extractor: EADCTransformerFeatureExtractor,
    task: str,
    model: torch.nn.Module,
) -> dict[str, float]:
    """The scores of the validation series."""
    if task == MASKED_IMPUTATION:
        return imputation_loss(args, accelerator, dataset, extractor, model)
    outputs = compute_outputs(args, accelerator, dataset, extractor, "validation", model)
    return compute_metrics(task, outputs, dataset.split.labels)


def write_predictions(
    args: argparse.Namespace,
    accelerator: Accelerator,
    dataset: SeriesDataset,
    extractor: EADCTransformerFeatureExtractor,
    data: SeriesData,
    model: torch.nn.Module,
) -> dict[str, float]:
    """Writes predictions.csv: series, predictions, and the labels if they are known; then returns the scores."""
    outputs = compute_outputs(args, accelerator, dataset, extractor, "test", model)
    truth = dataset.split.labels
    if data.task == CLASSIFICATION:
        columns = [("prediction", [data.labels[index] for index in outputs.argmax(axis=1)])]
        if truth is not None:
            columns.append(("label", [data.labels[index] for index in truth]))
    else:
        columns = [
            (f"{kind}" if len(data.labels) == 1 else f"{kind}_{name}", values[:, index].tolist())
            for kind, values in (("prediction", outputs), ("label", truth))
            if values is not None
            for index, name in enumerate(data.labels)
        ]
    path = args.output_dir / PREDICTIONS_FILE
    if accelerator.is_main_process:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["series", *(name for name, _ in columns)])
            writer.writerows(zip(dataset.split.names, *(values for _, values in columns), strict=True))
    logger.info(f"Predictions of test: {path}")
    if truth is None:
        return {}
    metrics = compute_metrics(data.task, outputs, truth)
    logger.info(f"Test: {format_metrics(metrics)}")
    return {f"test_{name}": value for name, value in metrics.items()}
