# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What every model must keep to the last digits: independence of padding, the vanilla limit, gradients, checkpoints."""

import pytest
import torch
from exactness import (
    assert_rows_equal_alone,
    assert_same_gradients,
    assert_same_outputs,
    every_kernel,
    every_padding,
    every_padding_of_a_family_s_mask,
    every_padding_of_a_mask,
    every_padding_of_an_extending_model,
    gradients,
    maps_of,
    objective,
    pick,
    run,
    tensors,
    without_mask,
)
from models import (
    every_extending_model,
    every_family,
    every_model,
)
from torch.testing import assert_close
from transformers.models.t5.modeling_t5 import T5LayerNorm

from ea_hf.models.evolution_state import EvolutionState


@every_model
def test_scores_are_large_and_the_mechanism_matters(case):
    inputs = case.batch().inputs
    for maps, _, _ in maps_of(case, run(case.model(), inputs, output_attention_maps=True)).values():
        assert 1 < maps[0].std() < 10  # the first layer's are the raw scores
    expected = tensors(run(case.model(), inputs))
    for change in ({"ea_residual_weight": 0.0}, {"ea_conv_weight": 0.0}, {"ea_kernel_size": 1}):
        actual = tensors(run(case.model(**change), inputs))
        for name in actual.keys() - set(case.means):
            assert (actual[name] - expected[name]).abs().max() > 0.05


# Padding invariance


@every_kernel
@every_padding
def test_padding_changes_nothing(case, padding, kernel_size):
    model = case.model(ea_kernel_size=kernel_size)
    examples = case.inputs.examples(model.config, [9, 1, 4, 6, 2])
    batch = case.inputs.batch(model.config, examples, padding, width=11)
    assert_rows_equal_alone(case, model, examples, batch, output_hidden_states=True)
    # In double precision rounding can hide nothing.
    assert_rows_equal_alone(case, model.double(), examples, batch, tolerance=1e-10, output_hidden_states=True)


@every_padding
def test_padding_changes_no_attention(case, padding):
    model = case.model()
    examples = case.inputs.examples(model.config, [9, 1, 4])
    batch = case.inputs.batch(model.config, examples, padding, width=11)
    assert_rows_equal_alone(case, model, examples, batch, output_attentions=True, output_attention_maps=True)


@every_model
def test_batch_composition_changes_nothing(case):
    model = case.model(ea_kernel_size=5)
    pool = case.inputs.examples(model.config, [7, 2, 6, 1, 7, 12])
    for rows in ([0], [3], [0, 4], [1, 1, 2], [5, 3], [4, 2, 0, 1, 5, 3, 2]):
        examples = [pool[row] for row in rows]
        batch = case.inputs.batch(model.config, examples)
        assert_rows_equal_alone(case, model, examples, batch, output_hidden_states=True)


@every_padding
def test_padding_changes_no_gradient(case, padding):
    model = case.model()
    examples = case.inputs.examples(model.config, [8])
    batches = [case.inputs.batch(model.config, examples), case.inputs.batch(model.config, examples, padding, width=11)]
    results = []
    for batch in batches:
        outputs = tensors(model(**batch.inputs, output_hidden_states=True))
        # Pooled outputs have no gradient to compare where the first position is padding.
        real = {name: pick(value, batch.positions[0]) for name, value in outputs.items() if name not in case.pooled}
        model.zero_grad()
        objective(real).backward()
        results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    expected, actual = results
    assert actual.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in actual.items():
        assert_close(gradient, expected[name], atol=1e-5 * scale, rtol=0, msg=f"{name}: ".__add__)


@every_padding_of_a_mask
def test_what_stands_in_the_padding_changes_nothing(case, padding):
    model = case.model()
    batch = case.batch(padding=padding)
    noisy = dict(batch.inputs)
    for name in [name for name in noisy if name.endswith("input_ids")]:
        padded = batch.inputs[name.replace("input_ids", "attention_mask")] == 0
        noisy[name] = torch.where(padded, 2 + (noisy[name] - 1) % (model.config.vocab_size - 2), noisy[name])
    expected, actual = (tensors(run(model, inputs, output_hidden_states=True)) for inputs in (batch.inputs, noisy))
    embedded = [name for name in expected if name.endswith("hidden_states.0")]
    assert embedded and not any(torch.equal(expected[name], actual[name]) for name in embedded)
    for row, positions in enumerate(batch.positions):
        for name in expected.keys() - set(case.pooled):
            rows = (outputs[name].unflatten(0, (len(batch.positions), -1))[row] for outputs in (expected, actual))
            assert torch.equal(*(pick(values, positions) for values in rows)), name


@every_padding_of_a_family_s_mask
def test_every_form_of_a_mask_means_the_same(case, padding):
    model = case.model()
    batch = case.batch(padding=padding)
    allowed = batch.inputs["attention_mask"][:, None, None, :].bool()
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    width = allowed.shape[-1]
    expected = run(model, batch.inputs)
    masks = [allowed, additive]
    if len(case.inputs.chains) == 1:  # cross-attention, of another number of queries, takes the same mask
        masks += [mask.expand(-1, -1, width, -1) for mask in masks]
    for mask in masks:
        outputs = run(model, {**batch.inputs, "attention_mask": mask})
        for row, positions in enumerate(batch.positions):
            for name in tensors(outputs).keys() - set(case.pooled):
                values = (pick(result[name][row], positions) for result in (outputs, expected))
                assert_close(*values, atol=1e-5, rtol=0, msg=f"row {row}, {name}: ".__add__)


# Vanilla limit


@every_padding_of_an_extending_model
def test_both_weights_zero_is_the_vanilla_model(case, padding):
    model = case.model(ea_residual_weight=0.0, ea_conv_weight=0.0)
    vanilla = case.vanilla_model()
    vanilla.load_state_dict(model.state_dict())  # strict: the limit has no parameter of its own
    batch = case.batch(padding=padding)
    for inputs in (batch.inputs, without_mask(batch.inputs)):
        options = {"output_attentions": True, "output_hidden_states": True}
        # At every position, the padded ones included.
        assert_same_outputs(run(model, inputs, **options), run(vanilla, inputs, **options), atol=1e-6)


@every_extending_model
def test_both_weights_zero_is_the_vanilla_model_where_a_row_is_all_padding(case):
    inputs = case.batch().inputs
    if "attention_mask" in inputs:
        inputs["attention_mask"][1] = 0
    model = case.model(ea_residual_weight=0.0, ea_conv_weight=0.0)
    vanilla = case.vanilla_model()
    vanilla.load_state_dict(model.state_dict())
    outputs = run(model, inputs, output_attentions=True)
    assert_same_outputs(outputs, run(vanilla, inputs, output_attentions=True), atol=1e-6)
    assert all(torch.isfinite(value).all() for value in tensors(run(case.model(), inputs)).values())


@every_extending_model
def test_both_weights_zero_trains_as_the_vanilla_model(case):
    dropout = case.dropout(0.1)
    model = case.model(ea_residual_weight=0.0, ea_conv_weight=0.0, **dropout).train()
    vanilla = case.vanilla_model(**dropout).train()
    vanilla.load_state_dict(model.state_dict())
    inputs = case.batch().inputs
    torch.manual_seed(1)
    actual = gradients(model, inputs)
    torch.manual_seed(1)
    assert_same_gradients(actual, gradients(vanilla, inputs))


# Gradients


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids="dropout{}".format)
@every_model
def test_activation_checkpointing_changes_no_gradient(case, dropout, monkeypatch):
    model = case.model(**case.dropout(dropout)).double().train()
    inputs = case.batch().inputs
    calls = []
    store = EvolutionState.store
    monkeypatch.setattr(EvolutionState, "store", lambda *args: (calls.append(1), store(*args)))
    torch.manual_seed(1)
    expected = gradients(model, inputs)
    without = len(calls)
    for options in ({}, {"activation_checkpointing_kwargs": {"use_reentrant": False}}, {"every_n_layers": 2}):
        calls.clear()
        model.activation_checkpointing_enable(**options)
        torch.manual_seed(1)
        assert_same_gradients(gradients(model, inputs), expected)
        assert without < len(calls) <= 2 * without  # layers were replayed
    calls.clear()
    model.activation_checkpointing_disable()
    torch.manual_seed(1)
    assert_same_gradients(gradients(model, inputs), expected)
    assert len(calls) == without


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@every_model
def test_gradients_are_those_of_the_outputs(case, checkpointing, monkeypatch):
    """Against a difference quotient along a random direction, so a gradient that is cut anywhere shows."""
    # T5 normalizes in single precision whatever its type.
    monkeypatch.setattr(
        T5LayerNorm, "forward", lambda self, x: self.weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    )
    model = case.model(ea_activation="gelu").double().train()
    inputs = case.batch().inputs
    if checkpointing:
        model.activation_checkpointing_enable()
    slope = 0.0
    direction = {}
    for name, gradient in gradients(model, inputs).items():
        direction[name] = torch.randn(gradient.shape, dtype=gradient.dtype)
        slope += (direction[name] * gradient).sum().item()

    def value_at(step):
        moved = {name: value + step * direction[name] for name, value in model.named_parameters()}
        with torch.no_grad():
            return objective(torch.func.functional_call(model, moved, kwargs=inputs)).item()

    step = 1e-6
    assert slope == pytest.approx((value_at(step) - value_at(-step)) / (2 * step), rel=1e-5)


@every_family
def test_deprecated_gradient_checkpointing_enable_changes_no_gradient(case):
    model = case.model().double().train()
    inputs = case.batch().inputs
    expected = gradients(model, inputs)
    with pytest.warns(FutureWarning, match="activation_checkpointing_enable"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same_gradients(gradients(model, inputs), expected)


@every_family
def test_a_second_backward_pass_gives_the_same_gradients(case):
    model = case.model().train()
    model.activation_checkpointing_enable()
    loss = objective(model(**case.batch().inputs))
    first, second = (
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True) for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("residual_weight", "conv_weight"),
    [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.0, 0.5), (0.0, 1.0), (0.1, 0.1), (0.5, 1.0), (1.0, 1.0)],
)
@every_model
def test_every_parameter_gets_a_gradient(case, residual_weight, conv_weight):
    model = case.model(ea_residual_weight=residual_weight, ea_conv_weight=conv_weight).train()
    objective(model(**case.batch().inputs)).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    evolution = {name: parameter for name, parameter in model.named_parameters() if ".evolution." in name}
    assert bool(evolution) == (conv_weight > 0)
    assert [name for name, parameter in evolution.items() if not parameter.grad.any()] == []
