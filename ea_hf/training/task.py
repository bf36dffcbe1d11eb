# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a model is trained to do: how it is scored, and what it predicts."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from .batching import predict


@dataclass
class Task:
    """Scores a model on validation data and writes its predictions of test data; `run` says when.

    Attributes:
        datasets: by split: "train", and those to validate on, whose names begin with "validation".
        collate: makes batches of their examples.
    """

    args: argparse.Namespace
    accelerator: Accelerator
    datasets: dict[str, Any]
    collate: Callable[[list], dict[str, torch.Tensor]]

    @property
    def can_evaluate(self) -> bool:
        return any(name.startswith("validation") for name in self.datasets)

    @property
    def can_predict(self) -> bool:
        return self.args.do_predict

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """The metrics of a model."""
        raise NotImplementedError

    def predict(self, model: torch.nn.Module) -> dict[str, Any] | None:
        """Writes predictions; may return results."""
        raise NotImplementedError

    def run_model(
        self,
        model: torch.nn.Module,
        name: str,
        forward: Callable[[torch.nn.Module, dict[str, torch.Tensor]], Sequence],
        lengths: Sequence[int] | None = None,
        description: str = "evaluating",
    ) -> list:
        """What `forward` gives for each example of the split `name`, in its order; see `batching.predict`."""
        return predict(
            self.accelerator,
            model,
            self.datasets[name],
            self.collate,
            self.args.per_device_eval_batch_size,
            forward,
            lengths=lengths,
            num_workers=self.args.dataloader_num_workers,
            description=description,
        )


def check_finite(finite: np.ndarray, examples: str, name_of: Callable[[int], str]) -> None:
    """Raises ValueError if the outputs of a model are not finite for some example.

    Args:
        finite: whether they are, (examples).
        examples: what they are, for the message.
        name_of: takes the index of an example.
    """
    wrong = np.flatnonzero(~finite)
    if len(wrong) > 0:
        raise ValueError(
            f"The model gives NaN or infinity for {len(wrong)} of {len(finite)} {examples}, first for "
            f"{name_of(int(wrong[0]))}."
        )


def find_best_metric(args: argparse.Namespace, names: Sequence[str]) -> str | None:
    """Which of the metrics tells the best checkpoint: the first one, or that of `--metric_for_best_model`.

    `None` if there are no metrics, as there is nothing to evaluate on.
    """
    if not names:
        return None
    if args.metric_for_best_model not in (None, *names):
        raise ValueError(
            f"--metric_for_best_model is {args.metric_for_best_model!r}, but the evaluation gives {', '.join(names)}."
        )
    return args.metric_for_best_model or names[0]
