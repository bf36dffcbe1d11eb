# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Training on a corpus of documents that is read while training, each process only its own part of it.

Reading and tokenizing every document on every process, as `streaming.py` does, would hold many fast devices up. Here the
corpus is dealt to lanes, and each place of a step of the optimizer belongs to one lane. How many lanes there are depends
on the size of the whole step only, so the examples of a step do not depend on how many processes share it, and a
process reads only the lanes of its places. A lane that comes to its end begins again, by itself: such a stream has no
epochs.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from accelerate.utils import gather_object
from torch.utils.data import IterableDataset as TorchIterableDataset

from .batching import MicroBatch, Step
from .streaming import BatchesOfStream, Stream


logger = logging.getLogger(__name__)

MOST_LANES = 8
# With fewer shards than this for each lane, lanes that get whole shards would be of very different lengths.
SHARDS_PER_LANE = 4
# Read before they are encoded together.
ROWS_AT_ONCE, CHARACTERS_AT_ONCE = 256, 200_000


@dataclass
class ShardedStream(Stream):
    """A corpus to train on, of which each process reads its part.

    Args:
        rows: with a column `text`.
        encode: makes a list of examples (dictionaries) and a rest out of a list of texts and the rest of those before.
        buffer_size: examples that are shuffled at once, over all lanes.
        description: see `Stream`.
    """

    encode: Callable[[list[str], Any], tuple[list[dict[str, Any]], Any]]

    def batches(self, *share: Any) -> "ShardedBatches":
        return ShardedBatches(self, *share)


@dataclass
class ShardedBatches(BatchesOfStream):
    """Every process reads the lanes of its places. Examples get `key`, their step and place."""

    @property
    def num_lanes(self) -> int:
        most = max(MOST_LANES, self.stream.rows.num_shards // SHARDS_PER_LANE)
        return max(lanes for lanes in range(1, most + 1) if self.total_batch_size % lanes == 0)

    def places(self) -> list[list[int]]:
        """Of the micro-batches of this process, among all examples of a step."""
        size = self.per_device_batch_size
        first = [
            (micro_step * self.num_processes + self.process_index) * size
            for micro_step in range(self.accumulation_steps)
        ]
        return [list(range(start, start + size)) for start in first]

    def steps(
        self, collate: Callable, epoch: int, first_step: int, position: dict[str, Any] | None, limit: int | None
    ) -> TorchIterableDataset:
        return _Steps(self, collate, first_step, position, limit)

    def gather_position(self, position: dict[str, Any] | None) -> dict[str, Any] | None:
        """The position of all lanes out of those that each process knows."""
        known = gather_object([position])
        return None if position is None else {lane: value for part in known for lane, value in part.items()}

    def source(self, lane: int) -> tuple[datasets.IterableDataset, bool]:
        """The rows of a lane, and whether these are all rows, of which it takes every `num_lanes`-th."""
        rows = copy.deepcopy(self.stream.rows)  # each has a state of its own
        if rows.num_shards >= SHARDS_PER_LANE * self.num_lanes:
            return rows.shard(self.num_lanes, lane, contiguous=False), False
        return rows, True

    def examples(self, lane: int, position: dict[str, Any] | None) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yields (example, position after it), without end."""
        source, has_all_rows = self.source(lane)
        state = position or {"begin": None, "rows": 0, "rest": None, "pass": 0, "block": 0, "used": 0, "empty": True}
        buffer_size = max(1, self.stream.buffer_size // self.num_lanes)
        while True:
            source.load_state_dict(state["begin"])
            row_number, rest, found, texts = state["rows"], state["rest"], [], []
            for row in source:
                if not has_all_rows or row_number % self.num_lanes == lane:
                    texts.append(row["text"] or "")
                row_number += 1
                if len(texts) >= ROWS_AT_ONCE or sum(map(len, texts)) >= CHARACTERS_AT_ONCE:
                    more, rest = self.stream.encode(texts, rest)
                    found, texts = found + more, []
                    if len(found) >= buffer_size:
                        after = {**state, "begin": source.state_dict(), "rows": row_number, "rest": rest}
                        yield from self._shuffled(lane, found, state)
                        state = {**after, "block": state["block"] + 1, "used": 0, "empty": False}
                        found = []
            if texts:
                more, rest = self.stream.encode(texts, rest)
                found += more
            yield from self._shuffled(lane, found, state)
            if not found and state["empty"]:
                raise ValueError(
                    f"{self.stream.description} has nothing to train on in part {lane + 1} of {self.num_lanes}, as which "
                    "it is read. Give more documents, or leave out --streaming."
                )
            if lane == 0 and state["pass"] == 0:
                logger.warning(
                    f"The stream ended before the run: part 1 of {self.num_lanes} is read again from its beginning."
                )
            state = {
                "begin": None, "rows": 0, "rest": rest, "pass": state["pass"] + 1, "block": state["block"] + 1, "used": 0,
                "empty": True,
            }  # fmt: skip

    def _shuffled(
        self, lane: int, found: list[dict[str, Any]], state: dict[str, Any]
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        order = np.random.default_rng([self.seed, lane, state["block"]]).permutation(len(found))
        for place in range(state["used"], len(found)):
            yield found[order[place]], {**state, "used": place + 1}


class _Steps(TorchIterableDataset):
    def __init__(
        self,
        batches: ShardedBatches,
        collate: Callable,
        first_step: int,
        position: dict[str, Any] | None,
        limit: int | None,
    ):
        self.batches, self.collate, self.first_step = batches, collate, first_step
        self.position, self.limit = position or {}, limit

    def __iter__(self) -> Iterator[Step]:
        batches = self.batches
        places, size = batches.places(), batches.total_batch_size // batches.num_lanes
        mine = {place // size for micro_batch in places for place in micro_batch}
        lanes = {lane: batches.examples(lane, self.position.get(str(lane))) for lane in sorted(mine)}
        step = self.first_step
        while self.limit is None or step < self.first_step + self.limit:
            examples, position = {}, {}
            for lane, source in lanes.items():
                for place in range(lane * size, (lane + 1) * size):
                    example, position[str(lane)] = next(source)
                    examples[place] = {**example, "key": (step, place)}
            yield Step(
                [MicroBatch([step * batches.total_batch_size + p for p in part]) for part in places],
                [self.collate([examples[place] for place in part]) for part in places],
                ends_epoch=False,
                next_position=position,
            )
            step += 1
