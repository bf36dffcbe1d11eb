# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Which examples make a batch, on which process, and how predictions come back in order.

Training: the examples of an optimizer step depend on the seed, the epoch and the size of the whole step only, never on
how many processes and accumulation steps share it. So a run can be repeated, resumed in the middle of an epoch without
reading what came before, and compared between one process and many.

Evaluation: batches are the same on any number of processes, and each example is counted once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..undocumented import AnyBatchNorm
from .interruptions import ignore_signals, stop_together


# Examples are sorted by length within blocks of this many steps, so that batches keep some randomness.
STEPS_PER_LENGTH_GROUP = 50


@dataclass
class MicroBatch:
    """What one process computes at once: its examples' positions in the data set, and whether they count.

    A step that is too short for all processes leaves some without examples at its end; these compute one example for
    nothing, as collective operations need every process.
    """

    indices: list[int]
    counts: bool = True


@dataclass
class Step:
    """What one process does of a step of the optimizer.

    Attributes:
        micro_batches, inputs: which examples, and the same as tensors.
        ends_epoch: no examples of the epoch are left.
        next_position: of a stream, where the next step begins.
    """

    micro_batches: list[MicroBatch]
    inputs: list[dict[str, torch.Tensor]]
    ends_epoch: bool
    next_position: dict[str, Any] | None = None


def share_step(
    examples: list, per_device_batch_size: int, accumulation_steps: int, num_processes: int, process_index: int
) -> list[list]:
    """The examples of each micro-batch of one process, out of all examples of a step.

    A short step has fewer micro-batches, on all processes equally many. The last one may be empty.
    """
    size = per_device_batch_size
    micro_steps = min(accumulation_steps, -(-len(examples) // (size * num_processes)))
    offsets = [(micro_step * num_processes + process_index) * size for micro_step in range(micro_steps)]
    return [examples[offset : offset + size] for offset in offsets]


@contextmanager
def stand_in(model: torch.nn.Module) -> Iterator[None]:
    """While it is open, batch normalization takes no statistics of what the model computes in training.

    One that shares its statistics with other processes goes on doing so, as they wait for it, but adds nothing.
    """
    norms = [m for m in model.modules() if m.training and isinstance(m, AnyBatchNorm)]
    shared = [norm for norm in norms if getattr(norm, "is_synchronized", False)]
    alone = [norm for norm in norms if norm not in shared and not isinstance(norm, torch.nn.SyncBatchNorm)]
    for norm in shared:
        norm.adds_nothing = True
    for norm in alone:
        norm.training = False
    try:
        yield
    finally:
        for norm in shared:
            norm.adds_nothing = False
        for norm in alone:
            norm.training = True


@dataclass
class TrainingBatches:
    """The batches of one process.

    Args:
        num_examples: size of the training set.
        per_device_batch_size: examples per process and micro-batch.
        accumulation_steps: micro-batches per optimizer step.
        num_processes, process_index: the share of this process.
        seed: of the shuffling.
        lengths: of the examples, in tokens; if given, batches hold examples of similar length.
    """

    num_examples: int
    per_device_batch_size: int
    accumulation_steps: int = 1
    num_processes: int = 1
    process_index: int = 0
    seed: int = 0
    lengths: Sequence[int] | None = None

    @property
    def total_batch_size(self) -> int:
        """Examples per optimizer step over all processes."""
        return self.per_device_batch_size * self.accumulation_steps * self.num_processes

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_examples // self.total_batch_size)

    def order(self, epoch: int) -> list[int]:
        """The order of all examples in an epoch."""
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(self.num_examples)
        if self.lengths is None:
            return order.tolist()
        lengths = np.asarray(self.lengths)
        group_size = STEPS_PER_LENGTH_GROUP * self.total_batch_size
        groups = [order[start : start + group_size] for start in range(0, len(order), group_size)]
        order = np.concatenate([group[np.argsort(-lengths[group], kind="stable")] for group in groups])
        # The steps in random order again; a short one stays last.
        steps = [order[start : start + self.total_batch_size] for start in range(0, len(order), self.total_batch_size)]
        full = len(order) // self.total_batch_size
        shuffled = [steps[i] for i in generator.permutation(full)] + steps[full:]
        return np.concatenate(shuffled).tolist()

    def steps(self, epoch: int, first_step: int = 0) -> list[list[MicroBatch]]:
        """The micro-batches of this process for the steps of an epoch, from `first_step` on."""
        order = self.order(epoch)
        share = (self.per_device_batch_size, self.accumulation_steps, self.num_processes, self.process_index)
        steps = []
        for start in range(first_step * self.total_batch_size, self.num_examples, self.total_batch_size):
            examples = order[start : start + self.total_batch_size]
            steps.append(
                [
                    MicroBatch(indices) if indices else MicroBatch(examples[:1], counts=False)
                    for indices in share_step(examples, *share)
                ]
            )
        return steps

    def load(
        self,
        dataset: Any,
        collate: Callable,
        num_workers: int,
        *,
        epoch: int,
        first_step: int = 0,
        position: None = None,
        limit: int | None = None,
    ) -> Iterator[Step]:
        """The steps of an epoch with their tensors, from `first_step` on, at most `limit`."""
        steps = self.steps(epoch, first_step)[:limit]
        indices = [micro_batch.indices for step in steps for micro_batch in step]
        loader = iter(data_loader(dataset, indices, collate, num_workers))
        for number, step in enumerate(steps, first_step + 1):
            yield Step(step, [next(loader) for _ in step], ends_epoch=number == self.steps_per_epoch)


def data_loader(dataset: Any, batches: list[list[int]], collate: Callable, num_workers: int = 0) -> DataLoader:
    """A loader of the given batches that leaves the global random state alone, so that a resumed run is exact."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=ignore_signals,
    )


def progress_bar(accelerator: Accelerator, description: str, iterable: Any = None, **kwargs: Any) -> tqdm:
    """A bar of the main process on a terminal; a log file gets lines from elsewhere instead."""
    disable = None if accelerator.is_local_main_process else True  # None: unless it is a terminal
    return tqdm(iterable, desc=description, leave=False, disable=disable, **kwargs)


def count_labels(batch: dict[str, torch.Tensor]) -> int:
    """How many labels a batch's loss is the mean of: ignored ones (-100) do not count."""
    labels = batch["labels"]
    return len(labels) if labels.is_floating_point() else int((labels != -100).sum())


def predict(
    accelerator: Accelerator,
    model: torch.nn.Module,
    dataset: Any,
    collate: Callable,
    batch_size: int,
    forward: Callable[[torch.nn.Module, dict[str, torch.Tensor]], Sequence],
    lengths: Sequence[int] | None = None,
    num_workers: int = 0,
    description: str = "evaluating",
) -> list:
    """Runs `forward` over a data set on all processes.

    Args:
        forward: takes the model and a batch on the device, and returns one result per example (CPU, picklable).
        lengths: of the examples, in tokens; if given, examples of similar length share a batch, which saves padding.

    Returns:
        One result per example, in the data set's order, on every process.

    Raises:
        Interrupted: a process got a signal to end.
    """
    order = np.arange(len(dataset)) if lengths is None else np.argsort(-np.asarray(lengths), kind="stable")
    batches = [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
    # Every process runs as many batches as the others; what is beyond the end is computed and dropped.
    rounds = -(-len(batches) // accelerator.num_processes)
    mine = [step * accelerator.num_processes + accelerator.process_index for step in range(rounds)]
    loader = data_loader(dataset, [batches[i % len(batches)] for i in mine], collate, num_workers)
    was_training = model.training
    model.eval()
    results = []
    with torch.no_grad():
        for i, batch in zip(mine, progress_bar(accelerator, description, loader), strict=True):
            outputs = forward(model, send_to_device(batch, accelerator.device))
            if i < len(batches):
                results.append((batches[i], outputs))
            stop_together(accelerator)
    model.train(was_training)
    in_order: list = [None] * len(dataset)
    for indices, outputs in gather_object(results):
        for index, output in zip(indices, outputs, strict=True):
            in_order[index] = output
    return in_order
