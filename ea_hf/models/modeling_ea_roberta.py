# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-RoBERTa: RoBERTa whose attention maps evolve from layer to layer (https://arxiv.org/abs/2102.12895).

It is to Transformers' RoBERTa what EA-BERT is to BERT: vanilla checkpoints load. Where a class refers to one of EA-BERT, its
example is that one's with `EARoberta` in the place of `EABert` and a checkpoint such as `FacebookAI/roberta-base`.
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
    """What all classes of EA-RoBERTa share: loading, saving, initialization, and the chain of their layers.

    A base class as [`EABertPreTrainedModel`][ea_hf.EABertPreTrainedModel] is, for checkpoints of EA-RoBERTa and of RoBERTa.
    """

    config: EARobertaConfig


class EARobertaModel(EARobertaPreTrainedModel, RobertaModel):
    """The encoder, with a pooler unless `add_pooling_layer=False`.

    Takes and returns what [`EABertModel`][ea_hf.EABertModel] does; `token_type_ids` are all 0.
    """

    def make_chains(self) -> None:
        attach_evolution(self.config, [layer.attention.self for layer in self.encoder.layer])


EARobertaPreTrainedModel.evolving_classes = {RobertaModel: EARobertaModel}


class EARobertaForMaskedLM(EARobertaPreTrainedModel, RobertaForMaskedLM):
    """Head for masked language modeling.

    Takes and returns what [`EABertForMaskedLM`][ea_hf.EABertForMaskedLM] does; its mask is `<mask>`.
    """


class EARobertaForSequenceClassification(EARobertaPreTrainedModel, RobertaForSequenceClassification):
    """Head for classification or regression of a sentence or a pair, such as GLUE's tasks.

    Takes and returns what [`EABertForSequenceClassification`][ea_hf.EABertForSequenceClassification] does.
    """


class EARobertaForTokenClassification(EARobertaPreTrainedModel, RobertaForTokenClassification):
    """Head for the classification of each token, such as named entities.

    Takes and returns what [`EABertForTokenClassification`][ea_hf.EABertForTokenClassification] does.
    """


class EARobertaForQuestionAnswering(EARobertaPreTrainedModel, RobertaForQuestionAnswering):
    """Head for the start and the end of an answer in a text.

    Takes and returns what [`EABertForQuestionAnswering`][ea_hf.EABertForQuestionAnswering] does.
    """


class EARobertaForMultipleChoice(EARobertaPreTrainedModel, RobertaForMultipleChoice):
    """Head for the choice among several continuations.

    Takes and returns what [`EABertForMultipleChoice`][ea_hf.EABertForMultipleChoice] does.
    """


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
