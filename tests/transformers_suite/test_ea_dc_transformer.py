# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0

import unittest

import torch
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING,
    MODEL_FOR_TIME_SERIES_REGRESSION_MAPPING,
)
from transformers_tests.test_modeling_common import floats_tensor, random_attention_mask

from ea_hf import (
    EADCTransformerConfig,
    EADCTransformerForClassification,
    EADCTransformerForMaskedImputation,
    EADCTransformerForRegression,
    EADCTransformerModel,
)

from .common import ENCODERS_LACK, EvolvingModelTesterMixin


class EADCTransformerModelTester:
    is_training = True
    batch_size = 5
    seq_length = 9
    num_input_channels = 3
    num_targets = 4
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4

    def config_fields(self):
        return {
            "num_input_channels": self.num_input_channels,
            "context_length": 12,
            "num_targets": self.num_targets,
            "d_model": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "ffn_dim": 37,
            "ea_residual_weight": 0.5,
            "ea_conv_weight": 0.5,
        }

    def get_config(self):
        return EADCTransformerConfig(**self.config_fields())

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.seq_length)
        return self.get_config(), {
            "past_values": floats_tensor((*shape, self.num_input_channels)),
            "past_observed_mask": random_attention_mask(shape),
        }


class EADCTransformerModelTest(EvolvingModelTesterMixin, unittest.TestCase):
    model_tester_class = EADCTransformerModelTester
    all_model_classes = (
        EADCTransformerModel,
        EADCTransformerForClassification,
        EADCTransformerForRegression,
        EADCTransformerForMaskedImputation,
    )
    has_text_modality = False
    test_resize_embeddings = False
    common_properties = ["hidden_size", "num_attention_heads", "num_hidden_layers", "num_input_channels"]
    lacks = (*ENCODERS_LACK, "embeddings of tokens", "renamed weights")

    _torch_compile_train_cls = EADCTransformerForClassification

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Transformers' tests do not know these tables.
        for mapping in (MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING, MODEL_FOR_TIME_SERIES_REGRESSION_MAPPING):
            cls.registered_names.add(mapping[EADCTransformerConfig].__name__)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        batch_size = self.model_tester.batch_size
        if return_labels and model_class is EADCTransformerForClassification:
            inputs["labels"] = torch.zeros(batch_size, dtype=torch.long)
        if return_labels and model_class is EADCTransformerForRegression:
            inputs["labels"] = torch.zeros(batch_size, self.model_tester.num_targets)
        if return_labels and model_class is EADCTransformerForMaskedImputation:
            inputs["bool_masked_pos"] = torch.arange(self.model_tester.seq_length).expand(batch_size, -1) % 3 == 0
        return inputs

    def test_attention_outputs(self):
        """One attention per augmented layer, two in a block; asked for in two ways."""
        steps = self.model_tester.seq_length
        expected = [(self.model_tester.batch_size, self.model_tester.num_attention_heads, steps, steps)] * 4
        self.check_attention_outputs(expected)

    def test_model_get_set_embeddings(self):
        """A series has values and no tokens, so there are no embeddings to get or set."""
        self.check_there_are_no_embeddings()
