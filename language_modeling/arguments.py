# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The arguments that the scripts of language modeling share, named as in Transformers' `*_no_trainer.py` scripts."""

import argparse

from text_data import FILES_HELP, UNITS

from ea_hf.training.arguments import add_config_overrides, add_split_arguments, add_training_arguments
from ea_hf.training.command_line import ArgumentParser, script_parser
from ea_hf.training.script import add_evolution_arguments, add_streaming_arguments, check_arguments


METRICS = ("loss", "perplexity", "accuracy")


def add_text_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the arguments that say which documents are read."""
    group.add_argument("--dataset_name", help="On the Hub, or a local copy of its repository.")
    group.add_argument("--dataset_config_name")
    group.add_argument("--train_file", nargs="+", help=FILES_HELP)
    group.add_argument("--text_column_name", help='Of tables. Default: "text", or the only column that holds text.')
    group.add_argument(
        "--document_unit", choices=UNITS, default="line", help="What is a document of a text file; paragraphs end at "
        "empty lines."
    )  # fmt: skip


def make_parser(description: str, length_name: str, chains: tuple[str, ...] = ()) -> ArgumentParser:
    """A parser with all that the scripts share.

    Args:
        length_name: of the argument for the tokens of a block.
        chains: see `add_evolution_arguments`.
    """
    parser = script_parser(description)
    group = parser.add_argument_group("data")
    add_text_arguments(group)
    group.add_argument("--validation_file", nargs="+", help="As --train_file.")
    group.add_argument(
        "--validation_split_percentage",
        type=float,
        default=5.0,
        help="Without validation data: about this share of the training documents is held out, chosen by their content.",
    )
    group.add_argument(
        f"--{length_name}",
        dest="block_size",
        type=int,
        help="Tokens of a block. Default: as the model has, 512 at most.",
    )
    group.add_argument(
        "--concatenate_documents",
        action="store_true",
        help="Let documents follow each other in a block, each token seeing those of the documents before.",
    )
    group.add_argument("--pad_to_max_length", action="store_true", help="Default: pad to the longest of the batch.")
    add_streaming_arguments(group)
    add_split_arguments(group, "Use the first so many {} documents.")

    group = parser.add_argument_group("model")
    group.add_argument("--model_name_or_path", help="Checkpoint to start from. Default: train from scratch.")
    group.add_argument("--model_type", help='Of a model from scratch, such as "bert", "ea_bert" or "electra".')
    group.add_argument("--config_name", help="Configuration of a model from scratch.")
    add_config_overrides(group, 'Changes of it, such as "hidden_size=256,num_hidden_layers=4".')
    group.add_argument("--tokenizer_name", help="Default: --model_name_or_path.")
    add_evolution_arguments(group, chains=chains)
    group.add_argument("--trust_remote_code", action="store_true")
    add_training_arguments(parser)
    return parser


def check_text_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.dataset_name is not None and (args.train_file or getattr(args, "validation_file", None)):
        parser.error("--dataset_name and local files exclude each other; choose one")


def parse(parser: ArgumentParser, argv: list[str] | None, at_least_one: tuple[str, ...] = ()) -> argparse.Namespace:
    """Parses and checks the arguments of `make_parser`."""
    args = parser.parse_args(argv)
    check_text_arguments(parser, args)
    if args.dataset_name is None and not args.train_file and not (args.eval_only and args.validation_file):
        parser.error("pass --dataset_name, or --train_file, or --validation_file with --eval_only")
    if args.eval_only and args.model_name_or_path is None:
        parser.error("--eval_only needs --model_name_or_path")
    if args.model_name_or_path is not None and (args.config_name or args.model_type or args.config_overrides):
        parser.error(
            "--model_type, --config_name and --config_overrides are for a new model, without --model_name_or_path"
        )
    if args.model_name_or_path is None:
        if (args.config_name is None) == (args.model_type is None):
            parser.error("pass --model_name_or_path, or for a new model one of --model_type and --config_name")
        if args.tokenizer_name is None:
            parser.error("a new model needs --tokenizer_name (train_tokenizer.py makes one)")
    if not 0 <= args.validation_split_percentage < 100:
        parser.error(f"--validation_split_percentage is {args.validation_split_percentage}; it must be in [0, 100)")
    if args.metric_for_best_model not in (None, *METRICS):
        parser.error(f"--metric_for_best_model is {args.metric_for_best_model!r}; choose one of {', '.join(METRICS)}")
    if args.streaming and args.max_train_samples is not None:
        parser.error("--max_train_samples needs a prepared corpus, without --streaming")
    check_arguments(parser, args, ("block_size", "max_train_samples", "max_eval_samples", *at_least_one))
    return args
