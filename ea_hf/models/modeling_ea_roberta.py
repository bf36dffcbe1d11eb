# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-RoBERTa: RoBERTa whose attention maps evolve from layer to layer (https://arxiv.org/abs/2102.12895).

Each class is its vanilla counterpart with an `AttentionEvolution` in every self-attention. Inputs, outputs and
parameter names are those of Transformers' RoBERTa; `output_attention_maps=True` adds `attention_maps` to the output, the
pre-softmax map of every layer, (batch, heads, query, key).
"""

from transformers.models.roberta.modeling_roberta import (
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    RobertaPreTrainedModel,
)

from .configuration_ea_roberta import EARobertaConfig
from .evolution import attach_evolution
from .modeling_evolving import EvolvingPreTrainedModel


class EARobertaPreTrainedModel(EvolvingPreTrainedModel, RobertaPreTrainedModel):
    config: EARobertaConfig


class EARobertaModel(EARobertaPreTrainedModel, RobertaModel):
    """The encoder, with a pooler unless `add_pooling_layer=False`."""

    def make_chains(self) -> None:
        attach_evolution(self.config, [layer.attention.self for layer in self.encoder.layer])


EARobertaPreTrainedModel.evolving_classes = {RobertaModel: EARobertaModel}


class EARobertaForMaskedLM(EARobertaPreTrainedModel, RobertaForMaskedLM):
    """Head for masked language modeling."""


class EARobertaForSequenceClassification(EARobertaPreTrainedModel, RobertaForSequenceClassification):
    """Head for classification or regression of a sentence or a pair, such as GLUE's tasks."""


class EARobertaForTokenClassification(EARobertaPreTrainedModel, RobertaForTokenClassification):
    """Head for the classification of each token, such as named entities."""


class EARobertaForQuestionAnswering(EARobertaPreTrainedModel, RobertaForQuestionAnswering):
    """Head for the start and the end of an answer in a text."""


class EARobertaForMultipleChoice(EARobertaPreTrainedModel, RobertaForMultipleChoice):
    """Head for the choice among several continuations; inputs are (batch, choices, sequence)."""


__all__ = [
    "EARobertaConfig",
    "EARobertaForMaskedLM",
    "EARobertaForMultipleChoice",
    "EARobertaForQuestionAnswering",
    "EARobertaForSequenceClassification",
    "EARobertaForTokenClassification",
    "EARobertaModel",
    "EARobertaPreTrainedModel",
]
