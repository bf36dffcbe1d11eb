# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads `.ts` files of the UEA and TSER archives (https://timeseriesclassification.com)."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from series_file import CLASSIFICATION, REGRESSION, SeriesFile, is_missing, is_number


# A (timestamp, value) pair, and all that may stand between two of them.
TIMESTAMPED = re.compile(r"\(([^()]*),([^(),]*)\)\s*,?")


class TsError(ValueError):
    """A line is not as it must be; without the name of the file, and without the line's number."""


@dataclass
class Header:
    """What stands before the series.

    Attributes:
        classes: their names as they stand there; empty if there are none.
        first_line: the number of the first line after it, from 1.
    """

    classes: list[str]
    has_class: bool
    has_target: bool
    equal_length: bool
    timestamps: bool
    first_line: int


def read_ts(path: str) -> SeriesFile:
    """Reads a `.ts` file.

    Missing values are "?" or NaN. Names of classes are taken as they stand there, but for blanks around them.

    Raises:
        ValueError: it is corrupt; with the line.
    """
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:  # comments of the archives' files are in various encodings; the rest is plain ASCII
        text = content.decode("latin-1")
    lines = text.splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    header = _read_header(path, lines)
    series, times, labels, numbers = [], [], [], []
    for number, line in enumerate(lines[header.first_line - 1 :], header.first_line):
        try:
            values, at, label = _read_series(line, header)
            if series and values.shape[1] != series[0].shape[1]:
                raise TsError(f"it has {values.shape[1]} channels, but line {numbers[0]} has {series[0].shape[1]}")
            if series and header.equal_length and len(values) != len(series[0]):
                raise TsError(
                    f"it has {len(values)} steps, but line {numbers[0]} has {len(series[0])}, and @equalLength is true"
                )
            if header.has_target and not is_number(label):
                raise TsError(f"its target, {label[:60]!r}, is no number")
            if header.classes and label not in header.classes:
                raise TsError(f"its class, {label[:60]!r}, is not among those of @classLabel")
        except TsError as error:
            raise ValueError(f"{path}, line {number}: {error}.") from error
        series.append(values)
        times.append(at)
        labels.append(label)
        numbers.append(number)
    if not series:
        raise ValueError(f"{path} has no series after @data.")
    return SeriesFile(
        series,
        times if header.timestamps else None,
        np.array(labels, dtype=str)[:, None] if header.has_class or header.has_target else None,
        [f"line {number}" for number in numbers],
        [f"channel {index}" for index in range(series[0].shape[1])],
        ["target"],
        REGRESSION if header.has_target else CLASSIFICATION if header.has_class else None,
        has_channel_names=False,
    )


def _read_header(path: str, lines: list[str]) -> Header:
    tags: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0][0] in "#%":
            continue
        tag = words[0].lower()
        if not tag.startswith("@"):
            raise ValueError(
                f"{path}, line {number}: {line[:60]!r} stands before @data, but is no tag (@...) and no comment (#)."
            )
        if tag == "@data":
            break
        tags[tag[1:]] = words[1:]
    else:
        raise ValueError(f"{path} has no @data line; it is no .ts file, or only the beginning of one.")

    def is_true(tag: str, default: bool) -> bool:
        return [word.lower() for word in tags[tag][:1]] == ["true"] if tag in tags else default

    has_target = is_true("targetlabel", False)
    has_class = is_true("classlabel", True) and not has_target
    return Header(
        tags.get("classlabel", [])[1:] if has_class else [],
        has_class,
        has_target,
        is_true("equallength", True),
        is_true("timestamps", False),
        number + 1,
    )


def _read_series(line: str, header: Header) -> tuple[np.ndarray, np.ndarray | None, str | None]:
    """The values, (time, channels), when they were, (time,), if the file says so, and the label if there is one."""
    if not line.strip():
        raise TsError("it is empty, with more series after it")
    # Colons of a timestamp are within brackets.
    parts = re.split(r":(?![^(]*\))", line) if header.timestamps else line.split(":")
    label = parts.pop().strip() if header.has_target or header.has_class else None
    if not parts:
        raise TsError("it has no label after a colon; it may be cut off")
    columns, at = [], None
    for channel, part in enumerate(parts):
        cells = part.split(",")
        if header.timestamps:
            pairs = TIMESTAMPED.findall(part)
            if TIMESTAMPED.sub("", part).strip() or not pairs:
                raise TsError(f"channel {channel} is not a list of (timestamp, value)")
            cells = [cell for _, cell in pairs]
            found = _read_times([time.strip() for time, _ in pairs])
            if at is not None and not np.array_equal(at, found):
                raise TsError(f"channel {channel} has other timestamps than channel 0")
            at = found
        for step, cell in enumerate(cells):
            # An empty cell is no missing value here: it is more often a comma too many.
            if not cell.strip() or not (is_number(cell) or is_missing(cell)):
                raise TsError(f"{cell.strip()[:60]!r} in channel {channel}, step {step}, is no number")
        columns.append([np.nan if is_missing(cell) else float(cell) for cell in cells])
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise TsError(f"its channels have {lengths} steps; all of a series must have the same number")
    return np.array(columns, dtype=np.float64).T, at, label


def _read_times(texts: list[str]) -> np.ndarray:
    if all(map(is_number, texts)):
        times = np.array(texts, dtype=np.float64)
    else:
        try:
            times = pd.to_datetime(pd.Series(texts), format="ISO8601")
        except ValueError as error:
            raise TsError(f"its timestamps are neither numbers nor dates such as 2026-01-31T12:00: {error}") from error
        times = (times - times.min()).dt.total_seconds().to_numpy()
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise TsError("its timestamps do not increase")
    return times
