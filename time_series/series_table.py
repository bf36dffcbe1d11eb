# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads tables of series in long format: a row for each step of each series."""

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from series_file import MISSING, NAMED, SeriesFile, is_missing, is_number

from ea_hf.training.distinct_names import check_names_differ
from ea_hf.training.local_files import check_columns


DEFAULT_TIME_COLUMN = "time"
# Words in a column's name by which it is hardly a channel.
KINDS = {
    "a time": {"t", "time", "times", "timestamp", "timestamps", "datetime", "date", "dates", "day", "hour", "minute"}
    | {"second", "step", "steps", "epoch"},
    "an id": {"id", "ids", "uid", "uuid", "guid", "index", "idx", "row", "rownum", "rowid", "fold", "split"},
    "a label": {"label", "labels", "class", "classes", "target", "targets", "category", "outcome"},
}
# Columns that pandas and R write for the numbers of rows.
INDEX = re.compile(r"(Unnamed: \d+(\.\d+)*|__index_level_\d+__|level_\d+|)")
# A column is doubted if noise increased like it within every series in less than one of so many tables.
CHANCE = 100


@dataclass
class Columns:
    """What the columns of a table are.

    Attributes:
        series: tells the rows of one series from those of another.
        time: the order of the steps; `None` if the rows are in order.
        labels: the class, or the targets; empty if they are not there.
        channels: in the order that a model takes them.
        left_out: all others, and why.
    """

    series: str
    time: str | None
    labels: list[str]
    channels: list[str]
    left_out: dict[str, str]

    def note(self, path: str) -> str:
        parts = [
            f"channels {_listing(self.channels)}",
            f"series {self.series!r}",
            f"time {self.time!r}" if self.time else "no time, the rows are in order",
            f"label {_listing(self.labels)}" if self.labels else "no label",
        ]
        parts += [f"left out {column!r} ({why})" for column, why in self.left_out.items()]
        return f"Columns of {path}: {'; '.join(parts)}."


def read_table(
    path: str,
    series_column: str = "series",
    time_column: str | None = None,
    label_columns: Sequence[str] = ("label",),
    channel_columns: Sequence[str] | None = None,
) -> SeriesFile:
    """Reads a csv or parquet file in long format.

    Args:
        series_column: tells the rows of one series from those of another; its values are texts.
        time_column: the order of the steps of a series, numbers or dates; by default the column "time" if there is one,
            else they stand in order.
        label_columns: the class, or the targets, the same in all rows of a series; names of classes are texts.
        channel_columns: the channels, in this order; all columns but the others by default, as long as none of them looks
            like something else. An empty cell, NaN and the like are missing values.

    Raises:
        ValueError: a column is missing, or may be no channel; a channel holds something else than numbers, a series has
            two labels or two rows of one time; with row and column.
    """
    table = _read(path, series_column, label_columns)
    columns = _find_columns(table, path, series_column, time_column, label_columns, channel_columns)
    for column in [columns.series] + ([columns.time] if columns.time else []):
        empty = table[column].isna() | (table[column].astype(str).str.strip() == "")
        if empty.any():
            raise ValueError(f"{path}, row {_first_row(empty)}: column {column!r} is empty.")
    if columns.time:
        table = _sorted_by_time(table, path, columns)
    for column in columns.channels:
        _convert(table, path, column)
    if channel_columns is None:
        _check_channels(table, path, columns)
    series, times, labels, names = [], [], [], []
    for name, rows in table.groupby(columns.series, sort=False):
        series.append(rows[columns.channels].to_numpy(dtype=np.float64))
        names.append(str(name))
        if columns.time:
            times.append(_as_numbers(rows[columns.time]))
        if columns.labels:
            values = rows[columns.labels].drop_duplicates()
            if (
                len(values) > 1
                or values.isna().any(axis=None)
                or (values.astype(str).apply(lambda column: column.str.strip()) == "").any(axis=None)
            ):
                found = ", ".join(repr(_text(value)) for value in values.iloc[:, 0].tolist()[:NAMED])
                raise ValueError(f"{path}: series {name!r} must have one label in all its rows; it has {found}.")
            labels.append([_text(value) for value in values.iloc[0]])
    check_names_differ(names, f"{path}, column {columns.series!r}", "series")
    return SeriesFile(
        series,
        times if columns.time else None,
        np.array(labels, dtype=str).reshape(len(labels), -1) if columns.labels else None,
        names,
        columns.channels,
        columns.labels,
        notes=[columns.note(path)],
    )


def _read(path: str, series_column: str, label_columns: Sequence[str]) -> pd.DataFrame:
    """The table; texts of a csv file's series and labels stay as they are, and all names of columns are texts."""
    try:
        if Path(path).suffix.lower() != ".csv":
            table = pd.read_parquet(path)
            table = table.reset_index(drop=list(table.index.names) == [None])
        else:
            with open(path, encoding="utf-8-sig", newline="") as file:
                header = next(filter(None, csv.reader(file)), [])
            check_columns(list(filter(None, header)), path)  # pandas would number columns of one name
            names = list(pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns)
            texts = {series_column, *label_columns}
            missing = [*MISSING, *(marker.upper() for marker in MISSING), "NaN", "None", "Null", "-NaN"]
            table = pd.read_csv(
                path,
                encoding="utf-8-sig",
                dtype={name: str for name in names if name in texts},
                keep_default_na=False,
                na_values={name: missing for name in names if name not in texts},
                float_precision="round_trip",
            )
    except (ValueError, OSError, csv.Error) as error:  # pandas' and pyarrow's errors are among these
        raise ValueError(f"{path} cannot be read: {error}") from error
    table.columns = [str(column) for column in table.columns]
    check_columns(list(table.columns), path)
    if table.empty:
        raise ValueError(f"{path} has no rows.")
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first cells for an index, and moves the names
        raise ValueError(f"{path} has rows with more cells than its header has names. Name each column.")
    if len(table.columns) == 1 and re.search(r"[;\t|]", table.columns[0]):
        raise ValueError(
            f"{path} has one column, {table.columns[0][:60]!r}. Values must be separated by commas; write it anew with them."
        )
    return table


def _find_columns(
    table: pd.DataFrame,
    path: str,
    series_column: str,
    time_column: str | None,
    label_columns: Sequence[str],
    channel_columns: Sequence[str] | None,
) -> Columns:
    def check(column: str) -> None:
        if column not in table.columns:
            raise ValueError(f"{path} has no column {column!r}; it has {_listing(table.columns, None)}.")

    chosen = set(channel_columns or [])
    if time_column is None and DEFAULT_TIME_COLUMN in table.columns and DEFAULT_TIME_COLUMN not in chosen:
        time_column = DEFAULT_TIME_COLUMN
    check(series_column)
    if time_column is not None:
        check(time_column)
    labels = [column for column in label_columns if column in table.columns]
    if labels:
        for column in label_columns:
            check(column)
    special = [series_column, *([time_column] if time_column else []), *labels]
    named = [*special, *(channel_columns or [])]
    double = [column for column in named if named.count(column) > 1]
    if double:
        raise ValueError(f"Column {double[0]!r} is named twice among series, time, labels and channels.")
    rest = [column for column in table.columns if column not in special]
    left_out = {}
    if labels and (table[labels].isna() | (table[labels] == "")).all(axis=None):
        left_out = dict.fromkeys(labels, "empty")
        labels = []
    if channel_columns is not None:
        for column in channel_columns:
            check(column)
        left_out |= {column: "not among the channels" for column in rest if column not in chosen}
        return Columns(series_column, time_column, labels, list(channel_columns), left_out)
    for column in rest:
        if INDEX.fullmatch(column.strip()) and _counts_rows(table[column]):
            left_out[column] = "numbers of rows, as pandas writes them"
    channels = [column for column in rest if column not in left_out]
    if not channels:
        raise ValueError(f"{path} has no columns beside {_listing([*special, *left_out])}; it needs channels.")
    return Columns(series_column, time_column, labels, channels, left_out)


def _counts_rows(column: pd.Series) -> bool:
    """Whether it holds different whole numbers, as an index does, the rows sorted or shuffled."""
    return pd.api.types.is_integer_dtype(column) and column.is_unique


def _convert(table: pd.DataFrame, path: str, column: str) -> None:
    """Makes numbers of a channel."""
    numbers = pd.to_numeric(table[column], errors="coerce")
    wrong = numbers.isna() & table[column].notna()
    if wrong.all() and not pd.api.types.is_numeric_dtype(table[column]):
        raise ValueError(
            f"{path}: column {column!r} holds no numbers, but {str(table[column].iloc[0])!r} and the like. {_remedy([column])}"
        )
    if wrong.any():
        value = table[column].iloc[int(np.flatnonzero(wrong)[0])]
        raise ValueError(f"{path}, row {_first_row(wrong)}, column {column!r}: {value!r} is no number.")
    table[column] = numbers.astype(np.float64)


def _check_channels(table: pd.DataFrame, path: str, columns: Columns) -> None:
    """Raises ValueError for columns that may be an index, a time, an id or a label instead of a channel."""
    doubts = {}
    for column in columns.channels:
        doubt = _doubt(column, table[column], table[columns.series])
        if doubt:
            doubts[column] = doubt
    if doubts:
        listing = "; ".join(f"{column!r} {doubt}" for column, doubt in doubts.items())
        raise ValueError(f"{path} has columns that may be no channels: {listing}. {_remedy(columns.channels, doubts)}")


def _remedy(channels: Sequence[str], doubts: Sequence[str] = ()) -> str:
    likely = [column for column in channels if column not in doubts]
    example = f", such as --channel_columns {' '.join(likely)}" if doubts and likely else ""
    return (
        f"Name the columns that are channels with --channel_columns{example}; the others are left out. A time is named with "
        "--time_column_name, a label with --label_column_name."
    )


def _doubt(name: str, values: pd.Series, series: pd.Series) -> str | None:
    """Why a column may be no channel."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    for kind, known in KINDS.items():
        if known & set(words):
            return f"(by its name {kind})"
    if INDEX.fullmatch(name.strip()):
        return "(has no name)"
    groups = values.groupby(series, sort=False)
    sizes = groups.size()
    several = sizes > 1
    if values.isna().any():  # no time, id or label has gaps
        return None
    if several.sum() > 1 and (groups.nunique()[several] == 1).all() and values.nunique() > 1:
        return "(the same in all rows of a series, as a label or an id is)"
    chance = sum(math.lgamma(size + 1) for size in sizes)  # the logarithm of how many orders the rows may have
    if chance > math.log(CHANCE) and (groups.diff().dropna() > 0).all():
        return "(increases within every series, as a time or an index does)"
    return None


def _sorted_by_time(table: pd.DataFrame, path: str, columns: Columns) -> pd.DataFrame:
    if not pd.api.types.is_numeric_dtype(table[columns.time]):
        try:
            table[columns.time] = pd.to_datetime(table[columns.time], format="ISO8601")
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}: column {columns.time!r} holds neither numbers nor dates such as 2026-01-31T12:00: {error}"
            ) from error
    elif not np.isfinite(table[columns.time]).all():
        raise ValueError(
            f"{path}, row {_first_row(~np.isfinite(table[columns.time]))}: column {columns.time!r} is not a finite number."
        )
    double = table.duplicated([columns.series, columns.time])
    if double.any():
        row = int(np.flatnonzero(double)[0])
        raise ValueError(
            f"{path}, row {row + 1}: series {table[columns.series].iloc[row]!r} has another row of the same time, "
            f"{table[columns.time].iloc[row]}."
        )
    # Rows keep their numbers, which messages tell, in the index.
    rank = pd.Series(pd.factorize(table[columns.series])[0], index=table.index)
    order = np.lexsort((table[columns.time].to_numpy(), rank.to_numpy()))
    return table.iloc[order]


def _as_numbers(times: pd.Series) -> np.ndarray:
    if pd.api.types.is_numeric_dtype(times):
        return times.to_numpy(dtype=np.float64)
    return (times - times.iloc[0]).dt.total_seconds().to_numpy()


def _text(value: object) -> str:
    return value if isinstance(value, str) else str(value.item() if isinstance(value, np.generic) else value)


def _first_row(wrong: pd.Series) -> int:
    """The number of the first row, from 1, in the file."""
    return int(wrong.index[wrong.to_numpy()].min()) + 1


def _listing(columns: Sequence[str], limit: int | None = 4 * NAMED) -> str:
    listed = list(columns)[:limit]
    return ", ".join(map(repr, listed)) + (", ..." if len(listed) < len(columns) else "")


# Labels


def are_targets(labels: np.ndarray) -> bool:
    """Whether labels, texts of the form (series, targets), are numbers to predict rather than classes.

    They are if there are several columns of numbers, or one with decimal numbers and nothing else but numbers and missing
    values. Whole numbers are classes.
    """
    texts = [text.strip() for text in np.unique(labels)]
    if not all(is_number(text) or is_missing(text) for text in texts):
        return False
    if labels.shape[1] > 1:
        return True
    return any(
        not re.fullmatch(r"[+-]?\d+", text) and not is_missing(text) and np.isfinite(float(text)) for text in texts
    )
