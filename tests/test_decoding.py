# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Steps of decoding, of few query rows, have a path of their own, which gives what the equations give."""

import pytest
import torch
from test_ea_t5 import decode, full_logits, make_model, make_source, make_target
from torch import nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

import ea_hf
from ea_hf.models import evolution
from ea_hf.models.evolution_blocks import Layer, convolve
from ea_hf.models.evolution_fast import convolve_row


@pytest.mark.parametrize("padding", [None, "left"])
@pytest.mark.parametrize("kernel_size", [3, (3, 5), 1])
@pytest.mark.parametrize(
    "fields", [{}, {"ea_mixing": "additive"}, {"ea_mixing": "learned"}, {"ea_conv_groups": "heads"}], ids=str
)
def test_steps_of_decoding_take_the_fast_path(monkeypatch, fields, kernel_size, padding):
    model = make_model(ea_kernel_size=kernel_size, **fields).double()
    source, target = make_source(), make_target(9, padding=padding)
    with monkeypatch.context() as patch:
        if fields.get("ea_mixing") != "learned":  # there the first layer, without gates, takes the other path
            patch.setattr(evolution, "_reference_attention", None)
        logits, _ = decode(model, source, target, (2, 1, 1, 3, 1, 1))
    monkeypatch.setattr(evolution, "_needs_reference", lambda *_: True)
    real = target["decoder_attention_mask"].bool()
    assert_close(logits[real], full_logits(model, source, target)[real], atol=1e-10, rtol=0)


@pytest.mark.parametrize("mixing", ["convex", "additive", "learned"])
@pytest.mark.parametrize("steps", [(1,) * 6, (3, 1, 1, 1), (4, 2)], ids=str)
def test_decoding_in_steps_under_autocast(steps, mixing):
    """Where T5's position bias, and so the rows that a cache holds, stay float32."""
    model, source, target = make_model(ea_mixing=mixing), make_source(), make_target(6)
    with torch.no_grad():
        exact = full_logits(model, source, target)
        with torch.autocast("cpu", torch.bfloat16):
            full = full_logits(model, source, target)
            logits, _ = decode(model, source, target, steps)
    assert (logits - full).abs().mean() < 0.5 * (full - exact).abs().mean()


@pytest.mark.parametrize("padded", [False, True])
def test_steps_of_an_evolved_decoder_take_the_fast_path(monkeypatch, padded):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 50}
    vanilla = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    model = ea_hf.evolve(vanilla, residual_weight=0.5, conv_weight=0.5).eval().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(1, 50, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0 if padded else 1
    logits, cache = [], None
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(evolution, "_reference_attention", None)
        for start, stop in ((0, 4), (4, 5), (5, 6), (6, 8), (8, 9)):
            outputs = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            logits.append(outputs.logits)
    monkeypatch.setattr(evolution, "_needs_reference", lambda *_: True)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, use_cache=False).logits
    real = mask.bool()
    assert_close(torch.cat(logits, dim=1)[real], expected[real], atol=1e-10, rtol=0)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("keys", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5), (4, 7)], ids=str)
def test_convolution_of_a_row_is_the_convolution(kernel, keys, groups):
    convolution = nn.Conv2d(4, 4, kernel, groups=groups).double()
    layer = Layer(1.0, 0.5, 0.5, *kernel, is_causal=True, groups=groups)
    image = torch.randn(2, 4, kernel[0], keys, dtype=torch.float64)
    arguments = (image, convolution.weight, convolution.bias, layer)
    with torch.no_grad():
        assert_close(convolve_row(*arguments), convolve(*arguments), atol=1e-10, rtol=0)


def test_steps_hide_nothing_where_nothing_is_padded(monkeypatch):
    model, masks = make_model(), []
    original = evolution._fast_attention

    def record(evolution_module, tensors, *args):
        masks.append((tensors.query.shape[2], tensors.attention_mask, tensors.blocked))
        return original(evolution_module, tensors, *args)

    monkeypatch.setattr(evolution, "_fast_attention", record)
    source = {"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    decode(model, source, make_target(3, rows=2), (1, 1, 1))
    steps = [rest for queries, *rest in masks if queries == 1]
    assert steps and all(entry is None for rest in steps for entry in rest)
