# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads the data of a GLUE task or of local files, and finds what is wrong with it before anything is trained."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, IterableDataset, Value
from labels import LabelScan, label_text, rows_text, to_indices, to_number, to_numbers

from ea_hf.training.hub_data import load_hub_data
from ea_hf.training.local_files import describe_files, read_rows
from ea_hf.training.model_card import ScoredData
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)


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
# How many rows are read and checked at once; these of the beginning tell which columns are text.
ROWS_CHECKED = 10_000


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


def scored_data(data: TaskData) -> list[ScoredData]:
    """The validation splits, for the model card."""
    names = [name for name in data.splits if name.startswith("validation")]
    suffixes = ["_mismatched" if name.endswith("_mismatched") else "" for name in names]
    return [
        ScoredData(name, data.sources[name], len(data.splits[name]), suffix=suffix)
        for suffix, name in sorted(zip(suffixes, names, strict=True))  # what ends in nothing fits all, and comes first
    ]


def load_task(dataset_name: str, task_name: str, streaming: bool = False) -> TaskData:
    """Loads a GLUE task, or "ax", the diagnostic set of MNLI, from the Hub or from a local copy of its repository.

    Args:
        streaming: leave the training split where it is, and read it while training.

    Raises:
        ConnectionError: the Hub cannot be reached.
    """
    described = f"{dataset_name} ({task_name})"
    instead = "local files with --train_file and --validation_file"
    raw = load_hub_data(dataset_name, task_name, described=described, instead=instead, streaming=streaming)
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
            continue
        rows = list(split) if streaming else split
        if len(rows) == 0:
            raise ValueError(f"The split {name!r} of {dataset_name} ({task_name}) is empty.")
        splits[name] = Dataset.from_list(rows, features=split.features) if streaming else split
    sources = dict.fromkeys(raw, dataset_name)
    return TaskData(splits, text_columns, labels, sources, train_stream=stream, stream_description=description)


def _name_label(row: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    return {**row, "label": labels[row["label"]]}


def load_files(
    files: dict[str, str],
    text_column_names: str | None = None,
    label_column_name: str = "label",
    problem_type: str | None = None,
    allow_empty_text: bool = False,
    checkpoint_labels: list[str] | None = None,
    stream_training: bool = False,
) -> TaskData:
    """Loads local csv, tsv, json, jsonl or parquet files, all but parquet also with .gz or .zst, and checks them.

    Args:
        files: split name ("train", "validation", "test") to path.
        text_column_names: one or two names, separated by a comma; by default the names that GLUE's tasks use, or else
            the only one or two columns of text.
        problem_type: "single_label_classification" or "regression"; by default regression where most labels are numbers
            and some are decimal. A class is the text that stands in the file.
        allow_empty_text: take an empty or missing text as an empty one, instead of refusing it.
        checkpoint_labels: the classes if there is no training file to tell them.
        stream_training: leave the training file on disk. It is read once to check it and to find its classes, and again
            while training.

    Raises:
        FileNotFoundError, ValueError: with file, column and rows (counted from 1, without a header) of what is missing
            or wrong.
    """
    files = {split: files[split] for split in ("train", "validation", "test") if split in files}
    reference = next(iter(files))
    columns = find_text_columns(files[reference], text_column_names, label_column_name)
    labels, splits = checkpoint_labels, {}
    scan = LabelScan(files[reference], label_column_name, problem_type)
    # Of the training file, or else of what is to be evaluated: which kind of problem it is.
    for split, path in files.items():
        needed = (*columns, label_column_name) if split != "test" else columns
        content: dict[str, list] = {column: [] for column in needed}
        for number, chunk in _read_chunks(path, needed, label_column_name):
            for column in columns:
                texts = _check_texts([row.get(column) for row in chunk], path, column, allow_empty_text, number)
                content[column] += texts if split != "train" or not stream_training else ()
            if split != "test":
                values = [row.get(label_column_name) for row in chunk]
                if split == reference:
                    scan.add(values, number)
                content[label_column_name] += values if split != "train" or not stream_training else ()
        if split == "train":
            labels = scan.finish()
        elif split == reference and split != "test":
            labels = _labels_without_training(scan, checkpoint_labels)
        if split == "train" and stream_training:
            continue
        features = Features({column: Value("string") for column in columns})
        if split != "test":
            values = content.pop(label_column_name)
            settings = (values, path, label_column_name)
            content["label"] = to_numbers(*settings) if labels is None else to_indices(*settings, labels)
            features["label"] = Value("float64" if labels is None else "int64")
        splits[split] = Dataset.from_dict(content, features=features)
    if reference != "test":
        logger.info(
            f"{files[reference]}: text in {' and '.join(map(repr, columns))}, label in {label_column_name!r}; {scan}."
        )
    if reference == "test" and problem_type == "regression":
        labels = None
    data = TaskData(splits, columns, labels, {split: Path(path).name for split, path in files.items()})
    if stream_training:
        path = files["train"]
        # A list among the arguments would be taken for shards, one for each of its values.
        arguments = {"path": path, "columns": tuple(columns), "label": label_column_name, "regression": labels is None}
        data.train_stream = IterableDataset.from_generator(_stream_rows, gen_kwargs=arguments)
        data.stream_description = describe_files([path])
    return data


def _labels_without_training(scan: LabelScan, checkpoint_labels: list[str] | None) -> list[str] | None:
    if scan.problem_type is None and checkpoint_labels is not None and set(scan.counts) <= set(checkpoint_labels):
        scan.problem_type = "single_label_classification"
    scan.guess()
    if scan.problem_type == "regression":
        return scan.finish()
    if checkpoint_labels is None:
        raise ValueError("There is no --train_file to tell the classes, and the checkpoint does not name them.")
    return checkpoint_labels


def _stream_rows(path: str, columns: tuple[str, ...], label: str, regression: bool) -> Iterator[dict[str, Any]]:
    for row in read_rows(path):
        value = label_text(row[label])
        yield {
            **{column: row.get(column) or "" for column in columns},
            "label": to_number(value) if regression else value,
        }


def _read_chunks(path: str, needed: Sequence[str], label: str) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yields rows with the number of the first one; the first ones must have the columns that are needed."""
    rows, number = read_rows(path), 1
    while chunk := list(islice(rows, ROWS_CHECKED)):
        if number == 1:
            names = list(dict.fromkeys(name for row in chunk for name in row))
            missing = [column for column in needed if column not in names]
            if missing:
                option = "--label_column_name" if missing == [label] else "--text_column_names"
                raise ValueError(
                    f"{path} has no column {missing[0]!r}; it has {', '.join(map(repr, names))}. Name the right one "
                    f"with {option}."
                )
        yield number, chunk
        number += len(chunk)
    if number == 1:
        raise ValueError(f"{path} has no rows.")


def find_text_columns(path: str, text_column_names: str | None, label_column_name: str) -> tuple[str, ...]:
    """Which one or two columns of a file are the text; a guess, unless they are named.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or no telling.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file.")
    if Path(path).stat().st_size == 0:
        raise ValueError(f"{path} is empty.")
    if text_column_names is not None:
        columns = tuple(name.strip() for name in text_column_names.split(","))
        if len(columns) > 2 or not all(columns) or len(set(columns)) < len(columns):
            raise ValueError(f"--text_column_names is {text_column_names!r}; give one name, or two with a comma.")
        if label_column_name in columns:
            raise ValueError(
                f"The column {label_column_name!r} cannot be both text and label; change --text_column_names or "
                "--label_column_name."
            )
        return columns
    rows = list(islice(read_rows(path), ROWS_CHECKED))
    if not rows:
        raise ValueError(f"{path} has no rows.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    others = [name for name in names if name != label_column_name]
    # Pairs first: ("question", "sentence") of QNLI before ("sentence",) of SST-2.
    for columns in sorted(KNOWN_COLUMNS, key=len, reverse=True):
        if all(column in others for column in columns):
            return columns
    texts = tuple(name for name in others if _is_text([row.get(name) for row in rows]))
    if len(texts) in (1, 2):
        return texts
    raise ValueError(
        f"{path} has the columns {', '.join(map(repr, names))}, and {len(texts) or 'none'} of them could be the text. "
        "Name one or two with --text_column_names."
    )


def _is_text(values: Sequence[Any]) -> bool:
    """Whether there is nothing but text, and more than numbers and truth values."""
    filled = [value for value in values if value is not None]
    return all(isinstance(value, str) for value in filled) and any(
        value.strip() and to_number(value) is None and value.strip().lower() not in ("true", "false")
        for value in filled
    )


def _check_texts(values: Sequence, path: str, column: str, allow_empty: bool, first_row: int = 1) -> list[str]:
    wrong = [row for row, value in enumerate(values, first_row) if not isinstance(value, str | None)]
    if wrong:
        value = values[wrong[0] - first_row]
        raise ValueError(
            f"{path}, column {column!r}: {len(wrong)} rows are not text, first {rows_text(wrong)}: {value!r} is "
            f"{type(value).__name__}. Name another column with --text_column_names, or make it text."
        )
    empty = [row for row, value in enumerate(values, first_row) if value is None or not value.strip()]
    if empty and not allow_empty:
        raise ValueError(
            f"{path}, column {column!r}: {len(empty)} rows have no text, {rows_text(empty)}. Remove them, or take them as "
            "empty texts with --allow_empty_text."
        )
    return [value or "" for value in values]
