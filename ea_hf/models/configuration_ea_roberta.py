# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-RoBERTa configuration."""

from huggingface_hub.dataclasses import strict
from transformers import RobertaConfig

from .configuration_evolving import EvolvingEncoderConfig


@strict
class EARobertaConfig(EvolvingEncoderConfig, RobertaConfig):
    """Configuration of EA-RoBERTa: `RobertaConfig` with the fields of `EvolvingConfig`.

    `EARobertaConfig.from_pretrained` also reads the configuration of a vanilla RoBERTa checkpoint.

    Raises:
        ValueError: see `EvolvingEncoderConfig`.
    """

    model_type = "ea_roberta"
    vanilla_model_types = ("roberta",)

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


__all__ = ["EARobertaConfig"]
