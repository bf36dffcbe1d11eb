# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's engine for CPUs, where DeepSpeed is installed: `pip install deepspeed`."""

import importlib.util
import os

import pytest
import torch
import torch.distributed as dist
from processes import Processes
from test_sharding import MODELS, backward, inputs_of, my_share, objective

from ea_hf.training.sharding import gather_kernels


pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed")
NAMES = ("EABertModel", "EABertForMaskedLM", "EAT5Model", "EAViTModel")


@pytest.fixture(scope="module")
def two_processes():
    with Processes(2) as processes:
        yield processes


def engine_of(model, stage):
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo")
    gather_kernels(model)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def step_differences(name, stage):
    import deepspeed

    case = MODELS[name]
    inputs = inputs_of(case, torch.float32)
    expected = case.model().train()
    backward(case, expected, inputs)
    torch.optim.SGD(expected.parameters(), lr=1e-3).step()
    differences = []
    for checkpointing in (False, True):
        model = case.model().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        engine = engine_of(model, stage)
        outputs = engine(**my_share(inputs), **case.inputs.options)
        engine.backward(objective(case, outputs) * dist.get_world_size())
        engine.step()
        with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
            pairs = zip(model.parameters(), expected.parameters(), strict=True)
            differences.append(max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs))
    return differences


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_that_of_one_process(name, stage, two_processes):
    for differences in two_processes.run(step_differences, name, stage):
        assert max(differences) <= 1e-6


def generate():
    from transformers.integrations import HfDeepSpeedConfig

    case = MODELS["EAT5ForConditionalGeneration"]
    model = case.model()
    told = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})  # as Accelerate does
    engine = engine_of(model, 3)
    inputs = {k: v for k, v in my_share(case.batch().inputs).items() if "decoder" not in k}
    options = {"max_new_tokens": 3 + 4 * dist.get_rank(), "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    generated = engine.module.eval().generate(**inputs, **options)
    del told
    return torch.equal(generated, case.model().generate(**inputs, **options))


def test_zero3_generates_as_one_process(two_processes):
    assert all(two_processes.run(generate))
