# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-DC-Transformer: against a plain transcription, padding in training, missing values, batch normalization, options."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from models import TINY_DC_TRANSFORMER, randomize
from test_exactness import objective
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING,
    MODEL_FOR_TIME_SERIES_REGRESSION_MAPPING,
)

from ea_hf import (
    EADCTransformerConfig,
    EADCTransformerForClassification,
    EADCTransformerForMaskedImputation,
    EADCTransformerForRegression,
    EADCTransformerModel,
)
from ea_hf.models.dc_transformer_layers import (
    EADCTransformerAttention,
    EADCTransformerBatchNorm,
    EADCTransformerConvolution,
    ObservedSteps,
)


LENGTHS = (9, 1, 4, 6)
HEADS = (EADCTransformerForClassification, EADCTransformerForRegression, EADCTransformerForMaskedImputation)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"ea_residual_weight": 0.3, "ea_conv_weight": 1.0, "ea_kernel_size": 5},
    {"ea_residual_weight": 0.0, "ea_conv_weight": 0.0},
    {"causal_attention": True},
    {"causal_attention": True, "norm_type": "layernorm", "ea_kernel_size": 5},
    {"norm_type": "layernorm"},
    {"use_dilation": False, "conv_kernel_size": 4},
    {"use_relative_positions": False},
    {"attention_value_ratio": 0.0},
    {"attention_value_ratio": 1.0, "attention_key_ratio": 1.0},
    {"activation_function": "gelu", "num_hidden_layers": 1},
    {"pooling_type": "mean"},
    {"pooling_type": "max"},
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
every_head = pytest.mark.parametrize("model_class", HEADS)


def tiny_config(**values: Any) -> EADCTransformerConfig:
    evolution = {"ea_residual_weight": 0.5, "ea_conv_weight": 0.5}
    return EADCTransformerConfig(
        **{**TINY_DC_TRANSFORMER, "context_length": 12, "num_labels": 5, "num_targets": 2, **evolution, **values}
    )


def tiny_model(model_class: type = EADCTransformerForClassification, **values: Any) -> torch.nn.Module:
    """A model with weights and statistics so large that a wrong map shows, in evaluation mode."""
    model = randomize(model_class(tiny_config(**values)), weight_std=0.2)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return model.eval()


def series_of(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, 3, generator=generator) for length in lengths]


def padded(series: list[torch.Tensor], width: int = 10, noise: float = 0.0) -> dict[str, torch.Tensor]:
    """The series as a batch, with `noise` at padded steps."""
    values = torch.full((len(series), width, 3), noise, dtype=series[0].dtype)
    mask = torch.zeros(len(series), width, dtype=torch.bool)
    for row, steps in enumerate(series):
        values[row, : len(steps)], mask[row, : len(steps)] = steps, True
    return {"past_values": values, "past_observed_mask": mask}


def labels_of(model: torch.nn.Module, count: int) -> dict[str, torch.Tensor]:
    """Labels, or what imputation is to hide."""
    generator = torch.Generator().manual_seed(2)
    if isinstance(model, EADCTransformerForClassification):
        return {"labels": torch.arange(count) % 5}
    if isinstance(model, EADCTransformerForRegression):
        return {"labels": torch.randn(count, 2, generator=generator)}
    return {"bool_masked_pos": torch.rand(count, 10, 3, generator=generator) < 0.4}


# A transcription with loops, of a batch of series of different lengths, without padding


def convolve(
    steps: np.ndarray, gain: np.ndarray, direction: np.ndarray, bias: np.ndarray, dilation: int
) -> np.ndarray:
    """The weight-normalized, dilated, causal convolution."""
    output = np.zeros((len(steps), len(bias)))
    taps = direction.shape[-1]
    for time, channel in np.ndindex(output.shape):
        kernel = gain[channel, 0, 0] * direction[channel] / np.sqrt((direction[channel] ** 2).sum())
        output[time, channel] = bias[channel]
        for tap in range(taps):
            earlier = time - (taps - 1 - tap) * dilation
            if earlier >= 0:
                output[time, channel] += steps[earlier] @ kernel[:, tap]
    return output


def convolve_map(image: np.ndarray, kernel: np.ndarray, bias: np.ndarray, causal: bool) -> np.ndarray:
    heads, size, _ = image.shape
    side = kernel.shape[-1]
    rows_above = side - 1 if causal else side // 2
    output = np.zeros_like(image)
    for head, row, column in np.ndindex(output.shape):
        output[head, row, column] = bias[head]
        for source, down, across in np.ndindex(heads, side, side):
            i, j = row - rows_above + down, column - side // 2 + across
            if 0 <= i < size and 0 <= j < size and (j <= i or not causal):
                output[head, row, column] += kernel[head, source, down, across] * image[source, i, j]
    return output


def attend(
    steps: np.ndarray, config: EADCTransformerConfig, weights: dict[str, np.ndarray], previous: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The joined heads, (time, channels), and A_l, (heads, query, key)."""
    size, heads = len(steps), config.num_attention_heads
    qkv = steps @ weights["qkv.weight"].T + weights["qkv.bias"]
    keys_from, values_from = config.key_channels, 2 * config.key_channels
    per_head, value_per_head = config.key_channels // heads, config.value_channels // heads
    scores = np.zeros((heads, size, size))
    for head, i, j in np.ndindex(scores.shape):
        query = qkv[i, head * per_head : (head + 1) * per_head] * per_head**-0.5
        key = qkv[j, keys_from + head * per_head : keys_from + (head + 1) * per_head]
        scores[head, i, j] = query @ key
        if config.use_relative_positions:
            scores[head, i, j] += query @ weights["relative_positions"][j - i + config.context_length - 1]
    evolved = scores
    if previous is not None:
        residual, share = config.ea_residual_weight, config.ea_conv_weight
        evolved = mixed = residual * previous + (1 - residual) * scores
        if share > 0:
            kernel, bias = (weights[f"evolution.conv.{name}"] for name in ("weight", "bias"))
            convolved = convolve_map(mixed, kernel, bias, config.causal_attention)
            evolved = share * np.maximum(convolved, 0) + (1 - share) * mixed
    output = np.zeros((size, config.value_channels))
    for head, i in np.ndindex(heads, size):
        seen = i + 1 if config.causal_attention else size
        exponentials = np.exp(evolved[head, i, :seen] - evolved[head, i, :seen].max())
        channels = slice(head * value_per_head, (head + 1) * value_per_head)
        values = qkv[:seen, values_from:][:, channels]
        output[i, channels] = (exponentials / exponentials.sum()) @ values
    return output, evolved


def gelu(values: np.ndarray) -> np.ndarray:
    return nn.functional.gelu(torch.from_numpy(values)).numpy()


def normalize(batch: list[np.ndarray], weights: dict[str, np.ndarray], name: str, is_batch_norm: bool, training: bool):
    if is_batch_norm and training:
        together = np.concatenate(batch)
        mean, variance = together.mean(0), together.var(0)
    elif is_batch_norm:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
    normalized = []
    for steps in batch:
        if not is_batch_norm:
            mean, variance = steps.mean(1, keepdims=True), steps.var(1, keepdims=True)
        normalized.append((steps - mean) / np.sqrt(variance + 1e-5) * scale + shift)
    return normalized


def transcribe(
    model: EADCTransformerForClassification, batch: list[np.ndarray], training: bool
) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """The logits, (batch, num_labels), and A_l of each layer and series."""
    config = model.config
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}

    embedding = part("model.embedding.")
    activation = {"gelu": gelu, "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x)}[config.activation_function]
    hidden = [
        (steps @ embedding["projection.weight"].T + embedding["projection.bias"]) * np.sqrt(config.d_model)
        + embedding["positions"][: len(steps)]
        for steps in batch
    ]
    previous: list = [None] * len(batch)
    maps = []
    for index in range(config.num_hidden_layers):
        block = part(f"model.blocks.{index}.")
        residual = hidden
        for half in range(2):
            outputs = []
            for row, steps in enumerate(hidden):
                parts = []
                if config.attention_value_ratio < 1:
                    names = ("gain", "direction", "bias")
                    convolution = (block[f"layers.{half}.convolution.{name}"] for name in names)
                    parts.append(convolve(steps, *convolution, 2**index if config.use_dilation else 1))
                if config.attention_value_ratio > 0:
                    prefix = f"model.blocks.{index}.layers.{half}.attention."
                    attended, previous[row] = attend(steps, config, part(prefix), previous[row])
                    parts.append(attended)
                outputs.append(np.concatenate(parts, axis=1))
            maps.append(list(previous))
            outputs = normalize(outputs, block, f"norms.{half}", config.norm_type == "batchnorm", training)
            first, second = f"feed_forwards.{half}.0", f"feed_forwards.{half}.3"
            hidden = [
                activation(steps @ block[f"{first}.weight"].T + block[f"{first}.bias"]) @ block[f"{second}.weight"].T
                + block[f"{second}.bias"]
                for steps in outputs
            ]
        hidden = [before + after for before, after in zip(residual, hidden, strict=True)]
        hidden = normalize(hidden, block, "final_norm", config.norm_type == "batchnorm", training)
    logits = []
    for steps in map(gelu, hidden):
        if config.pooling_type is None:
            features = np.zeros((config.context_length, config.d_model))
            features[: len(steps)] = steps
        else:
            features = {"mean": np.mean, "max": np.max}[config.pooling_type](steps, axis=0)
        logits.append(weights["head.linear.weight"] @ features.flatten() + weights["head.linear.bias"])
    return np.stack(logits), maps


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


def train_in_parallel(rank: int, folder: str) -> None:
    """Trains on one half of each batch, with statistics of both halves and of one; leaves the models' states in files."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for is_synchronized in (True, False):
        model = DistributedDataParallel(tiny_model(sync_batch_norm=is_synchronized).double().train())
        train(model, slice(2 * rank, 2 * rank + 2))
        torch.save(model.module.state_dict(), f"{folder}/{is_synchronized}-{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    """Though one has more padding. Without synchronization the statistics of each are its own, as in PyTorch."""
    torch.multiprocessing.spawn(train_in_parallel, (str(tmp_path),), nprocs=2)
    model = tiny_model().double().train()
    train(model, slice(0, 4))
    together, alone = (
        [torch.load(tmp_path / f"{is_synchronized}-{rank}.pt") for rank in range(2)]
        for is_synchronized in (True, False)
    )
    for name, expected in model.state_dict().items():
        for state in together:
            assert_close(state[name], expected, atol=1e-10, rtol=0, msg=f"{name}: ".__add__)
    for name, _ in model.named_parameters():
        assert torch.equal(alone[0][name], alone[1][name]) and torch.isfinite(alone[0][name]).all(), name
    statistics = [state["model.blocks.0.norms.0.running_mean"] for state in alone]
    assert (statistics[0] - statistics[1]).abs().max() > 1e-3


# Options


@every_head
@every_option
def test_every_parameter_gets_a_gradient(model_class, options):
    model = tiny_model(model_class, **options).train()
    inputs = padded(series_of((12, 12, 5)), width=12)
    labels = labels_of(model, 3)
    if "bool_masked_pos" in labels:
        labels = {"bool_masked_pos": torch.arange(36).view(12, 3).expand(3, -1, -1) % 3 == 0}
    model(**inputs, **labels).loss.backward()
    idle = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []


@every_head
@every_option
def test_a_saved_model_gives_the_same_output_twice(model_class, options, tmp_path):
    model = tiny_model(model_class, **options)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is EADCTransformerConfig
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.to_dict() == {**model.config.to_dict(), "_name_or_path": str(tmp_path)}
    with torch.no_grad():
        outputs = [other(**padded(series_of())).logits for other in (model, loaded, loaded)]
    assert torch.equal(outputs[1], outputs[0]) and torch.equal(outputs[2], outputs[0])


def test_auto_classes_find_the_models(tmp_path):
    tiny_model(EADCTransformerForMaskedImputation).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is EADCTransformerModel
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is EADCTransformerForMaskedImputation
    assert MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING[EADCTransformerConfig] is EADCTransformerForClassification
    assert MODEL_FOR_TIME_SERIES_REGRESSION_MAPPING[EADCTransformerConfig] is EADCTransformerForRegression


def test_sizes_dilations_and_the_chain_follow_from_the_configuration():
    config = EADCTransformerConfig(d_model=64, num_attention_heads=8, context_length=20, num_hidden_layers=4)
    layers = [layer for block in EADCTransformerModel(config).blocks for layer in block.layers]
    assert [layer.convolution.dilation for layer in layers] == [1, 1, 2, 2, 4, 4, 8, 8]
    assert all(tuple(layer.convolution.direction.shape) == (48, 64, 3) for layer in layers)
    assert all(layer.attention.qkv.out_features == 48 for layer in layers)
    assert all(tuple(layer.attention.relative_positions.shape) == (39, 2) for layer in layers)
    assert [layer.attention.evolution.layer_index for layer in layers] == list(range(8))
    assert [layer.attention.evolution.conv is None for layer in layers] == [True] + [False] * 7
    config.use_dilation = False
    assert {block.layers[1].convolution.dilation for block in EADCTransformerModel(config).blocks} == {1}
    config.attention_value_ratio = 1
    assert all(block.layers[0].convolution is None for block in EADCTransformerModel(config).blocks)
    config.attention_value_ratio = 0
    assert not any(isinstance(module, EADCTransformerAttention) for module in EADCTransformerModel(config).modules())


def test_new_weights_follow_the_release():
    model = EADCTransformerModel(EADCTransformerConfig(context_length=200, num_input_channels=4))
    layer = model.blocks[0].layers[0]
    with torch.no_grad():
        assert 0.019 < model.embedding.positions.abs().max() <= 0.02
        assert layer.attention.relative_positions.mean().abs() < 0.1
        assert layer.attention.relative_positions.std() == pytest.approx(2**-0.5, rel=0.2)
        # Weight normalization starts as the plain convolution.
        assert_close(layer.convolution.gain, layer.convolution.direction.norm(dim=(1, 2), keepdim=True))
        assert layer.attention.qkv.weight.std() == pytest.approx(64**-0.5 / 3**0.5, rel=0.1)


def test_each_dropout_drops_what_it_says():
    for name in ("positional_dropout", "attention_dropout", "ff_dropout", "head_dropout"):
        model = tiny_model(**{name: 0.5}).train()
        outputs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            outputs.append(model(**padded(series_of())).logits)
        assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2]), name
        assert torch.equal(model.eval()(**padded(series_of())).logits, model(**padded(series_of())).logits)


@pytest.mark.parametrize("options", [{}, {"ea_memory_efficient": True}, {"ea_activation": "gelu"}], ids=str)
def test_gradients_are_those_of_the_training_loss(options):
    """Against a difference quotient, part by part; batch normalization and relative embeddings included."""
    model = tiny_model(**options).double().train()
    inputs = {"past_values": torch.stack(series_of((12, 12))).double(), "past_observed_mask": torch.ones(2, 12)}
    inputs["past_observed_mask"][1, 7:] = 0

    def value_of(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return objective(torch.func.functional_call(model, parameters, kwargs=inputs))

    objective(model(**inputs)).backward()
    for part in ("relative_positions", "evolution", "norm", "gain", ""):
        direction = {name: torch.randn_like(value) * (part in name) for name, value in model.named_parameters()}
        slope = sum((direction[name] * value.grad).sum() for name, value in model.named_parameters()).item()
        with torch.no_grad():
            ends = [
                value_of({name: value + step * direction[name] for name, value in model.named_parameters()})
                for step in (1e-7, -1e-7)
            ]
        assert slope == pytest.approx((ends[0] - ends[1]).item() / 2e-7, rel=1e-4), part


# Imputation


def test_imputation_hides_what_the_mask_says():
    model = tiny_model(EADCTransformerForMaskedImputation)
    values = torch.stack(series_of((9, 9)))
    hidden = torch.rand(2, 9, 3) < 0.4
    hidden[0, 3] = True  # a step that is hidden as a whole is still there
    with torch.no_grad():
        expected = model(values, bool_masked_pos=hidden)
        changed = model(values.where(~hidden, 100.0), bool_masked_pos=hidden)
        zeros = model(values.where(~hidden, 0.0))
    assert torch.equal(changed.logits, expected.logits) and torch.equal(zeros.logits, expected.logits)
    assert torch.equal(expected.mask, hidden.float()) and zeros.mask is None and zeros.loss is None
    assert expected.logits.shape == values.shape
    assert_close(expected.loss, ((expected.logits - values)[hidden] ** 2).mean())
    with torch.no_grad():
        steps = model(values, bool_masked_pos=torch.arange(9).expand(2, -1) == 4)
        labelled = model(values, bool_masked_pos=hidden, labels=values + 1)
    assert steps.mask[:, 4].all() and steps.mask.sum() == 6
    assert_close(labelled.loss, ((expected.logits - values - 1)[hidden] ** 2).mean())


def test_imputation_counts_observed_values_only():
    model = tiny_model(EADCTransformerForMaskedImputation)
    values = torch.stack(series_of((9, 9)))
    observed = torch.rand(2, 9, 3) < 0.7
    values[~observed] = torch.nan
    everything = torch.ones(2, 9, dtype=torch.bool)
    with torch.no_grad():
        outputs = model(values, bool_masked_pos=everything)
        assert torch.equal(outputs.mask, observed.float())
        assert_close(outputs.loss, ((outputs.logits - values)[observed] ** 2).mean())
        assert model(values, bool_masked_pos=~everything).loss == 0
        assert model(values, torch.zeros(2, 9), bool_masked_pos=everything).loss == 0


def test_imputation_draws_its_masks_in_training():
    model = tiny_model(EADCTransformerForMaskedImputation, random_mask_ratio=0.3, mean_mask_length=4).train()
    values = torch.stack(series_of((9, 9)))
    first, second = model(values), model(values)
    assert not torch.equal(first.mask, second.mask) and first.loss > 0
    mask = model.draw_mask(torch.empty(200, 500, 3))
    assert mask.float().mean().item() == pytest.approx(0.3, abs=0.01)
    begins = mask[:, 1:] & ~mask[:, :-1]
    assert (mask.sum() / begins.sum()).item() == pytest.approx(4, rel=0.05)
    assert not torch.equal(mask[..., 0], mask[..., 1])  # each channel by itself


def test_a_pretrained_model_is_fine_tuned(tmp_path):
    pretrained = tiny_model(EADCTransformerForMaskedImputation)
    pretrained.save_pretrained(tmp_path)
    model, info = EADCTransformerForClassification.from_pretrained(tmp_path, output_loading_info=True, num_labels=7)
    assert info["missing_keys"] == {"head.linear.weight", "head.linear.bias"}
    for name, value in pretrained.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], value), name


# Bad values


@pytest.mark.parametrize(
    "values, message",
    [
        ({"context_length": 0}, "`context_length` is 0; choose a positive integer"),
        ({"num_input_channels": -1}, "`num_input_channels` is -1"),
        ({"num_targets": 0}, "`num_targets` is 0"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` is 0"),
        ({"conv_kernel_size": 0}, "`conv_kernel_size` is 0"),
        ({"attention_value_ratio": 1.2}, "`attention_value_ratio` is 1.2; choose a share between 0 and 1"),
        ({"attention_value_ratio": 0.01}, "`attention_value_ratio` is 0.01, which makes none of 24 channels"),
        (
            {"attention_value_ratio": 0.3},
            "`attention_value_ratio` is 0.3, which makes 7 of 24 .* `num_attention_heads`, 2",
        ),
        ({"attention_key_ratio": 0}, "`attention_key_ratio` is 0, which makes 0 of 24"),
        ({"num_attention_heads": 5}, "`attention_key_ratio` is 0.5, which makes 12 of 24 .* `num_attention_heads`, 5"),
        ({"norm_type": "rms"}, "`norm_type` is 'rms'; choose \"batchnorm\""),
        ({"pooling_type": "sum"}, "`pooling_type` is 'sum'; choose \"mean\""),
        ({"norm_eps": 0.0}, "`norm_eps` is 0.0"),
        ({"norm_momentum": 2}, "`norm_momentum` is 2"),
        ({"activation_function": "swoosh"}, "`activation_function` is 'swoosh'; choose one of .*leaky_relu"),
        ({"ff_dropout": 1.0}, "`ff_dropout` is 1.0"),
        ({"attention_dropout": -0.1}, "`attention_dropout` is -0.1"),
        ({"random_mask_ratio": 1.0}, "`random_mask_ratio` is 1.0"),
        ({"random_mask_ratio": 0.8}, "`mean_mask_length` is 3; with `random_mask_ratio` 0.8 choose at least 5.00"),
        ({"ea_kernel_size": 2}, "`ea_kernel_size` is 2"),
        ({"ea_residual_weight": 1.5}, "`ea_residual_weight` is 1.5"),
    ],
)
def test_bad_configurations_are_refused(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny_config(**values)
    (tmp_path / "config.json").write_text(json.dumps({**tiny_config().to_dict(), **values}))
    with pytest.raises(ValueError, match=message):
        EADCTransformerConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "shape, mask, message",
    [
        ((2, 13, 3), None, r"13 steps; the model takes 1 to 12 \(`context_length`\)"),
        ((2, 0, 3), None, "0 steps; the model takes 1 to 12"),
        ((2, 9, 4), None, r"shape \(2, 9, 4\); the model takes \(batch, time, channels\) with 3 channels"),
        ((9, 3), None, r"shape \(9, 3\)"),
        (
            (2, 9, 3),
            (2, 8),
            r"`past_observed_mask` has the shape \(2, 8\); .* \(2, 9, 3\) it must have the same, or \(2, 9\)",
        ),
        ((2, 9, 3), (2, 9, 1), r"`past_observed_mask` has the shape \(2, 9, 1\)"),
    ],
)
@every_head
def test_bad_inputs_are_refused(model_class, shape, mask, message):
    model = tiny_model(model_class)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape), None if mask is None else torch.ones(mask))


def test_labels_of_another_shape_are_refused():
    model = tiny_model(EADCTransformerForRegression)
    for labels in (torch.zeros(4), torch.zeros(4, 3)):
        with pytest.raises(ValueError, match=r"`labels` has the shape .* \(4, 2\)"):
            model(**padded(series_of()), labels=labels)
    single = tiny_model(EADCTransformerForRegression, num_targets=1)
    inputs = padded(series_of())
    assert_close(
        single(**inputs, labels=torch.arange(4)).loss, single(**inputs, labels=torch.arange(4.0).view(4, 1)).loss
    )
    with pytest.raises(ValueError, match=r"`bool_masked_pos` has the shape \(4, 5\)"):
        tiny_model(EADCTransformerForMaskedImputation)(**inputs, bool_masked_pos=torch.ones(4, 5))
