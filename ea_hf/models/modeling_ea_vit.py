# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-ViT: the Vision Transformer whose attention maps evolve from layer to layer (https://arxiv.org/abs/2102.12895).

Each class is its vanilla counterpart with an `AttentionEvolution` in every self-attention. Inputs, outputs and
parameter names are those of Transformers' ViT; `output_attention_maps=True` adds `attention_maps` to the output, the
pre-softmax map of every layer, (batch, heads, query, key). An image is a sequence: the class token, then the patches
row by row, and its map is convolved as that of a sequence. So query and key 0 are the class token, and the patch in row i
and column j is number 1 + i * columns + j.
"""

import copy

import torch
from torch import nn
from transformers.models.vit.modeling_vit import (
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
    ViTPreTrainedModel,
)

from .configuration_ea_vit import EAViTConfig
from .evolution import attach_evolution
from .modeling_evolving import EvolvingPreTrainedModel
from .undocumented import convert_checkpoints_as


class EAViTPreTrainedModel(EvolvingPreTrainedModel, ViTPreTrainedModel):
    """What all classes of EA-ViT share, a base class as [`EABertPreTrainedModel`][ea_hf.EABertPreTrainedModel] is.

    With `output_attention_maps=True` outputs have `attention_maps`, each layer's (batch, heads, query, key).
    """

    config: EAViTConfig

    def resize_position_embeddings(self, image_size: int) -> None:
        """Makes this a model for square images of another size; the position embeddings are interpolated.

        Raises:
            ValueError: `patch_size` does not divide it.
        """
        config = copy.copy(self.config)
        config.image_size = image_size
        config.check()
        self.config.image_size = image_size
        embeddings = self.base_model.embeddings
        patches = embeddings.patch_embeddings
        patches.num_patches = (image_size // patches.patch_size[0]) * (image_size // patches.patch_size[1])
        tokens = embeddings.position_embeddings.new_empty(1, patches.num_patches + 1, self.config.hidden_size)
        with torch.no_grad():
            positions = embeddings.interpolate_pos_encoding(tokens, image_size, image_size).clone()
        embeddings.position_embeddings = nn.Parameter(positions)
        embeddings.image_size = patches.image_size = (image_size, image_size)


class EAViTModel(EAViTPreTrainedModel, ViTModel):
    """The encoder, with a pooler unless `add_pooling_layer=False`.

    Takes `pixel_values`, (batch, channels, height, width); with `interpolate_pos_encoding=True` of any size, the position
    embeddings interpolated.
    Returns `last_hidden_state`, (batch, 1 + patches, hidden_size), the class token first, and `pooler_output`, (batch, pooler_output_size).

    Examples:
        ```python
        model = ea_hf.EAViTModel.from_pretrained(name, ea_conv_weight=0.2)
        hidden_states = model(**inputs).last_hidden_state
        ```
    """

    def make_chains(self) -> None:
        attach_evolution(self.config, [layer.attention for layer in self.layers])


EAViTPreTrainedModel.evolving_classes = {ViTModel: EAViTModel}
# Checkpoints on the Hub have the parameter names of earlier versions of Transformers, which renames them by class name.
convert_checkpoints_as("EAViTModel", "ViTModel")


class EAViTForImageClassification(EAViTPreTrainedModel, ViTForImageClassification):
    """Head for the classification of an image, from its class token.

    Takes `pixel_values`, (batch, channels, height, width), and `labels`, (batch,), numbers of classes; with `num_labels=1`
    it is a regression, and labels are numbers. Returns `loss`, if there are labels, and `logits`, (batch, num_labels).

    Examples:
        ```python
        model = ea_hf.EAViTForImageClassification.from_pretrained(name, num_labels=10)
        probabilities = model(**inputs).logits.softmax(dim=-1)
        ```
    """


class EAViTForMaskedImageModeling(EAViTPreTrainedModel, ViTForMaskedImageModeling):
    """Head that reconstructs the pixels of masked patches.

    Takes `pixel_values`, (batch, channels, height, width), and `bool_masked_pos`, (batch, patches), True where a patch
    is masked.
    Returns `loss`, if patches are masked, and `reconstruction`, of the shape of `pixel_values`.

    Examples:
        ```python
        model = ea_hf.EAViTForMaskedImageModeling.from_pretrained(name)
        patches = (model.config.image_size // model.config.patch_size) ** 2
        masked = torch.rand(1, patches) < 0.5
        outputs = model(**inputs, bool_masked_pos=masked)
        ```
    """


__all__ = [
    "EAViTConfig",
    "EAViTForImageClassification",
    "EAViTForMaskedImageModeling",
    "EAViTModel",
    "EAViTPreTrainedModel",
]
