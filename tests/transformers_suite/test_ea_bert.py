# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0

import unittest

from ea_hf import (
    EABertConfig,
    EABertForMaskedLM,
    EABertForMultipleChoice,
    EABertForPreTraining,
    EABertForQuestionAnswering,
    EABertForSequenceClassification,
    EABertForTokenClassification,
    EABertModel,
)

from .common import ENCODERS_LACK, EvolvingModelTesterMixin, TextModelTester, ids_tensor


class EABertModelTester(TextModelTester):
    config_class = EABertConfig
    type_vocab_size = 2

    def config_fields(self):
        return {
            **super().config_fields(),
            "intermediate_size": 37,
            "max_position_embeddings": 64,
            "type_vocab_size": self.type_vocab_size,
            # A compiled model draws other dropout masks than an eager one, and their gradients are compared.
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["token_type_ids"] = ids_tensor((self.batch_size, self.seq_length), self.type_vocab_size)
        return config, inputs


class EABertModelTest(EvolvingModelTesterMixin, unittest.TestCase):
    model_tester_class = EABertModelTester
    all_model_classes = (
        EABertModel,
        EABertForPreTraining,
        EABertForMaskedLM,
        EABertForSequenceClassification,
        EABertForTokenClassification,
        EABertForQuestionAnswering,
        EABertForMultipleChoice,
    )
    lacks = (*ENCODERS_LACK, "renamed weights")

    _torch_compile_train_cls = EABertForMaskedLM

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is EABertForPreTraining:  # the one head with two kinds of labels
            inputs["labels"] = inputs["input_ids"].clone()
            inputs["next_sentence_label"] = inputs["input_ids"][:, 0] % 2
        return inputs
