# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Which examples make a step, and how predictions come back: nothing lost, nothing twice, however many processes."""

from types import SimpleNamespace

import pytest
import torch

from ea_hf.training import batching
from ea_hf.training.batching import MicroBatch, TrainingBatches, count_labels, data_loader, predict


LENGTHS = [3 + 7 * i % 31 for i in range(1009)]


def examples_of_steps(batches_of_processes: list[TrainingBatches], epoch: int) -> list[list[int]]:
    """The examples of each step over all processes, sorted."""
    steps = zip(*(batches.steps(epoch) for batches in batches_of_processes), strict=True)
    return [
        sorted(
            index
            for micro_batches in step
            for micro_batch in micro_batches
            for index in micro_batch.indices
            if micro_batch.counts
        )
        for step in steps
    ]


def shared(total_batch_size: int, accumulation_steps: int, num_processes: int, **kwargs) -> list[TrainingBatches]:
    """The batches of all processes for a step of `total_batch_size` examples."""
    size = total_batch_size // (accumulation_steps * num_processes)
    return [
        TrainingBatches(
            per_device_batch_size=size,
            accumulation_steps=accumulation_steps,
            num_processes=num_processes,
            process_index=process_index,
            **kwargs,
        )
        for process_index in range(num_processes)
    ]


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["shuffled", "by_length"])
@pytest.mark.parametrize("num_examples", [1, 23, 24, 25, 48, 1009])
def test_every_example_once_per_epoch(num_examples, lengths):
    lengths = lengths and lengths[:num_examples]
    batches = shared(24, 3, 2, num_examples=num_examples, seed=5, lengths=lengths)
    steps = examples_of_steps(batches, epoch=2)
    assert sorted(index for step in steps for index in step) == list(range(num_examples))
    assert len(steps) == batches[0].steps_per_epoch
    assert all(len(step) == 24 for step in steps[:-1])


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["shuffled", "by_length"])
@pytest.mark.parametrize(("accumulation_steps", "num_processes"), [(4, 1), (1, 3), (2, 2), (3, 4), (12, 2)])
def test_a_step_does_not_depend_on_how_it_is_shared(accumulation_steps, num_processes, lengths):
    one = shared(24, 1, 1, num_examples=1009, seed=5, lengths=lengths)
    many = shared(24, accumulation_steps, num_processes, num_examples=1009, seed=5, lengths=lengths)
    for epoch in range(2):
        assert examples_of_steps(many, epoch) == examples_of_steps(one, epoch)


def test_all_processes_compute_equally_often_even_without_examples():
    batches = shared(24, 3, 4, num_examples=26, seed=5)  # the second step has two examples for four processes
    last = [process.steps(0)[-1] for process in batches]
    assert [len(micro_batches) for micro_batches in last] == [1, 1, 1, 1]
    assert all(micro_batch.indices for micro_batches in last for micro_batch in micro_batches)
    assert sum(micro_batch.counts for micro_batches in last for micro_batch in micro_batches) == 1


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["shuffled", "by_length"])
def test_an_epoch_goes_on_from_any_step(lengths):
    for batches in shared(24, 3, 2, num_examples=1009, seed=5, lengths=lengths):
        whole = batches.steps(epoch=1)
        assert all(batches.steps(1, first_step) == whole[first_step:] for first_step in range(len(whole) + 1))


def test_the_order_changes_with_epoch_and_seed_only():
    orders = [TrainingBatches(1009, 8, seed=seed).order(epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 6
    assert orders[1] == TrainingBatches(1009, 4, 2, 3, 1, seed=0).order(1)


def test_batches_by_length_pad_little_and_come_in_random_order():
    def padding(batches: TrainingBatches) -> int:
        steps = examples_of_steps([batches], epoch=0)
        return sum(max(LENGTHS[i] for i in step) * len(step) - sum(LENGTHS[i] for i in step) for step in steps)

    by_length = TrainingBatches(1009, 16, lengths=LENGTHS)
    assert padding(by_length) < 0.2 * padding(TrainingBatches(1009, 16))
    longest = [max(LENGTHS[i] for i in step) for step in examples_of_steps([by_length], epoch=0)]
    assert longest[:-1] != sorted(longest[:-1], reverse=True)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_leaves_the_global_random_state_alone(num_workers):
    before = torch.get_rng_state()
    loader = data_loader(list(range(6)), [[5, 0], [3]], collate=torch.tensor, num_workers=num_workers)
    assert [batch.tolist() for batch in loader] == [[5, 0], [3]]
    assert torch.equal(torch.get_rng_state(), before)


def test_ignored_labels_do_not_count():
    assert count_labels({"labels": torch.tensor([[1, -100, 0], [-100, -100, 2]])}) == 3
    assert count_labels({"labels": torch.tensor([0.5, -100.0])}) == 2
    assert MicroBatch([1]).counts


def predictions(num_examples: int, batch_size: int, num_processes: int, lengths, monkeypatch) -> tuple[list, list]:
    """Runs `predict` for one process after the other. Returns the results and each process's batches."""
    model, sent, computed = torch.nn.Dropout(0.5), [], []

    def forward(model, batch):
        assert not model.training
        computed[-1].append(batch["value"].tolist())
        return list(batch["value"].numpy() * 10)

    def collate(examples):
        return {"value": torch.tensor(examples)}

    def run(process_index):
        accelerator = SimpleNamespace(
            num_processes=num_processes,
            process_index=process_index,
            device=torch.device("cpu"),
            is_local_main_process=False,
            reduce=lambda tensor, reduction: tensor,
        )
        computed.append([])
        return predict(
            accelerator,
            model,
            list(range(num_examples)),
            collate,
            batch_size,
            forward,
            lengths and lengths[:num_examples],
        )

    def send(results):
        sent.extend(results)
        return sent

    monkeypatch.setattr(batching, "gather_object", send)
    results = [run(process_index) for process_index in range(num_processes)][-1]
    assert model.training
    return results, computed


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["in_order", "by_length"])
@pytest.mark.parametrize("num_processes", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_predictions_come_in_order_for_any_number_of_examples(batch_size, num_processes, lengths, monkeypatch):
    for num_examples in (0, 1, 3, 4, 8, 13, 57):
        results, computed = predictions(num_examples, batch_size, num_processes, lengths, monkeypatch)
        assert results == [10 * i for i in range(num_examples)]
        assert len({len(batches) for batches in computed}) == 1  # or a process waits for the others for ever


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["in_order", "by_length"])
def test_evaluation_batches_are_the_same_on_any_number_of_processes(lengths, monkeypatch):
    alone = {tuple(batch) for batch in predictions(57, 4, 1, lengths, monkeypatch)[1][0]}
    computed = predictions(57, 4, 2, lengths, monkeypatch)[1]
    assert {tuple(batch) for batches in computed for batch in batches} == alone
