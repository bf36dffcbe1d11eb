# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-ResNet configuration."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import ResNetConfig

from .configuration_evolving import EvolvingConfig


# Layer type, channels and number of blocks of the stages.
DEPTHS = {
    18: ("basic", (64, 128, 256, 512), (2, 2, 2, 2)),
    26: ("bottleneck", (256, 512, 1024, 2048), (2, 2, 2, 2)),
    34: ("basic", (64, 128, 256, 512), (3, 4, 6, 3)),
    50: ("bottleneck", (256, 512, 1024, 2048), (3, 4, 6, 3)),
    101: ("bottleneck", (256, 512, 1024, 2048), (3, 4, 23, 3)),
    152: ("bottleneck", (256, 512, 1024, 2048), (3, 8, 36, 3)),
}
BOTTLENECK_REDUCTION = 4


@strict
class EAResNetConfig(EvolvingConfig, ResNetConfig):
    """Configuration of EA-ResNet: `ResNetConfig` with the fields of `EvolvingConfig` and those of attention.

    `EAResNetConfig.from_depth(50)` gives the usual ResNets with 18, 26, 34, 50, 101 and 152 layers; the default is the
    one with 50.

    Args:
        image_size: height and width of the images, or one number for both. It only says how long the relative position
            embeddings are; a model takes images of any size.
        stem_stride: 4, a 7x7 convolution and a max pooling, each of stride 2; or 1, a 3x3 convolution only, for images
            of about 32 pixels or less.
        attention_poolings: how many times attention pools its input by 2, for each of the last stages; stages before
            these have no attention. So (1, 0, 0) means attention in the last three stages, at half the resolution in
            the first of them; () means none.
        num_attention_heads: number of attention heads.
        attention_key_ratio: channels of all keys, as a share of the width of the 3x3 convolution.
        attention_value_ratio: channels of all values, likewise; the convolution has so many fewer.
        ea_residual_weight, ea_conv_weight: see `EvolvingConfig`. The released values are 0.5 and 1.0. With 1.0 nothing
            goes around the convolution and its ReLU, so that the logits are never negative; the default is 0.5.

    Raises:
        ValueError: see `EvolvingConfig`; also for a value that no model can have.
    """

    model_type = "ea_resnet"
    default_weights = (0.5, 0.5)

    image_size: int | list[int] | tuple[int, int] = 224
    stem_stride: int = 4
    attention_poolings: list[int] | tuple[int, ...] = (1, 0, 0)
    num_attention_heads: int = 8
    attention_key_ratio: float = 0.25
    attention_value_ratio: float = 0.125

    def __post_init__(self, **kwargs: Any) -> None:
        self.depths = list(self.depths)
        self.attention_poolings = list(self.attention_poolings)
        super().__post_init__(**kwargs)

    @classmethod
    def from_depth(cls, depth: int, **kwargs: Any) -> "EAResNetConfig":
        """The configuration of a usual ResNet.

        Args:
            depth: number of layers, 18, 26, 34, 50, 101 or 152.
            kwargs: further values.
        """
        if depth not in DEPTHS:
            raise ValueError(f"`depth` is {depth}; choose one of {', '.join(map(str, DEPTHS))}.")
        layer_type, hidden_sizes, depths = DEPTHS[depth]
        return cls(**{"layer_type": layer_type, "hidden_sizes": hidden_sizes, "depths": depths, **kwargs})

    @property
    def image_height_and_width(self) -> tuple[int, int]:
        return _pair(self.image_size)

    def stage_stride(self, stage: int) -> int:
        """How many pixels one step in the output of a stage is."""
        return self.stem_stride * 2 ** (stage + self.downsample_in_first_stage)

    def stage_poolings(self, stage: int) -> int | None:
        """How many times the attention of a stage pools its input by 2; `None` if the stage has no attention."""
        index = stage - (len(self.depths) - len(self.attention_poolings))
        return self.attention_poolings[index] if index >= 0 else None

    def conv_width(self, stage: int) -> int:
        """Channels of the 3x3 convolutions of a stage."""
        return self.hidden_sizes[stage] // (BOTTLENECK_REDUCTION if self.layer_type == "bottleneck" else 1)

    def key_and_value_channels(self, stage: int) -> tuple[int, int]:
        """Channels of all keys and of all values of a stage."""
        width = self.conv_width(stage)
        return int(self.attention_key_ratio * width), int(self.attention_value_ratio * width)

    def check(self) -> None:
        super().check()
        if self.stem_stride not in (1, 4):
            raise ValueError(f"`stem_stride` is {self.stem_stride}; choose 4, or 1 for small images.")
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"`hidden_sizes` has {len(self.hidden_sizes)} stages and `depths` {len(self.depths)}; both list the "
                "same stages."
            )
        if min(self.image_height_and_width) < 1:
            raise ValueError(f"`image_size` is {self.image_size}; choose a positive number of pixels.")
        if len(self.attention_poolings) > len(self.depths) or min(self.attention_poolings, default=0) < 0:
            raise ValueError(
                f"`attention_poolings` is {self.attention_poolings}; list at most {len(self.depths)} numbers, none of "
                "them negative, one for each of the last stages."
            )
        for stage in range(len(self.depths) - len(self.attention_poolings), len(self.depths)):
            channels = self.key_and_value_channels(stage)
            for name, value in zip(("attention_key_ratio", "attention_value_ratio"), channels, strict=True):
                if value < 1 or value % self.num_attention_heads or value >= self.conv_width(stage):
                    raise ValueError(
                        f"`{name}` is {getattr(self, name)}, which makes {value} of the {self.conv_width(stage)} "
                        f"channels of stage {stage + 1}; choose it so that they are a multiple of "
                        f"`num_attention_heads`, {self.num_attention_heads}, and fewer than all."
                    )


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


__all__ = ["EAResNetConfig"]
