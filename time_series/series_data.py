# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads labelled time series, and finds what is wrong with them before anything is trained."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aeon.datasets
import numpy as np
import pandas as pd
from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit


logger = logging.getLogger(__name__)

# How many classes, series or data sets a message names.
NAMED = 5
BUNDLED = Path(aeon.datasets.__file__).parent / "data"
DEFAULT_TIME_COLUMN = "time"
TABLES = (".csv", ".parquet")
CLASSIFICATION, REGRESSION = "classification", "regression"
# A (timestamp, value) pair as aeon reads it: its pattern knows neither signs nor exponents, and loses them silently.
TIMESTAMPED = re.compile(r"\([^(),.]*,\s*(\d+\.\d+|nan|\?)\s*\)", re.IGNORECASE)


@dataclass
class SeriesSplit:
    """Series with their labels.

    Attributes:
        series: each (time, channels), float64, NaN where a value is missing.
        labels: of a classification the index of each class, (series,); of a regression (series, targets); `None` if
            they are not known.
        names: what messages and predictions call each series.
    """

    series: list[np.ndarray]
    labels: np.ndarray | None
    names: list[str]

    def __len__(self) -> int:
        return len(self.series)

    def select(self, indices: Sequence[int]) -> "SeriesSplit":
        return SeriesSplit(
            [self.series[index] for index in indices],
            None if self.labels is None else self.labels[np.asarray(indices, dtype=int)],
            [self.names[index] for index in indices],
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
    """

    splits: dict[str, SeriesSplit]
    task: str | None
    labels: list[str]
    channels: list[str]
    source: str


@dataclass
class _File:
    """What a file holds; `labels` are texts, (series,), or numbers, (series, targets)."""

    series: list[np.ndarray]
    labels: np.ndarray | None
    names: list[str]
    channels: list[str]
    targets: list[str]


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
    series_column: str = "series",
    time_column: str | None = None,
    label_columns: Sequence[str] = ("label",),
) -> SeriesData:
    """Reads files of one kind, `.ts` of the UEA and TSER archives or tables in long format.

    Args:
        files: split name to path; the first one, of training if there is one, knows the channels and the classes.
        task: "classification" or "regression"; by default as a `.ts` file says, and as labels of a table look: decimal
            numbers make a regression.
        series_column, time_column, label_columns: see `read_table`.

    Raises:
        FileNotFoundError, ValueError: a file is missing or corrupt (with the line), its channels are others than the
            first one's, it has classes that the first one does not have, or an infinite value or target.
    """
    read = {}
    for name, path in files.items():
        if not Path(path).is_file():
            raise FileNotFoundError(f"--{name}_file {path} does not exist or is not a file.")
        suffix = Path(path).suffix.lower()
        if suffix == ".ts":
            read[name] = read_ts(path)
        elif suffix in TABLES:
            read[name] = read_table(path, series_column, time_column, label_columns)
        else:
            raise ValueError(f"--{name}_file {path} is neither .ts nor {' nor '.join(TABLES)}.")
    first_name, first = next(iter(read.items()))
    task = task or _find_task(first)
    labels = first.targets
    if task == CLASSIFICATION:
        if first.labels is None or (first.labels.ndim > 1 and first.labels.shape[1] > 1):
            raise ValueError(
                f"{files[first_name]} has {len(first.targets)} columns of labels; classification needs one."
            )
        labels = sorted(set(_texts(first.labels)), key=_natural)
    splits = {}
    for name, file in read.items():
        if len(file.series) == 0:
            raise ValueError(f"{files[name]} holds no series.")
        _check_channels(file, first, files[name], files[first_name])
        values = None
        if file.labels is not None and task is not None:
            values = _encode(file, task, labels, files[name], files[first_name])
        splits[name] = SeriesSplit(file.series, values, file.names)
    return SeriesData(splits, task, labels if task is not None else [], first.channels, files[first_name])


def _find_task(file: _File) -> str | None:
    if file.labels is None:
        return None
    if file.labels.dtype.kind in "US":
        return CLASSIFICATION
    whole = file.labels.shape[1] == 1 and (file.labels == np.round(file.labels)).all()
    return CLASSIFICATION if whole and file.labels.dtype.kind in "iu" else REGRESSION


def _texts(labels: np.ndarray) -> list[str]:
    return [str(label) for label in (labels[:, 0] if labels.ndim > 1 else labels)]


def _natural(text: str) -> tuple:
    """A key that sorts "10" after "9"."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text))


def _encode(file: _File, task: str, labels: list[str], path: str, first_path: str) -> np.ndarray:
    if task == CLASSIFICATION:
        texts = _texts(file.labels)
        unknown = sorted(set(texts) - set(labels))
        if unknown:
            raise ValueError(
                f"{path} has classes that {first_path} does not have: {', '.join(map(repr, unknown[:NAMED]))}."
            )
        index = {label: number for number, label in enumerate(labels)}
        return np.array([index[text] for text in texts], dtype=int)
    try:
        values = file.labels.astype(np.float64).reshape(len(file.labels), -1)
    except ValueError as error:
        raise ValueError(f"{path} has labels that are no numbers, which a regression needs: {error}") from error
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong) > 0:
        raise ValueError(f"The target of {file.names[wrong[0, 0]]} of {path} is {values[tuple(wrong[0])]}.")
    return values


def _check_channels(file: _File, first: _File, path: str, first_path: str) -> None:
    """Gives the channels of a file the first one's order, and looks for infinite values."""
    if sorted(file.channels) != sorted(first.channels):
        differing = sorted(set(file.channels) ^ set(first.channels))
        raise ValueError(
            f"{path} has {len(file.channels)} channels, {first_path} has {len(first.channels)}; these are in one of them "
            f"only: {', '.join(map(repr, differing[:NAMED]))}. Files must have the same channels."
        )
    if file.channels != first.channels:
        order = [file.channels.index(channel) for channel in first.channels]
        file.series = [values[:, order] for values in file.series]
        file.channels = first.channels
    for values, name in zip(file.series, file.names, strict=True):
        if np.isinf(values).any():
            step, channel = np.argwhere(np.isinf(values))[0]
            raise ValueError(
                f"{name} of {path} has the value {values[step, channel]} at step {step} (counted from 0) in channel "
                f"{file.channels[channel]}. Correct it, or make it a missing value."
            )


# Files of the archives


def read_ts(path: str) -> _File:
    """Reads a `.ts` file with aeon's loader.

    Raises:
        ValueError: it is corrupt; with the line.
    """
    content = Path(path).read_bytes()
    # Comments of the archives' files are in various encodings; the rest is plain ASCII.
    encoding = "utf-8" if _decodes(content) else "latin-1"
    lines = _check_ts(path, content.decode(encoding).splitlines())
    try:
        series, labels, header = aeon.datasets.load_from_ts_file(path, return_meta_data=True, encoding=encoding)
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if len(series) != len(lines):
        raise ValueError(f"{path} has {len(lines)} lines of data, but aeon reads {len(series)} series.")
    has_labels = header["classlabel"] or header["targetlabel"]
    series = [np.asarray(values, dtype=np.float64).T for values in series]
    return _File(
        series,
        (labels.reshape(-1, 1) if header["targetlabel"] else labels.astype(str)) if has_labels else None,
        [f"line {line}" for line in lines],
        [f"channel {index}" for index in range(series[0].shape[1] if series else 0)],
        ["target"],
    )


def _decodes(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _check_ts(path: str, lines: list[str]) -> list[int]:
    """The numbers of the lines with series, from 1; raises ValueError for what aeon misreads, or tells without a line."""

    def fault(number: int, message: str) -> ValueError:
        return ValueError(f"{path}, line {number}: {message}.")

    header: dict[str, list[str]] = {}
    start = None
    for number, line in enumerate(lines, 1):
        words = line.strip().lower().split()
        if not words or words[0][0] in "#%":
            continue
        if not words[0].startswith("@"):
            raise fault(number, f"{line[:60]!r} stands before @data, but is no tag (@...) and no comment (#)")
        if words[0] == "@data":
            start = number
            break
        header[words[0][1:]] = words[1:]
    if start is None:
        raise ValueError(f"{path} has no @data line; it is no .ts file, or only the beginning of one.")

    def is_true(tag: str, default: bool) -> bool:
        return header.get(tag, [str(default)])[:1] == ["true"] if tag in header else default

    has_target = is_true("targetlabel", False)
    has_class = is_true("classlabel", True) and not has_target
    classes = header.get("classlabel", [])[1:] if has_class else []
    equal_length, timestamps = is_true("equallength", True), is_true("timestamps", False)
    num_channels = length = first = None
    numbers = []
    for number, line in enumerate(lines[start:], start + 1):
        text = line.strip().lower()
        if not text:
            if any(later.strip() for later in lines[number:]):
                raise fault(number, "it is empty, with more series after it")
            break
        # Colons of a timestamp are within brackets.
        parts = re.split(r":(?![^(]*\))", text) if timestamps else text.split(":")
        label = parts.pop().strip() if has_target or has_class else None
        if not parts:
            raise fault(number, "it has no label after a colon; it may be cut off")
        values = []
        for channel, part in enumerate(parts):
            if timestamps:
                pairs = TIMESTAMPED.findall(part)
                if TIMESTAMPED.sub("", part).strip(", ") or not pairs:
                    raise fault(
                        number,
                        f"channel {channel} is not a list of (timestamp, value) with values such as 12.5, all that "
                        "aeon's loader reads beside timestamps. Write the values without timestamps",
                    )
                cells = pairs
            else:
                cells = part.split(",")
            for step, cell in enumerate(cells):
                if not _is_number(cell):
                    raise fault(number, f"{cell.strip()[:60]!r} in channel {channel}, step {step}, is no number")
            values.append(len(cells))
        if len(set(values)) > 1:
            raise fault(number, f"its channels have {values} steps; all of a series must have the same number")
        if num_channels is None:
            num_channels, length, first = len(parts), values[0], number
        if len(parts) != num_channels:
            raise fault(number, f"it has {len(parts)} channels, but line {first} has {num_channels}")
        if equal_length and values[0] != length:
            raise fault(number, f"it has {values[0]} steps, but line {first} has {length}, and @equalLength is true")
        if has_target and not _is_number(label):
            raise fault(number, f"its target, {label[:60]!r}, is no number")
        if classes and label not in classes:
            raise fault(number, f"its class, {label[:60]!r}, is not among those of @classLabel")
        numbers.append(number)
    if not numbers:
        raise ValueError(f"{path} has no series after @data.")
    return numbers


def _is_number(text: str) -> bool:
    text = text.strip()
    if text == "?":
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


# Tables


def read_table(
    path: str,
    series_column: str = "series",
    time_column: str | None = None,
    label_columns: Sequence[str] = ("label",),
) -> _File:
    """Reads a csv or parquet file in long format: a row for each step of each series.

    Args:
        series_column: tells the rows of one series from those of another.
        time_column: the order of the steps of a series, numbers or dates; by default the column "time" if there is one,
            else they stand in order.
        label_columns: the class, or the targets, the same in all rows of a series. All other columns are channels; an
            empty cell is a missing value.

    Raises:
        ValueError: a column is missing, a channel holds something else than numbers, a series has two labels or two
            rows of one time; with row and column.
    """
    try:
        table = pd.read_csv(path) if Path(path).suffix.lower() == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError, UnicodeDecodeError) as error:  # pandas' and pyarrow's errors are among these
        raise ValueError(f"{path} cannot be read: {error}") from error
    if time_column is None and DEFAULT_TIME_COLUMN in table.columns:
        time_column = DEFAULT_TIME_COLUMN
    for column in [series_column] + ([time_column] if time_column else []):
        if column not in table.columns:
            raise ValueError(f"{path} has no column {column!r}; it has {', '.join(map(repr, table.columns))}.")
        if table[column].isna().any():
            raise ValueError(f"{path}, row {_first_row(table[column].isna())}: column {column!r} is empty.")
    present = [column for column in label_columns if column in table.columns]
    if present and len(present) < len(label_columns):
        missing = sorted(set(label_columns) - set(present))
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(map(repr, table.columns))}.")
    special = {series_column, time_column, *present}
    channels = [str(column) for column in table.columns if column not in special]
    if not channels:
        raise ValueError(
            f"{path} has no columns beside {', '.join(sorted(filter(None, special)))}; it needs channels."
        )
    for column in channels:
        numbers = pd.to_numeric(table[column], errors="coerce")
        wrong = numbers.isna() & table[column].notna()
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"{path}, row {_first_row(wrong)}, column {column!r}: {table[column].iloc[row]!r} is no number."
            )
        table[column] = numbers.astype(np.float64)
    if time_column:
        table = _sorted_by_time(table, path, series_column, time_column)
    series, labels, names = [], [], []
    for name, rows in table.groupby(series_column, sort=False):
        series.append(rows[channels].to_numpy(dtype=np.float64))
        names.append(str(name))
        if present:
            values = rows[present].drop_duplicates()
            if len(values) > 1 or values.isna().any(axis=None):
                found = ", ".join(map(repr, values.iloc[:, 0].tolist()[:NAMED]))
                raise ValueError(f"{path}: series {name!r} must have one label in all its rows; it has {found}.")
            labels.append(values.iloc[0].to_numpy())
    array = None
    if present:
        kinds = table[present].dtypes
        text = any(not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind) for kind in kinds)
        whole = all(pd.api.types.is_integer_dtype(kind) for kind in kinds)
        array = np.array(labels).astype(str if text else (np.int64 if whole else np.float64)).reshape(len(labels), -1)
    return _File(series, array, names, channels, list(present))


def _first_row(wrong: pd.Series) -> int:
    return int(np.flatnonzero(wrong)[0]) + 1


def _sorted_by_time(table: pd.DataFrame, path: str, series_column: str, time_column: str) -> pd.DataFrame:
    if not pd.api.types.is_numeric_dtype(table[time_column]):
        try:
            table[time_column] = pd.to_datetime(table[time_column], format="ISO8601")
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}: column {time_column!r} holds neither numbers nor dates such as 2026-01-31T12:00: {error}"
            ) from error
    double = table.duplicated([series_column, time_column])
    if double.any():
        row = int(np.flatnonzero(double)[0])
        raise ValueError(
            f"{path}, row {row + 1}: series {table[series_column].iloc[row]!r} has another row of the same time, "
            f"{table[time_column].iloc[row]}."
        )
    order = table[series_column].drop_duplicates().reset_index(drop=True)
    rank = table[series_column].map({name: number for number, name in enumerate(order)})
    return table.assign(_rank=rank).sort_values(["_rank", time_column], kind="stable").drop(columns="_rank")


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
