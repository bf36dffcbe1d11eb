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

    Examples:
        ```python
        config = ea_hf.EARobertaConfig(num_hidden_layers=4, ea_residual_weight=0.3, ea_conv_weight=0.3)
        model = ea_hf.EARobertaModel(config)  # from scratch
        ```
    """

    model_type = "ea_roberta"
    vanilla_model_types = ("roberta",)


__all__ = ["EARobertaConfig"]
