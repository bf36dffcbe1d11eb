# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Training on a corpus that is read from beginning to end, and never held in memory or prepared on disk.

The examples of a step depend on the seed, the epoch and the size of the whole step only, as in `batching.py`: every
process reads all rows, and encodes those of its share. Rows are shuffled within consecutive blocks of the buffer's size.
Unlike a buffer that slides, a block can be read again: where a run stands is the place in the corpus where the block
begins, and how many of its rows are used up.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from .batching import MicroBatch, Step, share_step
from .interruptions import ignore_signals


logger = logging.getLogger(__name__)


class CutTexts:
    """Counts the texts of a stream that are cut, since a stream is never looked at as a whole; tells of the first at once.

    Args:
        limits: in tokens, by the argument that sets each.
    """

    def __init__(self, limits: dict[str, int]):
        self.limits = limits
        # Texts, and those that were cut; in shared memory, because a data worker may do the reading.
        self.counts = {option: torch.zeros(2, dtype=torch.int64).share_memory_() for option in limits}
        self.counting = True

    def note(self, option: str, lengths: Sequence[int]) -> None:
        """Notes the lengths of texts before they are cut."""
        limit, counts, longest = self.limits[option], self.counts[option], max(lengths, default=0)
        if longest > limit and counts[1] == 0:
            logger.warning(
                f"train: the stream has texts of more than {limit} tokens, such as one of {longest}; they are cut ({option}). "
                "This warning is shown once."
            )
        if self.counting:
            counts += torch.tensor([len(lengths), sum(length > limit for length in lengths)])

    def tell(self, accelerator: Accelerator) -> None:
        """Tells how many there were, of all processes; every process must call it."""
        for option, counts in self.counts.items():
            texts, cut = accelerator.reduce(counts.clone().to(accelerator.device), "sum").tolist()
            logger.info(
                f"train: {cut} of {texts} texts that this run read from the stream have more than {self.limits[option]} tokens and "
                f"were cut ({option})."
            )


@dataclass
class Stream:
    """A corpus to train on.

    Args:
        rows: yields dictionaries.
        encode: makes examples, as the script's collator takes them, out of a list of rows.
        buffer_size: rows that are shuffled at once, and held in memory.
        description: identifies the corpus, so that no run goes on with another one.
        keep: whether a row is used; default: all are.
    """

    rows: datasets.IterableDataset
    encode: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
    buffer_size: int
    description: str
    keep: Callable[[dict[str, Any]], bool] | None = None

    @property
    def cut_texts(self) -> CutTexts | None:
        return getattr(self.encode, "cut_texts", None)

    def examples(self, rows: list[dict[str, Any]], counts: bool) -> list[dict[str, Any]]:
        """Encodes rows; those that do not count only fill up a step."""
        if self.cut_texts is not None:
            self.cut_texts.counting = counts
        return self.encode(rows)

    def batches(self, *share: Any) -> "StreamedBatches":
        """The batches of one process, whose share of a step `StreamedBatches` describes."""
        return StreamedBatches(self, *share)


@dataclass
class BatchesOfStream(ABC):
    """The batches of one process, as `TrainingBatches` for a `Stream`; how its rows are dealt out is for others to say."""

    stream: Stream
    per_device_batch_size: int
    accumulation_steps: int = 1
    num_processes: int = 1
    process_index: int = 0
    seed: int = 0

    steps_per_epoch: None = None  # unknown

    @property
    def total_batch_size(self) -> int:
        """Examples per optimizer step over all processes."""
        return self.per_device_batch_size * self.accumulation_steps * self.num_processes

    def load(
        self,
        dataset: Stream,
        collate: Callable,
        num_workers: int,
        *,
        epoch: int,
        first_step: int = 0,
        position: dict[str, Any] | None = None,
        limit: int | None = None,
    ) -> Iterator[Step]:
        """The steps of an epoch from a position on, at most `limit`.

        Raises:
            ValueError: the stream has no rows, or more than one worker is asked for.
        """
        if num_workers > 1:
            raise ValueError(
                f"--dataloader_num_workers is {num_workers}, but a stream is read in order, by one worker at most."
            )
        loader = DataLoader(
            self.steps(collate, epoch, first_step, position, limit),
            batch_size=None,
            num_workers=num_workers,
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=ignore_signals,
        )
        empty = position is None
        for step in loader:
            empty = False
            yield step
        if empty:
            raise ValueError(f"The stream is empty: {self.stream.description}.")

    @abstractmethod
    def steps(
        self, collate: Callable, epoch: int, first_step: int, position: dict[str, Any] | None, limit: int | None
    ) -> torch.utils.data.IterableDataset:
        """Yields whole steps, made where the rows are read: in the process itself, or in its worker."""


@dataclass
class StreamedBatches(BatchesOfStream):
    """Every process reads all rows."""

    def steps(
        self, collate: Callable, epoch: int, first_step: int, position: dict[str, Any] | None, limit: int | None
    ) -> torch.utils.data.IterableDataset:
        return _Steps(self, collate, epoch, position, limit)

    def gather_position(self, position: dict[str, Any] | None) -> dict[str, Any] | None:
        """Where the whole run stands; every process reads the same."""
        return position

    def rows(self, epoch: int, position: dict[str, Any] | None) -> Iterator[tuple[tuple[int, dict], dict[str, Any]]]:
        """Yields ((number, row), position after it), in the order of the epoch; numbers count the rows that are kept."""
        position = position or {"begin": None, "block": 0, "used": 0}
        begin, block_number, used = position["begin"], position["block"], position["used"]
        source = self.stream.rows
        source.load_state_dict(begin)  # None: from the beginning, whatever was loaded before
        block: list[tuple[int, dict]] = []
        number = block_number * self.stream.buffer_size

        def shuffled() -> Iterator[tuple[tuple[int, dict], dict[str, Any]]]:
            order = np.random.default_rng([self.seed, epoch, block_number]).permutation(len(block))
            for place in range(used, len(block)):
                yield block[order[place]], {"begin": begin, "block": block_number, "used": place + 1}

        for row in source:
            if self.stream.keep is not None and not self.stream.keep(row):
                continue
            block.append((number, row))
            number += 1
            if len(block) == self.stream.buffer_size:
                end = source.state_dict()
                yield from shuffled()
                begin, block, block_number, used = end, [], block_number + 1, 0
        yield from shuffled()


class _Steps(torch.utils.data.IterableDataset):
    def __init__(
        self,
        batches: StreamedBatches,
        collate: Callable,
        epoch: int,
        position: dict[str, Any] | None,
        limit: int | None,
    ):
        self.batches, self.collate, self.epoch, self.position, self.limit = batches, collate, epoch, position, limit

    def __iter__(self) -> Iterator[Step]:
        batches = self.batches
        share = (
            batches.per_device_batch_size,
            batches.accumulation_steps,
            batches.num_processes,
            batches.process_index,
        )
        size, made = batches.total_batch_size, 0
        examples, positions = [], []
        # One row ahead, so that the last step of an epoch is known as such.
        for example, position in batches.rows(self.epoch, self.position):
            if len(examples) == size:
                yield self._step(examples, share, positions[-1], ends_epoch=False)
                examples, positions, made = [], [], made + 1
                if made == self.limit:
                    return
            examples.append(example)
            positions.append(position)
        if examples:
            yield self._step(examples, share, None, ends_epoch=True)

    def _step(
        self, rows: list[tuple[int, dict]], share: tuple, position: dict[str, Any] | None, ends_epoch: bool
    ) -> Step:
        micro_batches, inputs = [], []
        for part in share_step(rows, *share):
            counts, part = bool(part), part or rows[:1]
            micro_batches.append(MicroBatch([number for number, _ in part], counts))
            inputs.append(self.collate(self.batches.stream.examples([row for _, row in part], counts)))
        return Step(micro_batches, inputs, ends_epoch, position)
