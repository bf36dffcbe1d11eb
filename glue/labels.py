# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Labels as they stand in a file: the kind of problem that they tell, and the classes of a checkpoint's head."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ea_hf.training.distinct_names import names_alike
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)


# How many rows an error names.
ROWS_NAMED = 5
# More are rather numbers, or texts.
MOST_CLASSES = 10_000
# How many classes a line lists.
CLASSES_LISTED = 20

NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")
INTEGER = re.compile(r"\s*[+-]?[0-9]+\s*")


def label_text(value: Any) -> str | None:
    """A label as csv and JSON files have it; `None` if it is missing, or nothing of the kind."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, str | int | float | Decimal):
        return str(value) if str(value).strip() else None
    return None


def to_number(label: str | None) -> float | None:
    """The finite number that a text is."""
    if label is None or not NUMBER.fullmatch(label):
        return None
    number = float(label)
    return number if math.isfinite(number) else None


def sorted_labels(labels: Sequence[str]) -> list[str]:
    """Sorted, integers by value: "2" before "10"."""
    if all(INTEGER.fullmatch(label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def rows_text(rows: Sequence[int], count: int | None = None) -> str:
    more = len(rows) if count is None else count
    shown = ", ".join(map(str, rows[:ROWS_NAMED]))
    return f"row{'s' if more > 1 else ''} {shown}{', ...' if more > ROWS_NAMED else ''}"


@dataclass
class Faults:
    """Some of the rows with a fault, and the value of the first."""

    count: int = 0
    rows: list[int] = field(default_factory=list)
    value: Any = None

    def add(self, row: int, value: Any) -> None:
        if not self.count:
            self.value = value
        if self.count < ROWS_NAMED:
            self.rows.append(row)
        self.count += 1

    def __str__(self) -> str:
        return f"{rows_text(self.rows, self.count)}: {self.value!r}"


class LabelScan:
    """Sees all labels of a training file, some at a time, and tells what they are.

    Args:
        path, column: for messages.
        problem_type: if it is given, and not to be told by the labels.
    """

    def __init__(self, path: str, column: str, problem_type: str | None = None):
        self.place, self.problem_type = f"{path}, column {column!r}", problem_type
        self.counts: Counter[str] = Counter()
        self.total = self.numbers = self.decimals = 0
        self.least, self.greatest = math.inf, -math.inf
        self.missing, self.not_numbers = Faults(), Faults()

    def add(self, values: Sequence[Any], first_row: int) -> None:
        for row, value in enumerate(values, first_row):
            label, self.total = label_text(value), self.total + 1
            number = to_number(label)
            if number is None:
                self.not_numbers.add(row, value)
            else:
                self.numbers += 1
                self.decimals += not INTEGER.fullmatch(label)
                self.least, self.greatest = min(self.least, number), max(self.greatest, number)
            if label is None:
                self.missing.add(row, value)
            elif label in self.counts or len(self.counts) <= MOST_CLASSES:
                self.counts[label] += 1

    def guess(self) -> None:
        """Tells the kind of problem, if nobody did."""
        if self.problem_type is None:
            is_regression = self.decimals > 0 and 2 * self.numbers > self.total
            self.problem_type = "regression" if is_regression else "single_label_classification"

    def finish(self) -> list[str] | None:
        """The classes, or `None` for a regression: where most labels are numbers, and some of them decimal.

        Raises:
            ValueError: a label is missing, or no number in a regression; there are fewer than two classes or too many.
        """
        guessed = self.problem_type is None
        self.guess()
        if self.problem_type == "regression":
            if self.not_numbers.count:
                hint = (
                    " If the labels are classes, pass --problem_type single_label_classification." if guessed else ""
                )
                raise ValueError(
                    f"{self.place}: {self.not_numbers.count} rows are not finite numbers, {self.not_numbers}.{hint}"
                )
            return None
        if self.missing.count:
            raise ValueError(
                f"{self.place}: {self.missing.count} rows have no class, {self.missing} is neither text nor a number."
            )
        if len(self.counts) > MOST_CLASSES:
            raise ValueError(
                f"{self.place} has more than {MOST_CLASSES} classes. For numbers to be predicted, pass "
                "--problem_type regression."
            )
        if len(self.counts) < 2:
            raise ValueError(
                f"{self.place} has only one class, {next(iter(self.counts))!r}; classification needs two."
            )
        for first, second in names_alike(self.counts):
            logger.warning(
                f"{self.place}: {first!r} and {second!r} are two classes, which differ by white space alone."
            )
        return sorted_labels(list(self.counts))

    def __str__(self) -> str:
        if self.problem_type == "regression":
            return f"regression, {self.total} labels from {self.least:g} to {self.greatest:g}"
        labels = sorted_labels(list(self.counts))
        shown = ", ".join(f"{label} ({self.counts[label]})" for label in labels[:CLASSES_LISTED])
        return f"classification, {len(labels)} classes: {shown}{', ...' if len(labels) > CLASSES_LISTED else ''}"


def to_numbers(values: Sequence[Any], path: str, column: str) -> list[float]:
    """The values of a regression."""
    scan = LabelScan(path, column, "regression")
    scan.add(values, 1)
    scan.finish()
    return [to_number(label_text(value)) for value in values]


def to_indices(values: Sequence[Any], path: str, column: str, labels: Sequence[str]) -> list[int]:
    """The places of labels among the known ones."""
    index_of = {label: index for index, label in enumerate(labels)}
    missing, unseen, names = Faults(), Faults(), set()
    for row, value in enumerate(values, 1):
        label = label_text(value)
        if label is None:
            missing.add(row, value)
        elif label not in index_of:
            unseen.add(row, value)
            names.add(label)
    if missing.count:
        raise ValueError(
            f"{path}, column {column!r}: {missing.count} rows have no class, {missing} is neither text nor a number."
        )
    if unseen.count:
        raise ValueError(
            f"{path}, column {column!r}: {unseen.count} rows have labels that training does not know, "
            f"{', '.join(map(repr, sorted(names)[:ROWS_NAMED]))}, first in {rows_text(unseen.rows, unseen.count)}. The "
            f"known ones are {', '.join(map(repr, labels[:CLASSES_LISTED]))}. If a checkpoint only names its classes "
            "otherwise, pass the file's names in the order of its outputs with --checkpoint_labels."
        )
    return [index_of[label_text(value)] for value in values]


def match_labels(labels: Sequence[str], head: Sequence[str]) -> list[str] | None:
    """The task's labels in the order of a head's, if the names agree, maybe but for case, spaces, "_" and "-"."""

    def plain(label: str) -> str:
        return re.sub(r"[\s_-]+", " ", label.strip().lower())

    for form in (str, plain):
        label_of = {form(label): label for label in labels}
        names = [form(name) for name in head]
        if len(label_of) == len(labels) and sorted(names) == sorted(label_of):
            return [label_of[name] for name in names]
    return None
