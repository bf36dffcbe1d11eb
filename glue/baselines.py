# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a task yields without a neural network: the majority class, and TF-IDF with a linear model.

    python glue/baselines.py data/film_sentiment
    python glue/baselines.py --train_file train.csv --validation_file validation.csv

A fine-tuned model is worth its cost only as far as it is better than these.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy.sparse import csr_matrix, hstack, spmatrix
from scipy.stats import pearsonr, spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, f1_score

from ea_hf.training.command_line import ArgumentParser, run_main


class Table(Protocol):
    """Anything whose columns are reached by name: a data frame, a `datasets.Dataset`, a dictionary of lists."""

    def __getitem__(self, column: str, /) -> Iterable[Any]: ...


def baselines(
    train: Table,
    validation: Table,
    sentence_columns: Sequence[str] = ("sentence",),
    label_column: str = "label",
    regression: bool | None = None,
    positive_label: str | int | None = None,
) -> dict[str, dict[str, float]]:
    """Fits the baselines on `train` and returns their metrics on `validation`, by the baseline's name.

    Args:
        sentence_columns: One column, or two for a pair task.
        regression: Whether labels are values; by default they are if all of `train`'s are floating-point numbers.
        positive_label: Whose F1 is reported if there are two classes; by default `x` of "x" and "not_x" (as in MRPC
            and QQP), else the last in sorted order. With more classes F1 is the mean over the classes.

    Returns:
        For classification "majority class" and "TF-IDF", each with `accuracy` and `f1`; for regression "train mean"
        and "TF-IDF", each with `pearson` and `spearmanr`. A constant prediction correlates with nothing: 0.
    """
    if len(sentence_columns) not in (1, 2):
        raise ValueError(f"sentence_columns must name one or two columns, got {tuple(sentence_columns)}")
    train_labels, labels = list(train[label_column]), list(validation[label_column])
    if not train_labels or not labels:
        raise ValueError(f"no rows to compare: {len(train_labels)} for training, {len(labels)} for validation")
    if regression is None:
        regression = all(isinstance(label, Real) and not isinstance(label, Integral) for label in train_labels)

    train_features, features = tfidf_features(
        [sentences(train, column) for column in sentence_columns],
        [sentences(validation, column) for column in sentence_columns],
    )
    if regression:
        targets, references = np.asarray(train_labels, dtype=float), np.asarray(labels, dtype=float)
        predictions = Ridge(alpha=1.0).fit(train_features, targets).predict(features)
        return {
            "train mean": correlations(references, np.full(len(references), targets.mean())),
            "TF-IDF": correlations(references, predictions),
        }

    # of equally frequent classes the first in sorted order
    counts = Counter(train_labels)
    classes = sorted(counts)
    majority = [max(classes, key=counts.__getitem__)] * len(labels)
    if len(classes) > 1:
        model = LogisticRegression(C=10, max_iter=1000).fit(train_features, train_labels)
        predictions = model.predict(features).tolist()
    else:
        predictions = majority  # there is nothing to tell apart
    if positive_label is None:
        positive_label = default_positive_label(classes)
    elif positive_label not in classes:
        raise ValueError(f"positive_label {positive_label!r} is none of the training labels {classes}")
    return {
        "majority class": classification_metrics(labels, majority, classes, positive_label),
        "TF-IDF": classification_metrics(labels, predictions, classes, positive_label),
    }


def default_positive_label(classes: Sequence) -> Any:
    """The label whose F1 counts: `x` of "x" and "not_x", else the last in sorted order."""
    negated = [label for label in classes if f"not_{label}" in classes]
    return negated[0] if negated else sorted(classes)[-1]


def sentences(table: Table, column: str) -> list[str]:
    """Returns a column of texts; anything else in it raises."""
    texts = list(table[column])
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"column {column!r}, row {row}: expected a text, got {text!r}; drop or repair that row")
    return texts


def tfidf_features(train: list[list[str]], other: list[list[str]]) -> tuple[spmatrix, spmatrix]:
    """TF-IDF of words and word pairs, known from `train`; each argument holds one list of texts per sentence column.

    For pairs the features say how the two sides compare: absolute difference, product, and their cosine.
    """
    # words of one letter count too: "isn't" is "isn" and "t"
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    vectorizer.fit([text for texts in train for text in texts])
    train_sides, other_sides = ([vectorizer.transform(texts) for texts in side] for side in (train, other))
    if len(train) == 1:
        return train_sides[0], other_sides[0]
    return compare(*train_sides), compare(*other_sides)


def compare(first: spmatrix, second: spmatrix) -> spmatrix:
    # rows have length 1, so that the sum of products is the cosine
    product = first.multiply(second)
    cosine = csr_matrix(product.sum(axis=1))
    # a single column among thousands: widened, or the penalty on large weights would all but switch it off
    return hstack([abs(first - second), product, 10 * cosine], format="csr")


def classification_metrics(labels: list, predictions: list, classes: list, positive_label: Any) -> dict[str, float]:
    if len(classes) == 2 and set(labels) <= set(classes):
        f1 = f1_score(labels, predictions, average="binary", pos_label=positive_label, zero_division=0)
    else:
        f1 = f1_score(labels, predictions, average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(labels, predictions)), "f1": float(f1)}


def correlations(references: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    if len(references) < 2 or np.ptp(references) == 0 or np.ptp(predictions) == 0:
        return {"pearson": 0.0, "spearmanr": 0.0}
    return {
        "pearson": float(pearsonr(references, predictions).statistic),
        "spearmanr": float(spearmanr(references, predictions).statistic),
    }


def format_table(results: dict[str, dict[str, float]]) -> str:
    """One line per baseline, one column per metric."""
    metrics = list(next(iter(results.values())))
    width = max(map(len, results))
    lines = [" " * width + "".join(f"{metric:>12}" for metric in metrics)]
    lines += [
        f"{name:<{width}}" + "".join(f"{row[metric]:>12.4f}" for metric in metrics) for name, row in results.items()
    ]
    return "\n".join(lines)


def read_table(path: Path, label_column: str) -> dict[str, list]:
    """Reads a csv or tsv file; labels become numbers if all of them are."""
    import pandas

    if path.suffix not in (".csv", ".tsv"):
        raise ValueError(f"{path}: expected a file that ends in .csv or .tsv")
    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        frame = pandas.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' own errors are among these
        raise ValueError(f"{path} cannot be read: {error}") from error
    if label_column not in frame:
        raise ValueError(f"{path} has no column {label_column!r}; its columns are {list(frame.columns)}")
    table = {str(column): frame[column].tolist() for column in frame.columns}
    for number in (int, float):
        try:
            table[label_column] = [number(label) for label in table[label_column]]
            break
        except ValueError:
            continue
    if any(isinstance(label, float) and not math.isfinite(label) for label in table[label_column]):
        raise ValueError(f"{path}: column {label_column!r} holds NaN or an infinite value")
    return table


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("task_dir", type=Path, nargs="?", help="Folder that holds train.csv and validation.csv.")
    parser.add_argument("--train_file", type=Path, help="A csv or tsv file, instead of a folder.")
    parser.add_argument("--validation_file", type=Path, help="A csv or tsv file, instead of the folder's.")
    parser.add_argument("--label_column", default="label", help="Column of the labels (default: label).")
    parser.add_argument("--positive_label", help="The label whose F1 is reported (default: see `baselines`).")
    args = parser.parse_args(arguments)
    if args.task_dir is not None:
        args.train_file = args.train_file or args.task_dir / "train.csv"
        args.validation_file = args.validation_file or args.task_dir / "validation.csv"
    if args.train_file is None or args.validation_file is None:
        parser.error("give the folder of a task, or both --train_file and --validation_file")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    train, validation = (read_table(path, args.label_column) for path in (args.train_file, args.validation_file))
    columns = [column for column in ("sentence", "sentence1", "sentence2") if column in train]
    if not columns:
        raise ValueError(f"{args.train_file} has no column sentence, or sentence1 and sentence2; it has {list(train)}")
    results = baselines(train, validation, columns, args.label_column, positive_label=args.positive_label)
    sizes = [f"{len(table[args.label_column]):,}" for table in (train, validation)]
    print(f"{args.train_file} ({sizes[0]} rows), {args.validation_file} ({sizes[1]} rows)")
    print(format_table(results))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
