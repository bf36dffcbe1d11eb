# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0

import unittest

from ea_hf import (
    EARobertaConfig,
    EARobertaForMaskedLM,
    EARobertaForMultipleChoice,
    EARobertaForQuestionAnswering,
    EARobertaForSequenceClassification,
    EARobertaForTokenClassification,
    EARobertaModel,
)

from .common import ENCODERS_LACK, EvolvingModelTesterMixin
from .test_ea_bert import EABertModelTester


class EARobertaModelTester(EABertModelTester):
    config_class = EARobertaConfig

    def prepare_config_and_inputs_for_common(self):
        """No padding token among the inputs: RoBERTa counts positions without it, which embeddings do not show."""
        config, inputs = super().prepare_config_and_inputs_for_common()
        input_ids = inputs["input_ids"]
        inputs["input_ids"] = input_ids + (input_ids == config.pad_token_id)
        return config, inputs


class EARobertaModelTest(EvolvingModelTesterMixin, unittest.TestCase):
    model_tester_class = EARobertaModelTester
    all_model_classes = (
        EARobertaModel,
        EARobertaForMaskedLM,
        EARobertaForSequenceClassification,
        EARobertaForTokenClassification,
        EARobertaForQuestionAnswering,
        EARobertaForMultipleChoice,
    )
    lacks = (*ENCODERS_LACK, "renamed weights")

    _torch_compile_train_cls = EARobertaForMaskedLM
