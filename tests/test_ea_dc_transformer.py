# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-DC-Transformer: against a plain transcription, padding in training, missing values, batch normalization, options."""

import numpy as np
import pytest
import torch
from dc_transformer_reference import (
    HEADS,
    every_head,
    every_option,
    labels_of,
    padded,
    series_of,
    tiny_model,
    transcribe,
)
from models import TINY_DC_TRANSFORMER
from processes import Processes
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from ea_hf import (
    EADCTransformerModel,
)
from ea_hf.models.dc_transformer_layers import (
    EADCTransformerAttention,
    EADCTransformerBatchNorm,
    EADCTransformerConvolution,
    ObservedSteps,
)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@every_option
def test_model_equals_the_transcription(options, training):
    model = tiny_model(**options).double().train(training)
    series = [steps.double() for steps in series_of()]
    expected, expected_maps = transcribe(model, [steps.numpy() for steps in series], training)
    inputs = padded(series, noise=torch.nan)
    for keep_maps in (False, True):  # another path computes where nothing is recorded
        with torch.no_grad():
            outputs = model(**inputs, output_attention_maps=keep_maps)
        assert_close(outputs.logits.numpy(), expected, atol=1e-10, rtol=0)
    for evolved, rows in zip(outputs.get("attention_maps", ()), expected_maps, strict=False):
        for row, expected_map in enumerate(rows):
            size = len(series[row])
            actual = evolved[row, :, :size, :size].numpy()
            if model.config.causal_attention:  # what a step may not see, no map need have
                actual, expected_map = np.tril(actual), np.tril(expected_map)
            assert_close(actual, expected_map, atol=1e-10, rtol=0)
    if options.get("attention_value_ratio") != 0.0:
        assert len(outputs.attention_maps) == 2 * model.config.num_hidden_layers
        assert expected_maps[-1][0].std() > 0.05  # large enough to matter


def test_both_weights_zero_is_plain_attention():
    """As PyTorch computes it, with the position logits as a bias of the scores."""
    model = tiny_model(EADCTransformerModel, ea_residual_weight=0.0, ea_conv_weight=0.0).double()
    assert not any("evolution" in name for name in model.state_dict())
    attention = model.blocks[1].layers[0].attention
    calls = []
    attention.register_forward_hook(lambda module, inputs, output: calls.append((inputs[0], output[0])))
    with torch.no_grad():
        model(**padded(series_of((12, 7)), width=12))
        hidden_states, actual = calls[0]
        observed = torch.arange(12) < torch.tensor([[12], [7]])
        query, key, value = (
            part.view(2, 12, 2, -1).transpose(1, 2) for part in attention.qkv(hidden_states).split([12, 12, 12], -1)
        )
        distances = torch.arange(12)[None, :] - torch.arange(12)[:, None] + 11
        bias = 6**-0.5 * (query.unsqueeze(3) * attention.relative_positions[distances]).sum(-1)
        bias = bias.masked_fill(~observed[:, None, None, :], -torch.inf)
        expected = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    assert_close(actual, expected.transpose(1, 2).flatten(2), atol=1e-12, rtol=0)


# Padding and missing values


def results_of(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Logits, loss, gradients and running statistics of a step of training; leaves the model as it was."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.zero_grad()
    torch.manual_seed(3)
    outputs = model(**inputs, **labels_of(model, len(inputs["past_values"])))
    outputs.loss.backward()
    results = {"logits": outputs.logits.detach(), "loss": outputs.loss.detach()}
    results |= {f"gradient of {name}": value.grad.clone() for name, value in model.named_parameters()}
    results |= {name: value.clone() for name, value in model.named_buffers()}
    model.load_state_dict(state)
    return results


def assert_same_results(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close(actual[name], expected[name], atol=atol, rtol=0, msg=f"{name}: ".__add__)


@every_head
@every_option
@pytest.mark.slow_but("Regression")
def test_what_stands_in_the_padding_changes_nothing_in_training(model_class, options):
    """Dropout included: the same values are dropped, since the shapes are the same."""
    dropout = {name: 0.2 for name in TINY_DC_TRANSFORMER if "dropout" in name}
    model = tiny_model(model_class, **options, **dropout).train()
    inputs = padded(series_of())
    expected = results_of(model, inputs)
    for noise in (1.0, -1e30, torch.nan, torch.inf):
        assert_same_results(results_of(model, padded(series_of(), noise=noise)), expected, atol=0)
    mask = inputs["past_observed_mask"]
    for form in (mask.float(), mask.long(), mask.unsqueeze(-1).expand(-1, -1, 3)):
        assert_same_results(results_of(model, {**inputs, "past_observed_mask": form}), expected, atol=0)
    # NaN alone is padding, as loaders of series of unequal length leave it.
    without_mask = {"past_values": padded(series_of(), noise=torch.nan)["past_values"]}
    for name, value in model(**without_mask, **labels_of(model, 4)).items():
        assert torch.isfinite(value).all(), name


@pytest.mark.parametrize("model_class", HEADS[:2])
@every_option
@pytest.mark.slow_but("Regression")
def test_more_padding_changes_nothing_in_training(model_class, options):
    model = tiny_model(model_class, **options).double().train()
    series = [steps.double() for steps in series_of()]
    expected = results_of(model, padded(series, width=9))
    for width in (10, 12):
        assert_same_results(results_of(model, padded(series, width=width, noise=7.0)), expected, atol=1e-10)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_step_without_any_channel_is_padding_wherever_it_is(training):
    """Its neighbours see zeros there, in the convolution as in the maps, and statistics leave it out."""
    model = tiny_model(EADCTransformerModel).train(training)
    values = torch.stack(series_of((9, 9)))
    mask = torch.ones(2, 9, 3)
    mask[0, 4] = 0
    seen = []
    for module in model.modules():
        if isinstance(module, EADCTransformerAttention | EADCTransformerConvolution):
            module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0, 4]))
    runs = []
    for noise in (0.0, 5.0, torch.nan):
        changed = values.clone()
        changed[0, 4] = noise
        runs.append(model(changed, mask, output_attentions=True))
    for outputs in runs:
        assert torch.equal(outputs.last_hidden_state, runs[0].last_hidden_state)
        assert not outputs.last_hidden_state[0, 4].any()
        assert all(not weights[0, :, [0, 1, 2, 3, 5, 6, 7, 8], 4].any() for weights in outputs.attentions)
    assert len(seen) == 3 * 8 and not torch.stack(seen).any()
    step = torch.cat([values[:, :4], values[:, 5:]], dim=1)
    assert not torch.equal(model(step).last_hidden_state[0, 4], runs[0].last_hidden_state[0, 5])  # time has passed


def test_missing_values_in_an_observed_step_are_zeros():
    model = tiny_model(EADCTransformerModel)
    values = torch.stack(series_of((9, 9)))
    mask = torch.ones(2, 9, 3)
    mask[0, 2, 1] = mask[1, :, 0] = 0
    with torch.no_grad():
        expected = model(values * mask).last_hidden_state
        for noise in (3.0, torch.nan, torch.inf):
            changed = torch.where(mask.bool(), values, noise)
            assert torch.equal(model(changed, mask).last_hidden_state, expected)
            if noise != 3.0:  # what is not finite is missing, whatever the mask says
                assert torch.equal(model(changed).last_hidden_state, expected)
                assert torch.equal(model(changed, torch.ones(2, 9)).last_hidden_state, expected)
        assert not torch.equal(model(values).last_hidden_state, expected)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@every_option
@pytest.mark.slow_but("{}-")
def test_outputs_and_gradients_are_finite_whatever_comes(options, training):
    model = tiny_model(**options).train(training)
    ordinary = torch.stack(series_of((6, 6)))
    constant = torch.full((2, 6, 3), 4.0)
    missing, infinite, channel = ordinary.clone(), ordinary.clone(), ordinary.clone()
    missing[0], infinite[1, 2:4], channel[..., 1] = torch.nan, -torch.inf, torch.nan
    for values in (constant, constant[:1], missing, missing[:1], infinite, channel, ordinary[:, :1], ordinary[:1, :1]):
        model.zero_grad()
        values = values.clone().requires_grad_()
        outputs = model(values, labels=torch.zeros(len(values), dtype=torch.long))
        outputs.loss.backward()
        assert torch.isfinite(outputs.logits).all()
        for name, parameter in model.named_parameters():
            assert torch.isfinite(parameter.grad).all(), name
        assert torch.isfinite(values.grad).all()
        assert all(torch.isfinite(buffer).all() for buffer in model.buffers())
    with torch.no_grad():
        alone = model.eval()(missing).logits[0]
        assert_close(
            alone, model.head(torch.zeros(1, 1, 24), torch.zeros(1, 1, 1, dtype=torch.bool))[0], atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("norm_type", ["batchnorm", "layernorm"])
def test_causal_attention_hides_the_future(norm_type):
    model = tiny_model(EADCTransformerModel, causal_attention=True, norm_type=norm_type, ea_kernel_size=5)
    values = torch.stack(series_of((9, 9)))
    later = values.clone()
    later[:, 5:] += 3
    with torch.no_grad():
        before, after = (model(each).last_hidden_state for each in (values, later))
        assert torch.equal(before[:, :5], after[:, :5]) and not torch.equal(before[:, 5:], after[:, 5:])
        model = tiny_model(EADCTransformerModel, norm_type=norm_type)
        assert not torch.equal(model(values).last_hidden_state[:, 0], model(later).last_hidden_state[:, 0])


# Batch normalization


def random_norms(features: int = 6) -> tuple[EADCTransformerBatchNorm, nn.BatchNorm1d]:
    ours = EADCTransformerBatchNorm(features, eps=1e-5, momentum=0.3, is_synchronized=True)
    theirs = nn.BatchNorm1d(features, eps=1e-5, momentum=0.3)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn(features))
    theirs.load_state_dict(ours.state_dict())
    return ours.double(), theirs.double()


@pytest.mark.parametrize("share", [1.0, 0.6], ids=["nothing-padded", "padded"])
def test_batch_norm_is_pytorch_s_over_the_observed_steps(share):
    ours, theirs = random_norms()
    for _ in range(3):
        values = (3 * torch.randn(4, 7, 6, dtype=torch.double) + 5).requires_grad_()
        observed = torch.rand(4, 7, 1) < share
        junk = torch.where(observed, values, 1e6)
        actual = ours(junk, ObservedSteps(observed, causal=False))[observed[..., 0]]
        slope = torch.randn_like(actual)
        results = []
        for norm, output in ((ours, actual), (theirs, theirs(values[observed[..., 0]]))):
            inputs = (values, norm.weight, norm.bias)
            results.append((output, *torch.autograd.grad((output * slope).sum(), inputs)))
        for one, other in zip(*results, strict=True):
            assert_close(one, other, atol=1e-9, rtol=0)
        for name, value in theirs.state_dict().items():
            assert_close(ours.state_dict()[name], value, atol=1e-12, rtol=0)
    ours.eval(), theirs.eval()
    values = torch.randn(2, 5, 6, dtype=torch.double)
    steps = ObservedSteps(torch.ones(2, 5, 1, dtype=torch.bool), causal=False)
    assert_close(ours(values, steps), theirs(values.transpose(1, 2)).transpose(1, 2), atol=1e-12, rtol=0)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_observed_steps_leave_the_running_statistics_alone(count):
    ours, _ = random_norms()
    before = {name: value.clone() for name, value in ours.named_buffers()}
    observed = torch.arange(8).view(2, 4, 1) < count
    output = ours(torch.randn(2, 4, 6, dtype=torch.double), ObservedSteps(observed, causal=False))
    assert torch.isfinite(output).all()
    assert torch.equal(ours.running_mean, before["running_mean"])
    assert torch.equal(ours.running_var, before["running_var"])


def test_activation_checkpointing_counts_a_batch_once():
    model = tiny_model().train()
    inputs = padded(series_of())
    expected = results_of(model, inputs)
    model.activation_checkpointing_enable()
    assert_same_results(results_of(model, inputs), expected, atol=1e-6)
    results_of(model, inputs)
    model(**inputs)
    assert [norm.num_batches_tracked.item() for norm in model.modules() if isinstance(norm, nn.BatchNorm1d)] == [1] * 6


def train(model: torch.nn.Module, rows: slice) -> None:
    """Two steps on some rows of two batches."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(2):
        inputs = padded([steps.double() for steps in series_of(seed=step)], noise=9.0)
        optimizer.zero_grad()
        model(**{name: value[rows] for name, value in inputs.items()}, labels=torch.arange(4)[rows]).loss.backward()
        optimizer.step()


def train_in_parallel(is_synchronized: bool) -> dict[str, torch.Tensor]:
    """The model's state after training on this process's half of each batch."""
    model = DistributedDataParallel(tiny_model(sync_batch_norm=is_synchronized).double().train())
    first = 2 * distributed.get_rank()
    train(model, slice(first, first + 2))
    return model.module.state_dict()


@pytest.mark.slow
def test_two_processes_train_as_one():
    """Though one has more padding. Without synchronization the statistics of each are its own, as in PyTorch."""
    with Processes(2) as processes:
        together, alone = (processes.run(train_in_parallel, is_synchronized) for is_synchronized in (True, False))
    model = tiny_model().double().train()
    train(model, slice(0, 4))
    for name, expected in model.state_dict().items():
        for state in together:
            assert_close(state[name], expected, atol=1e-10, rtol=0, msg=f"{name}: ".__add__)
    for name, _ in model.named_parameters():
        assert torch.equal(alone[0][name], alone[1][name]) and torch.isfinite(alone[0][name]).all(), name
    statistics = [state["model.blocks.0.norms.0.running_mean"] for state in alone]
    assert (statistics[0] - statistics[1]).abs().max() > 1e-3
