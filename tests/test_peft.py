# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""LoRA on the attention with the map convolutions trained in full, and dynamic 8-bit quantization of linear layers."""

import copy
import warnings

import pytest
import torch
from exactness import objective, run, tensors
from models import CASES, TINY_BERT, randomize
from peft import LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import ElectraConfig, ElectraForSequenceClassification

import ea_hf


TARGETS = {
    "EABertForSequenceClassification": ["query", "value"],
    "EAViTForImageClassification": ["q_proj", "v_proj"],
    "EAT5ForConditionalGeneration": ["q", "v"],
}


def electra():
    config = ElectraConfig(**{**TINY_BERT, "embedding_size": 16})
    model = ea_hf.evolve(ElectraForSequenceClassification(config), residual_weight=0.5, conv_weight=0.5)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 67, (4, 11), generator=generator)
    inputs = {"input_ids": tokens, "attention_mask": (torch.arange(11) < torch.tensor([[11], [7], [9], [2]])).long()}
    return randomize(model, 0.4).eval(), inputs, ["query", "value"]


def family(name):
    case = next(case for case in CASES if str(case) == name)
    return case.model(), case.batch().inputs, TARGETS[name]


@pytest.fixture(params=[*TARGETS, "evolved"])
def setting(request):
    """A model, its inputs and the projections that get LoRA."""
    return electra() if request.param == "evolved" else family(request.param)


def with_lora(model, targets):
    options = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "init_lora_weights": False}
    config = LoraConfig(target_modules=targets, modules_to_save=["evolution.conv"], **options)
    return get_peft_model(model, config).eval()


def train(model, inputs, steps=3):
    """A few steps; the objective is scaled so that no weight runs away."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = model(**inputs)
        (objective(outputs) / sum(value.numel() for value in tensors(outputs).values())).backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad.div_(parameter.grad.norm() + 1e-9).mul_(1e3)
        optimizer.step()


def assert_close_outputs(actual, expected, atol):
    actual, expected = tensors(actual), tensors(expected)
    for name in expected:
        assert_close(actual[name], expected[name], atol=atol, rtol=atol, msg=f"{name}: ".__add__)


def test_only_lora_and_the_convolutions_are_trained(setting):
    model, inputs, targets = setting
    before = {name: values.clone() for name, values in model.state_dict().items()}
    base = copy.deepcopy(model)
    peft_model = with_lora(model, targets)
    trained = {name for name, parameter in peft_model.named_parameters() if parameter.requires_grad}
    assert any("lora_A" in name for name in trained)
    convolutions = {name for name in trained if ".evolution.conv.modules_to_save." in name}
    assert len(convolutions) == sum(".evolution.conv." in name for name in before)
    assert trained == {name for name in trained if "lora_" in name} | convolutions
    train(peft_model, inputs)
    state = peft_model.state_dict()
    for name in convolutions:
        original = state[name.replace("modules_to_save.default", "original_module")]
        assert not torch.equal(state[name], original)
        assert torch.equal(
            original, before[name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")]
        )
    with peft_model.disable_adapter():
        # PEFT's wrapper around a convolution is called, on the reference path; the fast ones round differently.
        assert_close_outputs(run(peft_model, inputs), run(base, inputs), atol=1e-5)


def test_adapter_saves_loads_and_merges(setting, tmp_path):
    model, inputs, targets = setting
    base = copy.deepcopy(model)
    before = run(base, inputs)
    peft_model = with_lora(model, targets)
    train(peft_model, inputs)
    expected = run(peft_model, inputs)
    name = next(iter(tensors(before)))
    assert (expected[name] - before[name]).abs().max() > 0.01
    peft_model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    assert_close_outputs(run(loaded, inputs), expected, atol=0.0)
    merged = loaded.merge_and_unload()
    assert type(merged) is type(base)
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert_close_outputs(run(merged, inputs), expected, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert_close_outputs(run(type(base).from_pretrained(tmp_path / "merged"), inputs), expected, atol=1e-5)


def test_lora_with_checkpointing_has_the_same_gradients(setting):
    model, inputs, targets = setting
    peft_model = with_lora(model.double(), targets).double().train()
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    results = []
    for enable in (False, True):
        if enable:
            peft_model.activation_checkpointing_enable()
        peft_model.zero_grad()
        objective(peft_model(**inputs)).backward()
        results.append({name: p.grad.clone() for name, p in peft_model.named_parameters() if p.requires_grad})
    for name, expected in results[0].items():
        assert_close(results[1][name], expected, atol=1e-9 * expected.abs().max().item(), rtol=1e-9)


def test_dynamic_quantization_of_linear_layers_keeps_working(setting):
    model, inputs, _ = setting
    expected = tensors(run(model, inputs, output_attention_maps=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, which moves quantization to another package
        quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is torch.nn.Linear for module in quantized.modules())
    actual = tensors(run(quantized, inputs, output_attention_maps=True))
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        if "map" in name:
            assert torch.cosine_similarity(actual[name].flatten(), values.flatten(), dim=0) > 0.95, name
