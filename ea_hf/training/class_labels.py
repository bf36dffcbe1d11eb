# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The classes of a model's head: their names, and their order."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedConfig


def class_names(config: PreTrainedConfig) -> list[str]:
    """The names of the classes, in the order of the outputs."""
    return [config.id2label[index] for index in sorted(config.id2label)]


def name_classes(config: PreTrainedConfig, names: Sequence[str]) -> None:
    """Gives a configuration the names of the classes, in the order of the outputs."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}


def new_indices(names: Sequence[str], order: Sequence[str]) -> np.ndarray:
    """Where each of the names stands in another order, (names)."""
    return np.array([order.index(name) for name in names], dtype=int)
