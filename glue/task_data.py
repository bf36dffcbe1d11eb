# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads the data of a GLUE task or of local files, and finds what is wrong with it before anything is trained."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, load_dataset

from ea_hf.training.local_files import describe_files, read_rows


# Columns with the sentence or the pair of sentences of each GLUE task.
TASK_COLUMNS = {
    "cola": ("sentence",),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence",),
    "stsb": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
# Column names that local files may have without saying so.
KNOWN_COLUMNS = (*dict.fromkeys(TASK_COLUMNS.values()), ("text",))
READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
# How many rows an error names.
ROWS_NAMED = 5
# How many rows of a stream are checked at once.
ROWS_CHECKED = 10_000
# Of a stream; more are rather numbers, or texts.
MOST_CLASSES = 10_000


@dataclass
class TaskData:
    """Checked data.

    Attributes:
        splits: by name ("train", "validation", "test", for MNLI also with _matched and _mismatched), with the text
            columns, and `label` (label's index or value) where the split has labels.
        text_columns: one or two names.
        labels: the names of the classes in order of their index; `None` for regression.
        task_labels: the same in the task's own order, whichever order a model has given `labels`.
        sources: where each split is from, for messages and the model card.
        train_stream: rows to train on as they are read, with the text columns and `label` (its name, or a value), in
            place of a split; `stream_description` identifies them.
    """

    splits: dict[str, Dataset]
    text_columns: Sequence[str]
    labels: list[str] | None
    sources: dict[str, str]
    task_labels: list[str] | None = field(init=False)
    train_stream: IterableDataset | None = None
    stream_description: str | None = None

    def __post_init__(self):
        self.task_labels = self.labels


def load_task(dataset_name: str, task_name: str, streaming: bool = False) -> TaskData:
    """Loads a GLUE task, or "ax", the diagnostic set of MNLI, from the Hub or from a local copy of its repository.

    Args:
        streaming: leave the training split where it is, and read it while training.

    Raises:
        ConnectionError: the Hub cannot be reached.
    """
    try:
        raw = load_dataset(dataset_name, task_name, streaming=streaming)
    except (ConnectionError, OSError) as error:
        raise ConnectionError(
            f"{dataset_name} ({task_name}) could not be loaded: {error}\nWithout a network, pass local files with "
            "--train_file and --validation_file, or a local copy of the repository with --dataset_name."
        ) from error
    feature = next(iter(raw.values())).features["label"]
    labels = feature.names if isinstance(feature, ClassLabel) else None
    text_columns = TASK_COLUMNS["mnli" if task_name == "ax" else task_name]
    splits, stream, description = {}, None, None
    for name, split in raw.items():
        columns = [*text_columns, "label"] if not name.startswith("test") else text_columns
        split = split.select_columns(list(columns))
        if streaming and name == "train":
            stream = split.map(_name_label, fn_kwargs={"labels": labels}) if labels is not None else split
            description = f"{dataset_name} ({task_name}), train"
        else:
            splits[name] = Dataset.from_list(list(split), features=split.features) if streaming else split
    sources = dict.fromkeys(raw, dataset_name)
    return TaskData(splits, text_columns, labels, sources, train_stream=stream, stream_description=description)


def _name_label(row: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    return {**row, "label": labels[row["label"]]}


def load_streamed_files(
    files: dict[str, str],
    text_column_names: str | None = None,
    label_column_name: str = "label",
    problem_type: str | None = None,
    allow_empty_text: bool = False,
) -> TaskData:
    """As `load_files`, but the training file, which may be gzipped, stays on disk.

    It is read once to check it and to find its classes, and again while training.
    """
    path = files["train"]
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file.")
    rows = read_rows(path)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{path} has no rows.")
    # All values of csv files are text.
    texts_only = path.removesuffix(".gz").endswith((".csv", ".tsv"))
    likely = {name: value for name, value in first.items() if not (texts_only and _is_number(value))}
    columns = _find_text_columns(Dataset.from_list([likely]), path, text_column_names, label_column_name)
    for column in (*columns, label_column_name):
        if column not in first:
            raise ValueError(f"{path} has no column {column!r}; it has {', '.join(map(repr, first))}.")
    values: set = set()
    number = 1
    rows = read_rows(path)
    while chunk := list(islice(rows, ROWS_CHECKED)):
        for column in columns:
            _check_texts([row.get(column) for row in chunk], path, column, allow_empty_text, number)
        labels_of_chunk = [row.get(label_column_name) for row in chunk]
        labels_of_chunk = [None if value == "" else value for value in labels_of_chunk]
        if problem_type is None:
            decimal = any(_is_decimal(value, texts_only) for value in labels_of_chunk)
            problem_type = "regression" if decimal else "single_label_classification"
        if problem_type == "regression":
            _check_numbers(labels_of_chunk, path, label_column_name, number)
        else:
            values.update(_check_classes(labels_of_chunk, path, label_column_name, number))
            if len(values) > MOST_CLASSES:
                raise ValueError(
                    f"{path}, column {label_column_name!r} has more than {MOST_CLASSES} classes. For numbers to be "
                    "predicted, pass --problem_type regression."
                )
        number += len(chunk)
    labels = None if problem_type == "regression" else _sorted_labels(sorted(values))
    if labels is not None and len(labels) < 2:
        raise ValueError(
            f"Column {label_column_name!r} of {path} has only one class, {labels[0]!r}; classification needs two."
        )
    others = {split: file for split, file in files.items() if split != "train"}
    data = TaskData({}, columns, labels, {})
    if others:
        data = load_files(others, ",".join(columns), label_column_name, problem_type, allow_empty_text, labels)
    data.sources["train"] = Path(path).name
    # A list among the arguments would be taken for shards, one for each of its values.
    arguments = {"path": path, "columns": tuple(columns), "label": label_column_name, "regression": labels is None}
    data.train_stream = IterableDataset.from_generator(_stream_rows, gen_kwargs=arguments)
    data.stream_description = describe_files([path])
    return data


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_decimal(value: Any, from_text: bool) -> bool:
    if from_text:
        return isinstance(value, str) and _is_number(value) and not value.strip().lstrip("+-").isdigit()
    return isinstance(value, float) and not value.is_integer()


def _stream_rows(path: str, columns: tuple[str, ...], label: str, regression: bool) -> Iterator[dict[str, Any]]:
    for row in read_rows(path):
        value = float(row[label]) if regression else _check_classes([row[label]], path, label)[0]
        yield {**{column: row.get(column) or "" for column in columns}, "label": value}


def load_files(
    files: dict[str, str],
    text_column_names: str | None = None,
    label_column_name: str = "label",
    problem_type: str | None = None,
    allow_empty_text: bool = False,
    checkpoint_labels: list[str] | None = None,
) -> TaskData:
    """Loads local csv, tsv, json, jsonl or parquet files and checks them.

    Args:
        files: split name ("train", "validation", "test") to path.
        text_column_names: one or two names, separated by a comma; by default the names that GLUE's tasks use, or else
            the only one or two columns of text.
        problem_type: "single_label_classification" or "regression"; by default regression where the labels are
            decimal numbers.
        allow_empty_text: take an empty or missing text as an empty one, instead of refusing it.
        checkpoint_labels: the classes if there is no training file to tell them.

    Raises:
        ValueError: with file, column and rows (counted from 1, without a header) of what is missing or wrong.
    """
    raw = DatasetDict({split: read_file(path) for split, path in files.items()})
    first = next(iter(raw))
    columns = _find_text_columns(raw[first], files[first], text_column_names, label_column_name)
    splits, texts_checked = {}, {}
    for split, dataset in raw.items():
        required = [*columns, label_column_name] if split != "test" else columns
        missing = [column for column in required if column not in dataset.column_names]
        if missing:
            option = "--label_column_name" if missing == [label_column_name] else "--text_column_names"
            raise ValueError(
                f"{files[split]} has no column {missing[0]!r}; it has {', '.join(map(repr, dataset.column_names))}. "
                f"Name the right one with {option}."
            )
        texts_checked[split] = {
            column: _check_texts(dataset[column], files[split], column, allow_empty_text) for column in columns
        }

    reference = "train" if "train" in raw else first
    is_regression = problem_type == "regression" or (
        problem_type is None
        and reference != "test"
        and _type_name(raw[reference], label_column_name).startswith("float")
    )
    labels = None
    if not is_regression:
        if "train" in raw:
            values = _check_classes(raw["train"][label_column_name], files["train"], label_column_name)
            labels = _sorted_labels(values)
        elif checkpoint_labels is not None:
            labels = checkpoint_labels
        else:
            raise ValueError("There is no --train_file to tell the classes, and the checkpoint does not name them.")
        if len(labels) < 2:
            raise ValueError(
                f"Column {label_column_name!r} of {files[reference]} has only one class, {labels[0]!r}; classification "
                "needs two."
            )
    for split, dataset in raw.items():
        content = dict(texts_checked[split])
        if split != "test":
            values = dataset[label_column_name]
            if is_regression:
                content["label"] = _check_numbers(values, files[split], label_column_name)
            else:
                values = _check_classes(values, files[split], label_column_name)
                unseen = [row for row, value in enumerate(values, 1) if value not in labels]
                if unseen:
                    names = sorted({values[row - 1] for row in unseen})
                    raise ValueError(
                        f"{files[split]}, column {label_column_name!r}: {len(unseen)} rows have labels that training "
                        f"does not know, {', '.join(map(repr, names[:ROWS_NAMED]))}, first in {_rows(unseen)}. The "
                        f"known ones are {', '.join(map(repr, labels[:20]))}."
                    )
                content["label"] = [labels.index(value) for value in values]
        splits[split] = Dataset.from_dict(content)
    return TaskData(splits, columns, labels, {split: Path(path).name for split, path in files.items()})


def read_file(path: str) -> Dataset:
    """Reads one file; tab-separated files hold no quotation marks with a meaning, as GLUE's own.

    Raises:
        FileNotFoundError, ValueError: the file is missing, empty, of unknown type or malformed.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file.")
    if file.suffix not in READERS:
        raise ValueError(f"{path} ends with {file.suffix!r}; known are {', '.join(READERS)}.")
    if file.stat().st_size == 0:
        raise ValueError(f"{path} is empty.")
    try:
        if READERS[file.suffix] == "csv":
            dataset = _read_csv(file)
        else:
            if READERS[file.suffix] == "json":
                _check_encoding(file)
            dataset = load_dataset(READERS[file.suffix], data_files=str(file))["train"]
    except Exception as error:  # the readers of pandas and Arrow raise many kinds
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(f"{path} cannot be read: {cause}") from error
    if len(dataset) == 0:
        raise ValueError(f"{path} has no rows.")
    return dataset


def _read_csv(file: Path) -> Dataset:
    _check_encoding(file)
    options = {"sep": "\t", "quoting": csv.QUOTE_NONE} if file.suffix == ".tsv" else {}
    # Words such as "null" and "NA" are text. A column's type is found from all of its rows.
    frame = pd.read_csv(file, keep_default_na=False, na_values=[""], low_memory=False, **options)
    if not isinstance(frame.index, pd.RangeIndex):  # pandas took the surplus for names of the rows
        raise ValueError(
            f"its rows have more fields than its header, which names {', '.join(map(repr, frame.columns))}; is a text "
            "with a separator in it not quoted?"
        )
    return Dataset.from_pandas(frame)


def _check_encoding(file: Path) -> None:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"line {number} is not UTF-8: {line[max(0, error.start - 20) :][:40]!r}") from None


def _type_name(dataset: Dataset, column: str) -> str:
    """Such as "string" or "float64"; nested values have the name of their class."""
    feature = dataset.features[column]
    return getattr(feature, "dtype", type(feature).__name__)


def _find_text_columns(
    dataset: Dataset, path: str, text_column_names: str | None, label_column_name: str
) -> tuple[str, ...]:
    if text_column_names is not None:
        columns = tuple(name.strip() for name in text_column_names.split(","))
        if len(columns) > 2 or not all(columns):
            raise ValueError(f"--text_column_names is {text_column_names!r}; give one name, or two with a comma.")
        return columns
    others = [name for name in dataset.column_names if name != label_column_name]
    # Pairs first: ("question", "sentence") of QNLI before ("sentence",) of SST-2.
    for columns in sorted(KNOWN_COLUMNS, key=len, reverse=True):
        if all(column in others for column in columns):
            return columns
    texts = tuple(name for name in others if _type_name(dataset, name) in ("string", "large_string"))
    if len(texts) in (1, 2):
        return texts
    raise ValueError(
        f"{path} has the columns {', '.join(map(repr, dataset.column_names))}, and {len(texts) or 'none'} of them could "
        "be the text. Name one or two with --text_column_names."
    )


def _check_texts(values: Sequence, path: str, column: str, allow_empty: bool, first_row: int = 1) -> list[str]:
    wrong = [row for row, value in enumerate(values, first_row) if not isinstance(value, str | None)]
    if wrong:
        value = values[wrong[0] - first_row]
        raise ValueError(
            f"{path}, column {column!r}: {len(wrong)} rows are not text, first {_rows(wrong)}: {value!r} is "
            f"{type(value).__name__}. Name another column with --text_column_names, or make it text."
        )
    empty = [row for row, value in enumerate(values, first_row) if value is None or not value.strip()]
    if empty and not allow_empty:
        raise ValueError(
            f"{path}, column {column!r}: {len(empty)} rows have no text, {_rows(empty)}. Remove them, or take them as "
            "empty texts with --allow_empty_text."
        )
    return [value or "" for value in values]


def _check_classes(values: Sequence, path: str, column: str, first_row: int = 1) -> list[str]:
    # Integers are read as decimal numbers where one is missing.
    values = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    wrong = [row for row, value in enumerate(values, first_row) if not isinstance(value, str | int)]
    if wrong:
        raise ValueError(
            f"{path}, column {column!r}: {len(wrong)} rows have no class, {_rows(wrong)}: {values[wrong[0] - first_row]!r} is "
            "neither text nor an integer. For numbers to be predicted, pass --problem_type regression."
        )
    return [str(value) for value in values]


def _check_numbers(values: Sequence, path: str, column: str, first_row: int = 1) -> list[float]:
    numbers, wrong = [], []
    for row, value in enumerate(values, first_row):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        numbers.append(number)
        if not math.isfinite(number):
            wrong.append(row)
    if wrong:
        raise ValueError(
            f"{path}, column {column!r}: {len(wrong)} rows are not finite numbers, {_rows(wrong)}: "
            f"{values[wrong[0] - first_row]!r}."
        )
    return numbers


def _sorted_labels(values: Sequence[str]) -> list[str]:
    """Sorted, integers by value: "2" before "10"."""
    labels = set(values)
    if all(label.lstrip("-").isdigit() for label in labels):
        return sorted(labels, key=int)
    return sorted(labels)


def _rows(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:ROWS_NAMED]))
    return f"row{'s' if len(rows) > 1 else ''} {shown}{', ...' if len(rows) > ROWS_NAMED else ''}"
