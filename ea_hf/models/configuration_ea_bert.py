# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-BERT configuration."""

from huggingface_hub.dataclasses import strict
from transformers import BertConfig

from .configuration_evolving import EvolvingEncoderConfig


@strict
class EABertConfig(EvolvingEncoderConfig, BertConfig):
    """Configuration of EA-BERT: `BertConfig` with the fields of `EvolvingConfig`.

    `EABertConfig.from_pretrained` also reads the configuration of a vanilla BERT checkpoint.

    Raises:
        ValueError: see `EvolvingEncoderConfig`.
    """

    model_type = "ea_bert"
    vanilla_model_types = ("bert",)

    ea_residual_weight: float | int | None = None
    ea_conv_weight: float | int | None = None
    ea_kernel_size: int | list[int] | tuple[int, int] = 3
    ea_activation: str = "relu"
    ea_memory_efficient: bool = False
    ea_mixing: str = "convex"
    ea_conv_groups: int | str = 1
    ea_conv_every: int | None = None
    ea_conv_init: str = "normal"
    ea_post_mixing: str = "none"
    ea_head_kernel_size: int | None = None


__all__ = ["EABertConfig"]
