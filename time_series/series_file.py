# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a file of series holds, whatever its format."""

from dataclasses import dataclass, field

import numpy as np


# How many classes, series or columns a message names.
NAMED = 5
CLASSIFICATION, REGRESSION = "classification", "regression"
# What stands for a missing value where numbers are expected; in names of classes and series these are texts.
MISSING = ("", "?", "-nan", "nan", "na", "n/a", "#n/a", "<na>", "null", "none")


@dataclass
class SeriesFile:
    """What a file holds.

    Attributes:
        series: each (time, channels), float64, NaN where a value is missing.
        times: when the steps of each series were, (time,), increasing; `None` if the file does not say.
        labels: as they stand in the file, texts, (series, targets); `None` if there are none.
        names: what messages and predictions call each series.
        channels: their names, those of a `.ts` file made up.
        targets: the names of the labels.
        task: "classification" or "regression", if the file says it; `None` if its labels must tell.
        has_channel_names: whether the file names its channels.
        notes: what was guessed.
    """

    series: list[np.ndarray]
    times: list[np.ndarray] | None
    labels: np.ndarray | None
    names: list[str]
    channels: list[str]
    targets: list[str]
    task: str | None = None
    has_channel_names: bool = True
    notes: list[str] = field(default_factory=list)


def is_number(text: str) -> bool:
    """Whether it is a number, NaN and infinity among them."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # which Python allows between digits


def is_missing(text: str) -> bool:
    return text.strip().lower() in MISSING
