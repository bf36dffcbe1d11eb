# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Models of series: new ones and checkpoints, made to fit the data, and batches for them."""

import argparse
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from series_data import (
    CLASSIFICATION,
    REGRESSION,
    SeriesData,
    SeriesSplit,
)
from transformers import PreTrainedModel

from ea_hf import (
    EADCTransformerConfig,
    EADCTransformerFeatureExtractor,
    EADCTransformerForClassification,
    EADCTransformerForMaskedImputation,
    EADCTransformerForRegression,
)
from ea_hf.models.load_report import check_whole, one_line_report
from ea_hf.models.loading_faults import loading_told
from ea_hf.training.class_labels import class_names, name_classes, new_indices
from ea_hf.training.config_overrides import check_overrides, overrides_told
from ea_hf.training.loop import copy_weights_from_file
from ea_hf.training.script import evolution_overrides
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)

MASKED_IMPUTATION = "masked_imputation"
MODELS = {
    CLASSIFICATION: EADCTransformerForClassification,
    REGRESSION: EADCTransformerForRegression,
    MASKED_IMPUTATION: EADCTransformerForMaskedImputation,
}
# Arguments that name columns of tables, with their defaults. A model is saved with them.
COLUMNS = {"series_column_name": "series", "time_column_name": None, "label_column_name": ["label"]}
# Of a new model's configuration. The released head, which reads each step with weights of its own ("pooling_type": None),
# learns where in a series things happen, and generalizes worse from few series.
MODEL_DEFAULTS = {"pooling_type": "mean"}


@dataclass
class Run:
    """One training.

    Attributes:
        name: of its directory; empty if there is one training only.
        train: the series to learn from; `None` if there are none.
        validation: the series that choose the checkpoint; `None` if there are none.
        test: the series to predict; `None` if there are none.
        num_train_epochs: `None` for that of the arguments.
    """

    name: str
    seed: int
    train: SeriesSplit | None
    validation: SeriesSplit | None
    test: SeriesSplit | None
    num_train_epochs: int | None = None


class SeriesDataset:
    """Series as a model takes them: `past_values`, (time, channels), and `labels`, of imputation the same values."""

    def __init__(self, split: SeriesSplit, extractor: EADCTransformerFeatureExtractor, task: str):
        self.split = split
        self.values = extractor.prepare(split.series, split.names, split.times)
        self.labels: Any = None
        if task == MASKED_IMPUTATION:
            self.labels = self.values
        elif split.labels is not None and task == REGRESSION:
            self.labels = extractor.scale_targets(split.labels).astype(np.float32)
        elif split.labels is not None:
            self.labels = split.labels

    def __len__(self) -> int:
        return len(self.split)

    def fingerprint(self) -> str:
        """Identifies all values, in their order; the labels are among what is compared of them anyway."""
        return hashlib.sha256(b"".join(values.tobytes() for values in self.values)).hexdigest()

    def __getitem__(self, index: int) -> dict[str, Any]:
        example: dict[str, Any] = {"past_values": self.values[index]}
        if self.labels is not None:
            example["labels"] = self.labels[index]
        return example


def collate(extractor: EADCTransformerFeatureExtractor, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = dict(extractor.pad([example["past_values"] for example in examples]))
    if "labels" in examples[0] and np.ndim(examples[0]["labels"]) == 2:
        batch["labels"] = batch["past_values"]
    elif "labels" in examples[0]:
        batch["labels"] = torch.from_numpy(np.stack([example["labels"] for example in examples]))
    return batch


def load_model(
    args: argparse.Namespace, data: SeriesData, run: Run
) -> tuple[PreTrainedModel, EADCTransformerFeatureExtractor]:
    """A new model for the series of a run, or a pretrained one with a head for them; and its feature extractor.

    Raises:
        ValueError: the pretrained model knows other channels, or has another task; --config_overrides names a value
            that the configuration does not have.
    """
    model_class = MODELS[data.task]
    targets = run.train.labels if run.train is not None and data.task == REGRESSION else None
    extractor = None
    if run.train is not None:
        extractor = EADCTransformerFeatureExtractor.fit(run.train.series, targets, args.max_steps, run.train.names)
        extractor.channel_names = data.channels if data.has_channel_names else None
        extractor.target_names = data.labels if data.task == REGRESSION else None
    if args.model_name_or_path is None:
        values = {"num_input_channels": extractor.num_channels, "context_length": extractor.max_length}
        check_overrides(args.config_overrides, EADCTransformerConfig())
        with overrides_told(args.config_overrides):
            config = EADCTransformerConfig(
                **{**values, **MODEL_DEFAULTS, **args.config_overrides, **evolution_overrides(args)}
            )
            _set_labels(config, data)
            _save_columns(config, args, data)
            return model_class(config), extractor
    config = EADCTransformerConfig.from_pretrained(args.model_name_or_path, **evolution_overrides(args))
    known = EADCTransformerFeatureExtractor.from_pretrained(args.model_name_or_path)
    if known.num_channels != len(data.channels):
        raise ValueError(
            f"{args.model_name_or_path} takes series of {known.num_channels} channels, but {data.source} has "
            f"{len(data.channels)}."
        )
    if extractor is not None:  # it goes on with the standardization that it was pretrained with
        known.target_mean, known.target_scale = extractor.target_mean, extractor.target_scale
        known.channel_names, known.target_names = extractor.channel_names, extractor.target_names
        _set_labels(config, data)
        _save_columns(config, args, data)
    elif model_class.__name__ not in (config.architectures or []):
        raise ValueError(
            f"{args.model_name_or_path} is a {', '.join(config.architectures or ['model'])}; the task is {data.task}."
        )
    elif data.task == CLASSIFICATION:
        _take_labels(config, data)
    elif data.task == REGRESSION and len(data.labels) != config.num_targets:
        raise ValueError(
            f"{args.model_name_or_path} predicts {config.num_targets} targets, but {data.source} has {len(data.labels)}."
        )
    elif data.task == REGRESSION and known.target_names and has_labels(data):
        order_targets(data, known.target_names, args.model_name_or_path)
    with one_line_report() as explain, loading_told(args.model_name_or_path):
        model, loading = model_class.from_pretrained(
            args.model_name_or_path, config=config, dtype=torch.float32, output_loading_info=True
        )
        explain(model, loading)
    check_whole(args.model_name_or_path, model, loading)
    copy_weights_from_file(model)
    return model, known


def _save_columns(config: EADCTransformerConfig, args: argparse.Namespace, data: SeriesData) -> None:
    """Lets a model remember the columns of the table that it was trained on; `set_columns` reads them."""
    for name in COLUMNS:
        setattr(config, name, getattr(args, name) if data.has_channel_names else None)


def has_labels(data: SeriesData) -> bool:
    return any(split.labels is not None for split in data.splits.values())


def order_targets(data: SeriesData, names: list[str], checkpoint: str) -> None:
    """Gives the targets the order that a checkpoint knows."""
    if data.labels == names:
        return
    if sorted(data.labels) != sorted(names):
        raise ValueError(
            f"{data.source} has the targets {', '.join(data.labels)}; {checkpoint} has {', '.join(names)}."
        )
    order = [data.labels.index(name) for name in names]
    for split in data.splits.values():
        if split.labels is not None:
            split.labels = split.labels[:, order]
    data.labels = names


def _set_labels(config: EADCTransformerConfig, data: SeriesData) -> None:
    if data.task == CLASSIFICATION:
        name_classes(config, data.labels)
    elif data.task == REGRESSION:
        config.num_targets = len(data.labels)


def _take_labels(config: EADCTransformerConfig, data: SeriesData) -> None:
    """Gives the classes the order that a checkpoint knows."""
    known = class_names(config)
    unknown = [label for label in data.labels if label not in known]
    if unknown:
        raise ValueError(f"{data.source} has the class {unknown[0]!r}; the checkpoint knows {', '.join(known)}.")
    new_index = new_indices(data.labels, known)
    for split in data.splits.values():
        if split.labels is not None:
            split.labels = new_index[split.labels]
    data.labels = known
