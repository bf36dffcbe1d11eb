# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What `python -m ea_hf.plan` says is what a real step takes, within 5 %."""

import argparse
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from ea_hf import (
    EABertConfig,
    EADCTransformerConfig,
    EAResNetConfig,
    EARobertaConfig,
    EAT5Config,
    EAViTConfig,
    plan,
    plan_report,
)
from ea_hf.models.evolution_state import EvolutionState
from ea_hf.training.optimizers import create_optimizer


# Small models of the usual proportions, whose activations are the bulk.
CONFIGS = {
    "bert": EABertConfig(
        vocab_size=500, hidden_size=96, num_hidden_layers=4, num_attention_heads=6, intermediate_size=384
    ),
    "roberta": EARobertaConfig(
        vocab_size=500, hidden_size=96, num_hidden_layers=2, num_attention_heads=6, intermediate_size=384
    ),
    "dc_transformer": EADCTransformerConfig(num_input_channels=6, context_length=96, num_hidden_layers=2),
    "t5": EAT5Config(
        vocab_size=500, d_model=96, d_kv=16, d_ff=384, num_layers=3, num_heads=6, decoder_start_token_id=0
    ),
    "vit": EAViTConfig(
        image_size=40, patch_size=4, hidden_size=96, num_hidden_layers=4, num_attention_heads=6, intermediate_size=384
    ),
    "resnet": EAResNetConfig.from_depth(18, image_size=64),
}
SIZES = (4, 96, 64)  # examples, length, length of the targets

every_family = pytest.mark.parametrize("family", CONFIGS)


def real_model(family, mode):
    """With inputs; the weights are initialized."""
    options = dict(plan.MODES[mode])
    gradient_checkpointing = options.pop("gradient_checkpointing", False)
    config = type(CONFIGS[family]).from_dict({**CONFIGS[family].to_dict(), **options})
    model = plan.model_class(config)(config).train()
    if gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model, plan.make_inputs(config, model, *SIZES)


def measure_saved_bytes(model, inputs, dtype):
    """Distinct storages that autograd or a replay needs, without parameters."""
    held = {
        tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), *inputs.values())
    }
    storages = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            storages[storage.data_ptr()] = storage
        return tensor

    def checkpoint_and_note(function, *args, **kwargs):
        # `function` carries the maps that the layer takes, and calls the layer with its keyword arguments.
        for value in (*args, *function.function.keywords.values(), *function.before._maps.values()):
            if isinstance(value, torch.Tensor):
                note(value)
        return checkpoint.checkpoint(function, *args, use_reentrant=False, **kwargs)

    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            module._gradient_checkpointing_func = checkpoint_and_note
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = plan.run_forward(model, inputs, dtype)
    total = sum(storage.nbytes() for storage in storages.values())
    assert loss.requires_grad
    return total


@cache
def planned_step(family, mode="default", precision="fp32"):
    return plan.plan_step(CONFIGS[family], *SIZES, mode=mode, precision=precision)


@pytest.mark.parametrize(("mode", "precision"), [*((mode, "fp32") for mode in plan.MODES), ("default", "bf16")])
@every_family
@pytest.mark.slow_but("bert-default-fp32", "t5-memory-efficient-fp32")
def test_bytes_saved_for_the_backward_pass(family, mode, precision):
    planned = planned_step(family, mode, precision)
    measured = measure_saved_bytes(*real_model(family, mode), plan.PRECISIONS[precision])
    assert planned.saved_bytes == pytest.approx(measured, rel=0.05)
    assert planned.peak_bytes >= planned.saved_bytes


@pytest.mark.parametrize("mode", plan.MODES)
@every_family
@pytest.mark.slow_but("bert-", "t5-default")
def test_operations(family, mode):
    planned = planned_step(family, mode)
    model, inputs = real_model(family, mode)
    with FlopCounterMode(display=False) as counter:
        loss = model(**inputs).loss
        forward = counter.get_total_flops()
        loss.backward()
    assert planned.forward_flops == pytest.approx(forward, rel=0.05)
    assert planned.training_flops == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_operations_of_bert_follow_from_its_sizes():
    """The usual count of a Transformer's layers, and 9 heads^2 keys per query for each convolution."""
    config, (batch, length, _) = CONFIGS["bert"], SIZES
    width, heads = config.hidden_size, config.num_attention_heads
    layer = length * (4 * width**2 + 2 * width * config.intermediate_size) + 2 * length**2 * width
    convolution = 9 * heads**2 * length**2
    layers = config.num_hidden_layers
    expected = 2 * batch * (layers * layer + (layers - 1) * convolution)
    assert planned_step("bert").forward_flops == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("precision", plan.PRECISIONS)
@every_family
@pytest.mark.slow_but("bert-", "t5-fp32")
def test_bytes_of_maps(family, precision, monkeypatch):
    planned = planned_step(family, precision=precision)
    model, inputs = real_model(family, "default")
    stored = []
    store = EvolutionState.store
    monkeypatch.setattr(
        EvolutionState,
        "store",
        lambda self, layer, evolved: (stored.append(evolved.nbytes), store(self, layer, evolved)),
    )
    plan.run_forward(model, inputs, plan.PRECISIONS[precision])
    assert planned.map_bytes == sum(stored) > 0


@pytest.mark.parametrize(
    ("family", "optim"), [*((family, "adamw_torch") for family in CONFIGS), ("t5", "adafactor"), ("resnet", "sgd")]
)
def test_parameters_and_optimizer_states(family, optim):
    planned = plan.plan_model(CONFIGS[family], optim)
    model, inputs = real_model(family, "default")
    assert planned.parameters == sum(p.numel() for p in model.parameters())
    assert (
        planned.evolution_parameters == sum(p.numel() for n, p in model.named_parameters() if ".evolution." in n) > 0
    )
    model(**inputs).loss.backward()
    arguments = argparse.Namespace(optim=optim, optim_args={}, learning_rate=1e-3, weight_decay=0.0)
    optimizer = create_optimizer(arguments, model)
    optimizer.step()
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    measured = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert planned.optimizer_bytes == pytest.approx(measured, rel=0.05)


def test_the_largest_batch_is_the_last_that_fits():
    memory = 100 * 2**20
    model = plan.plan_model(CONFIGS["bert"])

    def bytes_of(size):
        return plan.device_bytes(model, plan.peak_bytes(CONFIGS["bert"], size, 64))

    size = plan.largest_batch(bytes_of, memory)
    assert bytes_of(size) <= memory < bytes_of(size + 1)
    assert plan.largest_batch(bytes_of, 2**20) == 0


def test_sharding_saves_memory_and_shares_the_rest():
    model = plan.Model("", 1000, 0, layer_parameters=100, root_parameters=50, optimizer_bytes=8000)
    assert plan.device_bytes(model, 7) == 16007
    assert plan.device_bytes(model, 7, 4, "ddp") == 20007
    assert plan.device_bytes(model, 7, 4, "fsdp2", "bf16") == 4000 + 2 * (100 + 300) + 7
    assert plan.sent_bytes(model, 4, "ddp") == 6000
    assert plan.sent_bytes(model, 4, "fsdp2", "bf16") == 4500


def test_tables_and_json(capsys):
    words = "--model_type ea_vit --config_overrides image_size=32,patch_size=8,num_hidden_layers=2 --memory 1"
    words = [*words.split(), "--precision", "fp32", "--tflops", "1", "--devices", "1", "4"]
    plan.main([*words, "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert len(figures["steps"]) == 3 and len(figures["devices"]) == 9
    assert all(row["largest_batch_of_1_GB"] > 0 for row in figures["devices"])
    plan.main(words)
    table = capsys.readouterr().out
    assert "EAViTForImageClassification" in table and "largest batch in 1 GB" in table
    first = figures["steps"][0]
    assert f"{first['saved_bytes'] / 2**20:,.0f}" in table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model_type ea_gpt", "ea_gpt"),
        ("--model_type ea_bert --config_overrides hiden_size=3", "hiden_size"),
        ("--model_type ea_bert --batch_size 0", "--batch_size is 0"),
        ("--model_type ea_bert --length 128 1024", "--length is 1024, but the model ends at 512 tokens"),
    ],
)
def test_bad_input(words, message, capsys):
    with pytest.raises((ValueError, SystemExit)) as error:
        plan.main(words.split())
    assert message in str(error.value) + capsys.readouterr().err


def verdict_of(memories, sizes):
    """Of devices, sharding and bytes each."""
    rows = [
        {"length": 64, "precision": p, "mode": m, "devices": d, "sharding": s, "bytes_per_device": b * 2**30}
        for p, m, d, s, b in sizes
    ]
    return plan_report.verdict({"batch_size": 8, "devices": rows}, memories)


def test_the_verdict_names_the_simplest_way_that_fits():
    sizes = [
        ("fp32", "default", 1, "one device", 30),
        ("bf16", "gradient checkpointing", 1, "one device", 18),
        ("fp32", "default", 8, "ddp", 34),
        ("fp32", "default", 8, "fsdp2", 9),
    ]
    large, middle, small, tiny = verdict_of([40, 24, 12, 4], sizes)
    assert "fit into 40 GB" in large and "configs/one_gpu.yaml and --mixed_precision no." in large
    assert "configs/one_gpu.yaml and --mixed_precision bf16 --gradient_checkpointing." in middle
    assert "8 devices, configs/fsdp2.yaml (--num_processes 8)" in small
    assert "do not fit into 4 GB; 10.0 GB are needed" in tiny
    (unknown,) = verdict_of([], sizes)
    assert "need 10.0 GB of memory at least" in unknown and "--memory" in unknown


def test_the_verdict_names_files_that_there_are():
    for name in plan_report.LAUNCH_FILES.values():
        assert (Path(__file__).parents[1] / name).exists()
    assert set(plan_report.MODE_ARGUMENTS) == set(plan.MODES)
    assert set(plan_report.PRECISION_ARGUMENTS) == set(plan.PRECISIONS)
