# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes an evolving-attention model on a GLUE task, or on local files of sentences or pairs of sentences.

    python glue/run_glue.py --model_name_or_path google-bert/bert-base-uncased --task_name mrpc --output_dir output/mrpc
    torchrun --nproc_per_node 2 glue/run_glue.py ...      # several processes, on GPUs or on CPUs
    accelerate launch glue/run_glue.py ...                # as `accelerate config` says

A vanilla BERT or RoBERTa becomes an EA-BERT or EA-RoBERTa on the fly, and any other model that `ea_hf.evolve` takes, such as
ELECTRA or DistilBERT, an evolving model of its kind; an evolving checkpoint is loaded as it is.
"""

import argparse
import inspect
import logging
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from glue_evaluation import PREDICTIONS_FILE, GlueTask, metric_names
from head_labels import fit_labels, head_labels
from task_data import TASK_COLUMNS, TaskData, load_files, load_task, scored_data
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from ea_hf.training.arguments import ANY_MODEL, add_split_arguments, add_training_arguments, check_files
from ea_hf.training.command_line import run_main, script_parser
from ea_hf.training.local_files import check_not_an_input
from ea_hf.training.loop import create_accelerator
from ea_hf.training.model_card import text_widget
from ea_hf.training.model_loading import check_vocabulary, load_evolving_model, longest_input
from ea_hf.training.output_dir import prepare_output_dir
from ea_hf.training.script import add_evolution_arguments, add_streaming_arguments, check_arguments, run
from ea_hf.training.streaming import CutTexts, Stream
from ea_hf.training.task import find_best_metric
from ea_hf.training.terminal import script_logger
from ea_hf.training.tokenizer_loading import TEXTS_SAMPLED, check_known, check_location, load_own_tokenizer, sample


logger = script_logger(__name__)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = script_parser(__doc__)
    group = parser.add_argument_group("data")
    group.add_argument("--task_name", choices=sorted(TASK_COLUMNS), help="A task of GLUE.")
    group.add_argument("--dataset_name", default="nyu-mll/glue", help="GLUE on the Hub, or a local copy of it.")
    group.add_argument("--train_file", help="A csv, tsv, json, jsonl or parquet file.")
    group.add_argument("--validation_file", help="Likewise.")
    group.add_argument("--test_file", help="Likewise; its labels, if any, are not looked at.")
    group.add_argument(
        "--text_column_names",
        help="One name, or two with a comma. Default: GLUE's names; with --eval_only the checkpoint's.",
    )
    group.add_argument("--label_column_name", help="Default: label; with --eval_only the checkpoint's.")
    group.add_argument(
        "--problem_type",
        choices=("single_label_classification", "regression"),
        help="Default: regression if the labels are decimal numbers.",
    )
    group.add_argument("--allow_empty_text", action="store_true", help="Take missing texts as empty ones.")
    group.add_argument("--max_length", type=int, default=128, help="Longer inputs are truncated; in tokens.")
    group.add_argument("--pad_to_max_length", action="store_true", help="Default: pad to the longest of the batch.")
    add_streaming_arguments(group)
    add_split_arguments(group, "Use the first so many {} examples.", predictions="Write predictions of the test set.")

    group = parser.add_argument_group("model")
    group.add_argument("--model_name_or_path", required=True, help=ANY_MODEL)
    group.add_argument(
        "--checkpoint_labels",
        help="The task's or file's names of the classes, with commas, in the order of the checkpoint's outputs. Default: "
        "the names in its configuration.",
    )
    group.add_argument("--tokenizer_name", help="Default: --model_name_or_path.")
    add_evolution_arguments(group)
    group.add_argument("--use_slow_tokenizer", action="store_true")
    group.add_argument("--trust_remote_code", action="store_true")
    group.add_argument("--ignore_mismatched_sizes", action="store_true", help="Take a new head if the sizes differ.")
    add_training_arguments(parser)
    args = parser.parse_args(argv)

    check_files(parser, args, "task_name")
    if args.metric_for_best_model and args.task_name is None and args.validation_file is None:
        parser.error("--metric_for_best_model needs --validation_file")
    check_arguments(parser, args, ("max_length", "max_train_samples", "max_eval_samples", "max_predict_samples"))
    if args.task_name is None:
        args.dataset_name = None
    return args


def load_data(args: argparse.Namespace) -> TaskData:
    """The task's splits as far as they are needed, with `ax`, GLUE's diagnostic set, for MNLI's predictions."""
    if args.task_name is not None:
        data = load_task(args.dataset_name, args.task_name, args.streaming)
        if args.task_name == "mnli" and args.do_predict:
            diagnostic = load_task(args.dataset_name, "ax")
            data.splits["ax"] = diagnostic.splits["test"]
            data.sources["ax"] = args.dataset_name
    else:
        files = {
            "train": None if args.eval_only else args.train_file,
            "validation": args.validation_file,
            "test": args.test_file if args.do_predict else None,
        }
        checkpoint_labels, problem_type = None, args.problem_type
        if args.eval_only:
            checkpoint = AutoConfig.from_pretrained(args.model_name_or_path, trust_remote_code=args.trust_remote_code)
            problem_type = (
                problem_type or checkpoint.problem_type or ("regression" if checkpoint.num_labels == 1 else None)
            )
            checkpoint_labels = head_labels(args, checkpoint)
            saved_columns = ",".join(getattr(checkpoint, "text_columns", None) or ()) or None
            args.text_column_names = args.text_column_names or saved_columns
            args.label_column_name = args.label_column_name or getattr(checkpoint, "label_column", None)
        args.label_column_name = args.label_column_name or "label"
        files = {split: path for split, path in files.items() if path is not None}
        settings = (args.text_column_names, args.label_column_name, problem_type, args.allow_empty_text)
        data = load_files(files, *settings, checkpoint_labels, args.streaming)
    if data.train_stream is not None and args.max_train_samples is not None:
        data.train_stream = data.train_stream.take(args.max_train_samples)
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples}
    for name, split in data.splits.items():
        limit = limits.get(name.split("_")[0], args.max_predict_samples)
        data.splits[name] = split.select(range(min(limit or len(split), len(split))))
    return data


def load_model(args: argparse.Namespace, data: TaskData) -> tuple[Any, PreTrainedTokenizerBase]:
    """The evolving model with a head for the task, and its tokenizer. Reorders the labels to a checkpoint's own."""
    tokenizer, tokenizer_name = load_own_tokenizer(args)
    if tokenizer.pad_token is None:
        raise ValueError(f"The tokenizer of {tokenizer_name} has no pad_token, without which texts share no batch.")

    def prepare_config(config: Any) -> None:
        fit_labels(args, config, data)
        config.text_columns = list(data.text_columns)
        config.label_column = args.label_column_name or "label"
        config.finetuning_task = args.task_name
        if config.pad_token_id is None:  # by which decoders find the last token of a text
            config.pad_token_id = tokenizer.pad_token_id

    ignore = args.ignore_mismatched_sizes
    model, missing = load_evolving_model(
        AutoModelForSequenceClassification, args, prepare_config, ignore_mismatched_sizes=ignore
    )
    if args.eval_only and missing:
        raise ValueError(
            f"{args.model_name_or_path} has no weights {', '.join(sorted(missing))}: it was not trained for this task. "
            "Train it, without --eval_only."
        )
    check_vocabulary(model, tokenizer, tokenizer_name)
    check_tokens(data, tokenizer, tokenizer_name)
    longest = longest_input(model)
    if longest is not None and args.max_length > longest:
        raise ValueError(f"--max_length is {args.max_length}, but {args.model_name_or_path} ends at {longest} tokens.")
    # Some tokenizers give what their model does not take, such as DistilBERT's the types of the tokens.
    taken = inspect.signature(model.forward).parameters
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in taken]
    return model, tokenizer


def check_tokens(data: TaskData, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises ValueError if the tokenizer does not know most of the text of a split."""
    samples = {split: table.select(sample(len(table))) for split, table in data.splits.items()}
    if data.train_stream is not None:
        samples["train"] = islice(data.train_stream, TEXTS_SAMPLED)
    for split, rows in samples.items():
        check_known(tokenizer, name, [row[column] for row in rows for column in data.text_columns], split)


def encode(
    examples: dict[str, list],
    args: argparse.Namespace,
    text_columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, list]:
    """A batch of `tokenize`."""
    texts = [list(examples[column]) for column in text_columns]
    result = tokenizer(
        *texts,
        max_length=args.max_length,
        truncation=True,
        padding="max_length" if args.pad_to_max_length else False,
    )
    result["length"] = [len(ids) for ids in result["input_ids"]]
    # What fills its length may have been longer.
    full = [row for row, mask in enumerate(result["attention_mask"]) if sum(mask) >= args.max_length]
    whole = tokenizer(*([column[row] for row in full] for column in texts), verbose=False)["input_ids"] if full else []
    result["full_length"] = list(result["length"])
    for row, ids in zip(full, whole, strict=True):
        result["full_length"][row] = max(len(ids), result["length"][row])
    if "label" in examples:
        result["labels"] = examples["label"]
    return result


class RowEncoder:
    """Makes examples out of rows of a stream; a class, because spawned data workers get it pickled."""

    def __init__(self, args: argparse.Namespace, data: TaskData, tokenizer: PreTrainedTokenizerBase):
        self.args, self.text_columns, self.labels, self.tokenizer = args, data.text_columns, data.labels, tokenizer
        self.cut_texts = CutTexts({"--max_length": args.max_length})

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        columns = {name: [row[name] for row in rows] for name in (*self.text_columns, "label")}
        if self.labels is not None:
            columns["label"] = [self.labels.index(label) for label in columns["label"]]
        encoded = encode(columns, self.args, self.text_columns, self.tokenizer)
        self.cut_texts.note("--max_length", encoded.pop("full_length"))
        return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


def tokenize(
    args: argparse.Namespace, accelerator: Accelerator, data: TaskData, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """The splits as token ids with `labels`, and a `length` column in tokens."""

    splits = {}
    for name, split in data.splits.items():
        with accelerator.main_process_first():
            splits[name] = split.map(
                encode,
                batched=True,
                fn_kwargs={"args": args, "text_columns": data.text_columns, "tokenizer": tokenizer},
                remove_columns=split.column_names,
                desc=f"Tokenizing {name}",
            )
        truncated = sum(length > args.max_length for length in splits[name]["full_length"])
        splits[name] = splits[name].remove_columns("full_length")
        logger.info(
            f"{name}: {truncated} of {len(splits[name])} texts have more than {args.max_length} tokens and were cut "
            "(--max_length)."
        )
    return splits


class Collator:
    """Makes a batch; a class and not a function in a function, because spawned data workers get it pickled."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator):
        # Multiples of 8 suit the tensor cores of mixed precision.
        multiple = 8 if accelerator.mixed_precision != "no" else None
        self.pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return dict(self.pad([{name: row[name] for name in row if name != "length"} for row in examples]))


def main(argv: list[str] | None = None) -> dict[str, float]:
    args = parse_args(argv)
    check_location(args.model_name_or_path)
    inputs = filter(None, (args.train_file, args.validation_file, args.test_file))
    check_not_an_input(args.output_dir / PREDICTIONS_FILE, inputs)
    accelerator = create_accelerator(args)
    # Bad data and a bad model are told before the output directory is touched.
    with accelerator.local_main_process_first():
        data = load_data(args)
    model, tokenizer = load_model(args, data)
    best_metric = find_best_metric(args, metric_names(args, data))
    lock = prepare_output_dir(accelerator, args)
    splits = tokenize(args, accelerator, data, tokenizer)
    lengths = splits["train"]["length"] if "train" in splits else None
    if data.train_stream is not None and not args.eval_only:
        splits["train"] = Stream(
            data.train_stream, RowEncoder(args, data, tokenizer), args.shuffle_buffer_size, data.stream_description
        )
    return run(
        GlueTask(args, accelerator, splits, Collator(tokenizer, accelerator), data),
        model,
        tokenizer,
        model_card={
            "auto_class": "AutoModelForSequenceClassification",
            "task_type": "text-classification",
            "task_name": f"GLUE {args.task_name.upper()}" if args.task_name else data.sources.get("train"),
            "dataset_name": args.dataset_name if args.task_name else data.sources.get("train"),
            "base_model": model.config.name_or_path,
            "evaluated_on": scored_data(data),
            "hub_dataset": args.dataset_name,
            "widget": text_widget(tokenizer, len(data.text_columns)),
        },
        lock=lock,
        metric_for_best_model=best_metric,
        greater_is_better=best_metric != "mse",
        lengths=lengths,
    )


if __name__ == "__main__":
    logging.captureWarnings(True)
    run_main(main)
