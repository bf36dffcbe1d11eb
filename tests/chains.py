# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Chains of bare attention modules, and the equations written with loops."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ea_hf.models.evolution import (
    EvolutionState,
    attach_evolution,
    evolving_attention_forward,
)


HEAD_DIM = 4
LAYERS = 3
ACTIVATIONS = {
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "linear": lambda x: x,
}


# The equations


def reference_conv(image, weight, bias, is_causal):
    """The convolution of one map, (heads, query, key), with zeros around it."""
    heads, queries, keys = image.shape
    rows, columns = weight.shape[-2:]
    rows_above = rows - 1 if is_causal else rows // 2
    shares = weight.shape[1] == heads  # otherwise each head has its own kernel
    result = np.zeros((heads, queries, keys))
    for head in range(heads):
        for query in range(queries):
            for key in range(keys):
                total = bias[head]
                for i in range(rows):
                    for j in range(columns):
                        row, column = query + i - rows_above, key + j - columns // 2
                        if 0 <= row < queries and 0 <= column < keys:
                            for channel in range(heads) if shares else [head]:
                                own = channel if shares else 0
                                total += weight[head, own, i, j] * image[channel, row, column]
                result[head, query, key] = total
    return result


def reference_maps(scores, convolutions, visible, residual_weight, conv_weight, activation, is_causal):
    """A_l of every layer of a chain for one example, (heads, query, key).

    Args:
        scores: S_l of every layer, (heads, query, key).
        convolutions: weight and bias of every layer, `None` for a layer without convolution.
        visible: (query, key); elsewhere the convolution must see zeros.
    """
    maps = []
    for layer, raw in enumerate(scores):
        mixed = raw if layer == 0 else residual_weight * maps[-1] + (1 - residual_weight) * raw
        if convolutions[layer] is not None:
            image = np.where(visible, mixed, 0.0)
            convolved = reference_conv(image, *convolutions[layer], is_causal)
            activated = np.vectorize(ACTIVATIONS[activation])(convolved)
            mixed = conv_weight * activated + (1 - conv_weight) * mixed
        maps.append(mixed)
    return maps


def reference_scores(query, key, scaling):
    """(heads, query, key) from (heads, query, head_dim) and (heads, key, head_dim)."""
    return np.array([[[scaling * sum(q * k) for k in keys] for q in queries] for queries, keys in zip(query, key)])  # noqa: B905


def reference_attention(logits, value, allowed):
    """Weights, (heads, query, key), and output, (query, heads, head_dim)."""
    heads, queries, keys = logits.shape
    weights = np.zeros(logits.shape)
    output = np.zeros((queries, heads, value.shape[-1]))
    for head in range(heads):
        for query in range(queries):
            exponentials = [math.exp(logits[head, query, key]) if allowed[query, key] else 0.0 for key in range(keys)]
            for key in range(keys):
                weights[head, query, key] = exponentials[key] / sum(exponentials)
                output[query, head] += weights[head, query, key] * value[head, key]
    return weights, output


# What Transformers' models would do: attention modules that own an evolution, and queries, keys and values for them


class Attention(nn.Module):
    """Stands for a layer's attention module."""


class Config:
    """Stands for a model's configuration."""

    def __init__(self, heads, residual_weight=0.3, conv_weight=0.6, kernel_size=3, activation="relu", **fields):
        self.num_attention_heads = heads
        self.ea_residual_weight = residual_weight
        self.ea_conv_weight = conv_weight
        self.ea_kernel_size = kernel_size
        self.ea_activation = activation
        self.ea_memory_efficient = False
        self.ea_mixing = "convex"
        self.ea_conv_every = None
        vars(self).update(fields)


def make_chain(config, seed=0, layers=LAYERS, **kwargs):
    """Attention modules with random convolutions that keep the size of the maps."""
    chain = nn.ModuleList(Attention() for _ in range(layers))
    attach_evolution(config, chain, **kwargs)
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    with torch.no_grad():
        for parameter in chain.double().eval().parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            fan_in = parameter[0].numel() if parameter.ndim == 4 else 4
            parameter.copy_(1.5 * noise * fan_in**-0.5)
    return chain


def make_projections(heads, queries, keys, seed=0, batch=2, layers=LAYERS):
    """Query, key and value of every layer, (batch, heads, length, head_dim), such that scores are of order 1 to 10."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)

    def draw(length):
        return 2 * torch.randn(batch, heads, length, HEAD_DIM, generator=generator, dtype=torch.float64)

    return [(draw(queries), draw(keys), draw(keys)) for _ in range(layers)]


def run_chain(chain, projections, mask, state=None, **kwargs):
    """Output, attention weights and map of every layer."""
    state = EvolutionState(keep_maps=True) if state is None else state
    results = [
        state.run(evolving_attention_forward, module, *projection, mask, **kwargs)
        for module, projection in zip(chain, projections, strict=True)
    ]
    outputs, weights = zip(*results, strict=True)
    return outputs, weights, state.maps(chain[0].evolution.chain)


def assert_chain_matches_reference(config, chain, projections, results, allowed, real_queries):
    """
    Args:
        allowed: (batch, query, key), where a query may attend.
        real_queries: (batch, query), False for padding.
    """
    is_causal = chain[0].evolution.is_causal
    convolutions = [
        None
        if module.evolution.conv is None
        else tuple(p.detach().numpy() for p in module.evolution.conv.parameters())
        for module in chain
    ]
    outputs, weights, maps = results
    for row in range(len(allowed)):
        arrays = [tuple(tensor[row].numpy() for tensor in projection) for projection in projections]
        scores = [reference_scores(query, key, HEAD_DIM**-0.5) for query, key, _ in arrays]
        visible = allowed[row].numpy() & real_queries[row].numpy()[:, None]
        expected_maps = reference_maps(
            scores,
            convolutions,
            visible,
            config.ea_residual_weight,
            config.ea_conv_weight,
            config.ea_activation,
            is_causal,
        )
        real = real_queries[row].nonzero().flatten().numpy()
        for layer in range(len(chain)):
            np.testing.assert_allclose(maps[layer][row].detach().numpy(), expected_maps[layer], rtol=0, atol=1e-10)
            expected_weights, expected_output = reference_attention(
                expected_maps[layer][:, real], arrays[layer][2], allowed[row][real].numpy()
            )
            actual_weights = weights[layer][row][:, real].detach().numpy()
            np.testing.assert_allclose(actual_weights, expected_weights, rtol=0, atol=1e-10)
            actual_output = outputs[layer][row][real].detach().numpy()
            np.testing.assert_allclose(actual_output, expected_output, rtol=0, atol=1e-10)


def real_tokens(length, padding):
    """(2, length): True at real tokens. The second example has at most two of padding, and one real token at least."""
    missing = min(2, length - 1)
    real = torch.ones(2, length, dtype=torch.bool)
    if padding == "right":
        real[1, length - missing :] = False
    elif padding == "left":
        real[1, :missing] = False
    return real


def self_attention_mask(real, is_causal=False):
    """(batch, query, key): True where a query may attend."""
    length = real.shape[-1]
    allowed = real[:, None, :].expand(-1, length, -1)
    return allowed.tril() if is_causal else allowed


every_kernel = pytest.mark.parametrize("kernel_size", [1, 3, 5], ids="kernel{}".format)
# Rows may be even where no later row is seen.
every_causal_kernel = pytest.mark.parametrize("kernel_size", [1, 3, 5, (4, 3), (1, 3), (2, 1)], ids="kernel{}".format)
every_length = pytest.mark.parametrize("length", [1, 2, 3, 6], ids="length{}".format)
