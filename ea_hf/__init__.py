# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Evolving attention for Hugging Face Transformers.

Importing this package registers its configurations and models with Transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertTokenizer,
)

from .configuration_ea_bert import EABertConfig
from .evolution import AttentionEvolution
from .modeling_ea_bert import (
    EABertForMaskedLM,
    EABertForMultipleChoice,
    EABertForPreTraining,
    EABertForQuestionAnswering,
    EABertForSequenceClassification,
    EABertForTokenClassification,
    EABertModel,
    EABertPreTrainedModel,
)


__version__ = "0.1.0.dev0"

AutoConfig.register(EABertConfig.model_type, EABertConfig, exist_ok=True)
AutoTokenizer.register(EABertConfig, tokenizer_class=BertTokenizer, exist_ok=True)
for auto_class, model_class in (
    (AutoModel, EABertModel),
    (AutoModelForPreTraining, EABertForPreTraining),
    (AutoModelForMaskedLM, EABertForMaskedLM),
    (AutoModelForSequenceClassification, EABertForSequenceClassification),
    (AutoModelForTokenClassification, EABertForTokenClassification),
    (AutoModelForQuestionAnswering, EABertForQuestionAnswering),
    (AutoModelForMultipleChoice, EABertForMultipleChoice),
):
    auto_class.register(model_class.config_class, model_class, exist_ok=True)

__all__ = [
    "AttentionEvolution",
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
