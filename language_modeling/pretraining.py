# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A run of language modeling from end to end: what the scripts share between their arguments and the loop."""

import argparse
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from language_models import load_model_and_tokenizer
from text_data import (
    Admission,
    BlockMaker,
    Splits,
    StreamEncoder,
    check_tokens,
    held_out_contents,
    load_blocks,
    load_sources,
)
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ea_hf.training.loop import create_accelerator
from ea_hf.training.model_card import ScoredData, language_widget
from ea_hf.training.output_dir import prepare_output_dir
from ea_hf.training.run_state import describe_dataset
from ea_hf.training.script import run
from ea_hf.training.sharded_streaming import ShardedStream
from ea_hf.training.task import Task
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)

IGNORED = -100


@dataclass
class Objective:
    """What a model is trained to do.

    Attributes:
        auto_class, task_type, task_name: as in a model card.
        make_blocks, make_collator: take the arguments, the tokenizer and the model.
        shifts_labels: the logits of a place are for the label of the next one.
        forward_options: further arguments of the model's forward.
    """

    auto_class: Any
    task_type: str
    task_name: str
    make_blocks: Callable[[argparse.Namespace, PreTrainedTokenizerBase, PreTrainedModel], BlockMaker]
    make_collator: Callable[[argparse.Namespace, PreTrainedTokenizerBase, PreTrainedModel], Callable]
    shifts_labels: bool = False
    forward_options: dict[str, Any] = field(default_factory=dict)


class MappedBlocks:
    """Blocks on disk, each with its `key`: what is random in an example follows from the seed, the epoch and its index."""

    def __init__(self, blocks: Dataset, kind: str):
        self.blocks, self.kind, self.epoch = blocks, kind, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def fingerprint(self) -> str:
        return describe_dataset(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.blocks[int(index)], "key": (f"{self.kind} {self.epoch}", int(index))}

    def lengths(self) -> np.ndarray:
        return column_lengths(self.blocks)


def column_lengths(blocks: Dataset) -> np.ndarray:
    """Of all blocks, in tokens."""
    parts = (table["input_ids"] for table in blocks.with_format("arrow").iter(10_000))
    return np.concatenate([pyarrow.compute.list_value_length(part).to_numpy() for part in parts])


def example_seed(seed: int, key: Sequence[Any]) -> int:
    """What is random in an example follows from this number, whichever process makes it, and when."""
    digest = hashlib.sha256(f"{seed} {key[0]} {key[1]}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def pad(rows: Sequence[torch.Tensor], value: int, width: int | None, multiple: int = 1) -> torch.Tensor:
    """(rows, `width`, or the length of the longest), rounded up to a multiple."""
    width = -(-(width or max(map(len, rows))) // multiple) * multiple
    padded = torch.full((len(rows), width), value)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded


def pad_inputs(rows: Sequence[torch.Tensor], pad_id: int, width: int | None, multiple: int) -> dict[str, torch.Tensor]:
    input_ids = pad(rows, pad_id, width, multiple)
    lengths = torch.tensor([len(row) for row in rows])
    return {
        "input_ids": input_ids,
        "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
    }


class TokenCounter:
    """The loss of a model, and how many tokens it was computed for in how much time."""

    def __init__(self, options: dict[str, Any]):
        self.options, self.tokens, self.started = options, None, None

    def __call__(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.started is None:
            self.started, self.tokens = time.perf_counter(), torch.zeros((), dtype=torch.long, device=model.device)
        self.tokens += batch["attention_mask"].sum()
        return model(**batch, **self.options).loss

    def results(self, model: torch.nn.Module) -> dict[str, float]:
        """Of all processes, evaluations and checkpoints on the way included."""
        tokens = sum(gather_object([0 if self.tokens is None else int(self.tokens)]))
        if self.started is None:
            return {}
        speed = tokens / (time.perf_counter() - self.started)
        logger.info(f"Trained on {tokens} tokens, {speed:.0f} a second.")
        return {"train_tokens": tokens, "train_tokens_per_second": speed}


@dataclass
class PretrainingTask(Task):
    """Scores a model on blocks of held-out documents; what it predicts is how fast it was trained."""

    objective: Objective
    counter: TokenCounter

    @property
    def can_predict(self) -> bool:
        return not self.args.eval_only

    def predict(self, model: torch.nn.Module) -> dict[str, float]:
        return self.counter.results(model)

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """Loss, perplexity and accuracy over all labels of the held-out documents; each label counts the same.

        Raises:
            ValueError: there is no label, or the loss is not finite.
        """

        def forward(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> list[tuple[float, int, int]]:
            labels = batch.pop("labels")
            logits = model(**batch, **self.objective.forward_options).logits.float()
            if self.objective.shifts_labels:
                labels, logits = labels[:, 1:], logits[:, :-1]
            losses = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
            counted = labels != IGNORED
            correct = ((logits.argmax(-1) == labels) & counted).sum(1)
            return list(zip(losses.double().sum(1).tolist(), correct.tolist(), counted.sum(1).tolist(), strict=True))

        rows = self.run_model(model, "validation", forward, lengths=self.datasets["validation"].lengths())
        losses, correct, counts = map(sum, zip(*rows, strict=True))
        if counts == 0:
            raise ValueError("Not one token of the validation data is to be predicted; give more of them.")
        loss = losses / counts
        if not math.isfinite(loss):
            raise ValueError(f"The loss of the validation data is {loss}; look at --learning_rate, or at the model.")
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return {"loss": loss, "perplexity": perplexity, "accuracy": correct / counts}


def load_data(
    args: argparse.Namespace,
    accelerator: Accelerator,
    splits: Splits,
    make_blocks: BlockMaker,
) -> tuple[MappedBlocks | ShardedStream | None, MappedBlocks | None]:
    """What is trained on, and what is held out."""
    validation = train = None
    with accelerator.main_process_first():
        held_out = held_out_contents(splits)
        if splits.validation is not None:
            admission = Admission(share=splits.share, takes_share=splits.share > 0)
            validation = load_blocks(splits.validation, make_blocks, admission, args.max_eval_samples, "validation")
        admission = Admission(held_out, splits.share)
        if splits.train is not None and not args.streaming:
            train = load_blocks(splits.train, make_blocks, admission, args.max_train_samples, "train")
    if splits.train is not None and args.streaming:
        described = (
            f"{splits.train.description()}, blocks of {args.block_size}, {splits.share}, {len(held_out)} held out"
        )
        splits.train.rows.load_state_dict(None)
        return (
            ShardedStream(
                splits.train.rows, StreamEncoder(make_blocks, admission), args.shuffle_buffer_size, described
            ),
            validation and MappedBlocks(validation, "evaluation"),
        )
    return train and MappedBlocks(train, "epoch"), validation and MappedBlocks(validation, "evaluation")


def scored_data(args: argparse.Namespace, splits: Splits, name: str, validation: MappedBlocks) -> ScoredData:
    """Where no validation data are given, they are a part of the training data."""
    if splits.share > 0:
        name += f", {args.validation_split_percentage:g} % held out of train"
    elif args.dataset_name is None:
        name = ", ".join(Path(path).name for path in args.validation_file)
    return ScoredData("validation", name, len(validation), f"blocks of up to {args.block_size} tokens")


def pretrain(
    args: argparse.Namespace,
    objective: Objective,
    note_evaluations: Callable[[dict[int, dict[str, float]]], None] | None = None,
) -> dict[str, Any]:
    """The main function of a script.

    Args:
        note_evaluations: see `run`.
    """
    accelerator = create_accelerator(args)
    # Bad data and a bad model are told before the output directory is touched.
    with accelerator.local_main_process_first():
        splits = load_sources(args)
    if args.load_best_model_at_end and splits.validation is None:
        raise ValueError("--load_best_model_at_end needs validation data.")
    if args.eval_only and splits.validation is None:
        raise ValueError("--eval_only needs validation data; there are none.")
    model, tokenizer = load_model_and_tokenizer(args, objective.auto_class)
    args.pad_multiple = 8 if accelerator.mixed_precision != "no" else 1
    make_blocks = objective.make_blocks(args, tokenizer, model)
    collate = objective.make_collator(args, tokenizer, model)
    check_tokens(splits, tokenizer, args.tokenizer_name or args.model_name_or_path)
    train, validation = load_data(args, accelerator, splits, make_blocks)
    lock = prepare_output_dir(accelerator, args)
    counter = TokenCounter(objective.forward_options)
    best_metric = (args.metric_for_best_model or "loss") if validation is not None else None
    name = args.dataset_name or Path((args.train_file or args.validation_file)[0]).name
    datasets = {"train": train} | ({} if validation is None else {"validation": validation})
    return run(
        PretrainingTask(args, accelerator, datasets, collate, objective, counter),
        model,
        tokenizer,
        model_card={
            "auto_class": objective.auto_class.__name__,
            "task_type": objective.task_type,
            "task_name": objective.task_name,
            "dataset_name": name,
            "base_model": args.model_name_or_path,
            "evaluated_on": [] if validation is None else [scored_data(args, splits, name, validation)],
            "hub_dataset": args.dataset_name,
            "widget": language_widget(tokenizer, objective.task_type),
        },
        lock=lock,
        metric_for_best_model=best_metric,
        greater_is_better=best_metric == "accuracy",
        lengths=train.lengths() if isinstance(train, MappedBlocks) and args.group_by_length else None,
        compute_loss=counter,
        note_evaluations=note_evaluations,
    )
