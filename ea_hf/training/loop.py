# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The one Accelerate loop that all fine-tuning scripts share.

A step of the optimizer minimizes the mean loss over all the labels of its examples, however many processes and
accumulation steps share them. The random numbers of a batch (dropout) follow from the seed, the step and the batch's
place in the step, whichever process computes it. So a run that was killed at any moment and resumed ends with the same
weights as an undisturbed one; and with as many processes more as accumulation steps fewer, it draws the same numbers.
"""

import argparse
import gc
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    InitProcessGroupKwargs,
    broadcast_object_list,
    set_seed,
)
from transformers import PreTrainedModel, get_scheduler

from .arguments import check_training_arguments
from .batching import Step, TrainingBatches, progress_bar
from .checkpoints import (
    CHECKPOINT,
    TRAINER_STATE,
    find_checkpoint,
    find_fault,
    save_checkpoint,
    save_final_model,
)
from .interruptions import Interrupted, raise_if_any
from .launch import check_launch, configure_engine, is_cpu_run
from .map_tracking import track_maps
from .optimizer_step import model_loss, take_step
from .optimizers import create_optimizer
from .output_dir import output_dir_fault
from .run_state import SETTINGS, TrainerState, check_same_run, describe
from .sharding import prepare
from .streaming import Stream
from .terminal import Pace, set_up_logging
from .training_state import describe_engine, load_training_state, save_training_state


logger = logging.getLogger(__name__)


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
    set_up_logging(accelerator.is_main_process, accelerator.is_local_main_process)
    set_seed(args.seed)
    fault = output_dir_fault(args) if accelerator.is_main_process else None
    fault = broadcast_object_list([fault])[0]
    if fault is not None:
        raise ValueError(fault)
    return accelerator


@dataclass
class TrainingResult:
    """What `train` returns.

    Attributes:
        model: the prepared model with its final weights.
        metrics: of the training itself, such as its last loss and its speed.
        evaluation: the metrics of the final weights, if they were evaluated.
        evaluations: all metrics that were taken on the way, by step.
        best_checkpoint: the name of the best one, if there is one, and `best_metric`, its score.
    """

    model: torch.nn.Module
    metrics: dict[str, float]
    evaluation: dict[str, float] | None
    evaluations: dict[int, dict[str, float]]
    best_checkpoint: str | None = None
    best_metric: float | None = None


def copy_weights_from_file(model: torch.nn.Module) -> None:
    """Gives a loaded model weights of its own.

    Transformers maps a checkpoint's file into memory, or copies it, as the circumstances are (`torchrun` is one). The
    last bits of a product depend on where its factors begin in memory, and with them the metrics of an evaluation.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


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
    batches, max_train_steps = _batches(accelerator, args, train_dataset, lengths)
    if args.num_warmup_steps >= max_train_steps:
        logger.warning(
            f"--num_warmup_steps is {args.num_warmup_steps} and the run has {max_train_steps} steps: the learning rate never "
            "reaches its full value."
        )
    state = TrainerState(
        run={
            # As the main process sees them: with FSDP2, it alone may have loaded the weights.
            **describe(accelerator, model, train_dataset),
            "engine": describe_engine(accelerator),
            "total_batch_size": batches.total_batch_size,
            "max_train_steps": max_train_steps,
            "mixed_precision": accelerator.mixed_precision,
            "metric_for_best_model": metric_for_best_model,
            **{name: getattr(args, name) for name in SETTINGS},
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
    run = _Run(
        *(accelerator, args, model, optimizer, scheduler, state, train_dataset, batches, max_train_steps),
        *(evaluate, save_assets, metric_for_best_model, greater_is_better),
    )
    if args.resume_from_checkpoint:
        run.resume()
    size = "a stream of" if isinstance(train_dataset, Stream) else len(train_dataset)
    logger.info(
        f"Training on {size} examples for {max_train_steps} steps, {batches.total_batch_size} examples a step "
        f"({args.per_device_train_batch_size} x {args.gradient_accumulation_steps} accumulation steps x "
        f"{accelerator.num_processes} processes), {accelerator.device.type}, "
        f"precision {accelerator.mixed_precision}"
    )
    started, first_step = time.perf_counter(), run.state.global_step
    run.train(collate, compute_loss)
    return run.result(time.perf_counter() - started, first_step)


def _batches(
    accelerator: Accelerator, args: argparse.Namespace, train_dataset: Any, lengths: Sequence[int] | None
) -> tuple[Any, int]:
    """The batches of this process, and for how many steps to train."""
    share = (
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
        accelerator.num_processes,
        accelerator.process_index,
        args.seed,
    )
    if isinstance(train_dataset, Stream):
        if args.max_train_steps is None:
            raise ValueError("A stream has no known end: say with --max_train_steps how long to train.")
        return train_dataset.batches(*share), args.max_train_steps
    if len(train_dataset) == 0:
        raise ValueError("The training set is empty.")
    batches = TrainingBatches(len(train_dataset), *share, lengths if args.group_by_length else None)
    return batches, args.max_train_steps or args.num_train_epochs * batches.steps_per_epoch


@dataclass
class _Run:
    """A model in training with all that goes with it: what `train` prepared, and where the run stands."""

    accelerator: Accelerator
    args: argparse.Namespace
    model: torch.nn.Module
    optimizer: Any
    scheduler: Any
    state: TrainerState
    train_dataset: Any
    batches: Any
    max_train_steps: int
    evaluate: Callable[[torch.nn.Module], dict[str, float]] | None
    save_assets: Callable[[Path], None]
    metric_for_best_model: str | None
    greater_is_better: bool
    pace: Pace = field(init=False)

    def train(self, collate: Callable, compute_loss: Callable) -> None:
        """Goes on to the last step, with reports, evaluations and checkpoints on the way."""
        state = self.state
        self.pace = Pace(state.global_step, self.max_train_steps, self.batches.total_batch_size)
        progress = progress_bar(self.accelerator, "training", total=self.max_train_steps, initial=state.global_step)
        self.model.train()
        try:
            if state.unfinished:
                self.finish_step()
            while state.global_step < self.max_train_steps:
                if hasattr(self.train_dataset, "set_epoch"):
                    self.train_dataset.set_epoch(state.epoch)
                steps = self.batches.load(
                    self.train_dataset,
                    collate,
                    self.args.dataloader_num_workers,
                    epoch=state.epoch,
                    first_step=state.step_in_epoch,
                    position=state.position,
                    limit=self.max_train_steps - state.global_step,
                )
                for step in steps:
                    signals = self.step(step, compute_loss)
                    progress.update()
                    raise_if_any(signals)
                    with self.pace.pause():
                        self.finish_step(step.inputs[0])
        except Interrupted as interruption:
            checkpoint = self.save()
            logger.warning(
                f"Stopped by {interruption.signal.name} after step {state.global_step} of {self.max_train_steps}. "
                f"{checkpoint} is written; go on with the same command and --resume_from_checkpoint latest."
            )
            raise
        progress.close()
        if isinstance(self.train_dataset, Stream) and self.train_dataset.cut_texts is not None:
            self.train_dataset.cut_texts.tell(self.accelerator)
        self.model.zero_grad(set_to_none=True)

    def step(self, step: Step, compute_loss: Callable) -> list[float]:
        """A step of the optimizer, and its report; returns how many processes got each of the signals that end a run."""
        state = self.state
        loss, signals = take_step(
            *(self.accelerator, self.args, self.model, self.optimizer, self.scheduler),
            *(step, state.global_step, compute_loss),
        )
        state.recent_losses.append(loss)
        state.global_step += 1
        state.step_in_epoch += 1
        state.position = step.next_position
        if step.ends_epoch:
            state.epoch, state.step_in_epoch, state.position = state.epoch + 1, 0, None
        if state.global_step % self.args.logging_steps == 0 or state.global_step == self.max_train_steps:
            report = {
                "loss": sum(state.recent_losses) / len(state.recent_losses),
                "learning_rate": self.scheduler.get_last_lr()[0],
                "epoch": self.epochs,
            }
            state.recent_losses = []
            self.report("train", report)
        state.unfinished = True
        return signals

    def finish_step(self, batch: dict[str, torch.Tensor] | None = None) -> None:
        """Evaluates and saves, if it is time; of the maps of a training batch the trackers get a summary."""
        args, state = self.args, self.state
        last, end_of_epoch, improved = state.global_step == self.max_train_steps, state.step_in_epoch == 0, False
        if self.evaluate is not None and _is_due(args.eval_steps, state.global_step, end_of_epoch, last):
            metrics = self.evaluate(self.model)
            self.report("eval", metrics)
            if args.with_tracking and batch is not None:
                track_maps(self.accelerator, self.model, batch, state.global_step)
            improved = _note_best(state, metrics, self.metric_for_best_model, self.greater_is_better)
        state.unfinished = False
        keeps_best = args.load_best_model_at_end or args.checkpointing_steps != "no"
        if _is_due(args.checkpointing_steps, state.global_step, end_of_epoch, last) or (improved and keeps_best):
            if improved:
                state.best_checkpoint = f"checkpoint-{state.global_step}"
            self.save()

    @property
    def epochs(self) -> float:
        steps = self.batches.steps_per_epoch
        return self.state.epoch + (self.state.step_in_epoch / steps if steps else 0)

    def report(self, kind: str, values: dict[str, float]) -> None:
        """Notes training or evaluation figures in the state, on the screen and in the trackers."""
        state = self.state
        if kind == "train":
            state.log_history.append({"step": state.global_step, **values})
        else:
            state.evaluations[str(state.global_step)] = values
        line = f"step {state.global_step}/{self.max_train_steps}: {format_metrics(values)}"
        logger.info(f"{line}, {self.pace.describe(state.global_step)}" if kind == "train" else f"{line} (evaluation)")
        if self.args.with_tracking:
            self.accelerator.log({f"{kind}/{name}": value for name, value in values.items()}, state.global_step)

    def save(self) -> Path:
        if isinstance(self.train_dataset, Stream):
            self.state.position = self.batches.gather_position(self.state.position)
        return save_checkpoint(
            self.accelerator,
            self.args.output_dir,
            asdict(self.state),
            lambda directory: save_training_state(
                self.accelerator, self.model, self.optimizer, self.scheduler, directory
            ),
            self.save_assets,
            self.args.save_total_limit,
        )

    def load(self, checkpoint: Path) -> None:
        load_training_state(self.accelerator, self.model, self.optimizer, self.scheduler, checkpoint)

    def resume(self) -> None:
        """Goes back to the checkpoint of `--resume_from_checkpoint`, if there is one yet."""
        output_dir, run = self.args.output_dir, self.state.run
        checkpoint = find_checkpoint(self.accelerator, output_dir, self.args.resume_from_checkpoint)
        if checkpoint is None:
            logger.info(f"There is no checkpoint in {output_dir} yet: starting from the beginning.")
            return
        saved = json.loads((checkpoint / TRAINER_STATE).read_text()) if self.accelerator.is_main_process else None
        self.state = TrainerState(**broadcast_object_list([saved])[0])
        check_same_run(checkpoint, self.state.run, run)
        self.load(checkpoint)
        if not self.best_is_whole("The best one will be chosen among those to come."):
            self.state.best_metric = self.state.best_loss = self.state.best_checkpoint = None
        logger.info(f"Resuming from {checkpoint}: step {self.state.global_step}, epoch {self.state.epoch}.")
        self.state.run = run

    def best_is_whole(self, remedy: str) -> bool:
        """Whether there is a best checkpoint that can be read; one that cannot is told, with what happens instead."""
        best = self.state.best_checkpoint
        if best is None:
            return False
        fault = find_fault(self.args.output_dir / best) if self.accelerator.is_main_process else None
        fault = broadcast_object_list([fault])[0]
        if fault is not None:
            logger.warning(f"The best checkpoint so far, {best}, cannot be used: {fault}. {remedy}")
        return fault is None

    def result(self, seconds: float, first_step: int) -> TrainingResult:
        """What came out, with the best weights if they are asked for.

        Args:
            seconds: that the steps since `first_step` took.
        """
        state = self.state
        steps_done = state.global_step - first_step
        # A run that was resumed with fewer steps may end without a report.
        losses = state.recent_losses or [state.log_history[-1]["loss"]]
        metrics = {
            "epoch": self.epochs,
            "global_step": state.global_step,
            "train_loss": sum(losses) / len(losses),
            "train_runtime": seconds,
            "train_samples_per_second": steps_done * self.batches.total_batch_size / seconds,
        }
        step_of_weights = state.global_step
        if self.args.load_best_model_at_end and self.best_is_whole("The last weights are kept."):
            logger.info(f"Taking the weights of {state.best_checkpoint}, the best ({state.best_metric:.4f}).")
            self.load(self.args.output_dir / state.best_checkpoint)
            step_of_weights = int(CHECKPOINT.fullmatch(state.best_checkpoint).group(1))
        evaluations = {int(step): values for step, values in state.evaluations.items()}
        return TrainingResult(
            *(self.model, metrics, evaluations.get(step_of_weights), evaluations),
            *(state.best_checkpoint, state.best_metric),
        )


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


def _is_due(when: int | str, step: int, end_of_epoch: bool, last: bool) -> bool:
    if when == "no":
        return False
    return last or (end_of_epoch if when == "epoch" else step % when == 0)


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
