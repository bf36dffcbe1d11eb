# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The layers of EA-DC-Transformer, which see zeros at padded steps and take no statistics of them.

`modeling_ea_dc_transformer.py` says what they are, and where they come from.
"""

import math

import torch
from torch import distributed, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_ea_dc_transformer import EADCTransformerConfig
from .evolution import evolving_attention_forward
from .modeling_relative_positions import embeddings_of_pairs
from .undocumented import sum_over_processes


class ObservedSteps:
    """Which steps of a batch are observed, and which normalizations have counted them, in one forward pass.

    Where layers are on different devices, whoever uses a mask takes it along.

    Args:
        observed: boolean, (batch, time, 1).
        causal: whether a step attends to itself and earlier steps only.
    """

    def __init__(self, observed: torch.Tensor, causal: bool):
        self.observed = observed
        self.attention_mask = observed[:, None, None, :, 0]  # (batch, 1, 1, key)
        if causal:
            steps = torch.arange(observed.shape[1], device=observed.device)
            self.attention_mask = self.attention_mask & (steps[None, :] <= steps[:, None])
        self._counted_by: set[int] = set()

    def zero_padding(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Zeros at the padded steps of (batch, time, channels)."""
        return hidden_states.masked_fill(~self.observed.to(hidden_states.device), 0.0)

    def is_counted(self, norm: "EADCTransformerBatchNorm") -> bool:
        """Whether the normalization has counted the batch already; it has when gradient checkpointing replays it."""
        return id(norm) in self._counted_by

    def set_counted(self, norm: "EADCTransformerBatchNorm") -> None:
        self._counted_by.add(id(norm))


class EADCTransformerBatchNorm(nn.BatchNorm1d):
    """Batch normalization whose statistics are those of the observed steps.

    It equals `nn.BatchNorm1d` where all steps are observed, its running statistics included. A batch with fewer than
    two observed steps, which `nn.BatchNorm1d` refuses in training, leaves the running statistics alone.

    Args:
        is_synchronized: whether the statistics are those of all processes together.

    Attributes:
        adds_nothing: whether the statistics are those of the other processes alone, for one that has no examples.
    """

    adds_nothing = False

    def __init__(self, num_features: int, eps: float, momentum: float, is_synchronized: bool):
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.is_synchronized = is_synchronized

    def forward(self, hidden_states: torch.Tensor, steps: ObservedSteps) -> torch.Tensor:
        """
        Args:
            hidden_states: (batch, time, channels), finite everywhere.

        Returns:
            Likewise; any finite values at padded steps.
        """
        if not self.training:
            return super().forward(hidden_states.flatten(0, 1)).view_as(hidden_states)
        values = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        weights = steps.observed.to(values) * (not self.adds_nothing)
        totals = torch.cat([weights.sum().unsqueeze(0), (values * weights).sum((0, 1))])
        count, totals = self._over_processes(totals).split([1, self.num_features])
        mean = totals / count.clamp(min=1)
        centered = values - mean
        variance = self._over_processes((centered.square() * weights).sum((0, 1))) / count.clamp(min=1)
        if not steps.is_counted(self):
            steps.set_counted(self)
            self._count(count.detach(), mean.detach(), variance.detach())
        normalized = centered * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return normalized.to(hidden_states.dtype)

    def _count(self, count: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Takes the statistics of a batch into the running ones."""
        share = self.momentum * (count > 1).to(mean.dtype)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.copy_((1 - share) * self.running_mean + share * mean)
        self.running_var.copy_((1 - share) * self.running_var + share * unbiased)
        self.num_batches_tracked.add_(1)

    def _over_processes(self, totals: torch.Tensor) -> torch.Tensor:
        if not (self.is_synchronized and distributed.is_available() and distributed.is_initialized()):
            return totals
        return sum_over_processes(totals)


class EADCTransformerLayerNorm(nn.LayerNorm):
    """Layer normalization of each step."""

    def forward(self, hidden_states: torch.Tensor, steps: ObservedSteps) -> torch.Tensor:
        return super().forward(hidden_states)


def _make_norm(config: EADCTransformerConfig) -> EADCTransformerBatchNorm | EADCTransformerLayerNorm:
    if config.norm_type == "layernorm":
        return EADCTransformerLayerNorm(config.d_model, eps=config.norm_eps)
    return EADCTransformerBatchNorm(config.d_model, config.norm_eps, config.norm_momentum, config.sync_batch_norm)


class EADCTransformerConvolution(nn.Module):
    """A weight-normalized, dilated convolution over this and earlier steps.

    The kernel is `direction` times `gain / norm(direction)`, each output channel by itself. (PyTorch's own weight
    normalization cannot be pickled.)
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.steps_before = (kernel_size - 1) * dilation
        self.gain = nn.Parameter(torch.empty(out_channels, 1, 1))
        self.direction = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, time, in_channels) to (batch, time, out_channels)."""
        kernel = self.direction * (self.gain / self.direction.norm(dim=(1, 2), keepdim=True))
        padded = nn.functional.pad(hidden_states.transpose(1, 2), (self.steps_before, 0))
        return nn.functional.conv1d(padded, kernel, self.bias, dilation=self.dilation).transpose(1, 2)


class EADCTransformerAttention(nn.Module):
    """Evolving self-attention over the steps of a series, with relative position logits that the heads share."""

    def __init__(self, config: EADCTransformerConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.channels = (config.key_channels, config.key_channels, config.value_channels)
        key_dim = config.key_channels // self.num_heads
        self.scaling = key_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.qkv = nn.Linear(config.d_model, sum(self.channels))
        self.relative_positions = None
        if config.use_relative_positions:
            # From the farthest step before the query to the farthest after it.
            self.relative_positions = nn.Parameter(torch.empty(2 * config.context_length - 1, key_dim))

    def forward(self, hidden_states: torch.Tensor, steps: ObservedSteps) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: (batch, time, channels).

        Returns:
            The joined heads, (batch, time, value_channels), and the attention weights, (batch, heads, query, key), or
            `None` where a faster path never holds them whole.
        """
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (batch, heads, time, channels)
            for part in self.qkv(hidden_states).split(self.channels, dim=-1)
        )
        position_bias = None
        if self.relative_positions is not None:
            pairs = embeddings_of_pairs(self.relative_positions, hidden_states.shape[1])
            position_bias = torch.einsum("bhqc,qkc->bhqk", query * self.scaling, pairs)
        output, weights = evolving_attention_forward(
            self,
            query,
            key,
            value,
            steps.attention_mask.to(query.device),
            scaling=self.scaling,
            dropout=self.attention_dropout,
            position_bias=position_bias,
        )
        return output.flatten(2), weights


class EADCTransformerLayer(nn.Module):
    """An augmented layer: the channels of the convolution, then those of attention."""

    def __init__(self, config: EADCTransformerConfig, dilation: int):
        super().__init__()
        self.convolution = self.attention = None
        if config.value_channels < config.d_model:
            self.convolution = EADCTransformerConvolution(
                config.d_model, config.d_model - config.value_channels, config.conv_kernel_size, dilation
            )
        if config.value_channels > 0:
            self.attention = EADCTransformerAttention(config)

    def forward(self, hidden_states: torch.Tensor, steps: ObservedSteps) -> torch.Tensor:
        """(batch, time, d_model) to likewise; any finite values may stand at padded steps."""
        hidden_states = steps.zero_padding(hidden_states)
        parts = []
        if self.convolution is not None:
            parts.append(self.convolution(hidden_states))
        if self.attention is not None:
            parts.append(self.attention(hidden_states, steps)[0])
        return torch.cat(parts, dim=-1)


class EADCTransformerFeedForward(nn.Sequential):
    """Applied to each step."""

    def __init__(self, config: EADCTransformerConfig):
        super().__init__(
            nn.Linear(config.d_model, config.ffn_dim),
            ACT2FN[config.activation_function],
            nn.Dropout(config.ff_dropout),
            nn.Linear(config.ffn_dim, config.d_model),
        )


class EADCTransformerBlock(GradientCheckpointingLayer):
    """Two augmented layers, each with a normalization and a feed-forward layer, and a residual connection around all.

    Args:
        dilation: of the two convolutions.
    """

    def __init__(self, config: EADCTransformerConfig, dilation: int):
        super().__init__()
        self.layers = nn.ModuleList(EADCTransformerLayer(config, dilation) for _ in range(2))
        self.norms = nn.ModuleList(_make_norm(config) for _ in range(2))
        self.feed_forwards = nn.ModuleList(EADCTransformerFeedForward(config) for _ in range(2))
        self.final_norm = _make_norm(config)

    def forward(self, hidden_states: torch.Tensor, steps: ObservedSteps) -> torch.Tensor:
        """(batch, time, d_model) to likewise, with zeros at padded steps."""
        residual = hidden_states
        for layer, norm, feed_forward in zip(self.layers, self.norms, self.feed_forwards, strict=True):
            hidden_states = feed_forward(norm(layer(hidden_states, steps), steps))
        return steps.zero_padding(self.final_norm(residual + hidden_states, steps))


class EADCTransformerEmbedding(nn.Module):
    """The values of each step, projected, and the learned position of the step."""

    def __init__(self, config: EADCTransformerConfig):
        super().__init__()
        self.projection = nn.Linear(config.num_input_channels, config.d_model)
        self.positions = nn.Parameter(torch.empty(config.context_length, config.d_model))
        self.dropout = nn.Dropout(config.positional_dropout)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(batch, time, num_input_channels) to (batch, time, d_model)."""
        scale = math.sqrt(self.projection.out_features)
        return self.dropout(self.projection(values) * scale + self.positions[: values.shape[1]])
