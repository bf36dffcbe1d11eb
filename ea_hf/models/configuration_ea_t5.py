# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-T5 configuration."""

import copy
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import MT5Config, T5Config

from .configuration_evolving import EvolvingConfig
from .evolution_cache import EvolvingDynamicLayer


@strict
class EAT5Config(EvolvingConfig, T5Config):
    """Configuration of EA-T5: `T5Config` with the fields of `EvolvingConfig`, and a switch for each of the three chains.

    `EAT5Config.from_pretrained` also reads the configuration of a vanilla T5 (also v1.1, with gated feed-forward
    layers) or mT5 checkpoint.

    Args:
        ea_encoder (`bool`, default True): whether the maps of the encoder's self-attention evolve.
        ea_decoder (`bool`, default True): whether those of the decoder's self-attention do.
        ea_cross_attention (`bool`, default True): whether those of the cross-attention do.

    Raises:
        ValueError: see `EvolvingConfig`; there are fewer than 4 buckets of relative positions.
    """

    model_type = "ea_t5"
    vanilla_model_types = ("t5", "mt5")

    ea_encoder: bool = True
    ea_decoder: bool = True
    ea_cross_attention: bool = True

    @property
    def has_only_causal_maps(self) -> bool:
        return not self.ea_encoder

    def check(self) -> None:
        super().check()
        # An encoder has half of them for each direction, and half of these for far distances, of which the logarithm is taken.
        if self.relative_attention_num_buckets < 4:
            raise ValueError(
                f"`relative_attention_num_buckets` is {self.relative_attention_num_buckets}; choose at least 4."
            )

    @classmethod
    def from_vanilla(cls, config_dict: dict[str, Any]) -> dict[str, Any]:
        if config_dict["model_type"] == MT5Config.model_type:  # other defaults, and logits that are not scaled
            config_dict = {**MT5Config().to_dict(), **config_dict, "scale_decoder_outputs": False}
        return super().from_vanilla(config_dict)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "EAT5Config":
        config = super().get_text_config(decoder=decoder, encoder=encoder)
        if decoder and not encoder:
            # From this Transformers makes caches: one layer for each of the decoder, of the kind that holds map rows.
            config = copy.deepcopy(config)
            config.num_layers = self.num_decoder_layers
            config.layer_types = [EvolvingDynamicLayer._layer_type] * config.num_layers
        return config


__all__ = ["EAT5Config"]
