# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-DC-Transformer written with loops, and tiny models and series."""

from typing import Any

import numpy as np
import pytest
import torch
from models import TINY_DC_TRANSFORMER, randomize
from torch import nn

from ea_hf import (
    EADCTransformerConfig,
    EADCTransformerForClassification,
    EADCTransformerForMaskedImputation,
    EADCTransformerForRegression,
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
