# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-DC-Transformer: time series by dilated convolutions that are augmented with evolving attention.

Wang et al., "Convolution-enhanced Evolving Attention Networks", TPAMI 2023, https://arxiv.org/abs/2212.08330
Bello et al., "Attention Augmented Convolutional Networks", ICCV 2019, https://arxiv.org/abs/1904.09925

A series (time, channels) is projected to `d_model` channels, and gets learned absolute positions. Each block has two
augmented layers, `concat(convolution(x), attention(x))`, one of a weight-normalized, dilated, causal convolution, the
other of self-attention over the steps with learned relative position logits:

    block(x) = norm(x + ffn(norm(layer_2(ffn(norm(layer_1(x)))))))

All layers with attention make one chain. A linear head reads all steps, or each step for imputation. All is as in the
model that the authors of evolving attention have released (in PyTorch), but for these deviations, most of which cure a
fault:

- The heads are joined by a transpose and a reshape. The release only reshapes, which scrambles time and channels wherever
  a head has more than one value channel.
- The relative position embeddings are parameters. The release draws new ones in every forward pass and never trains any.
- Padding influences nothing: the convolution, the attention and the convolution over maps see zeros at padded steps,
  the statistics of batch normalization are those of the observed steps. In the release padding takes part in all of them.
- The carried map is as the papers say. The release applies dropout and LeakyReLU to it; here dropout is applied to the
  attention weights, and `ea_activation` to the convolution.
- The chain begins in the first layer of the first block. The release never uses the map of its first block.
- There are no parameters without gradient. The release has some that nothing uses.
- A constant or missing channel gives finite outputs: nothing divides by a standard deviation of the input.

How missing values are treated: a value counts as missing where `past_observed_mask` is 0 or the value is not finite
(NaN, infinite). Missing values become 0, which is the mean of a standardized channel; so standardize the channels, and
interpolate where that is better. A step without any observed channel is padding, at the end or anywhere else. A series
that is missing altogether gets what the head makes of zeros.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput

from .configuration_ea_dc_transformer import EADCTransformerConfig
from .dc_transformer_layers import (
    EADCTransformerAttention,
    EADCTransformerBlock,
    EADCTransformerConvolution,
    EADCTransformerEmbedding,
    ObservedSteps,
)
from .evolution import attach_evolution
from .modeling_evolving import EvolvingPreTrainedModel
from .undocumented import OutputRecorder, can_return_tuple, capture_outputs, merge_with_config_defaults


class EADCTransformerPreTrainedModel(EvolvingPreTrainedModel, PreTrainedModel):
    """What all classes of EA-DC-Transformer share: loading, saving, initialization, and the chain of their layers.

    A base class to test for, not one to make models of.

    Examples:
        ```python
        assert issubclass(ea_hf.EADCTransformerModel, ea_hf.EADCTransformerPreTrainedModel)
        ```
    """

    config: EADCTransformerConfig
    base_model_prefix = "model"
    main_input_name = "past_values"
    input_modalities = ("time",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["EADCTransformerBlock"]
    _can_record_outputs = {
        "hidden_states": EADCTransformerBlock,
        "attentions": OutputRecorder(EADCTransformerAttention, index=1),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As in the release, PyTorch's rule for the weights of layers and U(-0.02, 0.02) for positions; biases are 0."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear | EADCTransformerConvolution):
            weight = module.weight if isinstance(module, nn.Linear) else module.direction
            bound = weight[0].numel() ** -0.5
            init.uniform_(weight, -bound, bound)
            init.zeros_(module.bias)
        if isinstance(module, EADCTransformerConvolution):
            init.copy_(module.gain, module.direction.norm(dim=(1, 2), keepdim=True))
        elif isinstance(module, EADCTransformerAttention) and module.relative_positions is not None:
            init.normal_(module.relative_positions, std=module.scaling)
        elif isinstance(module, EADCTransformerEmbedding):
            init.uniform_(module.positions, -0.02, 0.02)

    def observed_values(
        self, past_values: torch.Tensor, past_observed_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Which values are observed, boolean, (batch, time, num_input_channels).

        Raises:
            ValueError: the shapes do not fit each other or the configuration.
        """
        channels, longest = self.config.num_input_channels, self.config.context_length
        shape = tuple(past_values.shape)
        if len(shape) != 3 or shape[2] != channels:
            raise ValueError(
                f"`past_values` has the shape {shape}; the model takes (batch, time, channels) with {channels} channels "
                "(`num_input_channels`)."
            )
        if not 1 <= shape[1] <= longest:
            raise ValueError(
                f"`past_values` has {shape[1]} steps; the model takes 1 to {longest} (`context_length`). Cut the series, "
                "or make a model with a larger `context_length`."
            )
        observed = past_values.isfinite()
        if past_observed_mask is None:
            return observed
        return observed & self._per_value("past_observed_mask", past_observed_mask, past_values)

    @staticmethod
    def _per_value(name: str, mask: torch.Tensor, past_values: torch.Tensor) -> torch.Tensor:
        """A mask of steps or values as a boolean one of values."""
        if mask.shape not in (past_values.shape, past_values.shape[:2]):
            raise ValueError(
                f"`{name}` has the shape {tuple(mask.shape)}; for `past_values` of the shape "
                f"{tuple(past_values.shape)} it must have the same, or {tuple(past_values.shape[:2])}."
            )
        mask = mask.bool()
        return mask if mask.ndim == 3 else mask.unsqueeze(-1).expand_as(past_values)


class EADCTransformerModel(EADCTransformerPreTrainedModel):
    """The hidden states of all steps, with zeros at padded ones.

    Takes `past_values`, (batch, time, num_input_channels), at most `context_length` steps, and `past_observed_mask`, 0 where a
    step, (batch, time), or a value, (batch, time, num_input_channels), is missing.
    Returns `last_hidden_state`, (batch, time, d_model). With `output_attentions=True` the output has the attention weights of
    each augmented layer (two per block), with `output_attention_maps=True` also its evolved map before the softmax,
    (batch, heads, query, key).

    Examples:
        ```python
        config = ea_hf.EADCTransformerConfig(num_input_channels=3, context_length=40)
        hidden_states = ea_hf.EADCTransformerModel(config)(past_values=torch.randn(2, 25, 3)).last_hidden_state
        ```
    """

    def __init__(self, config: EADCTransformerConfig):
        super().__init__(config)
        self.embedding = EADCTransformerEmbedding(config)
        self.blocks = nn.ModuleList(
            EADCTransformerBlock(config, config.dilation(index)) for index in range(config.num_hidden_layers)
        )
        self.post_init()

    def make_chains(self) -> None:
        attentions = [module for module in self.modules() if isinstance(module, EADCTransformerAttention)]
        attach_evolution(self.config, attentions, is_causal=self.config.causal_attention)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        past_values: torch.Tensor,
        past_observed_mask: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """
        Args:
            past_values: (batch, time, num_input_channels), at most `context_length` steps. Anything may stand where
                nothing is observed.
            past_observed_mask: (batch, time) or (batch, time, num_input_channels); 0 where a step or a value is missing.
                The module's docstring says how missing values are treated.
            bool_masked_pos: likewise; True where a value is hidden from the model. A step whose values are all hidden
                still counts as observed.

        Raises:
            ValueError: the shapes do not fit each other or the configuration.
        """
        past_values = past_values.to(self.embedding.projection.weight.dtype)
        observed = self.observed_values(past_values, past_observed_mask)
        steps = ObservedSteps(observed.any(dim=-1, keepdim=True), self.config.causal_attention)
        if bool_masked_pos is not None:
            observed = observed & ~self._per_value("bool_masked_pos", bool_masked_pos, past_values)
        # Not a product: 0 times NaN is NaN.
        hidden_states = steps.zero_padding(self.embedding(past_values.where(observed, 0.0)))
        for block in self.blocks:
            hidden_states = block(hidden_states, steps=steps)
        return BaseModelOutput(last_hidden_state=hidden_states)


class EADCTransformerSeriesHead(nn.Module):
    """A linear layer that reads all steps of a series, and zeros after its last one; or their mean or maximum."""

    def __init__(self, config: EADCTransformerConfig, num_outputs: int):
        super().__init__()
        self.context_length, self.pooling_type = config.context_length, config.pooling_type
        steps = config.context_length if config.pooling_type is None else 1
        self.dropout = nn.Dropout(config.head_dropout)
        self.linear = nn.Linear(steps * config.d_model, num_outputs)

    def forward(self, hidden_states: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        """(batch, time, d_model), zeros at padded steps, to (batch, num_outputs).

        Args:
            observed: (batch, time, 1), boolean; which steps are not padding.
        """
        hidden_states = self.dropout(nn.functional.gelu(hidden_states))
        if self.pooling_type == "mean":
            return self.linear(hidden_states.sum(dim=1) / observed.sum(dim=1).clamp(min=1))
        if self.pooling_type == "max":
            highest = hidden_states.masked_fill(~observed, torch.finfo(hidden_states.dtype).min).amax(dim=1)
            return self.linear(highest.where(observed.any(dim=1), 0.0))
        missing = self.context_length - hidden_states.shape[1]
        return self.linear(nn.functional.pad(hidden_states, (0, 0, 0, missing)).flatten(1))


class EADCTransformerWithSeriesHead(EADCTransformerPreTrainedModel):
    """What classification and regression share. A subclass says what the loss is, in `series_loss`."""

    def __init__(self, config: EADCTransformerConfig, num_outputs: int):
        super().__init__(config)
        self.model = EADCTransformerModel(config)
        self.head = EADCTransformerSeriesHead(config, num_outputs)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        past_observed_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """
        Args:
            past_values, past_observed_mask: see `EADCTransformerModel`.
            labels: see the class; without them the output has no loss.
        """
        outputs = self.model(past_values, past_observed_mask, return_dict=True, **kwargs)
        observed = self.observed_values(past_values.to(self.dtype), past_observed_mask)
        logits = self.head(outputs.last_hidden_state, observed.any(dim=-1, keepdim=True))
        return SequenceClassifierOutput(
            loss=None if labels is None else self.series_loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class EADCTransformerForClassification(EADCTransformerWithSeriesHead):
    """Head for the classification of a series.

    Takes what [`EADCTransformerModel`][ea_hf.EADCTransformerModel] takes, and `labels`, (batch,), from 0 to `num_labels - 1`;
    -100 counts for nothing.
    Returns `logits`, (batch, num_labels), and, if there are labels, `loss`, their cross-entropy.

    Examples:
        ```python
        config = ea_hf.EADCTransformerConfig(num_input_channels=3, context_length=40, num_labels=4)
        logits = ea_hf.EADCTransformerForClassification(config)(past_values=torch.randn(2, 25, 3)).logits
        ```
    """

    def __init__(self, config: EADCTransformerConfig):
        super().__init__(config, config.num_labels)

    def series_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)


class EADCTransformerForRegression(EADCTransformerWithSeriesHead):
    """Head for one or several numbers that a series stands for.

    Takes what [`EADCTransformerModel`][ea_hf.EADCTransformerModel] takes, and `labels`, (batch, num_targets), or (batch,) if there
    is but one target. Labels of another shape raise a `ValueError`.
    Returns `logits`, (batch, num_targets), and, if there are labels, `loss`, their mean squared error.

    Examples:
        ```python
        config = ea_hf.EADCTransformerConfig(num_input_channels=3, context_length=40, num_targets=2)
        logits = ea_hf.EADCTransformerForRegression(config)(past_values=torch.randn(2, 25, 3)).logits
        ```
    """

    def __init__(self, config: EADCTransformerConfig):
        super().__init__(config, config.num_targets)

    def series_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        targets = labels.unsqueeze(-1) if labels.ndim == 1 else labels
        if targets.shape != logits.shape:
            raise ValueError(
                f"`labels` has the shape {tuple(labels.shape)}; the model gives (batch, `num_targets`) "
                f"{tuple(logits.shape)}."
            )
        return nn.functional.mse_loss(logits, targets.to(logits.dtype))


@dataclass
class EADCTransformerForMaskedImputationOutput(ModelOutput):
    """Output of `EADCTransformerForMaskedImputation`.

    Attributes:
        loss: the mean squared error at the hidden values, if there is a mask.
        logits: the imputed values, (batch, time, num_input_channels).
        mask: 1 where an observed value was hidden and 0 elsewhere, likewise, if there is a mask.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class EADCTransformerForMaskedImputation(EADCTransformerPreTrainedModel):
    """Head for the values of each step, trained to find those that were hidden.

    Takes what [`EADCTransformerModel`][ea_hf.EADCTransformerModel] takes, and `bool_masked_pos`, True where a value is hidden:
    (batch, time) or (batch, time, num_input_channels); in training values are hidden at random without it.
    Returns `logits`, the imputed values, (batch, time, num_input_channels); where values were hidden also `mask` and `loss`, the
    mean squared error there.

    Examples:
        ```python
        config = ea_hf.EADCTransformerConfig(num_input_channels=3, context_length=40)
        model, series = ea_hf.EADCTransformerForMaskedImputation(config), torch.randn(2, 25, 3)
        loss = model(past_values=series, bool_masked_pos=torch.rand(2, 25) < 0.15).loss
        ```
    """

    def __init__(self, config: EADCTransformerConfig):
        super().__init__(config)
        self.model = EADCTransformerModel(config)
        self.dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(config.d_model, config.num_input_channels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        past_observed_mask: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> EADCTransformerForMaskedImputationOutput:
        """
        Args:
            past_values, past_observed_mask: see `EADCTransformerModel`.
            bool_masked_pos: (batch, time) or (batch, time, num_input_channels), True where a value is hidden. By default
                training hides values at random, see `draw_mask`, and evaluation none, so that the output has no loss.
            labels: the true values, (batch, time, num_input_channels); `past_values` by default. Those that are not
                finite count for nothing.
        """
        observed = self.observed_values(past_values, past_observed_mask)
        mask = None
        if bool_masked_pos is not None:
            mask = observed & self._per_value("bool_masked_pos", bool_masked_pos, past_values)
        elif self.training:
            mask = observed & self.draw_mask(past_values)
        outputs = self.model(past_values, past_observed_mask, bool_masked_pos=mask, return_dict=True, **kwargs)
        logits = self.head(self.dropout(nn.functional.gelu(outputs.last_hidden_state)))
        loss = None
        if mask is not None:
            targets = (past_values if labels is None else labels).to(logits.dtype)
            counts = mask & targets.isfinite()
            errors = (logits - targets.where(counts, 0.0)).square().where(counts, 0.0)
            loss = errors.sum() / counts.sum().clamp(min=1)
            mask = mask.to(logits.dtype)
        return EADCTransformerForMaskedImputationOutput(
            loss=loss, logits=logits, mask=mask, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def draw_mask(self, past_values: torch.Tensor) -> torch.Tensor:
        """Which values to hide, boolean, (batch, time, num_input_channels).

        In each channel by itself, runs of hidden steps alternate with runs of shown ones, both of geometric length, as in
        Zerveas et al., "A Transformer-based Framework for Multivariate Time Series Representation Learning", KDD 2021,
        https://arxiv.org/abs/2010.02803. `random_mask_ratio` of all values are hidden, in runs of `mean_mask_length`.
        """
        ratio, length = self.config.random_mask_ratio, self.config.mean_mask_length
        # With probability `change` a step draws its state, hidden or shown, anew, and otherwise keeps the last one's; a
        # hidden step is then the last of its run with probability change * (1 - ratio), which is to be 1 / length.
        change = 1 / (length * (1 - ratio))
        index = torch.arange(past_values.shape[1], device=past_values.device)[None, :, None]
        is_drawn = torch.rand(past_values.shape, device=past_values.device) < change
        drawn_at = index.where(is_drawn, 0).cummax(dim=1).values
        states = torch.rand(past_values.shape, device=past_values.device) < ratio
        return states.gather(1, drawn_at)


__all__ = [
    "EADCTransformerConfig",
    "EADCTransformerForClassification",
    "EADCTransformerForMaskedImputation",
    "EADCTransformerForRegression",
    "EADCTransformerModel",
    "EADCTransformerPreTrainedModel",
]
