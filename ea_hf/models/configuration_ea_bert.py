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

    Examples:
        ```python
        config = ea_hf.EABertConfig(num_hidden_layers=4, ea_residual_weight=0.3, ea_conv_weight=0.3)
        model = ea_hf.EABertModel(config)  # from scratch
        ```
    """

    model_type = "ea_bert"
    vanilla_model_types = ("bert",)


__all__ = ["EABertConfig"]
