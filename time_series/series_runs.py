# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The trainings of one call: divisions of the data times seeds, which of them are finished, and what they say together."""

import argparse
import json
import statistics
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from series_data import (
    SeriesData,
    SeriesSplit,
    train_validation_splits,
)
from series_evaluation import GREATER_IS_BETTER, METRICS
from series_models import Run

from ea_hf.training.output_dir import (
    ARGUMENTS_FILE,
    RESULTS_FILE,
    output_dir_fault,
)
from ea_hf.training.task import find_best_metric
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)

EVALUATIONS_FILE = "evaluations.json"


def plan_runs(args: argparse.Namespace, data: SeriesData) -> list[Run]:
    """Each division of the training series with each seed; without the training of --refit, whose epochs follow."""
    train, validation, test = (data.splits.get(name) for name in ("train", "validation", "test"))
    test = None if test is None else test.sample(args.max_predict_samples)
    validation = None if validation is None else validation.sample(args.max_eval_samples)
    if args.eval_only:
        return [Run("", args.seeds[0], None, validation, test)]
    parts: list[tuple[str, SeriesSplit, SeriesSplit | None]]
    if validation is not None:
        parts = [("", train, validation)]
    elif args.num_splits == 0:
        parts = [("whole", train, None)]
    else:
        indices = train_validation_splits(
            train,
            data.task if train.labels is not None else None,
            args.num_splits,
            args.train_val_split,
            args.split_seed,
            data.labels,
        )
        parts = [
            (f"split-{number}", train.select(first), train.select(second).sample(args.max_eval_samples))
            for number, (first, second) in enumerate(indices, 1)
        ]
    runs = [
        Run(f"{name}-seed-{seed}".lstrip("-"), seed, first.sample(args.max_train_samples), second, test)
        for name, first, second in parts
        for seed in args.seeds
    ]
    if len(runs) == 1 and not args.refit:
        runs[0].name = ""
    return runs


def find_finished(accelerator: Accelerator, args: argparse.Namespace) -> dict[str, Any] | None:
    """The results of a run that was finished before this process resumed, on every process; `None` if it was not.

    Raises:
        ValueError: it had other arguments.
    """
    found: list[dict[str, Any] | ValueError | None] = [None]
    if accelerator.is_main_process and (args.output_dir / RESULTS_FILE).exists():
        try:
            found = [_read_finished(args)]
        except ValueError as error:
            found = [error]
    found = broadcast_object_list(found)
    if isinstance(found[0], ValueError):
        raise found[0]
    return found[0]


def _read_finished(args: argparse.Namespace) -> dict[str, Any]:
    before = json.loads((args.output_dir / ARGUMENTS_FILE).read_text())
    now = json.loads(json.dumps(vars(args), default=str))
    for name, value in now.items():
        if name not in ("resume_from_checkpoint", "hub_token", "output_dir", "seeds") and before.get(name) != value:
            raise ValueError(
                f"{args.output_dir} was finished with {name} {before.get(name)!r}, now it is {value!r}. Resume with what "
                "it had, or choose another --output_dir."
            )
    return json.loads((args.output_dir / RESULTS_FILE).read_text())


def choose_epochs(args: argparse.Namespace, data: SeriesData, runs: list[Run]) -> int:
    """The number of epochs with the best mean validation score over all runs; the smallest loss decides between equals."""
    metric = find_best_metric(args, METRICS[data.task])
    curves = []
    for planned in runs:
        evaluations = json.loads((args.output_dir / planned.name / EVALUATIONS_FILE).read_text())
        in_order = [evaluations[step] for step in sorted(evaluations, key=int)]
        sign = -1 if metric in GREATER_IS_BETTER else 1
        curves.append([(sign * scores[metric], scores.get("loss", 0.0)) for scores in in_order])
    means = np.array(curves).mean(axis=0)  # (epochs, 2)
    return 1 + min(range(len(means)), key=lambda epoch: tuple(means[epoch]))


def summarize(results: list[dict[str, Any]]) -> dict[str, float]:
    """Mean and standard deviation of the scores of several runs."""
    summary: dict[str, float] = {}
    for name in results[0]:
        if not name.startswith(("eval_", "test_")):
            continue
        values = [result[name] for result in results]
        summary[name] = statistics.mean(values)
        if len(values) > 1:
            summary[f"{name}_std"] = statistics.stdev(values)
    return summary


def check_output_dirs(args: argparse.Namespace, names: list[str]) -> None:
    """Raises ValueError if the directory of one of the runs cannot be taken."""
    for name in names:
        fault = output_dir_fault(argparse.Namespace(**{**vars(args), "output_dir": args.output_dir / name}))
        if fault is not None:
            raise ValueError(fault)
