# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-RoBERTa configuration."""

from huggingface_hub.dataclasses import strict
from transformers import RobertaConfig

from .configuration_evolving import EvolvingEncoderConfig


@strict
class EARobertaConfig(EvolvingEncoderConfig, RobertaConfig):
    """Configuration of EA-RoBERTa: `RobertaConfig` with the fields of `EvolvingConfig`, as
    [`EABertConfig`][ea_hf.EABertConfig] is `BertConfig` with them.
    """

    model_type = "ea_roberta"
    vanilla_model_types = ("roberta",)


__all__ = ["EARobertaConfig"]
