# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The one Accelerate loop that all fine-tuning scripts share.

A step of the optimizer minimizes the mean loss over all the labels of its examples, however many processes and
accumulation steps share them. The random numbers of a batch (dropout) follow from the seed, the step and the batch's
place in the step, whichever process computes it. So a run that was killed at any moment and resumed ends with the same
weights as an undisturbed one; and with as many processes more as accumulation steps fewer, it draws the same numbers.
"""

import argparse
import errno
import gc
import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import (
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    send_to_device,
    set_seed,
)
from filelock import FileLock, Timeout
from transformers import PreTrainedModel, get_scheduler
from transformers.utils import CONFIG_NAME

from ..map_summary import summary
from ..models.evolution import AttentionEvolution
from .batching import Step, TrainingBatches, count_labels, progress_bar, stand_in
from .checkpoints import (
    CHECKPOINT,
    TRAINER_STATE,
    checkpoint_steps,
    delete_leftovers,
    find_checkpoint,
    find_fault,
    recover,
    save_checkpoint,
    save_final_model,
    write_json,
)
from .command_line import RunError
from .interruptions import Interrupted, raise_if_any, received
from .launch import check_launch, configure_engine, is_cpu_run
from .optimizers import OPTIMIZERS, create_optimizer, parse_values
from .sharding import prepare
from .streaming import Stream
from .training_state import describe_engine, load_training_state, save_training_state


logger = logging.getLogger(__name__)

ARGUMENTS_FILE = "training_args.json"
RESULTS_FILE = "all_results.json"
LOCK_FILE = ".lock"
_locks: WeakValueDictionary[str, FileLock] = WeakValueDictionary()
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
# Differences in these make a resumed run another run; differences in the others are allowed and said.
IDENTITY = (
    "model",
    "engine",
    "train_dataset",
    "seed",
    "total_batch_size",
    "group_by_length",
    "metric_for_best_model",
    # The optimizer's state holds these.
    "optim",
    "optim_args",
    "learning_rate",
    "ea_learning_rate",
    "weight_decay",
)


class NonFiniteLossError(RunError):
    """The loss or its gradient is infinite or not a number; nothing was updated with it."""


def steps_or_epoch(text: str) -> int | str:
    """Parses "epoch", "no" or a positive number of steps."""
    if text in ("epoch", "no"):
        return text
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f'{text!r} is neither a positive number of steps, nor "epoch", nor "no"')


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that all scripts share, named as in Transformers' scripts."""
    group = parser.add_argument_group("training")
    group.add_argument("--output_dir", type=Path, required=True, help="Where the model and the checkpoints go.")
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
    if args.load_best_model_at_end and args.eval_steps == "no":
        raise ValueError('--load_best_model_at_end needs evaluations, but --eval_steps is "no".')


def create_accelerator(args: argparse.Namespace) -> Accelerator:
    """Sets up devices, processes, mixed precision, trackers, logging and the seed.

    Raises:
        ValueError: an argument that no run can have, or that the launched processes or devices cannot do, or an output
            directory that holds another run.
    """
    check_training_arguments(args)
    check_launch(args)
    accelerator = Accelerator(
        # Accelerate lets several processes on CPUs know of each other (by gloo) only if it is told to use the CPU.
        cpu=is_cpu_run(),
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to if args.with_tracking else None,
        project_dir=str(args.output_dir),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=args.ddp_timeout))],
    )
    configure_engine(accelerator, args)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for name in ("ea_hf", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    if not accelerator.is_local_main_process:
        datasets.utils.logging.set_verbosity_error()
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()
    set_seed(args.seed)
    fault = output_dir_fault(args) if accelerator.is_main_process else None
    fault = broadcast_object_list([fault])[0]
    if fault is not None:
        raise ValueError(fault)
    return accelerator


def output_dir_fault(args: argparse.Namespace) -> str | None:
    """Why a run cannot have `--output_dir`, or `None` if it can; nothing is changed there."""
    output_dir: Path = args.output_dir
    try:
        str(output_dir).encode()
    except UnicodeEncodeError:
        return f"--output_dir is {str(output_dir)!r}, which is no text in UTF-8. Choose another one."
    for path in (output_dir, *output_dir.parents):
        if path.exists() and not path.is_dir():
            return f"--output_dir is {output_dir}, but {path} is a file. Choose another one."
    for path in output_dir.glob("checkpoint-*"):
        if CHECKPOINT.fullmatch(path.name) and not path.is_dir():
            return f"{path} is no directory, but has the name of a checkpoint. Move it away, or choose another --output_dir."
    if not _holds_run(output_dir):
        return None
    if args.overwrite_output_dir and args.resume_from_checkpoint:
        return "--overwrite_output_dir and --resume_from_checkpoint exclude each other; choose one."
    if args.overwrite_output_dir or args.resume_from_checkpoint:
        return None
    return (
        f"{output_dir} already holds a run or a model. Go on with it (--resume_from_checkpoint latest), delete it "
        "(--overwrite_output_dir), or choose another --output_dir."
    )


def lock_output_dir(accelerator: Accelerator, output_dir: Path) -> ExitStack | None:
    """Makes a directory, and keeps other processes out of it.

    Returns:
        On the main process, what holds the directory's lock as long as it lives and is not closed.

    Raises:
        ValueError: another process is running in it, it cannot be made, or its file system has no locks.
    """
    fault, lock = None, None
    if accelerator.is_main_process:
        try:
            lock = _lock(output_dir)
        except Timeout:
            fault = f"Another run is using {output_dir}. Wait for it, or choose another --output_dir."
        except OSError as error:
            fault = f"{output_dir} cannot be made or locked: {error}. Choose another --output_dir."
            if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                fault = (
                    f"The file system of {output_dir} has no locks ({error}), so that nothing would keep two runs apart. "
                    "Choose another --output_dir, such as one on a local disk."
                )
    fault = broadcast_object_list([fault])[0]
    if fault is not None:
        raise ValueError(fault)
    return lock


def _lock(output_dir: Path) -> ExitStack:
    output_dir.mkdir(parents=True, exist_ok=True)
    path = str(output_dir.resolve() / LOCK_FILE)
    if path in _locks:  # left by a run in this process that ended with an error; only other processes are kept out
        _locks[path].release(force=True)
    # A file that merely exists would outlive a run that was killed.
    lock = _locks[path] = FileLock(path, blocking=False, fallback_to_soft=False, thread_local=False)
    lock.acquire()
    stack = ExitStack()
    stack.callback(lock.release)
    return stack


def prepare_output_dir(accelerator: Accelerator, args: argparse.Namespace) -> ExitStack | None:
    """Makes the output directory this run's own, and writes the arguments into it.

    Returns:
        As `lock_output_dir`.

    Raises:
        ValueError: the directory holds another run, or another process is running in it.
    """
    lock = lock_output_dir(accelerator, args.output_dir)
    fault = None
    if accelerator.is_main_process:
        fault = output_dir_fault(args)  # once more: another run may have been here meanwhile
        if fault is None and args.overwrite_output_dir and _holds_run(args.output_dir):
            _delete_run(args.output_dir)
    fault = broadcast_object_list([fault])[0]
    if fault is not None:
        raise ValueError(fault)
    if accelerator.is_main_process:
        recover(args.output_dir)
        arguments = {name: value for name, value in vars(args).items() if name != "hub_token"}
        write_json(args.output_dir / ARGUMENTS_FILE, json.loads(json.dumps(arguments, default=str)))
    if args.with_tracking:
        values = {k: v for k, v in vars(args).items() if isinstance(v, (bool, int, float, str)) and k != "hub_token"}
        accelerator.init_trackers("logs", values)
    return lock


def _holds_run(output_dir: Path) -> bool:
    # A configuration is the sign of a model, of whatever program.
    named = any((output_dir / name).exists() for name in (ARGUMENTS_FILE, CONFIG_NAME))
    return named or bool(checkpoint_steps(output_dir))


def _delete_run(output_dir: Path) -> None:
    # The configuration first, so that what a kill leaves is not taken for a model; then all that would be taken for this
    # run's, should it end without a model.
    (output_dir / CONFIG_NAME).unlink(missing_ok=True)
    delete_leftovers(output_dir)
    for weights in output_dir.glob("model*.safetensors*"):
        weights.unlink()
    for step in checkpoint_steps(output_dir):
        shutil.rmtree(output_dir / f"checkpoint-{step}")
    shutil.rmtree(output_dir / "logs", ignore_errors=True)
    for name in (ARGUMENTS_FILE, RESULTS_FILE):
        (output_dir / name).unlink(missing_ok=True)


@dataclass
class TrainerState:
    """Where a run stands: all that is not in the model, the optimizer and the scheduler."""

    run: dict[str, Any]
    global_step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    # Of a stream, where the next step begins; None at the beginning of an epoch.
    position: dict[str, Any] | None = None
    # The step is done, but for its evaluation and checkpoint.
    unfinished: bool = False
    best_metric: float | None = None
    best_loss: float | None = None
    best_checkpoint: str | None = None
    recent_losses: list[float] = field(default_factory=list)
    log_history: list[dict[str, float]] = field(default_factory=list)
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class TrainingResult:
    """What `train` returns.

    Attributes:
        model: the prepared model with its final weights.
        metrics: of the training itself, such as its last loss and its speed.
        evaluation: the metrics of the final weights, if they were evaluated.
        evaluations: all metrics that were taken on the way, by step.
    """

    model: torch.nn.Module
    metrics: dict[str, float]
    evaluation: dict[str, float] | None
    evaluations: dict[int, dict[str, float]]


def describe_dataset(dataset: Any) -> str:
    """Identifies a data set by its size and its content: all of it, or a sample where an example has to be computed.

    Its method `fingerprint`, if it has one, tells the content of such a one better.
    """
    if isinstance(dataset, Stream):
        return f"{dataset.description}, shuffled by {dataset.buffer_size}"
    digest = hashlib.sha256()
    if isinstance(dataset, datasets.Dataset):
        for table in dataset.with_format("arrow").iter(1000):
            for batch in table.combine_chunks().to_batches():
                digest.update(batch.serialize())
    else:
        if hasattr(dataset, "fingerprint"):
            digest.update(dataset.fingerprint().encode())
        stride = 1 if isinstance(dataset, list) else max(1, len(dataset) // 64)
        for index in range(0, len(dataset), stride):
            for name, value in sorted(dataset[index].items()):
                digest.update(name.encode())
                # Printed, a large array would be little more than its corners.
                digest.update(np.asarray(value).tobytes() if hasattr(value, "shape") else repr(value).encode())
    return f"{len(dataset)} examples, {digest.hexdigest()[:16]}"


def describe_model(model: PreTrainedModel) -> str:
    """Identifies a model by its class, the shapes of its parameters, and those weights that were loaded.

    New weights follow from the seed, and may differ in their last bits between processors.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        # Transformers marks what it has read from a checkpoint.
        if getattr(parameter, "_is_hf_initialized", False):
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    evolution = {name: value for name, value in model.config.to_diff_dict().items() if name.startswith("ea_")}
    if evolution.get("ea_mixing") == "convex":  # runs begun before there were others can go on
        del evolution["ea_mixing"]
    return f"{type(model).__name__} {evolution} {digest.hexdigest()[:16]}"


def copy_weights_from_file(model: torch.nn.Module) -> None:
    """Gives a loaded model weights of its own.

    Transformers maps a checkpoint's file into memory, or copies it, as the circumstances are (`torchrun` is one). The
    last bits of a product depend on where its factors begin in memory, and with them the metrics of an evaluation.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def model_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss that a model returns for a batch with labels."""
    return model(**batch).loss


def train(
    accelerator: Accelerator,
    args: argparse.Namespace,
    model: PreTrainedModel,
    train_dataset: Any,
    collate: Callable[[list], dict[str, torch.Tensor]],
    evaluate: Callable[[torch.nn.Module], dict[str, float]] | None,
    save_assets: Callable[[Path], None],
    metric_for_best_model: str | None = None,
    greater_is_better: bool = True,
    lengths: Sequence[int] | None = None,
    compute_loss: Callable[[torch.nn.Module, dict[str, torch.Tensor]], torch.Tensor] = model_loss,
) -> TrainingResult:
    """Fine-tunes a model.

    Args:
        args: with the arguments of `add_training_arguments`.
        train_dataset: indexable; its items go to `collate`. If it has a method `set_epoch`, this is called before each
            epoch.
        collate: makes a batch, a dictionary of tensors with `labels`.
        evaluate: takes the model and returns metrics; called on all processes. `None` if there is nothing to evaluate.
        save_assets: saves what belongs to the model beside its weights (configuration, tokenizer) into a directory.
        metric_for_best_model: which of `evaluate`'s metrics tells the best checkpoint.
        lengths: of the examples, in tokens, for `--group_by_length`.
        compute_loss: takes the model and a batch, and returns the mean loss over its labels.

    Raises:
        ValueError: the checkpoint to resume from belongs to another run, the data set is empty, or there is nothing to
            tell the best model by.
        NonFiniteLossError: the loss became infinite or NaN. Checkpoints written before stay as they are.
    """
    if args.load_best_model_at_end and evaluate is None:
        raise ValueError("--load_best_model_at_end needs data to evaluate on, but there are none.")
    share = (
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
        accelerator.num_processes,
        accelerator.process_index,
        args.seed,
    )
    batches: Any
    if isinstance(train_dataset, Stream):
        if args.max_train_steps is None:
            raise ValueError("A stream has no known end: say with --max_train_steps how long to train.")
        batches, size = train_dataset.batches(*share), "a stream of"
        max_train_steps = args.max_train_steps
    else:
        if len(train_dataset) == 0:
            raise ValueError("The training set is empty.")
        batches = TrainingBatches(len(train_dataset), *share, lengths if args.group_by_length else None)
        max_train_steps = args.max_train_steps or args.num_train_epochs * batches.steps_per_epoch
        size = str(len(train_dataset))
    state = TrainerState(
        run={
            # As the main process sees them: with FSDP2, it alone may have loaded the weights.
            **_described(accelerator, model, train_dataset),
            "engine": describe_engine(accelerator),
            "total_batch_size": batches.total_batch_size,
            "max_train_steps": max_train_steps,
            "mixed_precision": accelerator.mixed_precision,
            "metric_for_best_model": metric_for_best_model,
            **{
                name: getattr(args, name)
                for name in ("seed", "optim", "optim_args", "learning_rate", "ea_learning_rate", "weight_decay")
            },
            **{name: getattr(args, name) for name in ("max_grad_norm", "num_warmup_steps", "lr_scheduler_type")},
            "group_by_length": args.group_by_length,
        }
    )
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model, optimizer = prepare(accelerator, model, create_optimizer(args, model))
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        # The optimizer itself, unprepared: a prepared scheduler would step once per process.
        optimizer.optimizer,
        num_warmup_steps=args.num_warmup_steps,
        num_training_steps=max_train_steps,
    )
    if args.resume_from_checkpoint:
        state = _resume(accelerator, args, state, model, optimizer, scheduler)

    logger.info(
        f"Training on {size} examples for {max_train_steps} steps, {batches.total_batch_size} examples a step "
        f"({args.per_device_train_batch_size} x {args.gradient_accumulation_steps} accumulation steps x "
        f"{accelerator.num_processes} processes), {accelerator.device.type}, "
        f"precision {accelerator.mixed_precision}"
    )

    def epochs() -> float:
        return state.epoch + (state.step_in_epoch / batches.steps_per_epoch if batches.steps_per_epoch else 0)

    def save() -> Path:
        if isinstance(train_dataset, Stream):
            state.position = batches.gather_position(state.position)
        return save_checkpoint(
            accelerator,
            args.output_dir,
            asdict(state),
            lambda directory: save_training_state(accelerator, model, optimizer, scheduler, directory),
            save_assets,
            args.save_total_limit,
        )

    def finish_step(batch: dict[str, torch.Tensor] | None = None) -> None:
        """Evaluates and saves, if it is time; of the maps of a training batch the trackers get a summary."""
        last, end_of_epoch, improved = state.global_step == max_train_steps, state.step_in_epoch == 0, False
        if evaluate is not None and _is_due(args.eval_steps, state.global_step, end_of_epoch, last):
            metrics = evaluate(model)
            _report(accelerator, args, state, "eval", metrics)
            if args.with_tracking and batch is not None:
                _track_maps(accelerator, model, batch, state.global_step)
            improved = _note_best(state, metrics, metric_for_best_model, greater_is_better)
        state.unfinished = False
        keeps_best = args.load_best_model_at_end or args.checkpointing_steps != "no"
        if _is_due(args.checkpointing_steps, state.global_step, end_of_epoch, last) or (improved and keeps_best):
            if improved:
                state.best_checkpoint = f"checkpoint-{state.global_step}"
            save()

    started, first_step = time.perf_counter(), state.global_step
    progress = progress_bar(accelerator, "training", total=max_train_steps, initial=first_step)
    model.train()
    try:
        if state.unfinished:
            finish_step()
        while state.global_step < max_train_steps:
            if hasattr(train_dataset, "set_epoch"):
                train_dataset.set_epoch(state.epoch)
            steps = batches.load(
                train_dataset,
                collate,
                args.dataloader_num_workers,
                epoch=state.epoch,
                first_step=state.step_in_epoch,
                position=state.position,
                limit=max_train_steps - state.global_step,
            )
            for step in steps:
                loss, signals = _optimizer_step(
                    accelerator, args, model, optimizer, scheduler, step, state.global_step, compute_loss
                )
                state.recent_losses.append(loss)
                state.global_step += 1
                state.step_in_epoch += 1
                state.position = step.next_position
                if step.ends_epoch:
                    state.epoch, state.step_in_epoch, state.position = state.epoch + 1, 0, None
                progress.update()
                if state.global_step % args.logging_steps == 0 or state.global_step == max_train_steps:
                    report = {
                        "loss": sum(state.recent_losses) / len(state.recent_losses),
                        "learning_rate": scheduler.get_last_lr()[0],
                        "epoch": epochs(),
                    }
                    state.recent_losses = []
                    _report(accelerator, args, state, "train", report)
                state.unfinished = True
                raise_if_any(signals)
                finish_step(step.inputs[0])
    except Interrupted as interruption:
        checkpoint = save()
        logger.warning(
            f"Stopped by {interruption.signal.name} after step {state.global_step} of {max_train_steps}. {checkpoint} is "
            "written; go on with the same command and --resume_from_checkpoint latest."
        )
        raise
    progress.close()
    model.zero_grad(set_to_none=True)

    seconds, steps_done = time.perf_counter() - started, state.global_step - first_step
    # A run that was resumed with fewer steps may end without a report.
    losses = state.recent_losses or [state.log_history[-1]["loss"]]
    metrics = {
        "epoch": epochs(),
        "global_step": state.global_step,
        "train_loss": sum(losses) / len(losses),
        "train_runtime": seconds,
        "train_samples_per_second": steps_done * batches.total_batch_size / seconds,
    }
    step_of_weights = state.global_step
    if args.load_best_model_at_end and _best_is_whole(accelerator, args, state, "The last weights are kept."):
        logger.info(f"Taking the weights of {state.best_checkpoint}, the best ({state.best_metric:.4f}).")
        load_training_state(accelerator, model, optimizer, scheduler, args.output_dir / state.best_checkpoint)
        step_of_weights = int(CHECKPOINT.fullmatch(state.best_checkpoint).group(1))
    evaluations = {int(step): values for step, values in state.evaluations.items()}
    return TrainingResult(model, metrics, evaluations.get(step_of_weights), evaluations)


def end_training(accelerator: Accelerator) -> None:
    """Closes the trackers and the connection of the processes. The caller holds no prepared model any more.

    Gloo hangs if a prepared model is what holds its process group last: the group then dies under Python's global
    lock, and waits for a thread that wants this lock to free what it sent last.
    """
    accelerator.free_memory()
    gc.collect()
    accelerator.wait_for_everyone()
    accelerator.end_training()


def format_metrics(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def save_model(accelerator: Accelerator, model: torch.nn.Module, output_dir: Path, processor: Any = None) -> None:
    """Saves the whole model as one ordinary checkpoint, whatever it is sharded over, and the processor beside it.

    Raises:
        CheckpointError: on every process, if it could not be written; a model that was there before stays.
    """
    # All processes take part in gathering; after that, a full disk leaves none of them waiting.
    state_dict = accelerator.get_state_dict(model)

    def save(directory: Path) -> None:
        accelerator.unwrap_model(model).save_pretrained(directory, state_dict=state_dict)
        if processor is not None:
            processor.save_pretrained(directory)

    save_final_model(accelerator, output_dir, save)


def _described(accelerator: Accelerator, model: PreTrainedModel, train_dataset: Any) -> dict[str, str]:
    described = None
    if accelerator.is_main_process:
        described = {"model": describe_model(model), "train_dataset": describe_dataset(train_dataset)}
    return broadcast_object_list([described])[0]


def _batch_seed(seed: int, step: int, place: int) -> int:
    digest = hashlib.sha256(f"{seed} {step} {place}".encode()).digest()
    return int.from_bytes(digest[:4], "little")  # NumPy takes 32 bits


def _is_due(when: int | str, step: int, end_of_epoch: bool, last: bool) -> bool:
    if when == "no":
        return False
    return last or (end_of_epoch if when == "epoch" else step % when == 0)


def _report(
    accelerator: Accelerator, args: argparse.Namespace, state: TrainerState, kind: str, values: dict[str, float]
) -> None:
    """Notes training or evaluation figures in the state, on the screen and in the trackers."""
    if kind == "train":
        state.log_history.append({"step": state.global_step, **values})
    else:
        state.evaluations[str(state.global_step)] = values
    logger.info(f"step {state.global_step}: {format_metrics(values)}")
    if args.with_tracking:
        accelerator.log({f"{kind}/{name}": value for name, value in values.items()}, state.global_step)


def _track_maps(
    accelerator: Accelerator, model: torch.nn.Module, batch: dict[str, torch.Tensor], global_step: int
) -> None:
    """Tells the trackers what evolving attention does in the model; every process takes part, the first one's batch counts."""
    if not any(isinstance(module, AttentionEvolution) for module in model.modules()):
        return
    if any(hasattr(parameter, "ds_shape") for parameter in model.parameters()):
        logger.info(
            "Trackers get no summary of the maps: with DeepSpeed's ZeRO-3 the learned weights are never whole."
        )
        return
    try:
        scalars = summary(accelerator.unwrap_model(model), batch).scalars()
    except ValueError as error:  # no reason to end a training
        logger.warning(f"Trackers get no summary of the maps at step {global_step}: {error}")
        return
    accelerator.log({f"evolution/{name}": value for name, value in scalars.items()}, global_step)


def _note_best(
    state: TrainerState, metrics: dict[str, float], metric_for_best_model: str | None, greater_is_better: bool
) -> bool:
    """Whether the evaluation is the best so far; of two with the same score, the smaller loss decides, if there is one."""
    if metric_for_best_model is None:
        return False
    if metric_for_best_model not in metrics:
        raise ValueError(
            f"--metric_for_best_model is {metric_for_best_model!r}, but the evaluation gives {', '.join(metrics)}."
        )
    value, loss = metrics[metric_for_best_model], metrics.get("loss")
    if math.isnan(value):
        return False
    if value == state.best_metric:
        better = loss is not None and state.best_loss is not None and loss < state.best_loss
    else:
        better = state.best_metric is None or (value > state.best_metric) == greater_is_better
    if better:
        state.best_metric, state.best_loss = value, loss
    return better


def _best_is_whole(accelerator: Accelerator, args: argparse.Namespace, state: TrainerState, remedy: str) -> bool:
    """Whether there is a best checkpoint that can be read; one that cannot is told, with what happens instead."""
    if state.best_checkpoint is None:
        return False
    fault = find_fault(args.output_dir / state.best_checkpoint) if accelerator.is_main_process else None
    fault = broadcast_object_list([fault])[0]
    if fault is not None:
        logger.warning(f"The best checkpoint so far, {state.best_checkpoint}, cannot be used: {fault}. {remedy}")
    return fault is None


def _optimizer_step(
    accelerator: Accelerator,
    args: argparse.Namespace,
    model: torch.nn.Module,
    optimizer: Any,
    scheduler: Any,
    step: Step,
    global_step: int,
    compute_loss: Callable[[torch.nn.Module, dict[str, torch.Tensor]], torch.Tensor],
) -> tuple[float, list[float]]:
    """One update with the mean loss over all labels of the step.

    Returns:
        That loss, and how many processes got each of the signals that end a run.
    """
    device = accelerator.device
    # Each batch's share of the loss depends on the labels of all.
    counts = [
        count_labels(batch) if micro_batch.counts else 0
        for micro_batch, batch in zip(step.micro_batches, step.inputs, strict=True)
    ]
    total = accelerator.reduce(torch.tensor(sum(counts), dtype=torch.float32, device=device), "sum").clamp(min=1)
    step_loss = torch.zeros((), device=device)
    # Where Accelerate counts from: a short step has fewer micro-batches, and the gradients are exchanged at the last one.
    accelerator.step = args.gradient_accumulation_steps - len(step.micro_batches)
    faulty: list[int] = []
    for place, (micro_batch, batch, count) in enumerate(zip(step.micro_batches, step.inputs, counts, strict=True)):
        # What is random in a batch depends on its place in the run, not on what ran before it.
        set_seed(_batch_seed(args.seed, global_step, place * accelerator.num_processes + accelerator.process_index))
        with accelerator.accumulate(model), nullcontext() if micro_batch.counts else stand_in(model):
            loss = compute_loss(model, send_to_device(batch, device))
            if count == 0:  # a mean over no label is NaN; the backward pass is still needed on every process
                loss = torch.nan_to_num(loss)
            share = loss * (count / total)
            if not torch.isfinite(share):
                faulty += micro_batch.indices
            step_loss += share.detach()
            # Undoes the means that Accelerate takes over accumulation steps and processes.
            accelerator.backward(share * (args.gradient_accumulation_steps * accelerator.num_processes))
    noted = torch.tensor(received(), dtype=step_loss.dtype, device=device)
    step_loss, *signals = accelerator.reduce(torch.cat([step_loss[None], noted]), "sum").unbind()
    if not torch.isfinite(step_loss):
        indices = sorted(gather_object(faulty))
        advice = (
            " float16 overflows easily; try --mixed_precision bf16." if accelerator.mixed_precision == "fp16" else ""
        )
        raise NonFiniteLossError(
            f"The loss is {step_loss.item()} at step {global_step + 1}, in the training examples {indices} (counted "
            f"from 0). Nothing was updated with it; checkpoints in {args.output_dir} are as they were. Look at these "
            f"examples, or lower --learning_rate (now {args.learning_rate}).{advice}"
        )
    # An infinite limit clips nothing, but the norm is still looked at.
    norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
    # With float16, Accelerate's scaler skips such a step by itself.
    if norm is not None and accelerator.scaler is None and not torch.isfinite(norm):
        raise NonFiniteLossError(
            f"The gradient's norm is {norm.item()} at step {global_step + 1}, in the training examples "
            f"{sorted(gather_object([index for part in step.micro_batches for index in part.indices]))} (counted from 0). "
            f"Nothing was updated with it; checkpoints in {args.output_dir} are as they were."
        )
    optimizer.step()
    optimizer.zero_grad()
    if not accelerator.optimizer_step_was_skipped:
        scheduler.step()
    return step_loss.item(), torch.stack(signals).tolist()


def _resume(
    accelerator: Accelerator,
    args: argparse.Namespace,
    fresh: TrainerState,
    model: torch.nn.Module,
    optimizer: Any,
    scheduler: Any,
) -> TrainerState:
    checkpoint = find_checkpoint(accelerator, args.output_dir, args.resume_from_checkpoint)
    if checkpoint is None:
        logger.info(f"There is no checkpoint in {args.output_dir} yet: starting from the beginning.")
        return fresh
    saved = json.loads((checkpoint / TRAINER_STATE).read_text()) if accelerator.is_main_process else None
    state = TrainerState(**broadcast_object_list([saved])[0])
    changes = {name: (state.run.get(name), value) for name, value in fresh.run.items() if state.run.get(name) != value}
    for name in IDENTITY:
        if name in changes:
            raise ValueError(
                f"{checkpoint} belongs to another run: its {name} is {changes[name][0]!r}, now it is "
                f"{changes[name][1]!r}. Resume with what it had, or start anew in another --output_dir."
            )
    for name, (before, now) in changes.items():
        logger.warning(f"Resuming with {name} {now!r}; until now it was {before!r}.")
    load_training_state(accelerator, model, optimizer, scheduler, checkpoint)
    if not _best_is_whole(accelerator, args, state, "The best one will be chosen among those to come."):
        state.best_metric = state.best_loss = state.best_checkpoint = None
    logger.info(f"Resuming from {checkpoint}: step {state.global_step}, epoch {state.epoch}.")
    state.run = fresh.run
    return state
