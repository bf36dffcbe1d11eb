# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Where a run stands, and what makes it this run and no other."""

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from ..undocumented import was_loaded
from .streaming import Stream


logger = logging.getLogger(__name__)

# Arguments that a checkpoint notes.
SETTINGS = (
    *("seed", "optim", "optim_args", "learning_rate", "ea_learning_rate", "weight_decay"),
    *("max_grad_norm", "num_warmup_steps", "lr_scheduler_type", "group_by_length"),
)
# Differences in these make a resumed run another run; differences in the others are allowed and said.
IDENTITY = (
    "model",
    "engine",
    "train_dataset",
    "seed",
    "total_batch_size",
    "group_by_length",
    "metric_for_best_model",
    # The optimizer's state holds these.
    "optim",
    "optim_args",
    "learning_rate",
    "ea_learning_rate",
    "weight_decay",
)


@dataclass
class TrainerState:
    """Where a run stands: all that is not in the model, the optimizer and the scheduler."""

    run: dict[str, Any]
    global_step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    # Of a stream, where the next step begins; None at the beginning of an epoch.
    position: dict[str, Any] | None = None
    # The step is done, but for its evaluation and checkpoint.
    unfinished: bool = False
    best_metric: float | None = None
    best_loss: float | None = None
    best_checkpoint: str | None = None
    recent_losses: list[float] = field(default_factory=list)
    log_history: list[dict[str, float]] = field(default_factory=list)
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)


def describe_dataset(dataset: Any) -> str:
    """Identifies a data set by its size and its content: all of it, or a sample where an example has to be computed.

    Its method `fingerprint`, if it has one, tells the content of such a one better.
    """
    if isinstance(dataset, Stream):
        return f"{dataset.description}, shuffled by {dataset.buffer_size}"
    digest = hashlib.sha256()
    if isinstance(dataset, datasets.Dataset):
        for table in dataset.with_format("arrow").iter(1000):
            for batch in table.combine_chunks().to_batches():
                digest.update(batch.serialize())
    else:
        if hasattr(dataset, "fingerprint"):
            digest.update(dataset.fingerprint().encode())
        stride = 1 if isinstance(dataset, list) else max(1, len(dataset) // 64)
        for index in range(0, len(dataset), stride):
            for name, value in sorted(dataset[index].items()):
                digest.update(name.encode())
                # Printed, a large array would be little more than its corners.
                digest.update(np.asarray(value).tobytes() if hasattr(value, "shape") else repr(value).encode())
    return f"{len(dataset)} examples, {digest.hexdigest()[:16]}"


def describe_model(model: PreTrainedModel) -> str:
    """Identifies a model by its class, the shapes of its parameters, and those weights that were loaded.

    New weights follow from the seed, and may differ in their last bits between processors.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if was_loaded(parameter):
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    evolution = {name: value for name, value in model.config.to_diff_dict().items() if name.startswith("ea_")}
    if evolution.get("ea_mixing") == "convex":  # runs begun before there were others can go on
        del evolution["ea_mixing"]
    return f"{type(model).__name__} {evolution} {digest.hexdigest()[:16]}"


def check_same_run(checkpoint: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Tells in which of its settings a run differs from the one that wrote a checkpoint.

    Raises:
        ValueError: with these it is another run.
    """
    changes = {name: (before.get(name), value) for name, value in now.items() if before.get(name) != value}
    for name in IDENTITY:
        if name in changes:
            raise ValueError(
                f"{checkpoint} belongs to another run: its {name} is {changes[name][0]!r}, now it is "
                f"{changes[name][1]!r}. Resume with what it had, or start anew in another --output_dir."
            )
    for name, (old, new) in changes.items():
        logger.warning(f"Resuming with {name} {new!r}; until now it was {old!r}.")


def describe(accelerator: Accelerator, model: PreTrainedModel, train_dataset: Any) -> dict[str, str]:
    """Identifies a model and its training set, as the main process sees them."""
    described = None
    if accelerator.is_main_process:
        described = {"model": describe_model(model), "train_dataset": describe_dataset(train_dataset)}
    return broadcast_object_list([described])[0]
