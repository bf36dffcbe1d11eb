# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What DDP, FSDP2 or one process wrote, each of the others goes on from.

FSDP2 runs on CPUs here, by gloo, though Accelerate offers it for GPUs only.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from processes import Processes
from tiny_bert import reset_accelerator
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from training_runs import assert_equal
from transformers import get_scheduler

import ea_hf
from ea_hf.training.sharding import layer_classes
from ea_hf.training.training_state import load_training_state, save_training_state


STEPS = 6
OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {"fused": True}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
}
KINDS = ("one", "ddp", "fsdp2")


@pytest.fixture(scope="module")
def two_processes():
    with Processes(2) as processes:
        yield processes


def tiny_model() -> torch.nn.Module:
    """With embeddings that three modules share."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 24, "num_layers": 2}
    config = ea_hf.EAT5Config(
        **sizes, initializer_factor=1.5, dropout_rate=0.0, decoder_start_token_id=0, tie_word_embeddings=True
    )
    return ea_hf.EAT5ForConditionalGeneration(config)


def part_of_a_run(kind: str, optimizer_name: str, first: int, last: int, source: Path | None, target: Path) -> list:
    """The steps from `first` to `last`, out of a checkpoint and into another; returns the losses of all examples."""
    reset_accelerator()
    accelerator = Accelerator(cpu=True)
    model = tiny_model()
    if kind == "fsdp2":
        for module in model.modules():
            if type(module).__name__ in layer_classes(model):
                fully_shard(module)
        fully_shard(model)
    elif kind == "ddp":
        model = DistributedDataParallel(model)
    optimizer_class, options = OPTIMIZERS[optimizer_name]
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = optimizer_class(groups, lr=0.01, **options)
    scheduler = get_scheduler("cosine", optimizer, 2, STEPS + 2)
    if source is not None:
        load_training_state(accelerator, model, optimizer, scheduler, source)
    losses = []
    for step in range(first, last):
        ids = torch.randint(1, 50, (4, 7), generator=torch.Generator().manual_seed(step))
        mine = ids if kind == "one" else ids[2 * dist.get_rank() :][:2]
        loss = model(input_ids=mine, labels=mine.flip(1)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())
    if accelerator.is_main_process:
        target.mkdir(parents=True)
    accelerator.wait_for_everyone()
    save_training_state(accelerator, model, optimizer, scheduler, target)
    accelerator.wait_for_everyone()
    return losses


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize(("before", "after"), [(a, b) for a in KINDS for b in KINDS if a != b])
@pytest.mark.slow_but("adamw")
def test_a_run_moves_from_one_way_of_sharing_to_another(before, after, optimizer_name, two_processes, tmp_path):
    def run(kind: str, *args) -> list[float]:
        if kind == "one":
            return part_of_a_run(kind, optimizer_name, *args)
        return two_processes.run(part_of_a_run, kind, optimizer_name, *args)[0]

    undisturbed = run("one", 0, STEPS, None, tmp_path / "whole")
    losses = run(before, 0, 3, None, tmp_path / "before")
    losses += run(after, 3, STEPS, tmp_path / "before", tmp_path / "after")
    assert losses == pytest.approx(undisturbed, abs=1e-5)
    assert undisturbed[-1] < undisturbed[0] - 0.1
    states = [torch.load(tmp_path / name / "optimizer.bin") for name in ("whole", "after")]
    for name, value in states[0]["state"].items():
        assert_equal(states[1]["state"][name], value, rtol=0, atol=1e-4)
    assert states[1]["param_groups"] == states[0]["param_groups"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_an_ordinary_one(kind, two_processes, tmp_path):
    args = (kind, "adamw", 0, 2, None, tmp_path / "checkpoint")
    part_of_a_run(*args) if kind == "one" else two_processes.run(part_of_a_run, *args)
    model = tiny_model()
    model.config.save_pretrained(tmp_path / "checkpoint")
    loaded, report = ea_hf.EAT5ForConditionalGeneration.from_pretrained(
        tmp_path / "checkpoint", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.lm_head.weight is loaded.shared.weight
    assert not torch.equal(loaded.shared.weight, model.shared.weight)
