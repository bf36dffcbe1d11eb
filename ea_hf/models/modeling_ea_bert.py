# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-BERT: BERT whose attention maps evolve from layer to layer (https://arxiv.org/abs/2102.12895).

Each class is its vanilla counterpart with an `AttentionEvolution` in every self-attention. Inputs, outputs and
parameter names are those of Transformers' BERT; `output_attention_maps=True` adds `attention_maps` to the output, the
pre-softmax map of every layer, (batch, heads, query, key).
"""

from transformers.models.bert.modeling_bert import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertPreTrainedModel,
)

from .configuration_ea_bert import EABertConfig
from .evolution import attach_evolution
from .modeling_evolving import EvolvingPreTrainedModel


class EABertPreTrainedModel(EvolvingPreTrainedModel, BertPreTrainedModel):
    config: EABertConfig


class EABertModel(EABertPreTrainedModel, BertModel):
    """The encoder, with a pooler unless `add_pooling_layer=False`."""

    def make_chains(self) -> None:
        attach_evolution(self.config, [layer.attention.self for layer in self.encoder.layer])


EABertPreTrainedModel.evolving_classes = {BertModel: EABertModel}


class EABertForPreTraining(EABertPreTrainedModel, BertForPreTraining):
    """Heads for masked language modeling and next-sentence prediction."""


class EABertForMaskedLM(EABertPreTrainedModel, BertForMaskedLM):
    """Head for masked language modeling."""


class EABertForSequenceClassification(EABertPreTrainedModel, BertForSequenceClassification):
    """Head for classification or regression of a sentence or a pair, such as GLUE's tasks."""


class EABertForTokenClassification(EABertPreTrainedModel, BertForTokenClassification):
    """Head for the classification of each token, such as named entities."""


class EABertForQuestionAnswering(EABertPreTrainedModel, BertForQuestionAnswering):
    """Head for the start and the end of an answer in a text."""


class EABertForMultipleChoice(EABertPreTrainedModel, BertForMultipleChoice):
    """Head for the choice among several continuations; inputs are (batch, choices, sequence)."""


__all__ = [
    "EABertConfig",
    "EABertForMaskedLM",
    "EABertForMultipleChoice",
    "EABertForPreTraining",
    "EABertForQuestionAnswering",
    "EABertForSequenceClassification",
    "EABertForTokenClassification",
    "EABertModel",
    "EABertPreTrainedModel",
]
