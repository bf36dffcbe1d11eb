# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A step with fewer examples than it has room for: nothing that is computed for nothing leaves a trace."""

import argparse

import pytest
import torch
import torch.distributed as dist
from models import CASES, TINY_RESNET
from processes import Processes
from tiny_bert import reset_accelerator
from torch import nn

import ea_hf
from ea_hf.models.dc_transformer_layers import EADCTransformerBatchNorm, ObservedSteps
from ea_hf.training.arguments import add_training_arguments
from ea_hf.training.batching import TrainingBatches, share_step, stand_in
from ea_hf.training.loop import create_accelerator, train
from ea_hf.training.output_dir import prepare_output_dir


def resnet():
    torch.manual_seed(0)
    return ea_hf.EAResNetForImageClassification(ea_hf.EAResNetConfig(**TINY_RESNET))


def transformer():
    case = next(case for case in CASES if case.model_class is ea_hf.EADCTransformerForRegression)
    torch.manual_seed(0)
    return ea_hf.EADCTransformerForRegression(case.config(norm_type="batchnorm", sync_batch_norm=True))


def images(count):
    generator = torch.Generator().manual_seed(1)
    pixels = 3 * torch.randn(count, 3, 12, 12, generator=generator) + 1
    return [{"pixel_values": image, "labels": torch.tensor(row % 3)} for row, image in enumerate(pixels)]


def series(count):
    generator = torch.Generator().manual_seed(1)
    return [
        {"past_values": torch.randn(12, 3, generator=generator), "labels": torch.randn(4, generator=generator)}
        for _ in range(count)
    ]


def collate(examples):
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def run(directory, model, dataset, **options):
    """Trains without moving a weight, so that only the batches decide about the statistics."""
    reset_accelerator()
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    options = {"output_dir": directory, "num_train_epochs": 1, "checkpointing_steps": "no", **options}
    args = parser.parse_args([word for name, value in options.items() for word in (f"--{name}", str(value))])
    accelerator = create_accelerator(args)
    lock = prepare_output_dir(accelerator, args)
    train(accelerator, args, model, dataset, collate, None, model.config.save_pretrained)
    if lock is not None:
        lock.close()
    return {name: value for name, value in model.state_dict().items() if "running" in name or "tracked" in name}


def plain_loop(model, dataset, order, size):
    model.train()
    for start in range(0, len(order), size):
        model(**collate([dataset[index] for index in order[start : start + size]]))
    return {name: value for name, value in model.state_dict().items() if "running" in name or "tracked" in name}


@pytest.mark.parametrize(("make", "dataset"), [(resnet, images(34)), (transformer, series(34))])
def test_running_statistics_are_those_of_a_plain_loop(make, dataset, tmp_path):
    """34 examples are a step of four batches and one of a single batch with two."""
    options = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "learning_rate": 0}
    statistics = run(tmp_path, make(), dataset, **options)
    order = TrainingBatches(34, 8, 4, seed=42).order(epoch=0)
    expected = plain_loop(make(), dataset, order, 8)
    assert statistics.keys() == expected.keys() and len(expected) >= 6
    for name, value in expected.items():
        torch.testing.assert_close(statistics[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [[1], [0]]), (9, [[8], [1]]), (16, [[8], [8]]), (17, [[8, 1], [8, 0]]), (48, [[8, 8, 8], [8, 8, 8]])],
)
def test_no_micro_step_without_examples_on_all_processes(count, sizes):
    for process_index in (0, 1):
        shares = share_step(list(range(count)), 8, 3, 2, process_index)
        assert [len(share) for share in shares] == sizes[process_index]


def test_a_stand_in_leaves_plain_normalization_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Sequential(nn.BatchNorm2d(4)))
    model[3][0].eval()  # as one that is frozen
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyError), stand_in(model):
        assert model.training and model[2].training and not model[1].training
        model(torch.randn(2, 3, 5, 5)).sum().backward()
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].training and not model[3][0].training


def train_transformer(directory, size: int) -> dict[str, torch.Tensor]:
    """26 examples are a step of 24 and one of 2, which leave the second process without any."""
    model = transformer()
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 3, "learning_rate": 1e-3}
    run(directory, model, series(26), **options, num_train_epochs=2, optim="sgd")
    return model.state_dict()


def test_two_processes_train_as_one(tmp_path):
    expected = train_transformer(tmp_path / "one", 8)
    with Processes(2) as processes:
        results = processes.run(train_transformer, tmp_path / "two", 4)
    for result in results:
        for name, value in expected.items():
            torch.testing.assert_close(
                result[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def normalize_with_a_stand_in() -> tuple[torch.Tensor, ...]:
    """What the first process gets whose partner has nothing to add: output, gradient, running statistics."""
    torch.manual_seed(0)
    norm = EADCTransformerBatchNorm(6, eps=1e-5, momentum=0.3, is_synchronized=True)
    values = torch.randn(2, 7, 6).requires_grad_()
    steps = ObservedSteps(torch.ones(2, 7, 1, dtype=torch.bool), causal=False)
    if dist.is_initialized() and dist.get_rank() == 1:
        with stand_in(norm):
            assert norm.training  # or the other would wait for it
            (1e3 * (norm(1e3 * values, steps) * values).sum() * 0).backward()
    else:
        (norm(values, steps) * torch.arange(6)).square().sum().backward()
    assert not norm.adds_nothing and torch.isfinite(values.grad).all()
    return values.grad, norm.running_mean, norm.running_var


def test_a_stand_in_adds_nothing_to_shared_statistics():
    expected = normalize_with_a_stand_in()
    with Processes(2) as processes:
        first, second = processes.run(normalize_with_a_stand_in)
    for actual, value in zip(first, expected, strict=True):
        torch.testing.assert_close(actual, value, rtol=1e-5, atol=1e-6)
    assert torch.equal(second[1], first[1]) and torch.equal(second[2], first[2]) and not second[0].any()
