# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads labelled time series, and finds what is wrong with them before anything is trained."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aeon.datasets
import numpy as np
from series_file import CLASSIFICATION, NAMED, REGRESSION, SeriesFile
from series_table import are_targets, read_table
from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit
from ts_file import read_ts

from ea_hf.training.distinct_names import check_names_differ
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)

BUNDLED = Path(aeon.datasets.__file__).parent / "data"
TABLES = (".csv", ".parquet")


@dataclass
class SeriesSplit:
    """Series with their labels.

    Attributes:
        series: each (time, channels), float64, NaN where a value is missing.
        labels: of a classification the index of each class, (series,); of a regression (series, targets); `None` if
            they are not known.
        names: what messages and predictions call each series.
        times: when the steps of each series were, (time,); `None` if they follow each other evenly.
    """

    series: list[np.ndarray]
    labels: np.ndarray | None
    names: list[str]
    times: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.series)

    def select(self, indices: Sequence[int]) -> "SeriesSplit":
        return SeriesSplit(
            [self.series[index] for index in indices],
            None if self.labels is None else self.labels[np.asarray(indices, dtype=int)],
            [self.names[index] for index in indices],
            None if self.times is None else [self.times[index] for index in indices],
        )

    def sample(self, max_samples: int | None) -> "SeriesSplit":
        """At most so many of them at random, always the same ones; all if `None`."""
        if max_samples is None or max_samples >= len(self):
            return self
        return self.select(np.sort(np.random.default_rng(0).permutation(len(self))[:max_samples]).tolist())


@dataclass
class SeriesData:
    """Checked data.

    Attributes:
        splits: by name, "train", "validation", "test".
        task: "classification" or "regression"; `None` if there are no labels.
        labels: the names of the classes in order of their index, or of the targets.
        channels: their names.
        source: where the data is from, for messages and the model card.
        has_channel_names: whether the files name the channels; else they are known by their order.
        notes: what was guessed, for the log.
    """

    splits: dict[str, SeriesSplit]
    task: str | None
    labels: list[str]
    channels: list[str]
    source: str
    has_channel_names: bool = True
    notes: list[str] = field(default_factory=list)


def bundled_datasets() -> list[str]:
    """The names of the labelled data sets that come with aeon."""
    return sorted(
        path.name.removesuffix("_TRAIN.ts")
        for path in BUNDLED.glob("*/*_TRAIN.ts")
        if path.with_name(path.name.replace("_TRAIN", "_TEST")).exists()
    )


def dataset_files(name: str, directory: str | None = None) -> dict[str, str]:
    """The training and the test file of a data set of the archives.

    Args:
        directory: holds NAME_TRAIN.ts and NAME_TEST.ts, or a directory NAME with them; `None` for those that aeon
            bundles.

    Raises:
        FileNotFoundError: they are not there.
    """
    root = BUNDLED if directory is None else Path(directory)
    folders = {path.parent for path in root.glob(f"*/{name}_TRAIN.ts")} if directory is None else {root / name, root}
    for folder in sorted(folders, reverse=True):
        files = {split: folder / f"{name}_{split.upper()}.ts" for split in ("train", "test")}
        if all(path.exists() for path in files.values()):
            return {split: str(path) for split, path in files.items()}
    if directory is not None:
        raise FileNotFoundError(f"{directory} holds no {name}_TRAIN.ts with a {name}_TEST.ts.")
    raise FileNotFoundError(
        f"--dataset_name is {name!r}, which aeon does not bundle; it has {', '.join(bundled_datasets())}. Others are at "
        "https://timeseriesclassification.com; unpack one and name its directory with --dataset_dir."
    )


def load_files(
    files: dict[str, str],
    task: str | None = None,
    channel_columns: Sequence[str] | None = None,
    **columns: Any,
) -> SeriesData:
    """Reads files of one kind, `.ts` of the UEA and TSER archives or tables in long format.

    Args:
        files: split name to path; the first one, of training if there is one, knows the channels and the classes.
        task: "classification" or "regression"; by default as a `.ts` file says, and as labels of a table look, see
            `are_targets`.
        channel_columns, columns: see `read_table`. The channels of the first table are those of the others, whatever their
            order there.

    Raises:
        FileNotFoundError, ValueError: a file is missing or corrupt (with the line), it lacks a channel, it has classes
            that the first one does not have, or an infinite value or target.
    """
    read: dict[str, SeriesFile] = {}
    for name, path in files.items():
        if not Path(path).is_file():
            raise FileNotFoundError(f"--{name}_file {path} does not exist or is not a file.")
        suffix = Path(path).suffix.lower()
        if suffix == ".ts":
            read[name] = read_ts(path)
        elif suffix in TABLES:
            read[name] = read_table(path, channel_columns=channel_columns, **columns)
        else:
            raise ValueError(f"--{name}_file {path} is neither .ts nor {' nor '.join(TABLES)}.")
        if channel_columns is None and read[name].has_channel_names:
            channel_columns = read[name].channels
    first_name, first = next(iter(read.items()))
    labelled = next((file for file in read.values() if file.labels is not None), first)
    task = task or _find_task(labelled)
    labels = labelled.targets
    if task == CLASSIFICATION:
        if labelled.labels is not None and labelled.labels.shape[1] > 1:
            raise ValueError(
                f"{files[first_name]} has {len(first.targets)} columns of labels; classification needs one."
            )
        labels = [] if labelled.labels is None else sorted(set(labelled.labels[:, 0].tolist()), key=_natural)
        check_names_differ(labels, files[first_name])
    notes = [note for file in read.values() for note in file.notes]
    splits = {}
    for name, file in read.items():
        if len(file.series) == 0:
            raise ValueError(f"{files[name]} holds no series.")
        _check_channels(file, first, files[name], files[first_name])
        values = None
        if file.labels is not None and task is not None:
            values = _encode(file, task, labels, files[name], files[first_name])
            notes.append(_describe(values, task, labels, files[name]))
        splits[name] = SeriesSplit(file.series, values, file.names, file.times)
    return SeriesData(
        splits,
        task,
        labels if task is not None else [],
        first.channels,
        files[first_name],
        all(file.has_channel_names for file in read.values()),
        notes,
    )


def _find_task(file: SeriesFile) -> str | None:
    if file.labels is None:
        return None
    return file.task or (REGRESSION if are_targets(file.labels) else CLASSIFICATION)


def _describe(values: np.ndarray, task: str, labels: list[str], path: str) -> str:
    """What kind of problem it is, and the numbers of examples of each class, or the range of each target."""
    if task == CLASSIFICATION:
        counts = np.bincount(values, minlength=len(labels)).tolist()
        listed = [f"{label!r} {count}" for label, count in zip(labels, counts, strict=True)][: 4 * NAMED]
    else:
        listed = [
            f"{label!r} from {least:g} to {greatest:g}"
            for label, least, greatest in zip(labels, values.min(axis=0), values.max(axis=0), strict=True)
        ]
    more = ", ..." if len(listed) < len(labels) else ""
    kind = f"classification, {len(labels)} classes" if task == CLASSIFICATION else "regression"
    return f"Labels of {path}: {kind}; {', '.join(listed)}{more}."


def _natural(text: str) -> tuple:
    """A key that sorts "10" after "9", and "01" before "1"."""
    parts = re.split(r"(\d+)", text)
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts), text


def _encode(file: SeriesFile, task: str, labels: list[str], path: str, first_path: str) -> np.ndarray:
    if task == CLASSIFICATION:
        texts = file.labels[:, 0].tolist()
        unknown = sorted(set(texts) - set(labels))
        if unknown:
            raise ValueError(
                f"{path} has classes that {first_path} does not have: {', '.join(map(repr, unknown[:NAMED]))}."
            )
        index = {label: number for number, label in enumerate(labels)}
        return np.array([index[text] for text in texts], dtype=int)
    try:
        values = file.labels.astype(np.float64)
    except ValueError as error:
        raise ValueError(f"{path} has labels that are no numbers, which a regression needs: {error}") from error
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong) > 0:
        raise ValueError(f"The target of {file.names[wrong[0, 0]]} of {path} is {values[tuple(wrong[0])]}.")
    return values


def _check_channels(file: SeriesFile, first: SeriesFile, path: str, first_path: str) -> None:
    """Checks that a file has the channels of the first one, and looks for infinite values."""
    if len(file.channels) != len(first.channels) or (
        file.has_channel_names == first.has_channel_names and file.channels != first.channels
    ):
        raise ValueError(
            f"{path} has {len(file.channels)} channels, {first_path} has {len(first.channels)}. Files must have the same."
        )
    if file.has_channel_names != first.has_channel_names:
        raise ValueError(
            f"One of {path} and {first_path} names its channels, the other does not. Give files of one kind."
        )
    for values, name in zip(file.series, file.names, strict=True):
        if np.isinf(values).any():
            step, channel = np.argwhere(np.isinf(values))[0]
            raise ValueError(
                f"{name} of {path} has the value {values[step, channel]} at step {step} (counted from 0) in channel "
                f"{file.channels[channel]}. Correct it, or make it a missing value."
            )


# Splits


def train_validation_splits(
    split: SeriesSplit, task: str | None, num_splits: int, share: float, seed: int, labels: Sequence[str] = ()
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divides the training series several times into training and validation, class by class if they have classes.

    A class with one example cannot be divided; it stays in training, and a warning names it.

    Args:
        share: of validation.
        labels: names of the classes.

    Returns:
        The indices of both parts, for each split.

    Raises:
        ValueError: there are too few series.
    """
    indices = np.arange(len(split))
    if len(split) < 2:
        raise ValueError("There is one training series; it cannot be divided. Give more, or a validation file.")
    if task != CLASSIFICATION:
        chosen = ShuffleSplit(num_splits, test_size=share, random_state=seed).split(indices)
        return [(np.sort(train), np.sort(validation)) for train, validation in chosen]
    counts = Counter(split.labels.tolist())
    single = np.array([counts[label] == 1 for label in split.labels.tolist()])
    if single.any():
        listing = ", ".join(
            repr(labels[index]) if len(labels) else str(index) for index in split.labels[single][:NAMED]
        )
        logger.warning(f"{single.sum()} classes have one example, which is never validated on: {listing}.")
    rest = indices[~single]
    try:
        chosen = list(
            StratifiedShuffleSplit(num_splits, test_size=share, random_state=seed).split(rest, split.labels[rest])
        )
    except ValueError as error:
        raise ValueError(
            f"The {len(rest)} training series of {len(counts) - single.sum()} classes with two or more cannot be divided "
            f"with a share of {share} for validation: {error} Give more series, another --train_val_split, or a validation "
            "file."
        ) from error
    return [
        (np.sort(np.concatenate([rest[train], indices[single]])), np.sort(rest[validation]))
        for train, validation in chosen
    ]
