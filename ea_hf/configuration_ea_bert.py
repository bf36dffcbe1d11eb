# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-BERT configuration."""

from huggingface_hub.dataclasses import strict
from transformers import BertConfig

from .configuration_evolving import EvolvingConfig


@strict
class EABertConfig(EvolvingConfig, BertConfig):
    """Configuration of EA-BERT: `BertConfig` with the fields of `EvolvingConfig`.

    `EABertConfig.from_pretrained` also reads the configuration of a vanilla BERT checkpoint.

    Raises:
        ValueError: see `EvolvingConfig`; also for `is_decoder=True` or `add_cross_attention=True`, since EA-BERT is an
            encoder.
    """

    model_type = "ea_bert"
    vanilla_model_types = ("bert",)

    ea_residual_weight: float | int = 0.1
    ea_conv_weight: float | int = 0.1
    ea_kernel_size: int = 3
    ea_activation: str = "relu"
    ea_memory_efficient: bool = False

    def check(self) -> None:
        super().check()
        for name in ("is_decoder", "add_cross_attention"):
            if getattr(self, name):
                raise ValueError(f"`{name}` is True, but EA-BERT is an encoder. Set {name}=False.")


__all__ = ["EABertConfig"]
