# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains an EA-DC-Transformer to classify time series, to predict numbers of them, or to fill their gaps.

    python time_series/run_time_series.py --dataset_name JapaneseVowels --seeds 1 2 3 --refit --do_predict \
        --output_dir output/vowels
    python time_series/run_time_series.py --train_file train.csv --test_file test.csv --output_dir output/mine
    python time_series/run_time_series.py --task masked_imputation --dataset_name JapaneseVowels \
        --output_dir output/pretrained
    python time_series/run_time_series.py --model_name_or_path output/pretrained --dataset_name JapaneseVowels \
        --output_dir output/fine-tuned
    torchrun --nproc_per_node 2 time_series/run_time_series.py ...

The training series are divided several times into training and validation; each division is trained with each seed, and
each training keeps the checkpoint that is best on its validation series. The test series choose nothing.
"""

import argparse
import copy
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from series_data import CLASSIFICATION, REGRESSION, SeriesData, dataset_files, load_files
from series_evaluation import GREATER_IS_BETTER, METRICS, SeriesTask
from series_models import COLUMNS, MASKED_IMPUTATION, MODELS, Run, SeriesDataset, collate, has_labels, load_model
from series_runs import EVALUATIONS_FILE, check_output_dirs, choose_epochs, find_finished, plan_runs, summarize
from transformers import PreTrainedModel

from ea_hf import EADCTransformerConfig, EADCTransformerFeatureExtractor
from ea_hf.training.arguments import add_config_overrides, add_held_out, add_split_arguments, add_training_arguments
from ea_hf.training.checkpoints import write_json
from ea_hf.training.command_line import run_main, script_parser
from ea_hf.training.loop import create_accelerator, end_training
from ea_hf.training.model_card import ScoredData
from ea_hf.training.output_dir import RESULTS_FILE, lock_output_dir, prepare_output_dir
from ea_hf.training.script import add_evolution_arguments, check_arguments, run
from ea_hf.training.task import find_best_metric
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    defaults = (f"{task} {v['num_train_epochs']}, {v['learning_rate']}" for task, v in TASK_DEFAULTS.items())
    parser = script_parser(__doc__, f"Epochs and learning rate by default: {'; '.join(defaults)}.")
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset_name", help="One that aeon bundles, such as JapaneseVowels, or one of --dataset_dir."
    )
    group.add_argument("--dataset_dir", help="A directory with NAME_TRAIN.ts and NAME_TEST.ts of the archives.")
    group.add_argument("--train_file", help="A .ts file, or csv or parquet in long format: a row for each step.")
    group.add_argument("--validation_file", help="Likewise. Default: a part of the training series.")
    group.add_argument("--test_file", help="Likewise.")
    of_model = "with --eval_only the model's"
    group.add_argument(
        "--series_column_name", help=f"Tells the series of a row of a table. Default: series; {of_model}."
    )
    group.add_argument(
        "--time_column_name", help=f'Orders the rows of a series. Default: "time" if there is one; {of_model}.'
    )
    group.add_argument(
        "--label_column_name", nargs="+", help=f"The class, or one or more targets. Default: label; {of_model}."
    )
    group.add_argument(
        "--channel_columns",
        nargs="+",
        help="The channels; other columns are left out. Default: all columns that are nothing else, or the model's.",
    )
    group.add_argument(
        "--task",
        choices=sorted(MODELS),
        help="Default: as the data are labelled. masked_imputation is pretraining; it needs no labels.",
    )
    group.add_argument("--max_steps", type=int, help="Average neighbouring steps of series longer than so many.")
    group.add_argument(
        "--num_splits",
        type=int,
        default=3,
        help="How often the training series are divided, class by class; 0 trains on all of them.",
    )
    add_held_out(group, 0.3, "Share of the series to validate on.")
    group.add_argument("--split_seed", type=int, default=1337, help="Of the divisions.")
    group.add_argument("--seeds", type=int, nargs="+", help="Train each division with each of them. Default: --seed.")
    group.add_argument(
        "--refit",
        action="store_true",
        help="Train at last on all training series, for the number of epochs whose mean validation score was best.",
    )
    training, predictions = "Train on so many random series of each division.", "Write predictions of the test series."
    add_split_arguments(group, "Use so many random {} series.", training, predictions)

    group = parser.add_argument_group("model")
    group.add_argument("--model_name_or_path", help="A pretrained model to go on with. Default: a new one.")
    example = "d_model=128,pooling_type=None"
    add_config_overrides(group, f"Values of a new model's configuration, such as {example}.")
    add_evolution_arguments(group)
    add_training_arguments(parser)
    parser.set_defaults(**DEFAULTS)
    args = parser.parse_args(argv)
    args.seeds = args.seeds or [args.seed]
    _check(parser, args)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program with a message if arguments do not go together."""
    if args.dataset_name is None and args.train_file is None and not args.eval_only:
        parser.error("pass --dataset_name or --train_file")
    files = [name for name in ("train_file", "validation_file", "test_file") if getattr(args, name) is not None]
    if args.dataset_name is not None and files:
        parser.error(f"--dataset_name and --{files[0]} exclude each other; choose one")
    if args.dataset_name is None and not files:
        parser.error("--eval_only needs --dataset_name, --validation_file or --test_file")
    if args.dataset_dir is not None and args.dataset_name is None:
        parser.error("--dataset_dir needs --dataset_name")
    if args.eval_only and args.model_name_or_path is None:
        parser.error("--eval_only needs --model_name_or_path")
    if args.config_overrides and args.model_name_or_path is not None:
        parser.error("--config_overrides is for a new model, without --model_name_or_path")
    if args.do_predict and args.dataset_name is None and args.test_file is None:
        parser.error("--do_predict needs --test_file")
    if args.do_predict and args.task == MASKED_IMPUTATION:
        parser.error("--do_predict is for classes and targets, not for --task masked_imputation")
    if args.num_splits < 0:
        parser.error(f"--num_splits is {args.num_splits}; it must be at least 0")
    if args.refit and (args.eval_only or args.num_splits == 0 or args.max_train_steps is not None):
        parser.error("--refit needs --num_splits above 0, and neither --eval_only nor --max_train_steps")
    if args.refit and args.eval_steps != "epoch":
        parser.error('--refit counts epochs; it needs --eval_steps "epoch"')
    if args.split_seed < 0:
        parser.error(f"--split_seed is {args.split_seed}; it must be at least 0")
    if len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--seeds are {args.seeds}; each may stand there once")
    if args.push_to_hub and len(args.seeds) * max(1, args.num_splits) + args.refit > 1 and not args.eval_only:
        parser.error("--push_to_hub is for one model; pass one of --seeds, --num_splits 1 or 0, and no --refit")
    if args.resume_from_checkpoint not in (None, "latest"):
        parser.error('--resume_from_checkpoint takes only "latest" here, as there may be several trainings')
    check_arguments(parser, args, ("max_steps", "max_train_samples", "max_eval_samples", "max_predict_samples"))


# The released recipe (batches of 64, 400 epochs, a constant rate of 1e-3) suits larger data. Smaller batches need fewer
# epochs, a falling rate makes the result depend less on the last steps.
DEFAULTS = {
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 256,
    "optim": "radam",
    "learning_rate": None,  # see TASK_DEFAULTS
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 4.0,
    "num_train_epochs": None,
    "checkpointing_steps": "no",
    "load_best_model_at_end": True,
}
# Targets are often noisy, and a regression soon learns the noise of few series.
TASK_DEFAULTS = {
    CLASSIFICATION: {"num_train_epochs": 100, "learning_rate": 3e-3},
    REGRESSION: {"num_train_epochs": 30, "learning_rate": 1e-3},
    MASKED_IMPUTATION: {"num_train_epochs": 100, "learning_rate": 3e-3},
}


def set_task_defaults(args: argparse.Namespace, task: str) -> None:
    """Sets what the command line leaves to the task, which the data may tell."""
    for name, value in TASK_DEFAULTS[task].items():
        if getattr(args, name) is None:
            setattr(args, name, value)


# Data


def load_data(args: argparse.Namespace) -> SeriesData:
    """The splits as far as they are needed."""
    if args.dataset_name is not None:
        files = dataset_files(args.dataset_name, args.dataset_dir)
    else:
        files = {name: getattr(args, f"{name}_file") for name in ("train", "validation", "test")}
        files = {name: path for name, path in files.items() if path is not None}
    if args.eval_only:
        files.pop("train", None)
    if not args.do_predict and not (args.eval_only and args.dataset_name is not None):
        files.pop("test", None)
    if not files:
        raise ValueError("--eval_only on --test_file needs --do_predict.")
    known = known_task = None
    if args.model_name_or_path is not None:
        known = EADCTransformerFeatureExtractor.from_pretrained(args.model_name_or_path)
        if args.eval_only:
            known_task = find_task(args.model_name_or_path)
    set_columns(args)
    task = args.task or known_task
    data = load_files(
        files,
        None if task == MASKED_IMPUTATION else task,
        find_channels(args, known),
        series_column=args.series_column_name,
        time_column=args.time_column_name,
        label_columns=args.label_column_name,
    )
    if known is not None and (known.channel_names is None) == data.has_channel_names:
        data.notes.append(
            f"{args.model_name_or_path} or {data.source} names no channels; they are taken in order: "
            f"{', '.join(map(repr, known.channel_names or data.channels))}."
        )
    if args.dataset_name is not None:
        data.source = args.dataset_name
    if task == MASKED_IMPUTATION:
        data.task = MASKED_IMPUTATION
    if data.task == REGRESSION and known_task and not has_labels(data):
        number = EADCTransformerConfig.from_pretrained(args.model_name_or_path).num_targets
        data.labels = known.target_names or (["target"] if number == 1 else [f"target {i}" for i in range(number)])
    for name, split in data.splits.items():
        if data.task != MASKED_IMPUTATION and split.labels is None and (name != "test" or data.task is None):
            raise ValueError(
                f"The series of {name} of {data.source} have no labels. Name their column with --label_column_name, or "
                "choose --task masked_imputation."
            )
    if data.task == CLASSIFICATION and "train" in data.splits and len(data.labels) < 2:
        raise ValueError(f"{data.source} has {len(data.labels)} class for training; classification needs two.")
    return data


def set_columns(args: argparse.Namespace) -> None:
    """Sets the names of a table's columns that the command line leaves open: those of a finished model, or the defaults."""
    saved: dict[str, Any] = {}
    if args.eval_only:
        config = EADCTransformerConfig.from_pretrained(args.model_name_or_path)
        saved = {name: getattr(config, name, None) for name in COLUMNS}
    for name, default in COLUMNS.items():
        if getattr(args, name) is None:
            setattr(args, name, saved.get(name) or default)


def find_task(checkpoint: str) -> str | None:
    """Which task of labels a checkpoint has a head for; `None` if it has none."""
    architectures = EADCTransformerConfig.from_pretrained(checkpoint).architectures or []
    return next((task for task in (CLASSIFICATION, REGRESSION) if MODELS[task].__name__ in architectures), None)


def find_channels(args: argparse.Namespace, known: EADCTransformerFeatureExtractor | None) -> list[str] | None:
    """The channels to read from tables, in the model's order; `None` if neither the user nor the model tells.

    Raises:
        ValueError: a trained model knows other channels than the user.
    """
    names = known.channel_names if known is not None else None
    if names is None or (args.channel_columns is not None and not args.eval_only):
        return args.channel_columns
    if args.channel_columns is not None and sorted(args.channel_columns) != sorted(names):
        raise ValueError(
            f"--channel_columns are {', '.join(args.channel_columns)}; {args.model_name_or_path} takes {', '.join(names)}."
        )
    return names


# Runs


Loader = Callable[[argparse.Namespace, SeriesData, Run], tuple[PreTrainedModel, EADCTransformerFeatureExtractor]]


def execute(
    args: argparse.Namespace, data: SeriesData, planned: Run, last: bool, load: Loader = load_model
) -> dict[str, Any]:
    """Trains, evaluates and predicts as planned; returns the results, which its directory holds too.

    Args:
        last: whether no other run follows in this process.
        load: makes the model and the feature extractor.
    """
    args = copy.copy(args)
    args.seed = planned.seed
    args.output_dir = args.output_dir / planned.name
    if planned.num_train_epochs is not None:
        args.num_train_epochs = planned.num_train_epochs
    if planned.validation is None:
        args.eval_steps, args.load_best_model_at_end = "no", False
    accelerator = create_accelerator(args)
    while data.notes:  # each is told once
        logger.info(data.notes.pop(0))
    if args.resume_from_checkpoint and planned.name:
        finished = find_finished(accelerator, args)
        if finished is not None:
            if last:
                end_training(accelerator)
            return finished
    # A bad model is told before the output directory is touched.
    model, extractor = load(args, data, planned)
    datasets = {
        name: SeriesDataset(split, extractor, data.task)
        for name in ("train", "validation", "test")
        if (split := getattr(planned, name)) is not None
    }
    best_metric = find_best_metric(args, METRICS[data.task])
    lock = prepare_output_dir(accelerator, args)
    logger.info(f"{planned.name or args.output_dir}: {len(planned.train or [])} series to train on, seed {args.seed}.")

    def note_evaluations(evaluations: dict[int, dict[str, float]]) -> None:
        if accelerator.is_main_process:
            write_json(args.output_dir / EVALUATIONS_FILE, evaluations)

    return run(
        SeriesTask(args, accelerator, datasets, partial(collate, extractor), extractor, data),
        model,
        extractor,
        model_card={
            "auto_class": "AutoModel",
            "processor_class": "AutoFeatureExtractor",
            "model_class": MODELS[data.task].__name__,
            "task_type": f"time-series-{data.task.replace('_', '-')}",
            "task_name": data.source,
            "dataset_name": data.source,
            "base_model": args.model_name_or_path,
            "evaluated_on": scored_data(args, data, planned),
        },
        note_evaluations=note_evaluations,
        last_run=last,
        lock=lock,
        metric_for_best_model=best_metric if "validation" in datasets else None,
        greater_is_better=best_metric in GREATER_IS_BETTER,
        lengths=[len(values) for values in datasets["train"].values] if "train" in datasets else None,
    )


def scored_data(args: argparse.Namespace, data: SeriesData, planned: Run) -> list[ScoredData]:
    """Where no file of validation series is given, they are a part of the training series."""
    found = []
    for name, prefix in (("validation", ""), ("test", "test_")):
        split = getattr(planned, name)
        if split is not None:
            path = getattr(args, f"{name}_file") or args.train_file
            source = args.dataset_name or Path(path).name
            part = ", held out of train" if name not in data.splits else ""
            found.append(ScoredData(name, source + part, len(split), "series", prefix))
    return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    check_output_dirs(args, [""])  # before anything is read, which may take long
    data = load_data(args)
    set_task_defaults(args, data.task)
    runs = plan_runs(args, data)
    check_output_dirs(args, [planned.name for planned in runs])
    find_best_metric(args, METRICS[data.task])
    if len(runs) == 1 and not args.refit:
        return execute(args, data, runs[0], last=True)
    # Each training locks its own directory, and nothing the others', which another process might overwrite.
    lock = lock_output_dir(create_accelerator(args), args.output_dir)
    results = [execute(args, data, planned, last=planned is runs[-1] and not args.refit) for planned in runs]
    summary: dict[str, Any] = {
        **summarize(results),
        "runs": {planned.name: result for planned, result in zip(runs, results, strict=True)},
    }
    if args.refit:
        epochs = choose_epochs(args, data, runs) if PartialState().is_main_process else None
        epochs = broadcast_object_list([epochs])[0]
        logger.info(f"Training on all series for {epochs} epochs.")
        train = data.splits["train"].sample(args.max_train_samples)
        whole = [Run(f"whole-seed-{seed}", seed, train, None, runs[0].test, epochs) for seed in args.seeds]
        refits = [execute(args, data, planned, last=planned is whole[-1]) for planned in whole]
        summary["refit"] = {
            "num_train_epochs": epochs,
            **summarize(refits),
            "runs": {planned.name: result for planned, result in zip(whole, refits, strict=True)},
        }
    if PartialState().is_main_process:
        write_json(args.output_dir / RESULTS_FILE, summary)
    if lock is not None:
        lock.close()
    return summary


if __name__ == "__main__":
    logging.captureWarnings(True)
    run_main(main)
