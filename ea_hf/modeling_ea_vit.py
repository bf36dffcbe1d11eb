# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-ViT: the Vision Transformer whose attention maps evolve from layer to layer (https://arxiv.org/abs/2102.12895).

Each class is its vanilla counterpart with an `AttentionEvolution` in every self-attention. Inputs, outputs and
parameter names are those of Transformers' ViT; `output_attention_maps=True` adds `attention_maps` to the output, the
pre-softmax map of every layer, (batch, heads, query, key). An image is a sequence: the class token, then the patches
row by row, and its map is convolved as that of a sequence.
"""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.vit.modeling_vit import (
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
    ViTPreTrainedModel,
)

from .configuration_ea_vit import EAViTConfig
from .evolution import EvolvingPreTrainedModel, attach_evolution, evolving_forward


class EAViTPreTrainedModel(EvolvingPreTrainedModel, ViTPreTrainedModel):
    config: EAViTConfig


class EAViTModel(EAViTPreTrainedModel, ViTModel):
    """The encoder, with a pooler unless `add_pooling_layer=False`.

    With `interpolate_pos_encoding=True` it takes images of any size, its position embeddings interpolated.
    """

    forward = evolving_forward(ViTModel.forward)

    def make_chains(self) -> None:
        attach_evolution(self.config, [layer.attention for layer in self.layers])


EAViTPreTrainedModel.evolving_classes = {ViTModel: EAViTModel}
# Checkpoints on the Hub have the parameter names of earlier versions of Transformers, which renames them by class name.
register_checkpoint_conversion_mapping("EAViTModel", get_checkpoint_conversion_mapping("ViTModel"), overwrite=True)


class EAViTForImageClassification(EAViTPreTrainedModel, ViTForImageClassification):
    """Head for the classification of an image, from its class token."""

    forward = evolving_forward(ViTForImageClassification.forward)


class EAViTForMaskedImageModeling(EAViTPreTrainedModel, ViTForMaskedImageModeling):
    """Head that reconstructs the pixels of masked patches."""

    forward = evolving_forward(ViTForMaskedImageModeling.forward)


__all__ = [
    "EAViTForImageClassification",
    "EAViTForMaskedImageModeling",
    "EAViTModel",
    "EAViTPreTrainedModel",
]
