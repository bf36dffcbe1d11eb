# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The arguments that all scripts share, named as in Transformers' scripts."""

import argparse
import math

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .command_line import directory
from .optimizers import OPTIMIZERS, construct_optimizer, parse_values


LONGEST_TIMEOUT = 10_000_000
# Those of Transformers' schedules that need nothing but the steps of the warm-up and of the run.
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)


ANY_MODEL = "A directory, or a name on the Hub, of any model that `ea_hf.evolve` takes."


def steps_or_epoch(text: str) -> int | str:
    """Parses "epoch", "no" or a positive number of steps."""
    if text in ("epoch", "no"):
        return text
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f'{text!r} is neither a positive number of steps, nor "epoch", nor "no"')


def add_split_arguments(
    group: argparse._ArgumentGroup, taken: str, training_taken: str | None = None, predictions: str | None = None
) -> None:
    """Adds the arguments that say what is done with which split, and with how much of it.

    Args:
        taken: how much is used; its `{}` stands for what the examples are for.
        training_taken: the same of training alone, if it is another sentence.
        predictions: what `--do_predict` does, if there is such an argument.
    """
    purposes = ["training", "validation", *(["test"] if predictions is not None else [])]
    for name, purpose in zip(("train", "eval", "predict"), purposes, strict=False):
        sentence = training_taken if name == "train" and training_taken else taken.format(purpose)
        group.add_argument(f"--max_{name}_samples", type=int, help=sentence)
    group.add_argument("--eval_only", action="store_true", help="Evaluate the model, and train nothing.")
    if predictions is not None:
        group.add_argument("--do_predict", action="store_true", help=predictions)


def add_held_out(group: argparse._ArgumentGroup, default: float, description: str) -> None:
    """Adds the argument for the part of the training data that is held out; `check_arguments` checks it."""
    group.add_argument("--train_val_split", type=float, default=default, help=description)


def add_config_overrides(group: argparse._ArgumentGroup, description: str) -> None:
    """Adds the argument that changes a new model's configuration."""
    group.add_argument("--config_overrides", type=parse_values, default={}, help=description)


def check_files(parser: argparse.ArgumentParser, args: argparse.Namespace, source: str) -> None:
    """Ends the program with a message if files are given beside another source, or those that are needed are not.

    Args:
        source: the argument that names data which are no files.
    """
    files = (args.train_file, args.validation_file, args.test_file)
    if getattr(args, source) is not None:
        if any(files):
            parser.error(f"--{source} and local files exclude each other; choose one")
        return
    if not any(files):
        parser.error(f"pass --{source}, or --train_file and --validation_file")
    if args.train_file is None and not args.eval_only:
        parser.error("pass --train_file, or --eval_only")
    if args.eval_only and args.validation_file is None and not args.do_predict:
        parser.error("--eval_only needs --validation_file, or --test_file and --do_predict")
    if args.do_predict and args.test_file is None:
        parser.error("--do_predict needs --test_file")
    if args.load_best_model_at_end and args.validation_file is None:
        parser.error("--load_best_model_at_end needs --validation_file")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that all scripts share, named as in Transformers' scripts."""
    group = parser.add_argument_group("training")
    group.add_argument("--output_dir", type=directory, required=True, help="Where the model and the checkpoints go.")
    group.add_argument("--overwrite_output_dir", action="store_true", help="Delete the run that --output_dir holds.")
    group.add_argument("--per_device_train_batch_size", type=int, default=8, help="Examples per process and step.")
    group.add_argument("--per_device_eval_batch_size", type=int, default=8)
    group.add_argument("--gradient_accumulation_steps", type=int, default=1, help="Batches per optimizer step.")
    group.add_argument("--optim", choices=OPTIMIZERS, default="adamw_torch", help="sgd has a momentum of 0.9.")
    group.add_argument(
        "--optim_args",
        type=parse_values,
        default={},
        help='Further arguments of the optimizer, such as "betas=(0.9, 0.98)" or Adafactor\'s "scale_parameter=true".',
    )
    group.add_argument("--learning_rate", type=float, default=5e-5, help="Peak learning rate.")
    group.add_argument(
        "--ea_learning_rate",
        type=float,
        help="Peak learning rate of the kernels and learned weights of evolving attention. Default: --learning_rate.",
    )
    group.add_argument(
        "--weight_decay",
        type=float,
        default=0.0,
        help="Not for biases, normalization, gates, and what starts as the identity.",
    )
    group.add_argument("--max_grad_norm", type=float, default=1.0, help="Gradient clipping; 0 switches it off.")
    group.add_argument("--num_train_epochs", type=int, default=3)
    group.add_argument("--max_train_steps", type=int, help="Optimizer steps; overrides --num_train_epochs.")
    group.add_argument(
        "--lr_scheduler_type", choices=SCHEDULES, default="linear", help="As in `transformers.get_scheduler`."
    )
    group.add_argument("--num_warmup_steps", type=int, default=0)
    group.add_argument("--seed", type=int, default=42, help="Of new weights, shuffling and dropout.")
    group.add_argument(
        "--mixed_precision", choices=("no", "fp16", "bf16"), help="Default: what `accelerate launch` says, or no."
    )
    group.add_argument("--gradient_checkpointing", action="store_true", help="Less memory, about a third more time.")
    group.add_argument("--group_by_length", action="store_true", help="Batches of similar length, with less padding.")
    group.add_argument("--dataloader_num_workers", type=int, default=0)
    group.add_argument(
        "--ddp_timeout",
        type=int,
        default=1800,
        help="Seconds that a process waits for the others, as while the first one prepares the data.",
    )

    group = parser.add_argument_group("evaluation, checkpoints, tracking")
    group.add_argument("--eval_steps", type=steps_or_epoch, default="epoch", help='A number, "epoch" or "no".')
    group.add_argument(
        "--checkpointing_steps", type=steps_or_epoch, default="epoch", help='A number, "epoch" or "no".'
    )
    group.add_argument("--save_total_limit", type=int, default=2, help="Checkpoints to keep, beside the best one.")
    group.add_argument("--metric_for_best_model", help="Default: the task's first metric.")
    group.add_argument(
        "--load_best_model_at_end", action="store_true", help="Keep the best evaluated weights instead of the last."
    )
    group.add_argument(
        "--resume_from_checkpoint",
        help='A checkpoint of this run, or "latest", which starts anew where there is none yet.',
    )
    group.add_argument("--logging_steps", type=int, default=50, help="Steps between two reports of the loss.")
    group.add_argument("--with_tracking", action="store_true", help="Report to the trackers of --report_to.")
    group.add_argument(
        "--report_to", default="tensorboard", help='Trackers, as in Accelerate; "all" for all installed.'
    )

    group = parser.add_argument_group("hub")
    group.add_argument("--push_to_hub", action="store_true", help="Push the finished model to the Hub.")
    group.add_argument("--hub_model_id", help="Default: the name of --output_dir, under your account.")
    group.add_argument("--hub_token", help="Default: the token of `hf auth login`.")
    group.add_argument("--hub_private_repo", action="store_true")
    group.add_argument("--license", help="Of the weights, for the model card. Default: the base model's.")


def check_training_arguments(args: argparse.Namespace) -> None:
    """Raises ValueError for a value that no run can have."""
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least 1.")
    for name in ("num_train_epochs", "max_train_steps", "logging_steps", "save_total_limit", "ddp_timeout"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least 1.")
    for name in (
        "learning_rate",
        *(["ea_learning_rate"] if args.ea_learning_rate is not None else []),
        "weight_decay",
        "max_grad_norm",
        "num_warmup_steps",
        "seed",
        "dataloader_num_workers",
    ):
        if not (math.isfinite(getattr(args, name)) and getattr(args, name) >= 0):
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be a finite number, at least 0.")
    if args.seed >= 2**32:  # NumPy's limit
        raise ValueError(f"--seed is {args.seed}; it must be less than {2**32}.")
    if args.ddp_timeout > LONGEST_TIMEOUT:
        raise ValueError(f"--ddp_timeout is {args.ddp_timeout}; it must be at most {LONGEST_TIMEOUT}, in seconds.")
    construct_optimizer(args, [torch.zeros(1, requires_grad=True)])  # before anything is written
    if args.push_to_hub:  # a name that the Hub does not take would be told when all is trained
        try:
            validate_repo_id(args.hub_model_id or args.output_dir.resolve().name)
        except HFValidationError as error:
            raise ValueError(f"{error} Choose a --hub_model_id, which --push_to_hub will need.") from error
    if args.load_best_model_at_end and args.eval_steps == "no":
        raise ValueError('--load_best_model_at_end needs evaluations, but --eval_steps is "no".')
