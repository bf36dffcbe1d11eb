# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-ResNet: a ResNet with attention-augmented convolutions whose attention maps evolve from layer to layer.

Wang et al., "Evolving Attention with Residual Convolutions", ICML 2021, https://arxiv.org/abs/2102.12895
Bello et al., "Attention Augmented Convolutional Networks", ICCV 2019, https://arxiv.org/abs/1904.09925

In the last stages the 3x3 convolution of each block gives some of its channels to self-attention over the pixels,
`concat(conv3x3(x), attention(x))`, with learned relative position logits along the width and along the height. All is
as in the ResNet-50 that the authors of evolving attention have released (in TensorFlow), but for these deviations:

- `ea_conv_weight` is 0.5 and not 1.0. With 1.0 nothing goes around the convolution and its ReLU, so that the attention
  logits of all layers but the first are never negative. Set 1.0 for the released model.
- New relative position embeddings have mean 0 and standard deviation dkh ** -0.5, for keys of dkh channels per head.
  The release has that number as the mean, and 1 as the standard deviation.
- ResNet-18 and -34 run: of the two 3x3 convolutions of a basic block the first, which strides, is the augmented one.
  In the release, blocks without bottleneck fail.
- Which layers make a chain follows from the configuration and not from the size of the input: consecutive layers whose
  attention has the same stride with respect to the image. At 224 x 224 this is the release's rule, which compares the
  numbers of tokens; here a chain is the same for images of any size.
- Images of any size: a pair of pixels that is farther apart than `image_size` allows has the embedding of the farthest
  pair (as in Shaw et al., https://arxiv.org/abs/1803.02155).
- Convolutions and poolings of stride 2 pad both sides alike, as PyTorch's and Transformers' do; TensorFlow's "same"
  padding adds more at the end. Padding does not count in the average of a pooling, as in TensorFlow.
- The 1x1 convolutions of attention have no bias, like all convolutions of a ResNet before a batch normalization.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.resnet.modeling_resnet import (
    ResNetBasicLayer,
    ResNetBottleNeckLayer,
    ResNetConvLayer,
    ResNetEmbeddings,
    ResNetPreTrainedModel,
)

from .configuration_ea_resnet import BOTTLENECK_REDUCTION, EAResNetConfig
from .evolution import attach_evolution, evolving_attention_forward
from .evolution_state import is_replayed
from .modeling_evolving import EvolvingPreTrainedModel
from .modeling_relative_positions import embeddings_of_pairs
from .undocumented import can_return_tuple


class EAResNetAttention(nn.Module):
    """Evolving self-attention over the pixels of an image, with relative position logits.

    Args:
        stage: which stage, from 0.
        in_channels: channels of the input.
        stride: 2 if the output is to be half as high and wide as the input.
    """

    def __init__(self, config: EAResNetConfig, stage: int, in_channels: int, stride: int):
        super().__init__()
        key_channels, value_channels = config.key_and_value_channels(stage)
        poolings = config.stage_poolings(stage)
        self.num_heads = config.num_attention_heads
        self.channels = (key_channels, key_channels, value_channels)
        self.stride = stride
        # Layers of the same stride with respect to the image make a chain.
        self.total_stride = config.stage_stride(stage) * 2**poolings
        key_dim = key_channels // self.num_heads
        self.scaling = key_dim**-0.5
        self.pool = nn.Sequential(
            *(
                nn.AvgPool2d(kernel_size=3, stride=2, padding=1, count_include_pad=False)
                for _ in range(int(math.log2(stride)) + poolings)
            )
        )
        self.qkv = nn.Conv2d(in_channels, sum(self.channels), kernel_size=1, bias=False)
        height, width = (-(-pixels // self.total_stride) for pixels in config.image_height_and_width)
        self.relative_height = nn.Parameter(torch.empty(2 * height - 1, key_dim))
        self.relative_width = nn.Parameter(torch.empty(2 * width - 1, key_dim))
        self.projection = nn.Conv2d(value_channels, value_channels, kernel_size=1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: (batch, channels, height, width).

        Returns:
            The output, (batch, value_channels, ceil(height / stride), ceil(width / stride)), and the attention weights,
            (batch, heads, query, key), or `None` where a faster path never holds them whole.
        """
        height, width = (-(-size // self.stride) for size in hidden_states.shape[-2:])
        qkv = self.qkv(self.pool(hidden_states))
        grid = qkv.shape[-2:]
        query, key, value = (
            # (batch, heads, query or key, channels)
            part.unflatten(1, (self.num_heads, -1)).flatten(3).transpose(2, 3)
            for part in qkv.split(self.channels, dim=1)
        )
        output, weights = evolving_attention_forward(
            self,
            query,
            key,
            value,
            attention_mask=None,
            scaling=self.scaling,
            position_bias=self.position_logits(query * self.scaling, *grid),
        )
        output = self.projection(output.flatten(2).transpose(1, 2).unflatten(2, grid))
        if grid != (height, width):
            output = nn.functional.interpolate(output, (height, width), mode="bilinear", align_corners=False)
        return output, weights

    def position_logits(self, query: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """How well each query goes with a key so many rows and columns away.

        Args:
            query: (batch, heads, height * width, channels), row by row.

        Returns:
            (batch, heads, query, key).
        """
        query = query.unflatten(2, (height, width))
        by_column = torch.einsum("bnhwc,wvc->bnhwv", query, embeddings_of_pairs(self.relative_width, width))
        by_row = torch.einsum("bnhwc,huc->bnhwu", query, embeddings_of_pairs(self.relative_height, height))
        logits = by_row[..., :, None] + by_column[..., None, :]  # (batch, heads, height, width, height, width)
        return logits.flatten(4, 5).flatten(2, 3)


class EAResNetConvLayer(ResNetConvLayer):
    """An attention-augmented 3x3 convolution in the place of a plain one, with its normalization and activation."""

    def __init__(self, config: EAResNetConfig, stage: int, plain: nn.Conv2d):
        _, value_channels = config.key_and_value_channels(stage)
        stride = plain.stride[0]
        # As in Transformers' ResNet, ReLU is within a block whatever `hidden_act` is.
        super().__init__(plain.in_channels, plain.out_channels - value_channels, kernel_size=3, stride=stride)
        self.attention = EAResNetAttention(config, stage, plain.in_channels, stride)
        self.normalization = nn.BatchNorm2d(plain.out_channels)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, weights = self.attention(hidden_states)
        hidden_states = torch.cat([self.convolution(hidden_states), attended], dim=1)
        return self.activation(self.normalization(hidden_states)), weights


class EAResNetLayer(GradientCheckpointingLayer):
    """A residual block of Transformers' ResNet, attention-augmented where its stage has attention.

    Where activation checkpointing replays it in the backward pass, the running statistics of batch normalization stay as
    the forward pass has left them.
    """

    def __init__(self, config: EAResNetConfig, stage: int, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        if config.layer_type == "bottleneck":
            plain = ResNetBottleNeckLayer(
                in_channels,
                out_channels,
                stride=stride,
                activation=config.hidden_act,
                reduction=BOTTLENECK_REDUCTION,
                downsample_in_bottleneck=config.downsample_in_bottleneck,
            )
            augmented = 1
        else:
            plain = ResNetBasicLayer(in_channels, out_channels, stride=stride, activation=config.hidden_act)
            augmented = 0
        self.shortcut = plain.shortcut
        self.layer = plain.layer
        self.activation = plain.activation
        if config.stage_poolings(stage) is not None:
            self.layer[augmented] = EAResNetConvLayer(config, stage, plain.layer[augmented].convolution)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        with _statistics_kept(self) if self.gradient_checkpointing and is_replayed() else nullcontext():
            residual, weights = self.shortcut(hidden_states), None
            for layer in self.layer:
                if isinstance(layer, EAResNetConvLayer):
                    hidden_states, weights = layer(hidden_states)
                else:
                    hidden_states = layer(hidden_states)
            return self.activation(hidden_states + residual), weights


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Lets batch normalization use the statistics of the batch without adding them to the running ones."""
    normalizations = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    before = [(child.momentum, child.num_batches_tracked.clone()) for child in normalizations]
    for child in normalizations:
        child.momentum = 0.0
    try:
        yield
    finally:
        for child, (momentum, batches) in zip(normalizations, before, strict=True):
            child.momentum = momentum
            child.num_batches_tracked.copy_(batches)


class EAResNetStage(nn.Module):
    """The blocks of one resolution; the first one strides."""

    def __init__(self, config: EAResNetConfig, stage: int):
        super().__init__()
        in_channels = config.hidden_sizes[stage - 1] if stage > 0 else config.embedding_size
        out_channels = config.hidden_sizes[stage]
        stride = 2 if stage > 0 or config.downsample_in_first_stage else 1
        first = EAResNetLayer(config, stage, in_channels, out_channels, stride)
        rest = (EAResNetLayer(config, stage, out_channels, out_channels, 1) for _ in range(config.depths[stage] - 1))
        self.layers = nn.ModuleList([first, *rest])


class EncoderOutput(NamedTuple):
    """What comes out of the stages.

    Attributes:
        features: the input, and the output of each stage, (batch, channels, height, width).
        hidden_states: the same, if asked for.
        attentions: the attention weights of each augmented layer, (batch, heads, query, key), if asked for.
    """

    features: tuple[torch.Tensor, ...]
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None


class EAResNetEncoder(nn.Module):
    """The stages, and the chains that run through them."""

    def __init__(self, config: EAResNetConfig):
        super().__init__()
        self.stages = nn.ModuleList(EAResNetStage(config, stage) for stage in range(len(config.depths)))
        chains: list[list[EAResNetAttention]] = []
        for attention in (module for module in self.modules() if isinstance(module, EAResNetAttention)):
            if not chains or chains[-1][-1].total_stride != attention.total_stride:
                chains.append([])
            chains[-1].append(attention)
        self.chains = [f"chain{index}" for index in range(len(chains))]
        for name, attentions in zip(self.chains, chains, strict=True):
            attach_evolution(config, attentions, chain=name)

    def forward(self, hidden_states: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """The input and the output of each stage, and the attention weights of each augmented layer."""
        features, attentions = [hidden_states], []
        for stage in self.stages:
            for layer in stage.layers:
                hidden_states, weights = layer(hidden_states)
                if weights is not None:
                    attentions.append(weights)
            features.append(hidden_states)
        return tuple(features), tuple(attentions)


class EAResNetPreTrainedModel(EvolvingPreTrainedModel, ResNetPreTrainedModel):
    """What all classes of EA-ResNet share: loading, saving, initialization, and the chain of their layers.

    A base class to test for, not one to make models of.

    Examples:
        ```python
        assert issubclass(ea_hf.EAResNetModel, ea_hf.EAResNetPreTrainedModel)
        ```
    """

    config: EAResNetConfig
    _no_split_modules = ["EAResNetLayer"]
    supports_gradient_checkpointing = True

    def _build(self, config: EAResNetConfig) -> None:
        self.embedder = ResNetEmbeddings(config)
        if config.stem_stride == 1:
            self.embedder.embedder = ResNetConvLayer(
                config.num_channels, config.embedding_size, kernel_size=3, activation=config.hidden_act
            )
            self.embedder.pooler = nn.Identity()
        self.encoder = EAResNetEncoder(config)
        self.attention_map_names = dict.fromkeys(self.encoder.chains, "attention_maps")

    def _encode(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None, output_attentions: bool | None
    ) -> EncoderOutput:
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        features, attentions = self.encoder(self.embedder(pixel_values))
        return EncoderOutput(
            features, features if output_hidden_states else None, attentions if output_attentions else None
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EAResNetAttention):
            init.normal_(module.relative_height, std=module.scaling)
            init.normal_(module.relative_width, std=module.scaling)


class EAResNetModel(EAResNetPreTrainedModel):
    """The features and their average.

    Takes `pixel_values`, (batch, channels, height, width).
    Returns `last_hidden_state`, (batch, channels, height, width) of the last stage, and `pooler_output`, its average,
    (batch, channels, 1, 1). With `output_attentions=True` the output has the attention weights of each augmented layer, with
    `output_attention_maps=True` also its evolved map before the softmax, (batch, heads, query, key). Queries and keys are
    the pixels of the layer's attention, row by row; there is no class token.

    Examples:
        ```python
        sizes = {"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [2, 2], "attention_poolings": [0, 0]}
        config = ea_hf.EAResNetConfig(**sizes, layer_type="basic", num_attention_heads=2, image_size=32)
        outputs = ea_hf.EAResNetModel(config)(torch.rand(2, 3, 32, 32), output_attention_maps=True)
        shapes = [attention_map.shape for attention_map in outputs.attention_maps]
        ```
    """

    def __init__(self, config: EAResNetConfig):
        super().__init__(config)
        self._build(config)
        self.pooler = nn.AdaptiveAvgPool2d((1, 1))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        encoded = self._encode(pixel_values, output_hidden_states, output_attentions)
        last_hidden_state = encoded.features[-1]
        return BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state,
            pooler_output=self.pooler(last_hidden_state),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class EAResNetForImageClassification(EAResNetPreTrainedModel):
    """Head for the classification of an image, from its average features.

    Takes `pixel_values`, (batch, channels, height, width), and `labels`, (batch,): classes, or numbers if `num_labels`
    is 1.
    Returns `loss`, if there are labels, `logits`, (batch, num_labels), and what `EAResNetModel` returns of attention.

    Examples:
        ```python
        sizes = {"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [2, 2], "attention_poolings": [0, 0]}
        config = ea_hf.EAResNetConfig(
            **sizes, layer_type="basic", num_attention_heads=2, image_size=32, num_labels=10
        )
        model = ea_hf.EAResNetForImageClassification(config)
        logits = model(pixel_values=torch.rand(2, 3, 32, 32)).logits
        ```
    """

    def __init__(self, config: EAResNetConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.resnet = EAResNetModel(config)
        self.attention_map_names = self.resnet.attention_map_names
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(config.hidden_sizes[-1], config.num_labels) if config.num_labels > 0 else nn.Identity(),
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> ImageClassifierOutput:
        outputs = self.resnet(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class EAResNetBackbone(BackboneMixin, EAResNetPreTrainedModel):
    """The outputs of the stages that `out_features` names, for detection and segmentation.

    Takes `pixel_values`, (batch, channels, height, width). Stages are named stem, stage1, stage2 and so on.
    Returns `feature_maps`, a tensor of (batch, channels, height, width) for each named stage.

    Examples:
        ```python
        sizes = {"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [2, 2], "attention_poolings": [0, 0]}
        config = ea_hf.EAResNetConfig(
            **sizes, layer_type="basic", num_attention_heads=2, image_size=32, out_features=["stage1", "stage2"]
        )
        model = ea_hf.EAResNetBackbone(config)
        feature_maps = model(torch.rand(1, 3, 32, 32)).feature_maps
        ```
    """

    def __init__(self, config: EAResNetConfig):
        super().__init__(config)
        self.num_features = [config.embedding_size, *config.hidden_sizes]
        self._build(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BackboneOutput:
        encoded = self._encode(pixel_values, output_hidden_states, output_attentions)
        features = zip(self.stage_names, encoded.features, strict=True)
        return BackboneOutput(
            feature_maps=tuple(feature for stage, feature in features if stage in self.out_features),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


__all__ = [
    "EAResNetBackbone",
    "EAResNetConfig",
    "EAResNetForImageClassification",
    "EAResNetModel",
    "EAResNetPreTrainedModel",
]
