# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Which output of a checkpoint's head is which class of the task; by name, never by place without a word."""

import argparse
from typing import Any

from labels import match_labels
from task_data import TaskData

from ea_hf.training.class_labels import class_names, name_classes, new_indices
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)


def head_labels(args: argparse.Namespace, config: Any) -> list[str]:
    """The names of the checkpoint's classes, in the order of its outputs."""
    if args.checkpoint_labels is not None:
        return [name.strip() for name in args.checkpoint_labels.split(",")]
    return [str(name) for name in class_names(config)]


def fit_labels(args: argparse.Namespace, config: Any, data: TaskData) -> None:
    """Gives the configuration the task's labels, in the order of the checkpoint's own head where the names agree.

    Raises:
        ValueError: the names do not agree, and the head is not trained here; or its size is another one.
    """
    has_head = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    name, head = args.model_name_or_path, head_labels(args, config)
    count = 1 if data.labels is None else len(data.labels)
    if has_head and config.num_labels != count and not (args.ignore_mismatched_sizes and not args.eval_only):
        remedy = "" if args.eval_only else " Take a new head with --ignore_mismatched_sizes."
        raise ValueError(
            f"The head of {name} has {config.num_labels} outputs ({', '.join(head)}), but the task needs {count}.{remedy}"
        )
    if data.labels is None:
        config.num_labels, config.problem_type = 1, "regression"
        return
    in_order = match_labels(data.labels, head)
    if in_order is not None:
        _reorder_labels(data, in_order)
    elif args.checkpoint_labels is not None or (has_head and config.num_labels == count):
        message = f"The classes of {name} are {', '.join(head)}, but those of the task {', '.join(data.labels)}"
        if args.checkpoint_labels is not None:
            raise ValueError(f"{message}; --checkpoint_labels must name the same.")
        if args.eval_only:
            raise ValueError(
                f"{message}, and nothing tells which is which. Name the task's classes in the order of the checkpoint's "
                f"outputs, such as --checkpoint_labels {','.join(data.labels)}"
            )
        logger.warning(
            f"{message}: its outputs are taken for these in this order, and trained anew. If they mean the same, name the "
            "task's classes in the order of the outputs with --checkpoint_labels."
        )
    name_classes(config, data.labels)
    config.problem_type = "single_label_classification"


def _reorder_labels(data: TaskData, labels: list[str]) -> None:
    new_index = new_indices(data.labels, labels).tolist()
    for name, split in data.splits.items():
        if "label" in split.column_names and data.labels != labels:
            plain = split.with_format(None)
            column = [new_index[index] for index in plain["label"]]
            data.splits[name] = plain.remove_columns("label").add_column("label", column)
    data.labels = labels
